"""The kinds of input that Keras takes: arrays, datasets of one or several processes, `PyDataset`, iterators."""

import keras
import numpy as np
import tensorflow as tf

from tfp_glow.training import replicas


def source_of(x, y=None, batch_size=None):
  """One interface to all data that `fit` and its like are given.

  Args:
    x: Array, dict of arrays, `tf.data.Dataset`, `keras.utils.PyDataset`, iterator, or
      `tf.distribute.DistributedDataset` (made by a strategy of several processes from the share of each).
    y: Labels if `x` is an array, or `None`.
    batch_size: Python `int` if `x` holds arrays; `None`: 32, as in Keras.

  Returns:
    `Source`.
  """
  if isinstance(x, tf.data.Dataset):
    return _OfDataset(x)
  if isinstance(x, tf.distribute.DistributedDataset):
    return _OfDistributedDataset(x)
  if isinstance(x, keras.utils.PyDataset):
    return _OfPyDataset(x)
  if hasattr(x, "__next__"):
    return _OfIterator(x)
  return _OfArrays(x, y, batch_size or 32)


class Source:
  """Batches of any kind of input.

  Attributes:
    x: The `x` to give to `fit`. If `first_batch` has drawn from an iterator, it is a new one with that batch.
  """

  def __init__(self, x):
    self.x = x

  def specs(self):
    """A nest with a dtype and a shape for each part of a batch; `None` if they are not known before drawing.

    Raises:
      TypeError: if `x` is none of these kinds.
    """

  def is_empty(self):
    """Whether there is no image, as far as is known without drawing."""
    return False

  def is_endless(self):
    """Whether batches never end, as far as is known without drawing."""
    return False

  def first_batch(self):
    """The first batch; `None` if there is none."""
    raise NotImplementedError

  def spread_batch(self, count):
    """A batch of up to `count` events from all of the data; if it can only be read in order, the first batch."""
    del count
    return self.first_batch()

  def batches(self):
    """An iterable of all batches, and their number; `None` if it is unknown.

    Raises:
      ValueError: if the data is endless.
    """
    raise NotImplementedError


class _OfArrays(Source):

  def __init__(self, x, y, batch_size):
    super().__init__(x)
    self._parts = [x] if y is None else [x, y]
    self._data = x if y is None else (x, y)
    self._batch_size = batch_size

  def specs(self):
    if not all(_is_array(part) for part in keras.tree.flatten(self._data)):
      raise TypeError("`x` must be an array of images (`y` of labels), a dict of arrays, or a `tf.data.Dataset`. "
                      f"Received: {', '.join(type(part).__name__ for part in self._parts)}")
    return self._data

  def is_empty(self):
    return any(len(part) == 0 for part in keras.tree.flatten(self._data))

  def first_batch(self):
    return keras.tree.map_structure(lambda array: array[:self._batch_size], self._data)

  def spread_batch(self, count):
    return keras.tree.map_structure(lambda array: _spread(array, count), self._data)

  def batches(self):
    return _OfDataset(tf.data.Dataset.from_tensor_slices(self._data).batch(self._batch_size)).batches()


class _OfDataset(Source):

  def specs(self):
    return self.x.element_spec

  def is_empty(self):
    count = self.x.cardinality()
    return bool(count == 0 or count == tf.data.UNKNOWN_CARDINALITY and self.first_batch() is None)

  def is_endless(self):
    return bool(self.x.cardinality() == tf.data.INFINITE_CARDINALITY)

  def first_batch(self):
    return next(iter(self.x), None)

  def batches(self):
    if self.is_endless():
      raise ValueError(f"`x` must end. Received: {self.x!r}, which repeats forever")
    count = int(self.x.cardinality())
    return self.x, count if count >= 0 else None


class _OfDistributedDataset(Source):

  def specs(self):
    # All replicas have the same specs.
    return tf.nest.map_structure(lambda spec: tf.nest.flatten(spec, expand_composites=True)[0], self.x.element_spec)

  def first_batch(self):
    """The first batch of all replicas of all workers; all workers must call it."""
    batch = next(iter(self.x), None)
    return batch if batch is None else replicas.gathered(batch)

  def batches(self):
    raise ValueError("`x` must be a `tf.data.Dataset`: each process has only its share of a distributed one. "
                     f"Received: {self.x!r}")


class _OfPyDataset(Source):

  def is_endless(self):
    return self.x.num_batches is None

  def first_batch(self):
    return self.x[0]

  def batches(self):
    if self.is_endless():
      raise ValueError(f"`x` must end. Received: {self.x!r}, whose `num_batches` is None")
    count = self.x.num_batches
    return (self.x[i] for i in range(count)), count


class _OfIterator(Source):

  def first_batch(self):
    batch = next(self.x, None)
    if batch is not None:
      self.x = _with_first(batch, self.x)
    return batch

  def batches(self):
    return self.x, None


def _is_array(part):
  """Whether it has a first dimension and one dtype. Data frames and `tf.Variable`s do not have both."""
  return hasattr(part, "dtype") and hasattr(part, "__len__") and bool(len(getattr(part, "shape", ())))


def _spread(array, count):
  """One row of each of `count` equal parts of an array, because the array may be sorted.

  The rows are drawn, because rows may repeat periodically. They are the same for all arrays of the same length, and in
  all processes.
  """
  if len(array) <= count:
    return array
  rows = ((np.arange(count) + np.random.default_rng(0).random(count)) * (len(array) / count)).astype(np.int64)
  rows = np.minimum(rows, len(array) - 1)
  return tf.gather(array, rows) if tf.is_tensor(array) else np.asarray(array)[rows]


def _with_first(batch, rest):
  """A generator, because Keras takes no other iterators."""
  yield batch
  yield from rest

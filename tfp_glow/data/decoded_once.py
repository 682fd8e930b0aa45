"""Decodes slow images once, as long as there is room for them."""

import threading
import weakref

import tensorflow as tf

# Decoded images of all datasets of a process: 150,000 images of 64x64.
MAX_BYTES = 2 * 2**30
# What Python needs for an image besides its values.
_OVERHEAD = 600
# For one source: more than the threads that decode.
_NUM_LOCKS = 64

_all = weakref.WeakSet()
_lock = threading.Lock()  # Pipelines call from several threads.


class Room:
  """Room for images, reserved for the lifetime of this object."""

  def __init__(self, num_bytes):
    """Reserves it, whether it is free or not."""
    self._num_bytes = num_bytes
    with _lock:
      _all.add(self)


def is_room_for(num_bytes):
  """Whether this many bytes of `MAX_BYTES` are free."""
  with _lock:
    return sum(other._num_bytes for other in _all) + num_bytes <= MAX_BYTES


def held(examples, count, num_bytes):
  """A whole dataset as one batch, which is made at the first request and then kept.

  Args:
    examples: `tf.data.Dataset` of tuples.
    count: Python `int`, number of elements; 0: the batch has none.
    num_bytes: Python `int`, for each.

  Returns:
    A `tf.data.Dataset` of one element, a tuple.
  """
  if not count:
    none = tuple(tf.zeros([0, *spec.shape], spec.dtype) for spec in examples.element_spec)
    return tf.data.Dataset.from_tensors(none)
  # The window asks whether there is a second element: `cache` keeps only what was read to its end.
  kept = examples.batch(count).cache().window(2).flat_map(lambda *columns: tf.data.Dataset.zip(columns))
  kept.room = Room(count * num_bytes)  # As long as the images are there.
  return kept


class DecodedOnce:
  """A function from an image's number to the image, which remembers its results."""

  def __init__(self, decode):
    """Creates the function.

    Args:
      decode: Callable, from a Python `int` to an array.
    """
    self._decode = decode
    self._images = {}
    self._num_bytes = 0
    self._locks = [threading.Lock() for _ in range(_NUM_LOCKS)]
    with _lock:
      _all.add(self)

  def __call__(self, number):
    """Returns an image.

    Args:
      number: Integer scalar.

    Returns:
      The array that `decode` returned, the same each time; do not write to it. Images that do not fit into `MAX_BYTES`,
      shared by all living datasets, are decoded each time.
    """
    number = int(number)
    with self._locks[number % _NUM_LOCKS]:  # The next epoch may ask while this one is still decoding.
      image = self._images.get(number)
      if image is None:
        image = self._decode(number)
        self._keep(number, image)
    return image

  def _keep(self, number, image):
    with _lock:
      new_bytes = image.nbytes + _OVERHEAD
      if sum(other._num_bytes for other in _all) + new_bytes <= MAX_BYTES:
        self._images[number] = image
        self._num_bytes += new_bytes

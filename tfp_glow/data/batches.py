"""Makes the batches of `load_images` from a source of images: all of them, or the share of a worker."""

from typing import NamedTuple

import tensorflow as tf

from tfp_glow.data import order
from tfp_glow.data.source import Held

_as_it_is = tf.autograph.experimental.do_not_convert  # Conversion takes longer than the function itself.


class Passes(NamedTuple):
  """How the images come in each pass; all fields except `cut_at_random` are as in `load_images`."""

  shuffle: bool
  cut_at_random: bool  # Whether squares are cut out at random.
  seed: int
  drop_remainder: bool
  epochs: range | None
  skip_batches: int

  def num_batches(self, num_images, batch_size):
    """Batches in one pass."""
    return num_images // batch_size if self.drop_remainder else -(-num_images // batch_size)

  def num_skipped(self, number):
    """Number of batches to skip in the pass `number`; both are int64 scalars."""
    if not self.skip_batches:
      return tf.constant(0, tf.int64)
    return tf.where(number == self.epochs.start, tf.constant(self.skip_batches, tf.int64), 0)


def of_source(source, share, passes):
  """The dataset that `load_images` returns.

  Args:
    source: `Held` or `Stream`.
    share: `order.Share`.
    passes: `Passes`.

  Raises:
    ValueError: if there is no batch, or there are fewer batches than are to be skipped.
  """
  num_batches = passes.num_batches(source.num_images, share.batch_size)
  if not num_batches:
    raise ValueError(f"`batch_size` must be at most the number of images ({source.num_images}) if `drop_remainder` "
                     f"is True. Received: batch_size={share.batch_size}")
  if passes.skip_batches > num_batches:
    raise ValueError(f"`skip_batches` must be at most the number of batches of an epoch ({num_batches}). "
                     f"Received: skip_batches={passes.skip_batches}")
  cut_at_random = passes.cut_at_random
  dataset = (_of_held if isinstance(source, Held) else _of_stream)(source, share, passes)

  def decode(batch, places):
    held, *labels = batch
    images = source.decode(held, places)
    return (images, *labels) if labels else images

  dataset = dataset.map(decode if cut_at_random else lambda *batch: decode(batch, None),
                        num_parallel_calls=tf.data.AUTOTUNE)
  if len(share.parts) == 1:  # With several replicas Keras would mistake the number of elements for that of steps.
    num_batches = num_batches * (1 if passes.epochs is None else len(passes.epochs)) - passes.skip_batches
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
  # Workers that get the same dataset share each batch. Sharding by files, TensorFlow's default, would give batches that
  # differ from those of one process.
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
  return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


def _of_held(source, share, passes):
  """Batches of a `Held`, with places if squares are cut out at random."""
  num_images, shuffle, cut_at_random = source.num_images, passes.shuffle, passes.cut_at_random
  own = order.numbers_of(share, num_images, shuffle)

  @_as_it_is
  def one_pass(held, number):
    seeds = [tf.stack([passes.seed, 4 * number + purpose]) for purpose in range(4)]
    rows = order.shuffled(share, num_images, seeds[:3]) if shuffle else order.in_sequence(share.batch_size, num_images)
    places = tf.random.stateless_uniform([num_images, 2], seeds[3]) if cut_at_random else None

    @_as_it_is
    def pick(numbers):
      indices = numbers if len(own) == num_images else tf.searchsorted(own, numbers)
      batch = tuple(tf.gather(part, indices) for part in held)
      return (batch, tf.gather(places, numbers)) if cut_at_random else batch

    numbers = _numbers(rows, share, num_images, passes)
    return numbers.skip(len(share.parts) * passes.num_skipped(number)).map(pick)

  held = source.hold(own).repeat()
  return tf.data.Dataset.zip(held, _pass_numbers(passes)).flat_map(one_pass)


def _numbers(rows, share, num_images, passes):
  """Numbers of the images of each batch, grouped by replica."""
  batch_size = share.batch_size
  if share.parts == [(0, batch_size)]:
    numbers = tf.ensure_shape(tf.boolean_mask(rows, rows >= 0), [num_images])
    return tf.data.Dataset.from_tensor_slices(numbers).batch(batch_size, drop_remainder=passes.drop_remainder)
  num_parts, parts = len(share.parts), tf.constant(share.parts, tf.int64)
  num_batches = passes.num_batches(num_images, batch_size)

  @_as_it_is
  def of_part(index):
    first, end = tf.unstack(parts[index % num_parts])
    numbers = rows[index // num_parts, first:end]
    return tf.boolean_mask(numbers, numbers >= 0)

  return tf.data.Dataset.range(num_batches * num_parts).map(of_part)


def _pass_numbers(passes):
  """A number for each pass, which seeds it."""
  if passes.epochs is not None:
    return tf.data.Dataset.range(passes.epochs.start, passes.epochs.stop)
  if passes.shuffle:
    return tf.data.Dataset.random(passes.seed, rerandomize_each_iteration=True).take(1)
  return tf.data.Dataset.range(1)


def _of_stream(source, share, passes):
  """As `_of_held`, for a `Stream`: all workers read everything in each pass, and each keeps its share."""
  batch_size, epochs = share.batch_size, passes.epochs

  def one_pass(seed, num_skipped):
    examples = source.examples
    if passes.shuffle:
      # Before decoding: the buffer then holds compressed images.
      examples = examples.shuffle(source.shuffle_buffer, seed=seed, reshuffle_each_iteration=epochs is None)
    batches = examples.batch(batch_size, drop_remainder=passes.drop_remainder)
    if passes.cut_at_random:
      # A function of the pass and the position in it, like the order.
      batches = batches.enumerate().map(
          lambda index, batch: (batch, tf.random.stateless_uniform([batch_size, 2], tf.stack([seed, index]))))
    batches = batches.skip(num_skipped)
    return batches if share.parts == [(0, batch_size)] else batches.flat_map(of_parts)

  def of_parts(*batch):
    flat = tf.nest.flatten(batch)
    count = tf.shape(flat[0], tf.int64)[0]
    parts = tf.data.Dataset.from_tensor_slices(tf.constant(share.parts, tf.int64, [len(share.parts), 2]))

    def of_part(part):
      first, end = tf.unstack(part * count // batch_size)
      return tf.nest.pack_sequence_as(batch, [column[first:end] for column in flat])

    return parts.map(of_part)

  def one_epoch(number):
    # In this function's graph: `shuffle` compares a global seed of 0 with a seed that is a tensor, and fails.
    tf.compat.v1.set_random_seed(1)
    seed = tf.random.stateless_uniform([], [passes.seed, number], maxval=2**31, dtype=tf.int64)
    return one_pass(seed, passes.num_skipped(number))

  if epochs is None:
    return one_pass(tf.constant(passes.seed, tf.int64), 0)
  return _pass_numbers(passes).flat_map(one_epoch)

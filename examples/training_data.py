"""The training data of `train_glow.py`: splits of images, and their random shifts and mirror images."""

import functools

import tensorflow as tf

from tfp_glow import data, dequantize
from tfp_glow.training import replicas


def load_splits(args):
  """Batches of images to train, to choose the best epoch (validation), and to report (test).

  For class-conditional models they are pairs with labels. `"train"` is one epoch. `"train_epochs"` is a function of
  `epochs` and `skip_batches`, and `"load"` has for each split a function of other arguments of `load_images`.
  """
  load = functools.partial(
      data.load_images, args.data, batch_size=args.batch_size, image_size=args.image_size,
      shorter_side=args.shorter_side, with_labels=args.conditional, seed=args.seed, data_dir=args.data_dir)
  # Many data sets of TFDS have no validation split, and some have no test split.
  has_test, test_split = _first_that_exists(load, "test", "train[90%:]")
  has_validation, validation_split = _first_that_exists(
      load, "validation", "train[95%:]" if has_test else "train[85%:90%]")
  train_split = "train" if has_validation else "train[:95%]" if has_test else "train[:85%]"
  names = {"train": train_split, "validation": validation_split, "test": test_split}
  height, width, _ = image_shape(load(test_split))
  if args.max_shift > min(height, width):
    raise ValueError(f"--max-shift must not be larger than the images, {height}x{width}. Received: {args.max_shift:g}")
  loaders = {split: functools.partial(load, name) for split, name in names.items()}
  return {**{split: load() for split, load in loaders.items()}, "train_epochs": loaders["train"], "load": loaders}


def _first_that_exists(load, split, part):
  """Whether there is the split, and its name or the part of another split."""
  try:
    load(split)
    return True, split
  except ValueError as error:
    try:
      load(part)
      return False, part
    except ValueError:
      raise error from None


def of_workers(splits, strategy, split, make=None):
  """The dataset of a split for the processes of a strategy. Each process loads and decodes its own share.

  Args:
    splits: From `load_splits`. Without `"load"`, as for points, each process gets everything.
    strategy: `tf.distribute.Strategy`.
    split: `"train"`, `"validation"` or `"test"`.
    make: Function to a dataset from two arguments: a function that loads the split, with further arguments of
      `load_images`, and the number of elements in a batch of a process, one for each of its replicas. `None`: the
      dataset of the split.
  """
  if "load" not in splits or not replicas.has_workers(strategy):
    return splits[split] if make is None else make(splits[f"{split}_epochs"], 1)

  def of_worker(context):
    load = functools.partial(splits["load"][split], input_context=context)
    if make is None:
      return load()
    # With an endless dataset, workers need not tell each other at each step whether the end has come.
    return make(load, context.num_replicas_in_sync // context.num_input_pipelines).repeat()

  return strategy.distribute_datasets_from_function(of_worker)


def to_train(splits, strategy, args, epochs, num_trained):
  """Augmented batches of a `range` of epochs, without the first `num_trained` batches, which a run has already had."""
  first_step = epochs.start * len(splits["train"]) + num_trained
  return of_workers(splits, strategy, "train", lambda load, elements_a_step: augment(
      load(epochs=epochs, skip_batches=num_trained), args, first_step, elements_a_step))


def image_shape(dataset):
  """Shape `(H, W, C)` of the images of a dataset of batches, with or without labels."""
  spec = dataset.element_spec
  return tuple((spec[0] if isinstance(spec, tuple) else spec).shape[1:])


def augment(dataset, args, first_step, elements_a_step=1):
  """Random shifts and mirror images of a dataset of batches.

  They depend on the image and its step, not on its place in a batch that several workers share.

  Args:
    dataset: `tf.data.Dataset` of images, or of pairs with labels.
    args: With `max_shift`, `shift_fill`, `flip` and `seed`.
    first_step: Python `int`, the number of the first step.
    elements_a_step: Python `int`, number of elements in one step.
  """
  if not (args.max_shift or args.flip):
    return dataset

  def augment_batch(batch, step):
    images, *labels = batch if isinstance(batch, tuple) else (batch,)
    draws = _draws_of_each(images, tf.stack([tf.constant(args.seed, tf.int64), step]))
    if args.max_shift:
      images = shift(images, args.max_shift, args.shift_fill, (2. * draws[:, :2] - 1.) * args.max_shift)
    if args.flip:
      is_mirrored = draws[:, 2] < 0.5
      images = tf.where(is_mirrored[:, tf.newaxis, tf.newaxis, tf.newaxis], tf.reverse(images, [2]), images)
    return (images, *labels) if labels else images

  steps = tf.data.Dataset.counter().map(lambda element: first_step + element // elements_a_step)
  dataset = tf.data.Dataset.zip(dataset, steps).map(augment_batch, num_parallel_calls=tf.data.AUTOTUNE)
  return dataset.prefetch(tf.data.AUTOTUNE)


def _draws_of_each(images, seed):
  """Uniform numbers `[N, 8]`, one row per image."""
  seeds = tf.random.experimental.stateless_split(seed, 2)
  weights = tf.random.stateless_uniform(tf.shape(images)[1:], seeds[0], minval=None, maxval=None, dtype=tf.int64)
  hashes = tf.reduce_sum(tf.cast(images, tf.int64) * weights, [1, 2, 3])
  return dequantize.image_noise(tf.bitcast(hashes, tf.uint8), seeds[1])


def shift(images, max_shift, fill, offsets):
  """Shifts each image by `offsets` `[N, 2]`, at most `max_shift`, rounded to pixels.

  Pixels that move in are zeros, or with `fill="nearest"` repetitions of the border.
  """
  margin = round(max_shift)
  padded = tf.pad(images, [[0, 0], [margin, margin], [margin, margin], [0, 0]])

  def places(size, offset):
    found = tf.range(size) + tf.cast(tf.round(offset), tf.int32)
    return margin + (tf.clip_by_value(found, 0, size - 1) if fill == "nearest" else found)

  rows, columns = (places(images.shape[i + 1], offsets[:, i:i + 1]) for i in range(2))
  return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)

"""What `train_glow.py` trains on: splits of images, and their random shifts and mirror images."""

import functools

import tensorflow as tf

from tfp_glow import data


def load_splits(args):
  """Batches of images to train, to choose the best epoch (validation), and to report (test); of pairs with labels for
  class-conditional models.

  `"train"` is one epoch; `"train_epochs"` is a function from a `range` of epochs to the dataset of them.
  """
  load = functools.partial(
      data.load_images, args.data, batch_size=args.batch_size, image_size=args.image_size,
      shorter_side=args.shorter_side, with_labels=args.conditional, seed=args.seed, data_dir=args.data_dir)
  # Many a data set of TFDS has no validation split, and some have no test split.
  has_test, test = _first_that_exists(load, "test", "train[90%:]")
  has_validation, validation = _first_that_exists(load, "validation", "train[95%:]" if has_test else "train[85%:90%]")
  train_split = "train" if has_validation else "train[:95%]" if has_test else "train[:85%]"
  height, width, _ = image_shape(test)
  if args.max_shift > min(height, width):
    raise ValueError(f"--max-shift must not be larger than the images, {height}x{width}. Received: {args.max_shift:g}")
  return {"train": load(train_split), "train_epochs": functools.partial(load, train_split), "validation": validation,
          "test": test}


def _first_that_exists(load, split, part):
  """Whether there is the split, and its images or those of a part of another split."""
  try:
    return True, load(split)
  except ValueError as error:
    try:
      return False, load(part)
    except ValueError:
      raise error from None


def image_shape(dataset):
  """Shape `(H, W, C)` of the images of a dataset of batches, with or without labels."""
  spec = dataset.element_spec
  return tuple((spec[0] if isinstance(spec, tuple) else spec).shape[1:])


def augment(dataset, args, first_step):
  """Random shifts and mirror images of a dataset of batches, which depend on the step at which a batch comes alone."""

  def augment_batch(batch, step):
    images, *labels = batch if isinstance(batch, tuple) else (batch,)
    seeds = tf.random.experimental.stateless_split([args.seed, step], 2)
    if args.max_shift:
      images = shift_randomly(images, args.max_shift, args.shift_fill, seeds[0])
    if args.flip:
      is_mirrored = tf.random.stateless_uniform(tf.shape(images)[:1], seeds[1]) < 0.5
      images = tf.where(is_mirrored[:, tf.newaxis, tf.newaxis, tf.newaxis], tf.reverse(images, [2]), images)
    return (images, *labels) if labels else images

  steps = tf.data.Dataset.counter(first_step)
  dataset = tf.data.Dataset.zip(dataset, steps).map(augment_batch, num_parallel_calls=tf.data.AUTOTUNE)
  return dataset.prefetch(tf.data.AUTOTUNE)


def shift_randomly(images, max_shift, fill, seed):
  """Shifts each image by amounts uniform up to `max_shift` in both directions, rounded to pixels.

  What moves in are zeros, or with `fill="nearest"` repetitions of the border.
  """
  margin = round(max_shift)
  offsets = tf.random.stateless_uniform([tf.shape(images)[0], 2], seed, -max_shift, max_shift)
  padded = tf.pad(images, [[0, 0], [margin, margin], [margin, margin], [0, 0]])

  def places(size, offset):
    found = tf.range(size) + tf.cast(tf.round(offset), tf.int32)
    return margin + (tf.clip_by_value(found, 0, size - 1) if fill == "nearest" else found)

  rows, columns = (places(images.shape[i + 1], offsets[:, i:i + 1]) for i in range(2))
  return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)

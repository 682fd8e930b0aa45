"""Squares of images: shrunk, cut out, padded with zeros."""

import tensorflow as tf


def fit(image, image_size, shorter_side, place):
  """Shrinks, cuts out a square and zero-pads to `image_size`; see `load_images`.

  Args:
    image: uint8 or uint16 tensor `[H, W, C]`, or `[B, H, W, C]`.
    image_size: Python `int`; None: the image stays as it is.
    shorter_side: Python `int` or None.
    place: Tensor `[2]` of numbers in [0, 1), top to bottom and left to right; None: the middle.
  """
  if image_size is None:
    return image
  if shorter_side is not None:
    image = _cut(_shrink(image, shorter_side), image_size, place)
  return tf.ensure_shape(crop_and_fit(image, image_size), [*image.shape[:-3], image_size, image_size, image.shape[-1]])


def _shrink(image, shorter_side):
  """Reduces an image to this shorter side; smaller images stay unchanged."""
  size = tf.shape(image)[-3:-1]
  shorter = tf.reduce_min(size)
  size = (size * tf.minimum(shorter, shorter_side) + shorter // 2) // shorter
  return tf.saturate_cast(tf.round(tf.image.resize(image, size, antialias=True)), image.dtype)


def _cut(image, image_size, place):
  """Cuts out a square, or less where the image is smaller."""
  size = tf.minimum(tf.shape(image)[-3:-1], image_size)
  free = tf.shape(image)[-3:-1] - size
  start = free // 2 if place is None else tf.cast(place * tf.cast(free + 1, tf.float32), tf.int32)
  (top, left), (bottom, right) = tf.unstack(start), tf.unstack(start + size)
  return image[..., top:bottom, left:right, :]


def crop_and_fit(image, image_size):
  """Crops to the central square, then shrinks or zero-pads to `image_size`."""
  is_static = image.shape[-3:].is_fully_defined()
  height, width, _ = image.shape[-3:] if is_static else tf.unstack(tf.shape(image)[-3:])
  minimum = min if is_static else tf.minimum
  side = minimum(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  image = image[..., top:top + side, left:left + side, :]
  shrunk = minimum(side, image_size)
  # A resize to the same size (padding follows) returns the values unchanged.
  if not is_static or shrunk < side:
    resized = tf.image.resize(image, [shrunk, shrunk], antialias=True)
    image = tf.saturate_cast(tf.round(resized), image.dtype)
  before = (image_size - shrunk) // 2
  after = image_size - shrunk - before
  return tf.pad(image, [*[[0, 0]] * (image.shape.rank - 3), [before, after], [before, after], [0, 0]])

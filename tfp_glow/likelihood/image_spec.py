"""`ImageSpec`: which images and labels a model takes."""

import tensorflow as tf

from tfp_glow.likelihood import dequantize


class ImageSpec:
  """Shape, dtype and classes of the images of a model, and checks against them."""

  def __init__(self, event_shape, dtype, num_bits, num_classes):
    """Creates the spec.

    Args:
      event_shape: `tf.TensorShape` of one image, all of it known.
      dtype: Floating dtype of the values that the model computes with.
      num_bits: Python `int`, 1 .. 8, for uint8 images; `None` for continuous data.
      num_classes: Python `int`; `None`: the images have no classes.

    Raises:
      ValueError: if `num_bits` is not as above.
    """
    if num_bits is not None:
      dequantize.check_num_bits(num_bits)
    self.event_shape = event_shape
    self.dtype = tf.as_dtype(dtype)
    self.num_bits = num_bits
    self.num_classes = num_classes

  @property
  def image_dtype(self):
    """uint8, or that of the values for continuous data."""
    return self.dtype if self.num_bits is None else tf.uint8

  def checked_images(self, images):
    """Images as a tensor of the right dtype, with the static shape `[N] + event_shape`.

    Raises:
      TypeError: if the dtype does not fit `num_bits`.
      ValueError: if the shape is not `[N] + event_shape`.
    """
    if images is None:
      raise TypeError("`images` must be an array or tensor. Received: None")
    images = tf.convert_to_tensor(images)
    self.check_images(images)
    return tf.ensure_shape(tf.cast(images, self.image_dtype), [None] + self.event_shape.as_list())

  def check_images(self, images):
    """Checks anything with a `dtype` and a `shape`; raises as `checked_images`."""
    dtype, shape = tf.as_dtype(images.dtype), tf.TensorShape(images.shape)
    if dtype != tf.uint8 if self.num_bits else not dtype.is_floating:
      wanted = ("uint8, values 0 .. 255, whatever `num_bits`" if self.num_bits else
                "floating, as the model was made with `num_bits=None`")
      raise TypeError(f"`images` must be {wanted}. Received: {dtype.name}")
    if not shape.is_compatible_with(tf.TensorShape([None]).concatenate(self.event_shape)):
      raise ValueError(f"`images` must have shape {[None] + self.event_shape.as_list()}. Received: {shape}")

  def condition(self, labels):
    """Keyword arguments of the bijector for these labels.

    Raises:
      ValueError: if labels are missing, given where there are no classes, or not of shape `[N]`.
      TypeError: if they are not integers.
    """
    if labels is not None and not hasattr(labels, "shape"):
      labels = tf.convert_to_tensor(labels)
    self.check_labels(labels)
    if labels is None:
      return {}
    labels = tf.convert_to_tensor(labels)
    if labels.dtype.size > 4:  # Too large ones would come round to others.
      labels = tf.where(tf.cast(tf.cast(labels, tf.int32), labels.dtype) == labels, labels, tf.cast(-1, labels.dtype))
    return {"labels": tf.cast(labels, tf.int32)}

  def check_labels(self, labels):
    """Checks `None` or anything with a `dtype` and a `shape`; raises as `condition`."""
    if (labels is None) != (self.num_classes is None):
      raise ValueError(
          f"`labels` must be given: the model has {self.num_classes} classes. Received: None" if labels is None else
          f"`labels` must be None: the model has no classes. Received: {labels!r}")
    if labels is None:
      return
    dtype, shape = tf.as_dtype(labels.dtype), tf.TensorShape(labels.shape)
    if not dtype.is_integer:
      raise TypeError(f"`labels` must be integers. Received: {dtype.name}")
    if shape.rank not in (None, 0, 1):
      raise ValueError(f"`labels` must be one integer for each image, shape [N]. Received: shape {shape}")

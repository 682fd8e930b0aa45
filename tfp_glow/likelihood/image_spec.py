"""`ImageSpec`: which images, labels and contexts a model takes."""

import tensorflow as tf

from tfp_glow._core import validation
from tfp_glow.likelihood import dequantize

# The label of an image of unknown class.
UNKNOWN = -1


class ImageSpec:
  """Shape, dtype, classes and contexts of the images of a model, and checks against them.

  A condition is what a model is told about images: a dict with the keys `"labels"` and `"context"`. Either may be
  absent or `None`.
  """

  def __init__(self, event_shape, dtype, num_bits, num_classes, context_shape=None):
    """Creates the spec.

    Args:
      event_shape: `tf.TensorShape` of one image, fully defined.
      dtype: Floating dtype of the values that the model computes with.
      num_bits: Python `int`, 1 .. 8 for uint8 images, 9 .. 16 for uint16 ones; `None` for continuous data.
      num_classes: Python `int`; `None`: the images have no classes.
      context_shape: Tuple of `int`s, the shape of the context of one image, or a dict from names to such shapes;
        `None`: the images have no context.

    Raises:
      ValueError: if `num_bits` is not as above.
    """
    if num_bits is not None:
      dequantize.check_num_bits(num_bits)
    self.event_shape = event_shape
    self.dtype = tf.as_dtype(dtype)
    self.num_bits = num_bits
    self.num_classes = num_classes
    self.context_shape = context_shape

  @property
  def image_dtype(self):
    """uint8, uint16 for more than 8 bits, or the dtype of the values for continuous data."""
    return self.dtype if self.num_bits is None else dequantize.image_dtype(self.num_bits)

  def checked_images(self, images):
    """Images as a tensor of the right dtype, with the static shape `[N] + event_shape`.

    Raises:
      TypeError: if they are not an array or tensor, or the dtype does not fit `num_bits`.
      ValueError: if the shape is not `[N] + event_shape`, or values have more bits than the model allows.
    """
    images = validation.checked_tensor("images", images)
    self.check_images(images)
    images = tf.ensure_shape(tf.cast(images, self.image_dtype), [None] + self.event_shape.as_list())
    if not self._may_have_too_many_bits:
      return images
    if tf.executing_eagerly():
      self.check_values(images.numpy())
      return images
    largest = tf.reduce_max(tf.cast(images, tf.int32))
    is_right = largest <= dequantize.largest_value(self.num_bits)
    with tf.control_dependencies([tf.debugging.Assert(is_right, [self._range_message(), largest])]):
      return tf.identity(images)

  def check_images(self, images):
    """Checks anything with a `dtype` and a `shape`; raises as `checked_images`."""
    dtype, shape = tf.as_dtype(images.dtype), tf.TensorShape(images.shape)
    if dtype != self.image_dtype if self.num_bits else not dtype.is_floating:
      raise TypeError(f"`images` must be {self._wanted(dtype)}. Received: {dtype.name}")
    if not shape.is_compatible_with(tf.TensorShape([None]).concatenate(self.event_shape)):
      raise ValueError(f"`images` must have shape {[None] + self.event_shape.as_list()}. Received: {shape}")

  def check_values(self, images):
    """Raises `ValueError` for an array whose values have more bits than the model allows."""
    if self._may_have_too_many_bits and images.size and images.max() > dequantize.largest_value(self.num_bits):
      raise ValueError(f"{self._range_message()} {images.max()}")

  @property
  def _may_have_too_many_bits(self):
    """Whether the dtype of images has values that the model does not allow."""
    return self.num_bits is not None and dequantize.largest_value(self.num_bits) < self.image_dtype.max

  def _range_message(self):
    return (f"`images` must have {self.num_bits} bits, values 0 .. {dequantize.largest_value(self.num_bits)}, because "
            f"the model was made with `num_bits={self.num_bits}`. For images of 16 bits, `images >> "
            f"{16 - self.num_bits}` drops the lowest bits. Received: values up to")

  def _wanted(self, found):
    """What images should be, for an error about images of the dtype `found`."""
    if self.num_bits is None:
      return "floating, because the model was made with `num_bits=None`"
    if self.image_dtype == tf.uint8:
      of_more = (" up to 8 (for images of more bits make the model with `num_bits` in 9 .. 16, or reduce them: "
                 "`(images >> 8).astype(np.uint8)` for 16 bits)")
      return "uint8, values 0 .. 255, for any `num_bits`" + of_more * (found.is_integer and found.size > 1)
    largest = dequantize.largest_value(self.num_bits)
    return (f"uint16, values 0 .. {largest}, because the model was made with `num_bits={self.num_bits}` (for uint8 "
            "images make it with `num_bits` in 1 .. 8)")

  def taken(self, condition):
    """The entries of a condition that the model takes. Data may hold more, which is not used."""
    takes = {"labels": self.num_classes is not None, "context": self.context_shape is not None}
    return {key: value for key, value in condition.items() if takes[key]}

  def condition(self, condition):
    """Keyword arguments of the bijector: int32 `labels`, and a `context` in the dtype of the values.

    Args:
      condition: Dict, or `None` for an empty one. `labels`: `[N]`, or a scalar for all images; they may be `UNKNOWN`.
        `context`: `[N] + context_shape`.

    Raises:
      ValueError: if an entry is missing or not taken by the model, or a shape does not fit.
      TypeError: if labels are not integers, or contexts not floating.
    """
    condition = condition or {}
    labels = self.checked_labels(condition.get("labels"))
    context = self.checked_context(condition.get("context"))
    return ({} if labels is None else {"labels": labels}) | ({} if context is None else {"context": context})

  def checked_labels(self, labels):
    """Labels as an int32 tensor, or `None` if there are none; raises as `condition`."""
    if labels is not None and not hasattr(labels, "shape"):
      labels = validation.checked_tensor("labels", labels)
    self.check_labels(labels)
    if labels is None:
      return None
    labels = tf.convert_to_tensor(labels)
    if labels.dtype.size > 4:  # Labels too large for int32 would become valid ones.
      none = tf.cast(UNKNOWN - 1, labels.dtype)
      labels = tf.where(tf.cast(tf.cast(labels, tf.int32), labels.dtype) == labels, labels, none)
    return tf.cast(labels, tf.int32)

  def checked_context(self, context, is_batch=True):
    """A context, or a dict of them, as tensors of the dtype of the values; `None` if there is none.

    Args:
      context: Array or tensor, or a dict of them, or `None`.
      is_batch: Python `bool`: whether each image must have its own. Otherwise one for all is allowed.

    Raises:
      ValueError: if it is missing or not taken by the model, or its shape or keys do not fit.
      TypeError: if it is not floating.
    """
    if isinstance(context, dict):
      context = {name: validation.checked_tensor(f"context[{name!r}]", part) for name, part in context.items()}
    elif context is not None:
      context = validation.checked_tensor("context", context)
    self.check_context(context, is_batch)
    return None if context is None else tf.nest.map_structure(lambda part: tf.cast(part, self.dtype), context)

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

  def check_context(self, context, is_batch=True):
    """Checks `None`, or anything with a `dtype` and a `shape`, or a dict; raises as `checked_context`."""
    if (context is None) != (self.context_shape is None):
      raise ValueError(
          f"`context` must be given: the model takes contexts of shape {self.context_shape}. Received: None"
          if context is None else f"`context` must be None: the model takes no contexts. Received: {context!r}")
    if context is None:
      return
    for name, part, shape in self.context_parts(context):
      dtype, found, one = tf.as_dtype(part.dtype), tf.TensorShape(part.shape), tf.TensorShape(shape)
      if not dtype.is_floating:
        raise TypeError(f"`{name}` must be floating, scaled to about -1 .. 1. Received: {dtype.name}")
      if not found.is_compatible_with(tf.TensorShape([None]).concatenate(one)) and (
          is_batch or not found.is_compatible_with(one)):
        expected = f"{[None, *shape]}" + f", or {list(shape)}, one for all" * (not is_batch)
        raise ValueError(f"`{name}` must have shape {expected}. Received: {found}")

  def context_parts(self, context):
    """For each context, in the order of `tf.nest`: a name for errors, what was given, and the shape of one.

    Raises:
      ValueError: if there is a dict instead of a tensor, or a tensor instead of a dict, or keys do not fit.
    """
    if not isinstance(self.context_shape, dict):
      if isinstance(context, dict):
        raise ValueError(f"`context` must be one tensor, of shape {[None, *self.context_shape]}. "
                         f"Received: a dict with the keys {list(context)}")
      return [("context", context, self.context_shape)]
    if not isinstance(context, dict) or context.keys() != self.context_shape.keys():
      raise ValueError(f"`context` must be a dict with the keys {sorted(self.context_shape)}. Received: " + (
          f"one with the keys {list(context)}" if isinstance(context, dict) else "no dict"))
    return [(f"context[{name!r}]", context[name], shape) for name, shape in sorted(self.context_shape.items())]

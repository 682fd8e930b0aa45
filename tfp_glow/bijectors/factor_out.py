"""Channels that leave the flow as latents, normalised by a learned Gaussian."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat, precision
from tfp_glow._core.numerics import bounded, log_scale_of, within_reach
from tfp_glow._core.products import conv2d
from tfp_glow._core.validation import check_bools, check_counts
from tfp_glow.bijectors import contexts
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.networks.glow import ZeroConv2D, border_response

# The deviations of the learned Gaussians lie between exp(-8) and exp(8). With 8 bits and actnorms, exp(-6) is the
# deviation of the dequantization noise. The network's output for an odd image has no bound, and the square of noise of
# 1e19 overflows.
_MAX_LOG_SCALE = 8.


def _whiten(values, mean, log_scale):
  """Data to noise under `Normal(mean, exp(log_scale))`, per element, with the log-det per event."""
  noise = (values - mean) / tf.exp(log_scale)
  return noise, -tf.reduce_sum(log_scale, axis=list(range(1, log_scale.shape.rank)))


def _color(noise, mean, log_scale):
  """The inverse of `_whiten`."""
  return noise * tf.exp(log_scale) + mean, tf.reduce_sum(log_scale, axis=list(range(1, log_scale.shape.rank)))


def _context_like(event_shape, context_shape):
  """The `tf.TensorShape` of contexts, images of the events' height and width; `None` for `None`."""
  shape = contexts.checked_context_shape(context_shape)
  if shape is not None and (not isinstance(shape, tf.TensorShape) or shape[:-1] != event_shape[:-1]):
    raise ValueError("`context_shape` must be [H, W, F] with the height and width of `event_shape`, "
                     f"{event_shape}. Received: {context_shape}")
  return shape


class FactorOut(OnePassBijector):
  """The multi-scale split with its learned Gaussian.

  ```none
  y1, y2 = split(y)
  h = zero_conv(y1)
  mean, log_scale = h[..., 0::2], h[..., 1::2]
  inverse(y) = concat(y1, (y2 - mean) * exp(-log_scale))
  inverse log-det = -sum(log_scale)
  ```

  The second half of the output is a latent. It is standard normal if the model is right. In a `GlowBijector` it
  leaves the flow there. A context is an image of the same height and width; the convolution sees the channels of both.

  References:
    Dinh et al., "Density estimation using Real NVP" (2016), section 3.6. The learned Gaussian follows the original
    code of Kingma and Dhariwal, "Glow" (2018).
  """

  def __init__(self, event_shape: Sequence[int] | tf.TensorShape, dtype: tf.DType | str | None = None,
               validate_args: bool = False, name: str = "factor_out", context_shape: Sequence[int] | None = None):
    """Creates the split; it starts as the identity.

    Args:
      event_shape: `[H, W, C]`, `C` even.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.
      context_shape: `[H, W, F]` of the `context` that calls then take; `None`: no context.

    Raises:
      ValueError: if `event_shape` is not `[H, W, C]` with `C` even, or `context_shape` not as above.
    """
    parameters = dict(locals())
    event_shape = tf.TensorShape(event_shape)
    if event_shape.rank != 3 or event_shape[-1] is None or event_shape[-1] % 2:
      raise ValueError(f"`event_shape` must be [H, W, C] with C even. Received: {event_shape}")
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self._context = _compat.untracked(self, _context_like(event_shape, context_shape))
    network = ZeroConv2D(event_shape[-1], num_groups=2, dtype=self.dtype.name, name=f"{name}_conv")
    num_context = 0 if self._context is None else self._context[-1]
    network.build((None, *event_shape[:-1], event_shape[-1] // 2 + num_context))
    self.network = network
    self._adopt(network.variables)

  @property
  def argument_names(self) -> frozenset[str]:
    return frozenset() if self._context is None else frozenset({"context"})

  @property
  def context_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    return contexts.as_public(self._context)

  def _forward_and_log_det(self, x, context=None):
    y, log_det = self.merge(*tf.split(x, 2, axis=-1), context)
    return y, log_det

  def _inverse_and_log_det(self, y, context=None):
    kept, noise, log_det = self.split(y, context)
    return tf.concat([kept, noise], axis=-1), log_det

  def split(self, y: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`inverse` in two halves: the one that stays, the one that leaves, and the log-det.

    Args:
      y: Tensor `[N, H, W, C]`.
      context: Tensor `[N, H, W, F]`, if the split has a context.

    Returns:
      kept: Tensor `[N, H, W, C // 2]`.
      noise: Tensor of the same shape, the half that leaves.
      log_det: Tensor `[N]`.
    """
    kept, leaving = tf.split(y, 2, axis=-1)
    noise, log_det = _whiten(leaving, *self._gaussian(kept, context))
    return kept, noise, log_det

  def merge(self, kept: tf.Tensor, noise: tf.Tensor,
            context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """`forward` of the two halves: value and log-det.

    Args:
      kept: Tensor `[N, H, W, C // 2]`.
      noise: Tensor of the same shape.
      context: As in `split`.

    Returns:
      y: Tensor `[N, H, W, C]`.
      log_det: Tensor `[N]`.
    """
    leaving, log_det = _color(noise, *self._gaussian(kept, context))
    return tf.concat([kept, leaving], axis=-1), log_det

  def _gaussian(self, kept, context):
    weights = self.network.fold(*kept.shape[1:3])
    seen = within_reach(kept) if context is None else tf.concat([context, within_reach(kept)], axis=-1)
    with precision.full():  # The network is part of the flow itself.
      mean, log_scale = tf.split(self.network.run(seen, *weights), 2, axis=-1)
    return mean, bounded(log_scale, _MAX_LOG_SCALE)


class TopPrior(OnePassBijector):
  """The learned Gaussian of the last latent, conditioned only on position, class and context.

  ```none
  h = (border_response + bias) * exp(3 * log_scale)
      + (one_hot(labels) @ class_kernel + class_bias) * exp(3 * class_log_scale)
      + conv(context, context_kernel) * exp(3 * context_log_scale)
  mean, log_scale = split(h)
  inverse(y) = (y - mean) * exp(-log_scale)
  ```

  The original applies a convolution to zeros. Only the border part of its kernel ever acts, and only that part is held
  here.

  References:
    The original code of Kingma and Dhariwal, "Glow" (2018).
  """

  def __init__(self, event_shape: Sequence[int] | tf.TensorShape, learn_top: bool = True,
               num_classes: int | None = None, dtype: tf.DType | str | None = None, validate_args: bool = False,
               name: str = "top_prior", context_shape: Sequence[int] | None = None):
    """Creates the prior; it starts as the identity.

    Args:
      event_shape: `[H, W, C]`.
      learn_top: Python `bool`: whether mean and scale are learned per position (the first line above).
      num_classes: Python `int`: mean and scale also depend on the class (the second line). `None`: no classes.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.
      context_shape: `[H, W, F]` of the `context` that calls then take. Mean and scale also depend on it (the third
        line, a 3x3 convolution). `None`: no context.

    Raises:
      ValueError: if `event_shape` is not a fully known `[H, W, C]`, or another argument is not as above.
    """
    parameters = dict(locals())
    check_bools(learn_top=learn_top)
    if num_classes is not None:
      check_counts(num_classes=num_classes)
    event_shape = tf.TensorShape(event_shape)
    if event_shape.rank != 3 or not event_shape.is_fully_defined():
      raise ValueError(f"`event_shape` must be [H, W, C], all of it known. Received: {event_shape}")
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self.learn_top = learn_top
    self._num_classes = None if num_classes is None else int(num_classes)
    outputs = 2 * event_shape[-1]
    add = lambda key, *shape: self._add_variable(key, tf.zeros(shape, self.dtype))
    if learn_top:
      self.border_kernel = add("border_kernel", 3, 3, 1, outputs)
      self.bias = add("bias", outputs)
      self.log_scale = add("log_scale", outputs)
    if num_classes is not None:
      self.class_kernel = add("class_kernel", num_classes, outputs)
      self.class_bias = add("class_bias", outputs)
      self.class_log_scale = add("class_log_scale", outputs)
    self._context = _compat.untracked(self, _context_like(event_shape, context_shape))
    if self._context is not None:
      self.context_kernel = add("context_kernel", 3, 3, self._context[-1], outputs)
      self.context_log_scale = add("context_log_scale", outputs)

  @property
  def num_classes(self) -> int | None:
    return self._num_classes

  @property
  def argument_names(self) -> frozenset[str]:
    names = {"labels": self._num_classes, "context": self._context}
    return frozenset(name for name, value in names.items() if value is not None)

  @property
  def context_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    return contexts.as_public(self._context)

  def _forward_and_log_det(self, x, labels=None, context=None):
    return _color(x, *self._gaussian(labels, context))

  def _inverse_and_log_det(self, y, labels=None, context=None):
    return _whiten(y, *self._gaussian(labels, context))

  def _gaussian(self, labels, context):
    labels = self._checked_labels(labels)
    height, width, channels = self._event_shapes[True]
    h = tf.zeros([1, height, width, 2 * channels], self.dtype)
    if self.learn_top:
      border = border_response(self.border_kernel.value, height, width)
      h += (border + self.bias) * tf.exp(log_scale_of(self.log_scale.value))
    if self.num_classes is not None:
      # A gather gives the product with a one-hot vector, without the vector.
      by_class = tf.gather(tf.convert_to_tensor(self.class_kernel), tf.cast(labels, tf.int32)) + self.class_bias
      # XLA drops assertions: there, a label out of range gives a mean of NaN, not that of another class.
      by_class = tf.where(self._in_range(labels)[:, tf.newaxis], by_class, np.nan)
      h += (by_class * tf.exp(log_scale_of(self.class_log_scale.value)))[:, tf.newaxis, tf.newaxis]
    if context is not None:
      with precision.full():
        by_context = conv2d(context, tf.convert_to_tensor(self.context_kernel.value))
      h += by_context * tf.exp(log_scale_of(self.context_log_scale.value))
    mean, log_scale = tf.split(h, 2, axis=-1)
    return mean, bounded(log_scale, _MAX_LOG_SCALE)

  def _checked_labels(self, labels):
    if (labels is None) != (self.num_classes is None):
      raise ValueError("`labels` must be given exactly where there are classes: to a bijector made with `num_classes` "
                       "pass `bijector_kwargs={'labels': labels}`, to one made without pass none. "
                       f"Received: labels={labels}, num_classes={self.num_classes}")
    if labels is None:
      return None
    if isinstance(labels, bool) or not labels.dtype.is_integer:
      raise TypeError(f"`labels` must be integers. Received: {getattr(labels, 'dtype', labels)}")
    message = f"`labels` must lie in 0 .. {self.num_classes - 1}. Received: "
    in_range = tf.reduce_all(self._in_range(labels))
    if not tf.executing_eagerly():
      with tf.control_dependencies([tf.debugging.Assert(in_range, [message, labels])]):
        return tf.identity(labels)
    if not in_range:
      raise ValueError(f"{message}{labels}")
    return labels

  def _in_range(self, labels):
    return (labels >= 0) & (tf.cast(labels, tf.int64) < self.num_classes)

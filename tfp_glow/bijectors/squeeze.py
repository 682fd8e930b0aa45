"""Trades height and width for channels."""

from __future__ import annotations

import tensorflow as tf

from tfp_glow._core.validation import check_counts
from tfp_glow.bijectors.base import OnePassBijector


class Squeeze(OnePassBijector):
  """`inverse`: `[H, W, C]` to `[H / b, W / b, C * b * b]`, with log-det 0.

  The new channels are ordered (channel, row in the block, column in the block), as in the original code.
  `tf.nn.space_to_depth` orders them (row, column, channel).

  References:
    Dinh et al., "Density estimation using Real NVP" (2016), section 3.6.
  """

  def __init__(self, block_size: int = 2, dtype: tf.DType | str | None = None, validate_args: bool = False,
               name: str = "squeeze"):
    """Creates the reordering.

    Args:
      block_size: Python `int`, the side `b` of a block.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if `block_size` is not a positive `int`.
    """
    parameters = dict(locals())
    check_counts(block_size=block_size)
    self._block_size = int(block_size)
    super().__init__(forward_event_shape=[None] * 3, inverse_event_shape=[None] * 3, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)

  def _forward_and_log_det(self, x):
    b = self._block_size
    h, w, c = (tf.shape(x)[i] if x.shape[i] is None else x.shape[i] for i in (1, 2, 3))
    self._forward_event_shape(x.shape[1:])
    blocks = tf.reshape(x, [-1, h, w, c // (b * b), b, b])
    y = tf.reshape(tf.transpose(blocks, [0, 1, 4, 2, 5, 3]), [-1, h * b, w * b, c // (b * b)])
    return y, tf.zeros([], x.dtype)

  def _inverse_and_log_det(self, y):
    b = self._block_size
    h, w, c = (tf.shape(y)[i] if y.shape[i] is None else y.shape[i] for i in (1, 2, 3))
    self._inverse_event_shape(y.shape[1:])
    blocks = tf.reshape(y, [-1, h // b, b, w // b, b, c])
    x = tf.reshape(tf.transpose(blocks, [0, 1, 3, 5, 2, 4]), [-1, h // b, w // b, c * b * b])
    return x, tf.zeros([], y.dtype)

  def _forward_event_shape(self, input_shape):
    return self._reshaped(input_shape, lambda n, _: n * self._block_size, lambda c: _divided(c, self._block_size**2,
                                                                                            "channels", input_shape))

  def _inverse_event_shape(self, output_shape):
    return self._reshaped(output_shape, lambda n, what: _divided(n, self._block_size, what, output_shape),
                          lambda c: c * self._block_size**2)

  def _forward_event_shape_tensor(self, input_shape):
    b = self._block_size
    return tf.concat([input_shape[:-3], input_shape[-3:-1] * b, input_shape[-1:] // (b * b)], axis=0)

  def _inverse_event_shape_tensor(self, output_shape):
    b = self._block_size
    return tf.concat([output_shape[:-3], output_shape[-3:-1] // b, output_shape[-1:] * (b * b)], axis=0)

  def _reshaped(self, shape, side, channels):
    shape = tf.TensorShape(shape)
    if shape.rank is None:
      return tf.TensorShape(None)
    h, w, c = shape[-3:]
    return shape[:-3].concatenate([h if h is None else side(h, "height"), w if w is None else side(w, "width"),
                                   c if c is None else channels(c)])


def _divided(size, divisor, what, shape):
  if size % divisor:
    raise ValueError(f"The {what} of the input of `Squeeze` must be divisible by {divisor}. Received: shape {shape}")
  return size // divisor

"""Activation normalisation."""

from __future__ import annotations

import tensorflow as tf

from tfp_glow._core.numerics import LOG_SCALE_FACTOR, activation_statistics, assign_unless_frozen, log_scale_of
from tfp_glow._core.validation import check_positive
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.channels import channels_event_shape, num_positions


class ActNorm(OnePassBijector):
  """Per-channel affine map whose parameters are initialised from data.

  ```none
  inverse(y) = (y + shift) * exp(log_scale_factor * log_scale)
  inverse log-det = num_positions * sum(log_scale_factor * log_scale)
  ```

  where `num_positions` is `H * W` for images.

  References:
    Kingma and Dhariwal, "Glow" (2018), section 3.1; the factor 3 is that of the original code.
  """

  def __init__(self, num_channels: int, event_ndims: int = 3, dtype: tf.DType | str | None = None,
               validate_args: bool = False, name: str = "actnorm", log_scale_factor: float = LOG_SCALE_FACTOR):
    """Creates the bijector; it is the identity until `initialize`.

    Args:
      num_channels: Python `int`, the size of the last dimension.
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.
      log_scale_factor: Python `float`, positive: how fast the scale learns relative to the shift. It matters for
        optimizers whose steps do not depend on the size of gradients, such as Adam.

    Raises:
      ValueError: if `num_channels` or `event_ndims` is not a positive `int`, or `log_scale_factor` not a positive
        number.
    """
    parameters = dict(locals())
    event_shape = channels_event_shape(num_channels, event_ndims)
    check_positive(log_scale_factor=log_scale_factor)
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self.log_scale_factor = float(log_scale_factor)
    self.shift = self._add_variable("shift", tf.zeros([num_channels], self.dtype))
    self.log_scale = self._add_variable("log_scale", tf.zeros([num_channels], self.dtype))

  def _forward_and_log_det(self, x):
    shift, log_scale, log_det = self._values(x.shape[1:])
    return x * tf.exp(-log_scale) - shift, -log_det

  def _inverse_and_log_det(self, y):
    shift, log_scale, log_det = self._values(y.shape[1:])
    return (y + shift) * tf.exp(log_scale), log_det

  def _values(self, event_shape):
    """Shift, log-scale, and the log-det of `inverse`."""
    log_scale = log_scale_of(tf.convert_to_tensor(self.log_scale.value), self.log_scale_factor)
    log_det = num_positions(event_shape, log_scale.dtype) * tf.reduce_sum(log_scale)
    return tf.convert_to_tensor(self.shift.value), log_scale, log_det

  def _initialize(self, y):
    shift, log_scale = activation_statistics(y, self.log_scale_factor)
    assign_unless_frozen(self.shift, shift)
    assign_unless_frozen(self.log_scale, log_scale)
    return self._inverse_and_log_det(y)[0]

  def _initialize_back(self, x):
    shift, log_scale = activation_statistics(x, self.log_scale_factor)
    assign_unless_frozen(self.log_scale, -log_scale)
    # The scale read back, because it may be frozen and thus unchanged.
    scale = tf.exp(-log_scale_of(tf.convert_to_tensor(self.log_scale.value), self.log_scale_factor))
    assign_unless_frozen(self.shift, -shift * scale)
    return self._forward_and_log_det(x)[0]

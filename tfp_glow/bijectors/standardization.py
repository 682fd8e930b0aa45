"""Standardisation by the mean and the deviation of data."""

from __future__ import annotations

import warnings

import numpy as np
import tensorflow as tf

from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.channels import channels_event_shape, num_positions

_MOST_DEVIATIONS = 1e5  # Beyond this many deviations from 0, a float32 mean leaves differences less than two digits.


class Standardization(OnePassBijector):
  """Per-channel affine map to mean 0 and variance 1, for example for columns of a table in any units.

  ```none
  inverse(y) = (y - mean) / deviation
  inverse log-det = -num_positions * sum(log(deviation))
  ```

  The bijector is the identity until `initialize` measures mean and deviation, unless it is frozen.
  `FlowModel.adapt(table)` calls `initialize`. Training does not change them. Its log-det is included, so a flow behind
  it gives densities of the original data, in their own units. `Normalization` is given its numbers instead, and
  `ActNorm` trains them.

  A channel that is constant up to rounding gets deviation 1, because data say nothing about its scale. In float32,
  `initialize` warns of channels whose mean is more than 1e5 deviations from 0: rounding has lost most digits of their
  differences.

  #### Example

  ```python
  import numpy as np
  import tfp_glow

  table = np.random.default_rng(0).normal([5., 1e6], [1e-3, 1e4], [100, 2]).astype(np.float32)
  flow = tfp_glow.ResidualFlowBijector(2, num_scales=0, num_dense_blocks=2, num_dense_hidden=16, log_det="exact")
  model = tfp_glow.FlowModel(tfp_glow.Chain([tfp_glow.Standardization(2), flow]), num_bits=None)
  model.adapt(table)
  ```
  """

  def __init__(self, num_channels: int, event_ndims: int = 1, dtype: tf.DType | str | None = None,
               validate_args: bool = False, name: str = "standardization"):
    """Creates the bijector; it is the identity until `initialize`.

    Args:
      num_channels: Python `int`, the size of the last dimension.
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if `num_channels` or `event_ndims` is not a positive `int`.
    """
    parameters = dict(locals())
    event_shape = channels_event_shape(num_channels, event_ndims)
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self.mean = self._add_variable("mean", tf.zeros([num_channels], self.dtype), trainable=False)
    self.deviation = self._add_variable("deviation", tf.ones([num_channels], self.dtype), trainable=False)

  def _forward_and_log_det(self, x):
    mean, deviation, log_det = self._values(x.shape[1:])
    return x * deviation + mean, -log_det

  def _inverse_and_log_det(self, y):
    mean, deviation, log_det = self._values(y.shape[1:])
    return (y - mean) / deviation, log_det

  def _values(self, event_shape):
    """Mean, deviation, and the log-det of `inverse`."""
    mean, deviation = (tf.convert_to_tensor(variable.value) for variable in (self.mean, self.deviation))
    return mean, deviation, -num_positions(event_shape, self.dtype) * tf.reduce_sum(tf.math.log(deviation))

  def _initialize(self, y):
    self._assign(*_statistics(y))
    return self._inverse_and_log_det(y)[0]

  def _initialize_back(self, x):
    mean, deviation = _statistics(x)
    self._assign(-mean / deviation, 1. / deviation)
    return self._forward_and_log_det(x)[0]

  def _assign(self, mean, deviation):
    if not self.trainable:  # Frozen. (Unfrozen, mean and deviation are still not trained.)
      return
    self.mean.assign(tf.cast(mean, self.dtype))
    self.deviation.assign(tf.cast(deviation, self.dtype))


def _statistics(values):
  """Mean and deviation `[C]` of values `[..., C]`, in float64, because sums of many float32 numbers lose too much."""
  is_wide = values.dtype == tf.float64
  limits, axes = np.finfo(values.dtype.as_numpy_dtype), list(range(values.shape.rank - 1))
  values = tf.cast(values, tf.float64)
  mean, deviation = tf.reduce_mean(values, axes), tf.math.reduce_std(values, axes)
  if tf.executing_eagerly() and not is_wide:
    _warn_of_lost_digits(mean.numpy(), deviation.numpy())
  least = tf.maximum(float(limits.eps) * tf.abs(mean), float(limits.tiny))
  return mean, tf.where(deviation > least, deviation, tf.ones_like(deviation))


def _warn_of_lost_digits(mean, deviation):
  """Warns of channels that are not constant, but whose mean is too many deviations from 0."""
  channels = np.flatnonzero((deviation > 0.) & (np.abs(mean) > _MOST_DEVIATIONS * deviation))
  if channels.size:
    warnings.warn(
        f"The mean of a column should be at most {_MOST_DEVIATIONS:,.0f} standard deviations from 0: beyond that, "
        "float32 keeps less than two digits of the differences between its values. Make the flow with "
        "`dtype=\"float64\"` and give it float64 data, or first subtract a constant from these columns. "
        f"Received: such columns at the indices {channels.tolist()}",
        stacklevel=5)

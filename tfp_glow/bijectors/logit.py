"""From images to unbounded values."""

from __future__ import annotations

import math

import tensorflow as tf

from tfp_glow._core.validation import check_choice, check_fractions
from tfp_glow.bijectors.base import OnePassBijector


class Logit(OnePassBijector):
  """Maps values in `[-1/2, 1/2]`, such as dequantized images, to the real line, element by element.

  ```none
  u = alpha + (1 - 2 alpha) (y + 1/2)
  inverse(y) = log(u / (1 - u))
  inverse log-det = sum(log(1 - 2 alpha) - log(u) - log(1 - u))
  ```

  Values far beyond that range (`u` not between 0 and 1) become NaN.

  References:
    Dinh et al., "Density estimation using Real NVP" (2016), section 4.1.
  """

  def __init__(self, alpha: float = 0.05, event_ndims: int = 3, dtype: tf.DType | str | None = None,
               validate_args: bool = False, name: str = "logit"):
    """Creates the bijector; it has no parameters.

    Args:
      alpha: Python `float` above 0 and below 1/2: the distance that images keep from 0 and 1.
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if `alpha` or `event_ndims` is not as above, or `alpha` is so small that rounding reaches 0 or 1.
    """
    parameters = dict(locals())
    check_fractions(0.5, alpha=alpha)
    check_choice("event_ndims", event_ndims, (1, 3))
    super().__init__(forward_event_shape=[None] * event_ndims, inverse_event_shape=[None] * event_ndims, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    smallest = 1e-12 if self.dtype == tf.float64 else 1e-6
    if alpha < smallest:
      raise ValueError(f"`alpha` must be at least {smallest:g} in {self.dtype.name}. Received: {alpha!r}")
    self._alpha = alpha

  def _initialize(self, y):
    # Beyond this bound the logarithms are NaN, and everything initialised from them would be, too.
    bound = 0.5 / (1. - 2. * self._alpha)
    low, high = float(tf.reduce_min(y)), float(tf.reduce_max(y))
    if not -bound < low <= high < bound:
      raise ValueError("`y` must lie between -1/2 and 1/2, as images do, because the flow begins with a logit (make a "
                       f"`ResidualFlowBijector` without it by `logit_alpha=None`). Received: {low:g} to {high:g}")
    return super()._initialize(y)

  def _forward_and_log_det(self, x):
    slope = 1. - 2. * self._alpha
    log_slopes = tf.nn.softplus(x) + tf.nn.softplus(-x) + math.log(slope)
    return (tf.sigmoid(x) - 0.5) / slope, -_sum(log_slopes)

  def _inverse_and_log_det(self, y):
    slope = 1. - 2. * self._alpha
    # Uses the distances to either end, which are small for black and white: 1/2 minus the rest would lose digits.
    log_above, log_below = (tf.math.log(self._alpha + slope * distance) for distance in (0.5 + y, 0.5 - y))
    return log_above - log_below, _sum(math.log(slope) - log_above - log_below)


def _sum(values):
  """Sums over each event."""
  return tf.reduce_sum(values, list(range(1, values.shape.rank)))

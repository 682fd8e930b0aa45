"""Normalisation by a known mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import check_choice
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.channels import channels_event_shape, num_positions


class Normalization(OnePassBijector):
  """Per-channel affine map with fixed parameters, with which data pipelines normalise images.

  ```none
  inverse(y) = (y - mean) / deviation
  inverse log-det = -num_positions * sum(log(deviation))
  ```

  where `num_positions` is `H * W` for images.
  """

  def __init__(self, mean: Sequence[float], deviation: Sequence[float], event_ndims: int = 3,
               dtype: tf.DType | str | None = None, validate_args: bool = False, name: str = "normalization"):
    """Creates the bijector; it has no trainable parameters.

    Args:
      mean: Sequence of Python `float`s, one for each channel.
      deviation: Sequence of as many positive Python `float`s.
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if an argument is not as above.
    """
    parameters = dict(locals())
    check_choice("event_ndims", event_ndims, (1, 3))
    self._mean, self._deviation = checked_statistics(mean, deviation)
    event_shape = channels_event_shape(len(self._mean), event_ndims)
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)

  def _forward_and_log_det(self, x):
    return x * tf.constant(self._deviation, x.dtype) + tf.constant(self._mean, x.dtype), -self._log_det_of_inverse(x)

  def _inverse_and_log_det(self, y):
    return (y - tf.constant(self._mean, y.dtype)) / tf.constant(self._deviation, y.dtype), self._log_det_of_inverse(y)

  def _log_det_of_inverse(self, values):
    return num_positions(values.shape[1:], values.dtype) * tf.constant(-np.log(self._deviation).sum(), values.dtype)


def checked_statistics(mean, deviation):
  """Both as float64 arrays `[C]`; raises `ValueError` if they are not finite, or deviations are not positive."""
  try:
    mean, deviation = (np.asarray(values, np.float64) for values in (mean, deviation))
    is_valid = mean.ndim == 1 and mean.shape == deviation.shape and len(mean) > 0
    is_valid = is_valid and np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0.).all()
  except (TypeError, ValueError):
    is_valid = False
  if not is_valid:
    raise ValueError("`mean` and `deviation` must be sequences with one finite number for each channel, and deviations "
                     f"must be positive. Received: mean={mean!r}, deviation={deviation!r}")
  return mean, deviation

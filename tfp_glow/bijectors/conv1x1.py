"""The invertible 1x1 convolution."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import scipy.linalg
import tensorflow as tf

from tfp_glow._core.numerics import MAX_LOG_SCALE, bounded, generator
from tfp_glow._core.products import channel_product
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.channels import channels_event_shape, num_positions


class InvertibleConv1x1(OnePassBijector):
  """A learned linear map of the channels, the same at every position.

  ```none
  W = P L (U + diag(sign * exp(log_scale)))
  inverse(y) = y @ W
  inverse log-det = num_positions * sum(log_scale)
  ```

  `P` is a fixed permutation, `L` unit lower triangular, `U` strictly upper triangular. `sign` is fixed, too. `W` is
  invertible for any values of the parameters, and its log-det is a sum.

  References:
    Kingma and Dhariwal, "Glow" (2018), section 3.2, equations 9 to 11.
  """

  def __init__(self, num_channels: int, seed: int | None = None, matrix: np.ndarray | None = None, event_ndims: int = 3,
               dtype: tf.DType | str | None = None, validate_args: bool = False, name: str = "invertible_conv1x1"):
    """Creates the convolution from a random rotation or a given matrix.

    Args:
      num_channels: Python `int`, the size of the last dimension.
      seed: Python `int` of the rotation. `None`: a new one each time (the same after `keras.utils.set_random_seed`).
      matrix: Array `[C, C]`, an invertible `W` to start from.
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if `num_channels` or `event_ndims` is not a positive `int`, or `matrix` is singular or of another
        shape.
    """
    parameters = dict(locals())
    event_shape = channels_event_shape(num_channels, event_ndims)
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    values = lu_factors(random_rotation(num_channels, seed) if matrix is None else matrix, num_channels)
    make = lambda key, **kwargs: self._add_variable(key, tf.constant(values[key], self.dtype), **kwargs)
    self.lower = make("lower")
    self.upper = make("upper")
    self.log_scale = make("log_scale")
    self.sign = make("sign", trainable=False)
    self.permutation = make("permutation", trainable=False)

  def set_matrix(self, matrix: np.ndarray) -> None:
    """Assigns any invertible `W`.

    Args:
      matrix: Array `[C, C]`.

    Raises:
      ValueError: if `matrix` is singular or of another shape.
    """
    for key, value in lu_factors(matrix, self.sign.shape[0]).items():
      getattr(self, key).assign(value)

  def matrix(self, value: Callable[[keras.Variable], tf.Tensor] = lambda variable: variable.value,
             inverse: bool = True) -> tuple[tf.Tensor, tf.Tensor]:
    """The matrix `M` of `z @ M`, `[..., C, C]`, and its log-determinant per position, `[...]`.

    Args:
      value: Callable that maps a variable of this bijector to its value.
      inverse: Python `bool`: `True` for the matrix of `inverse`, `W`; `False` for that of `forward`, `W^-1`.

    Returns:
      matrix: Tensor `[..., C, C]`.
      log_det: Tensor `[...]`.
    """
    # float64 is more exact, and faster on CPUs (see `networks.glow.border_response`).
    lower, upper, log_scale, permutation, sign = (
        tf.cast(value(v), tf.float64) for v in (self.lower, self.upper, self.log_scale, self.permutation, self.sign))
    log_scale = bounded(log_scale)
    lower = tf.linalg.set_diag(tf.linalg.band_part(lower, -1, 0), tf.ones_like(log_scale))
    upper = tf.linalg.set_diag(tf.linalg.band_part(upper, 0, -1), sign * tf.exp(log_scale))
    log_det = tf.cast(tf.reduce_sum(log_scale, -1), self.dtype)
    if inverse:
      return tf.cast(permutation @ lower @ upper, self.dtype), log_det
    below = tf.linalg.triangular_solve(lower, tf.linalg.matrix_transpose(permutation), lower=True)
    return tf.cast(tf.linalg.triangular_solve(upper, below, lower=False), self.dtype), -log_det

  def _forward_and_log_det(self, x):
    return self._product(x, inverse=False)

  def _inverse_and_log_det(self, y):
    return self._product(y, inverse=True)

  def _product(self, inputs, inverse):
    matrix, log_det = self.matrix(inverse=inverse)
    return channel_product(inputs, matrix), num_positions(inputs.shape[1:], log_det.dtype) * log_det


def random_rotation(num_channels, seed):
  """A random orthogonal matrix `[C, C]`, float64, uniformly distributed."""
  q, r = np.linalg.qr(generator(seed).standard_normal([num_channels, num_channels]))
  return q * np.sign(np.diag(r))


def lu_factors(matrix, num_channels):
  """The parameters of `InvertibleConv1x1` that give `matrix`: a dict of float64 arrays."""
  matrix = np.asarray(matrix, np.float64)
  if matrix.shape != (num_channels, num_channels):
    raise ValueError(f"`matrix` must have shape {(num_channels, num_channels)}. Received: {matrix.shape}")
  if not np.all(np.isfinite(matrix)):
    raise ValueError("`matrix` must be finite. Received: NaN or infinite entries")
  permutation, lower, upper = scipy.linalg.lu(matrix)
  diagonal = np.diag(upper)
  if np.min(np.abs(diagonal)) <= 1e-12 * np.max(np.abs(diagonal)):
    raise ValueError(f"`matrix` must be invertible. Received: condition number {np.linalg.cond(matrix):.3g}")
  log_scale = np.log(np.abs(diagonal))
  if np.max(np.abs(log_scale)) > MAX_LOG_SCALE:
    raise ValueError(f"`matrix` must have pivots between exp(-{MAX_LOG_SCALE:g}) and exp({MAX_LOG_SCALE:g}). "
                     f"Received: pivots {diagonal}")
  return {"lower": np.tril(lower, -1), "upper": np.triu(upper, 1), "log_scale": log_scale,
          "sign": np.sign(diagonal), "permutation": permutation}

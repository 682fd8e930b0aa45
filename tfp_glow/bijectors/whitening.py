"""Whitening by the covariance of data."""

from __future__ import annotations

import tensorflow as tf

from tfp_glow._core.products import flow_matmul
from tfp_glow._core.validation import check_counts
from tfp_glow.bijectors.base import OnePassBijector


class Whitening(OnePassBijector):
  """Linear map that makes the numbers of a vector uncorrelated: a flow behind it starts from the Gaussian of the data.

  ```none
  covariance = factor @ transpose(factor)
  inverse(y) = y @ transpose(inverse(factor))
  inverse log-det = -sum(log(diag(factor)))
  ```

  The bijector is the identity until `initialize` measures the covariance, unless it is frozen. Training does not change
  it. Put it on the latent side of a `Standardization`, for columns of mean 0 and variance 1.

  Directions in which data hardly vary are not stretched to variance 1, because the covariance is mixed with a share of
  the mean variance on the diagonal. For N rows of D columns the share is `0.01 (D / N)^2`, but at least 1e-4 (reached
  at ten rows for each column) and at most 1.
  """

  def __init__(self, num_channels: int, dtype: tf.DType | str | None = None, validate_args: bool = False,
               name: str = "whitening"):
    """Creates the bijector; it is the identity until `initialize`.

    Args:
      num_channels: Python `int`, the size of a vector.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if `num_channels` is not a positive `int`.
    """
    parameters = dict(locals())
    check_counts(num_channels=num_channels)
    super().__init__(forward_event_shape=[num_channels], inverse_event_shape=[num_channels], dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self.factor = self._add_variable("factor", tf.eye(num_channels, dtype=self.dtype), trainable=False)

  def _forward_and_log_det(self, x):
    factor = tf.convert_to_tensor(self.factor.value)
    return flow_matmul(x, factor, transpose_b=True), -self._log_det_of_inverse(factor)

  def _inverse_and_log_det(self, y):
    factor = tf.convert_to_tensor(self.factor.value)
    # A product with the inverse, not a solve for `y`: the inverse depends on no data, so it can become a constant where
    # triangular solves are missing.
    return flow_matmul(y, _inverse(factor), transpose_b=True), self._log_det_of_inverse(factor)

  def _log_det_of_inverse(self, factor):
    return -tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factor)))

  def _initialize(self, y):
    self._assign(tf.linalg.cholesky(_covariance(y)))
    return self._inverse_and_log_det(y)[0]

  def _initialize_back(self, x):
    self._assign(_inverse(tf.linalg.cholesky(_covariance(x))))
    return self._forward_and_log_det(x)[0]

  def _assign(self, factor):
    if self.trainable:  # Not frozen. (The factor is still not trained.)
      self.factor.assign(tf.cast(factor, self.dtype))


def _inverse(factor):
  """The inverse of a lower triangular matrix, float64."""
  return tf.linalg.triangular_solve(tf.cast(factor, tf.float64), tf.eye(factor.shape[-1], dtype=tf.float64))


def _covariance(values):
  """The covariance of values `[N, D]` (see `Whitening`), float64 `[D, D]`. Constant columns count as of variance 1."""
  values = tf.cast(values, tf.float64)
  count, size = tf.cast(tf.shape(values)[0], tf.float64), float(values.shape[-1])
  values -= tf.reduce_mean(values, 0)
  covariance = tf.matmul(values, values, transpose_a=True) / count
  variances = tf.linalg.diag_part(covariance)
  variances = tf.where(variances > 0., variances, tf.ones_like(variances))
  share = tf.clip_by_value(0.01 * tf.square(size / count), 1e-4, 1.)
  diagonal = (1. - share) * variances + share * tf.reduce_mean(variances)
  return tf.linalg.set_diag((1. - share) * covariance, diagonal)

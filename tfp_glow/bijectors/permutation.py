"""Fixed permutations of the channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.channels import channels_event_shape


class ChannelPermutation(OnePassBijector):
  """Reorders the channels: `inverse(y) = y[..., indices]`, with log-det 0.

  References:
    The two alternatives to the 1x1 convolution in Kingma and Dhariwal, "Glow" (2018), section 3.2: reversed order, as
    in RealNVP, and a fixed random permutation.
  """

  def __init__(self, indices: Sequence[int] | np.ndarray, event_ndims: int = 3, dtype: tf.DType | str | None = None,
               validate_args: bool = False, name: str = "channel_permutation"):
    """Creates the permutation.

    Args:
      indices: Sequence of `int`s, a permutation of `0 .. C-1`.
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if `indices` is not a permutation.
    """
    parameters = dict(locals())
    indices = np.asarray(indices)
    if indices.ndim != 1 or not np.array_equal(np.sort(indices), np.arange(indices.size)):
      raise ValueError(f"`indices` must be a permutation of 0 .. C-1. Received: {indices.tolist()}")
    event_shape = channels_event_shape(int(indices.size), event_ndims)
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    # A variable, so that checkpoints hold it and each step of a `Scan` may have its own.
    self.indices = self._add_variable("indices", tf.constant(indices, tf.int32), trainable=False)

  def _forward_and_log_det(self, x):
    return tf.gather(x, tf.argsort(self.indices.value), axis=-1), tf.zeros([], x.dtype)

  def _inverse_and_log_det(self, y):
    return tf.gather(y, self.indices.value, axis=-1), tf.zeros([], y.dtype)

  def matrix(self, value: Callable[[keras.Variable], tf.Tensor], inverse: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """The matrix `M` of `z @ M`, `[..., C, C]`, and its log-determinant per position, 0.

    Args:
      value: Callable that maps a variable of this bijector to its value.
      inverse: Python `bool`: `True` for the matrix of `inverse`, `False` for that of `forward`.

    Returns:
      matrix: Tensor `[..., C, C]`.
      log_det: Tensor, 0.
    """
    num_channels = self.indices.shape[-1]
    one_hot = tf.one_hot(value(self.indices), num_channels, dtype=self.dtype)
    return tf.linalg.matrix_transpose(one_hot) if inverse else one_hot, tf.zeros([], self.dtype)

"""Bijectors that turn the activations of a residual flow into its latent, a vector."""

from __future__ import annotations

import tensorflow as tf

from tfp_glow.bijectors.base import OnePassBijector


class Flatten(OnePassBijector):
  """`inverse`: from an image to a vector."""

  def __init__(self, event_shape, dtype):
    """Creates the reordering.

    Args:
      event_shape: `tf.TensorShape` of the image.
      dtype: See `OnePassBijector`.
    """
    super().__init__(forward_event_shape=[event_shape.num_elements()], inverse_event_shape=event_shape, dtype=dtype,
                     name="flatten")

  def _forward_and_log_det(self, x):
    return tf.reshape(x, [-1, *self._event_shapes[True]]), tf.zeros([], x.dtype)

  def _inverse_and_log_det(self, y):
    return tf.reshape(y, [-1, *self._event_shapes[False]]), tf.zeros([], y.dtype)


class HalfLeaves(OnePassBijector):
  """`inverse`: from an image to a vector of the second half of its channels, then another bijector's output for the
  first half.

  References:
    Dinh et al., "Density estimation using Real NVP" (2016), section 3.6.
  """

  _passes_arguments_on = True

  def __init__(self, event_shape, rest, dtype, name):
    """Creates the split; it shares the variables of `rest`.

    Args:
      event_shape: `tf.TensorShape` of the image, `[h, w, c]` with `c` even.
      rest: `OnePassBijector` from a vector to `[h, w, c / 2]`.
      dtype: See `OnePassBijector`.
      name: Python `str`.
    """
    super().__init__(forward_event_shape=[event_shape.num_elements()], inverse_event_shape=event_shape, dtype=dtype,
                     name=name)
    self.rest = self._add_child(rest)
    self._num_leaving = event_shape.num_elements() // 2

  def _forward_and_log_det(self, x, **kwargs):
    leaving, rest = self._split(x)
    kept, log_det = self.rest._forward_and_log_det(rest, **kwargs)
    return tf.concat([kept, tf.reshape(leaving, tf.shape(kept))], -1), log_det

  def _inverse_and_log_det(self, y, **kwargs):
    kept, leaving = tf.split(y, 2, axis=-1)
    rest, log_det = self.rest._inverse_and_log_det(kept, **kwargs)
    return self._joined(leaving, rest), log_det

  def _walk(self, y, **kwargs):
    kept, leaving = tf.split(y, 2, axis=-1)
    yield self.name, leaving, tf.zeros([], y.dtype)
    yield from self.rest._walk(kept, **kwargs)

  def _initialize(self, y, **condition):
    kept, leaving = tf.split(y, 2, axis=-1)
    return self._joined(leaving, self.rest._initialize(kept, **condition))

  def _initialize_back(self, x, **condition):
    leaving, rest = self._split(x)
    kept = self.rest._initialize_back(rest, **condition)
    return tf.concat([kept, tf.reshape(leaving, tf.shape(kept))], -1)

  def _split(self, x):
    return tf.split(x, [self._num_leaving, self._num_leaving], axis=-1)

  def _joined(self, leaving, rest):
    return tf.concat([tf.reshape(leaving, [-1, self._num_leaving]), rest], -1)

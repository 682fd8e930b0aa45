"""Latents, drawn at one temperature or at one for each level."""

import numbers

import numpy as np
import tensorflow as tf

from tfp_glow.bijectors.composition import latent_side_of


class Latents:
  """The latents of a flow and their distribution."""

  def __init__(self, base, flow):
    """Creates it.

    Args:
      base: `tfd.Distribution` of the latents.
      flow: `OnePassBijector` from latents to images. One with `split_latent` has levels, for example `GlowBijector`.
    """
    self._base = base
    self._flow = latent_side_of(flow)

  @property
  def dtype(self):
    """Dtype of the latents."""
    return self._base.dtype

  @property
  def event_shape(self):
    """Shape of one latent."""
    return self._base.event_shape

  @property
  def num_levels(self):
    """Number of levels; `None` if the flow does not split its latents."""
    return len(self._split_ones()) if hasattr(self._flow, "split_latent") else None

  def checked_temperature(self, temperature):
    """Temperatures, for `sample`, as a tensor.

    Raises:
      ValueError: if they are not one finite number of at least 0 or, if the flow has levels, one for each level.
    """
    values = _checked_numbers(temperature)
    if values.ndim and len(values) != self.num_levels:
      levels = f"{self.num_levels} levels" if self.num_levels else (
          "a bijector without levels (in a `Chain`, a flow with levels must be the last, next to the latents)")
      raise ValueError("`temperature` must be one number, or a list with one number for each part that the bijector's "
                       f"`split_latent` returns. Received: {temperature!r} for {levels}")
    return tf.constant(values.astype(np.float32))

  def sample(self, num_samples, temperature, seed):
    """New latents `[num_samples] + event_shape`.

    Args:
      num_samples: Integer scalar.
      temperature: Floating scalar, a factor for the latents' deviation from their mean; or `[num_levels]`.
      seed: Integer tensor `[2]`.
    """
    z = self._base.sample(num_samples, seed=seed)
    temperature = self._of_each_value(tf.cast(temperature, z.dtype))
    is_valid = tf.reduce_all(tf.math.is_finite(temperature) & (temperature >= 0.))
    checks = [tf.debugging.Assert(is_valid, ["`temperature` must be finite and at least 0. Received:", temperature])]
    as_drawn = tf.equal(temperature, 1.)
    try:
      mean = self._base.mean()
    except NotImplementedError:
      mean = tf.constant(np.nan, z.dtype)
    checks.append(tf.debugging.Assert(tf.reduce_all(as_drawn | tf.math.is_finite(mean)), [
        "`temperature` must be 1 for latents without a mean. Received:", temperature]))
    with tf.control_dependencies(checks):
      z = tf.where(as_drawn, z, mean + temperature * (z - mean))
    return tf.ensure_shape(z, [None] + self.event_shape.as_list())

  def _of_each_value(self, temperature):
    """The temperature of each value of a latent, or one for all."""
    if self.num_levels is None:
      return temperature
    by_level = tf.unstack(tf.broadcast_to(temperature, [self.num_levels]))
    return self._flow.join_latent([value * ones for value, ones in zip(by_level, self._split_ones())])

  def _split_ones(self):
    return self._flow.split_latent(tf.ones(self.event_shape, self._flow.dtype))


def temperature_of_none(temperature, distribution):
  """The temperature of a distribution without latents; raises `ValueError` unless it is 1."""
  if _checked_numbers(temperature).tolist() != 1.:
    raise ValueError("`temperature` must be 1 for a distribution without latents. "
                     f"Received: {temperature!r} for {distribution!r}")
  return tf.constant(1.)


def _checked_numbers(temperature):
  values = np.asarray(temperature, object)
  if values.ndim > 1 or not all(isinstance(value, numbers.Real) and 0. <= value < np.inf for value in values.flat):
    raise ValueError("`temperature` must be a finite number of at least 0, or a list with one for each level. "
                     f"Received: {temperature!r}")
  return values

"""The default distribution of a bijector: standard normal latents."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow.bijectors.composition import Sequence, as_one_pass

tfb = tfp.bijectors
tfd = tfp.distributions


def with_standard_normal(
    distribution: tfp.distributions.Distribution | tfp.bijectors.Bijector) -> tfp.distributions.Distribution:
  """The distribution of a bijector's outputs for independent standard normal latents.

  Args:
    distribution: `tfb.Bijector` that knows the shape of its latents or of its images: a `GlowBijector` or a
      `ResidualFlowBijector`, or a composition with one in it. Anything else is returned unchanged.

  Returns:
    `tfd.TransformedDistribution` in the dtype of the bijector.

  Raises:
    ValueError: if the shape of the latents cannot be known.
  """
  if not isinstance(distribution, tfb.Bijector):
    return distribution
  bijector = distribution
  latent_shape = _latent_shape(as_one_pass(bijector), tf.TensorShape(None))
  if not latent_shape.rank or not latent_shape.is_fully_defined():
    raise ValueError("`distribution` must be a bijector that knows the shape of its latents, or a distribution: "
                     "`tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), latent_shape), bijector)`. "
                     f"Received: {bijector!r}")
  dtype = _dtype(bijector)
  # TFP treats Python numbers as float32.
  loc, scale = (0., 1.) if dtype == tf.float32 else (tf.zeros([], dtype), tf.ones([], dtype))
  return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(loc, scale), latent_shape.as_list()), bijector)


def _latent_shape(flow, image_shape):
  """Shape of one latent, as far as it is known, from the shape of one image."""
  for part in flow.parts if isinstance(flow, Sequence) else [flow]:
    own = part.event_shape_of(inverse=True)
    image_shape = own if own.is_fully_defined() else image_shape
    if isinstance(part, Sequence) and part is not flow:
      image_shape = _latent_shape(part, image_shape)
    else:
      image_shape = part.inverse_event_shape(image_shape)
    if not image_shape.is_fully_defined():
      image_shape = part.event_shape_of(inverse=False)
  return image_shape


def _dtype(bijector):
  """The dtype of a bijector. A composition of TFP has none itself if one of its parts has none."""
  own = [variable.dtype for variable in bijector.variables if variable.dtype.is_floating]
  return tf.as_dtype(bijector.dtype or next(iter(own), tf.float32))

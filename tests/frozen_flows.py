"""A small Glow to freeze parts of, and what training changes in it."""

import numpy as np
import small_models
import tensorflow_probability as tfp
from bijector_cases import perturb

import tfp_glow

tfb, tfd = tfp.bijectors, tfp.distributions
SHAPE = (4, 4, 1)
IMAGES = small_models.images(24, SHAPE)
VALUES = IMAGES.astype(np.float32) / 256. - 0.5


def make_glow(**kwargs):
  glow = tfp_glow.GlowBijector(SHAPE, 2, 2, 4, **{"seed": 0, **kwargs})
  perturb(glow)  # Otherwise many gradients would be zero.
  glow.mark_initialized()
  return glow


def distribution_of(bijector):
  return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [16]), bijector)


def compile_eagerly(model, optimizer=None):
  return small_models.compiled(model, optimizer, run_eagerly=True)


def names_of(variables):
  return [v.name for v in variables]


def moved_by(model, train):
  """The names of the variables that training changes."""
  before = [v.numpy() for v in model.distribution.variables]
  train(model)
  return {v.name for v, old in zip(model.distribution.variables, before) if np.any(v.numpy() != old)}


def fit(model):
  model.fit(IMAGES, batch_size=12, shuffle=False, verbose=0)

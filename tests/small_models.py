"""Models and images small enough for tests."""

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

tfb = tfp.bijectors
tfd = tfp.distributions
SHAPE = (4, 4, 2)


def images(count=24, shape=SHAPE, seed=0):
  """uint8 images with some structure: a bright or a dark half, and noise."""
  rng = np.random.default_rng(seed)
  bright = rng.integers(0, 2, [count, 1, 1, 1])
  columns = np.arange(shape[1])[:, None] < shape[1] // 2
  return np.clip(60 + 120 * (columns == bright) + rng.integers(0, 40, [count, *shape]), 0, 255).astype(np.uint8)


def distribution(shape=SHAPE, **kwargs):
  kwargs = {"num_glow_blocks": 1, "num_steps_per_block": 2, "num_hidden": 8, "seed": 1, **kwargs}
  base = tfd.Sample(tfd.Normal(0., 1.), [int(np.prod(shape))])
  return tfd.TransformedDistribution(base, tfp_glow.GlowBijector(shape, **kwargs))


def gaussian(shape=SHAPE):
  """A distribution with latents that is no flow and is traced fast."""
  scale = tf.Variable(tf.zeros(shape), name="log_scale")
  shift = tf.Variable(tf.zeros(shape), name="shift")
  base = tfd.Sample(tfd.Normal(0., 1.), shape)
  return tfd.TransformedDistribution(base, tfb.Chain([tfb.Shift(shift), tfb.Scale(log_scale=scale)]))


def points(count=64):
  """Noisy points on a parabola, `[count, 2]`."""
  rng = np.random.default_rng(0)
  x = rng.uniform(-2., 2., [count, 1])
  return np.concatenate([x, x**2 - 1. + 0.2 * rng.standard_normal([count, 1])], axis=1).astype(np.float32)


def residual_flow(**kwargs):
  """A residual flow of points, which is traced faster than one of images."""
  return tfp_glow.ResidualFlowBijector(
      2, 0, **{"num_dense_blocks": 3, "num_dense_hidden": 8, "logit_alpha": None, "seed": 0, **kwargs})


def of_standard_normal(flow):
  """A standard normal, transformed by a `ResidualFlowBijector`."""
  base = tfd.Sample(tfd.Normal(0., 1.), [int(np.prod(flow.parameters["output_shape"]))])
  return tfd.TransformedDistribution(base, flow)


def residual_model(flow=None, optimizer=None, **kwargs):
  """A model of points."""
  return compiled(tfp_glow.FlowModel(of_standard_normal(flow or residual_flow()), num_bits=None), optimizer, **kwargs)


def compiled(model=None, optimizer=None, **kwargs):
  model = tfp_glow.FlowModel(distribution(), num_bits=8) if model is None else model
  model.compile(optimizer or keras.optimizers.Adam(1e-2), **kwargs)
  return model


def weights_of(model):
  return [v.numpy() for v in model.distribution.trainable_variables]

"""Initialisation of inverted bijectors, whose data are the latents of another bijector."""

import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import CASE

import tfp_glow
from tfp_glow.bijectors.composition import as_one_pass

tfb, tfd = tfp.bijectors, tfp.distributions
RNG = np.random.default_rng(0)


def _is_normalised(values):
  axes = tuple(range(values.ndim - 1))
  np.testing.assert_allclose(values.mean(axes), 0., atol=1e-4)
  np.testing.assert_allclose(values.std(axes), 1., rtol=1e-3)


def _glow(num_blocks=1, **kwargs):
  return tfp_glow.GlowBijector((4, 4, 1), num_blocks, 1, num_hidden=4, seed=0, **kwargs)


def _values(bijector):
  return [variable.numpy() for variable in bijector.variables]


@pytest.mark.parametrize("make", [
    lambda: tfp_glow.ActNorm(2), lambda: tfp_glow.Chain([tfb.Shift(0.), tfp_glow.ActNorm(2)]),
    CASE["glow_step"].make], ids=["actnorm", "chain", "step"])
def test_what_an_actnorm_returns_is_normalised(make):
  bijector = make()
  num_channels = 2 if bijector.event_shape_of(False)[-1] in (None, 2) else 4
  y = RNG.normal(3., 2., [16, 2, 2, num_channels]).astype(np.float32)
  inverted = tfp_glow.Invert(bijector)
  inverted.initialize(y)
  _is_normalised(inverted.inverse(y).numpy())


@pytest.mark.slow
def test_each_step_of_a_scan_is_normalised():
  scan, y = CASE["scan"].make(), RNG.normal(3., 2., [16, 2, 2, 4]).astype(np.float32)
  tfp_glow.Invert(scan).initialize(y)
  for num_steps in (1, 2, 3):  # The last runs first.
    last = tfp_glow.Scan(lambda _: CASE["glow_step"].construct("float32"), num_steps, [2, 2, 4])
    for variable, stack in zip(last.variables, scan.variables, strict=True):
      variable.assign(stack[-num_steps:])
    _is_normalised(last.forward(y).numpy())


@pytest.mark.slow
def test_each_block_of_a_glow_is_normalised():
  glow, y = _glow(2, num_classes=3), RNG.normal(3., 2., [64, 16]).astype(np.float32)
  inverted = tfp_glow.Invert(glow)
  assert not inverted.initialized
  inverted.initialize(y)
  assert inverted.initialized and glow.initialized
  images = inverted.inverse(y, labels=np.zeros(64, int))
  _is_normalised(tfp_glow.Squeeze().inverse(images).numpy())
  values = _values(glow)
  inverted.initialize(y)  # From its present values.
  for before, after in zip(values, _values(glow), strict=True):
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("name", [
    "squeeze", "affine_coupling", "additive_coupling_odd", "glow_step_vector", "scan", "residual_vector",
    "residual_flow_vector", "standardization", "whitening", "vector_flow", "own_chain", "own_chain_classes",
    "own_invert", "chain_of_glow"])
def test_it_ends_with_what_a_pass_then_returns(name):
  case = CASE[name]
  bijector = as_one_pass(case.make(), event_ndims=len(case.data_shape))
  x = tf.constant(3. * case.draw([6], inverse=False))
  values = bijector._initialize_back(x)
  labels = {"labels": np.zeros(6, int)} if case.num_classes else {}
  np.testing.assert_allclose(values, bijector.forward(x.numpy(), **labels), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("twice", [
    lambda glow: tfp_glow.Invert(tfp_glow.Invert(glow)), lambda glow: tfb.Invert(tfb.Invert(glow)),
    lambda glow: tfp_glow.Invert(tfp_glow.Chain([tfp_glow.Invert(glow)])),
    lambda glow: tfp_glow.Invert(tfb.Chain([tfb.Invert(glow)]))], ids=["ours", "tfp", "chain", "mixed"])
def test_inverting_twice_changes_nothing(twice):
  glow, expected, y = _glow(), _glow(), RNG.normal(3., 2., [8, 4, 4, 1]).astype(np.float32)
  expected.initialize(y)
  inverted = as_one_pass(twice(glow))
  assert not inverted.initialized
  inverted.initialize(y)
  assert inverted.initialized and glow.initialized
  for value, wanted in zip(_values(glow), _values(expected), strict=True):
    np.testing.assert_allclose(value, wanted, atol=1e-6)


@pytest.mark.slow
def test_training_begins_with_it():
  glow, y = _glow(), RNG.normal(3., 2., [64, 16]).astype(np.float32)
  base = tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1])
  model = small_models.compiled(tfp_glow.FlowModel(
      tfd.TransformedDistribution(base, tfb.Invert(glow)), num_bits=None), "sgd", run_eagerly=True)
  model.optimizer.learning_rate = 0.
  model.fit(y, batch_size=64, verbose=0)
  assert glow.initialized
  _is_normalised(tfp_glow.Squeeze().inverse(glow.forward(y)).numpy())

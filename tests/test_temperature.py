"""Tests of the temperature of samples, level by level."""

import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

tfd = tfp.distributions
pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
SHAPE = (8, 8, 1)
NUM_LEVELS = 3


def make_model(loc=0.):
  """A flow of three levels that is not the identity, with latents centred at `loc`."""
  glow = tfp_glow.GlowBijector(SHAPE, num_glow_blocks=NUM_LEVELS, num_steps_per_block=1, num_hidden=4, seed=0)
  for variable in glow.trainable_variables:
    variable.assign_add(0.05 * tf.random.stateless_normal(variable.shape, [1, 2]))
  base = tfd.Sample(tfd.Normal(loc, 1.), [64])
  return tfp_glow.FlowModel(tfd.TransformedDistribution(base, glow), num_bits=None)


@pytest.fixture(scope="module")
def models():
  return {"around 0": make_model(), "around 1.5": make_model(loc=1.5)}


@pytest.fixture(scope="module")
def model(models):
  return models["around 0"]


def levels_of(model, images):
  return [part.numpy() for part in model.distribution.bijector.split_latent(model.encode(images))]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0., 0.7, 1., 1.3])
def test_one_temperature_for_each_level_is_one_for_all(model, temperature):
  for kind in (list, tuple, np.array):
    np.testing.assert_array_equal(model.sample(5, kind([temperature] * NUM_LEVELS), seed=1),
                                  model.sample(5, temperature, seed=1))


@pytest.mark.parametrize("temperatures", [(0., 1., 1.), (1., 0.5, 2.), (0.3, 0.6, 0.)])
def test_levels_are_in_the_order_of_split_latent(model, temperatures):
  glow = model.distribution.bijector
  parts = glow.split_latent(model.distribution.distribution.sample(5, seed=tf.constant([0, 1])))
  z = glow.join_latent([temperature * part.numpy() for temperature, part in zip(temperatures, parts)])
  np.testing.assert_allclose(model.sample(5, temperatures, seed=1), model.decode(z.numpy()), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cold", range(NUM_LEVELS))
def test_a_level_at_temperature_zero_is_at_its_mean_while_others_vary(models, cold):
  model = models["around 1.5"]
  temperatures = [float(level != cold) for level in range(NUM_LEVELS)]
  for level, part in enumerate(levels_of(model, model.sample(100, temperatures, seed=1))):
    if level == cold:
      np.testing.assert_allclose(part, 1.5, atol=5e-3)
    else:
      np.testing.assert_allclose(part.std(axis=0), 1., atol=0.4)


@pytest.mark.parametrize("temperature, match", [
    ([1., 1.], r"must be one number, or a list.*`split_latent` returns. Received: \[1.0, 1.0\] for 3 levels"),
    ([], r"must be one number, or a list.*Received: \[\] for 3 levels"),
    ([1., -1., 1.], r"must be a finite number of at least 0, or a list.*Received: \[1.0, -1.0, 1.0\]"),
    ([1., np.nan, 1.], "must be a finite number.*Received: .*nan"), ([1., np.inf, 1.], "must be a finite number"),
    ([[1., 1., 1.]], "must be a finite number"), ([[1.], [1., 2.], 3.], "must be a finite number"),
    (np.nan, "must be a finite number.*Received: nan"), (np.inf, "Received: inf"), ("1", "Received: '1'"),
    (["1", 1., 1.], "must be a finite number"), (None, "Received: None"), (1j, "Received: 1j")])
def test_bad_temperatures(model, temperature, match):
  with pytest.raises(ValueError, match="`temperature` " + match if match.startswith("must") else match):
    model.sample(2, temperature, seed=0)


def test_bijectors_without_levels_take_one_temperature():
  model = tfp_glow.FlowModel(small_models.gaussian(), num_bits=None)
  assert model.sample(2, 0.5, seed=0).shape == (2, *small_models.SHAPE)
  with pytest.raises(ValueError, match=r"`temperature` must be one number.*Received: \[1.0\] for a bijector without"):
    model.sample(2, [1.], seed=0)


@pytest.mark.parametrize("temperature", [0.5, [1.]])
def test_distributions_without_latents_have_temperature_one(temperature):
  loc = tf.Variable(tf.zeros(3), name="loc")
  model = tfp_glow.FlowModel(tfd.Independent(tfd.Normal(loc, 1.), 1), num_bits=None)
  assert model.sample(2, 1, seed=0).shape == (2, 3)
  with pytest.raises(ValueError, match="`temperature` must be"):
    model.sample(2, temperature, seed=0)

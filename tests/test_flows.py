"""Flows that are parts of a distribution: initialised, and given their labels, wherever they are."""

import bijector_cases
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

tfb, tfd = tfp.bijectors, tfp.distributions
pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
IMAGES, LABELS = small_models.images(), (np.arange(24) % 3).astype(np.int32)


def _glow(seed, **kwargs):
  return tfp_glow.GlowBijector(IMAGES.shape[1:], 1, 1, num_hidden=4, seed=seed, **kwargs)


def _transformed(bijector):
  base = tfd.Sample(tfd.Normal(0., 1.), [int(np.prod(IMAGES.shape[1:]))])
  return tfd.TransformedDistribution(base, bijector)


@pytest.mark.slow
def test_flows_of_a_mixture_are_initialised():
  glows = [_glow(seed) for seed in range(2)]
  mixture = tfd.Mixture(tfd.Categorical(tf.Variable([0., 0.])), [_transformed(glow) for glow in glows])
  model = tfp_glow.FlowModel(mixture, num_bits=4)
  model.adapt(IMAGES)
  assert all(glow.initialized for glow in glows)
  alone = tfp_glow.FlowModel(_transformed(_glow(0)), num_bits=4)
  alone.adapt(IMAGES)
  for variable, expected in zip(glows[0].variables, alone.distribution.bijector.variables, strict=True):
    np.testing.assert_allclose(variable, expected, atol=1e-6)


def test_a_flow_in_the_components_of_a_mixture_is_initialised():
  glow, alone = _glow(0), _glow(0)
  base = tfd.Independent(tfd.Normal(tf.Variable(np.zeros([3, 32], np.float32)), 1.), 1)
  mixture = tfd.MixtureSameFamily(tfd.Categorical(logits=[0., 1., 2.]), tfd.TransformedDistribution(base, glow))
  tfp_glow.FlowModel(mixture, num_bits=4).adapt(IMAGES)
  tfp_glow.FlowModel(_transformed(alone), num_bits=4).adapt(IMAGES)
  assert glow.initialized
  for variable, expected in zip(glow.variables, alone.variables, strict=True):
    np.testing.assert_allclose(variable, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("compose", [
    lambda chain, invert, glow: chain([tfb.Scale(2.), glow]),
    lambda chain, invert, glow: chain([glow, chain([tfb.Shift(0.5)])]),
    lambda chain, invert, glow: invert(invert(glow)),
], ids=["scaled", "nested", "inverted twice"])
def test_a_class_conditional_flow_in_a_composition_of_tfp(compose):
  glow = _glow(0, num_classes=3)
  model, ours = (tfp_glow.FlowModel(_transformed(compose(*classes, glow)), num_bits=4)
                 for classes in ((tfb.Chain, tfb.Invert), (tfp_glow.Chain, tfp_glow.Invert)))
  bijector_cases.perturb(glow, scale=0.2)
  np.testing.assert_allclose(model.log_prob(IMAGES, LABELS), ours.log_prob(IMAGES, LABELS), rtol=1e-6)
  assert np.abs(model.log_prob(IMAGES, LABELS) - model.log_prob(IMAGES, (LABELS + 1) % 3)).max() > 0.1
  np.testing.assert_array_equal(model.decode(model.encode(IMAGES, LABELS), LABELS), IMAGES // 16 * 16)


@pytest.mark.slow
def test_a_class_conditional_flow_in_a_chain_of_tfp_is_trained():
  model = tfp_glow.FlowModel(_transformed(tfb.Chain([tfb.Scale(2.), _glow(0, num_classes=3)])), num_bits=4)
  model.compile(keras.optimizers.Adam(1e-2))
  history = model.fit(IMAGES, LABELS, batch_size=8, epochs=3, verbose=0).history["bits_per_dim"]
  assert history[-1] < history[0]

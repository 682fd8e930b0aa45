"""Frozen parts keep their values when a flow is initialised from data."""

import numpy as np
import pytest
from frozen_flows import IMAGES, SHAPE, VALUES, make_glow

import tfp_glow


def test_frozen_parts_keep_their_values_when_others_are_initialised():
  glow = tfp_glow.GlowBijector(SHAPE, 2, 2, 4, seed=0)
  glow.initialize(VALUES)
  glow.blocks[0].trainable = False
  before = [v.numpy() for v in glow.blocks[0].variables]
  glow.initialize(3. * VALUES + 1.)
  for value, old in zip(glow.blocks[0].variables, before):
    np.testing.assert_array_equal(value, old)
  # The next level is initialised from the first one's outputs for these images.
  last = [value for name, value, _ in glow.walk(3. * VALUES + 1.) if name == "block1, step of flow 0, actnorm"]
  np.testing.assert_allclose(np.mean(last[0], axis=(0, 1, 2)), 0., atol=1e-4)
  np.testing.assert_allclose(np.std(last[0], axis=(0, 1, 2)), 1., rtol=1e-2)


@pytest.mark.parametrize("invert", [False, True])
def test_frozen_layers_keep_their_values(invert):
  values = np.random.default_rng(0).normal(2., 3., [50, 2, 2, 4]).astype(np.float32)
  network = tfp_glow.networks.CouplingNetwork(4, 4, seed=0)
  for part in (tfp_glow.ActNorm(4), tfp_glow.AffineCoupling(network)):
    part.trainable = False
    if hasattr(part, "build"):
      part.build([2, 2, 4])
    before = [v.numpy() for v in part.variables]
    (tfp_glow.Invert(part) if invert else part).initialize(values)
    for value, old in zip(part.variables, before):
      np.testing.assert_array_equal(value, old)


def test_layers_of_networks_keep_their_values():
  values = np.random.default_rng(0).normal(2., 3., [50, 2, 2, 4]).astype(np.float32)
  coupling = tfp_glow.AffineCoupling(tfp_glow.networks.CouplingNetwork(4, 4, seed=0))
  coupling.build([2, 2, 4])
  network = coupling.network
  network.first.trainable = False
  before = [v.numpy() for v in network.variables]
  coupling.initialize(values)
  changed = {v.path for v, old in zip(network.variables, before) if np.any(v.numpy() != old)}
  assert changed == {network.second.shift.path, network.second.log_scale.path}


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("make", [tfp_glow.Standardization, tfp_glow.Whitening])
def test_what_is_measured_stays_as_it_is(make, invert):
  rows = np.random.default_rng(0).normal(2., 3., [50, 2]).astype(np.float32)
  part = make(2)
  part.initialize(rows)
  before = [v.numpy() for v in part.variables]
  part.trainable = False
  whole = tfp_glow.Chain([tfp_glow.Invert(part) if invert else part])
  whole.initialize(5. * rows)
  for variable, old in zip(part.variables, before, strict=True):
    np.testing.assert_array_equal(variable, old)
  whole.trainable = True
  whole.initialize(5. * rows)
  assert all(np.any(variable.numpy() != old) for variable, old in zip(part.variables, before))


@pytest.mark.parametrize("frozen", ["shift", "log_scale"])
@pytest.mark.parametrize("invert", [False, True])
def test_one_of_two_variables_keeps_its_value(frozen, invert):
  values = np.random.default_rng(0).normal(2., 3., [5000, 2]).astype(np.float32)
  actnorm = tfp_glow.ActNorm(2, event_ndims=1)
  getattr(actnorm, frozen).assign([0.3, -0.2])
  getattr(actnorm, frozen).trainable = False
  bijector = tfp_glow.Invert(actnorm) if invert else actnorm
  bijector.initialize(values)
  np.testing.assert_array_equal(getattr(actnorm, frozen), np.float32([0.3, -0.2]))
  found = bijector.inverse(values).numpy()
  if frozen == "shift":
    np.testing.assert_allclose(np.std(found, 0), 1., rtol=1e-4)
  else:
    np.testing.assert_allclose(np.mean(found, 0), 0., atol=1e-4)


def test_one_of_two_variables_of_a_convolution_keeps_its_value():
  values = np.random.default_rng(0).normal(2., 3., [50, 2, 2, 3]).astype(np.float32)
  network = tfp_glow.networks.CouplingNetwork(4, 4, seed=0)
  network(values)
  network.first.shift.trainable = False
  network.initialize(values)
  np.testing.assert_array_equal(network.first.shift, np.zeros(4))
  assert np.all(network.first.log_scale.numpy() != 0.)


@pytest.mark.slow
def test_a_frozen_classifier_keeps_its_values():
  classifier = tfp_glow.ScaleClassifier(num_classes=3, num_channels=4, seed=0)
  model = tfp_glow.FlowModel(make_glow(), classifier=classifier)
  model.adapt(IMAGES)
  classifier.trainable = False
  before = [v.numpy() for v in classifier.variables]
  model.adapt(255 - IMAGES[::2])
  for variable, old in zip(classifier.variables, before, strict=True):
    np.testing.assert_array_equal(variable, old)
  classifier.trainable = True
  model.adapt(255 - IMAGES[::2])
  assert any(np.any(v.numpy() != old) for v, old in zip(classifier.variables, before))

"""`trainable` of bijectors, and of the layers of their networks: what is frozen, and whose gradients are missing."""

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import perturb
from frozen_flows import VALUES, compile_eagerly, distribution_of, fit, make_glow, moved_by, names_of

import tfp_glow
from tfp_glow.bijectors import ownership

tfb, tfd = tfp.bijectors, tfp.distributions


def _freeze_networks(glow):
  for block in glow.blocks:
    block.template.coupling.network.trainable = False  # Keras' own.


def _set(part):
  def freeze(glow):
    part(glow).trainable = False
  return freeze


FROZEN = {
    "level": (_set(lambda glow: glow.blocks[0]), lambda name: name.startswith("block0")),
    "actnorms of a level": (_set(lambda glow: glow.blocks[1].template.actnorm),
                            lambda name: name.startswith("block1") and "_actnorm_" in name),
    "couplings of a level": (_set(lambda glow: glow.blocks[1].template.coupling),
                             lambda name: name.startswith("block1") and "_network_" in name),
    "networks": (_freeze_networks, lambda name: "_network_" in name),
    "split": (_set(lambda glow: glow.splits[0]), lambda name: "split0" in name),
    "top": (_set(lambda glow: glow.top), lambda name: name.startswith("top"))}


def _gradients(distribution):
  """Dict from the names of all variables to their gradients; `None` where there is none."""
  with tf.GradientTape() as tape:
    loss = tf.reduce_mean(distribution.log_prob(VALUES))
  gradients = tape.gradient(loss, distribution.variables)
  return {v.name: None if g is None else g.numpy() for v, g in zip(distribution.variables, gradients)}


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["autodiff", "reversible"])
@pytest.mark.parametrize("freeze, is_frozen", FROZEN.values(), ids=FROZEN)
def test_frozen_parts_have_no_gradients_and_others_have_the_same(freeze, is_frozen, gradient):
  glow = make_glow(gradient=gradient)
  distribution = distribution_of(glow)
  expected = _gradients(distribution)
  trained = names_of(distribution.trainable_variables)
  freeze(glow)
  found = _gradients(distribution)
  assert 0 < len([name for name in trained if is_frozen(name)]) < len(trained)
  assert {name for name in trained if found[name] is None} == {name for name in trained if is_frozen(name)}
  for name in trained:
    if not is_frozen(name):
      np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
  left = [name for name in trained if not is_frozen(name)]
  assert names_of(distribution.trainable_variables) == names_of(glow.trainable_variables) == left


@pytest.mark.slow
@pytest.mark.parametrize("freeze, is_frozen", FROZEN.values(), ids=FROZEN)
def test_frozen_parts_do_not_move(freeze, is_frozen):
  glow = make_glow()
  freeze(glow)
  model = tfp_glow.FlowModel(glow)
  trained = set(names_of(v for v in glow.variables if v.trainable))
  optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.1, use_ema=True, ema_momentum=0.5)
  compile_eagerly(model, optimizer)
  assert moved_by(model, fit) == trained and not any(map(is_frozen, trained))
  count = len(model.trainable_variables)
  assert count == len(trained)
  assert len(optimizer.variables) == 2 + 3 * count  # Steps, rate; two moments and the average of each variable.


def test_unfreezing_trains_all_that_was_trained_before():
  glow = make_glow()
  expected = names_of(glow.trainable_variables)
  assert glow.trainable and glow.blocks[0].trainable
  glow.trainable = False
  assert not glow.trainable_variables and not glow.blocks[0].trainable and not glow.top.trainable
  assert not glow.blocks[0].template.coupling.network.trainable
  glow.top.trainable = True
  assert glow.trainable and not glow.blocks[0].trainable
  glow.trainable = True  # Also if a part of it has `True` already.
  assert names_of(glow.trainable_variables) == expected and glow.blocks[0].trainable


@pytest.mark.parametrize("is_frozen", [False, True])
def test_gradients_of_the_way_back(is_frozen):
  """The way back is recalled, so its gradients take an evaluation with the weights of the way there."""
  flow = tfp_glow.VectorFlowBijector(3, num_steps=1, num_hidden=4, seed=0)
  perturb(flow)
  flow.parts[2].trainable = not is_frozen
  x, weights = tf.random.stateless_normal([5, 3], [0, 1]), tf.random.stateless_normal([5, 3], [0, 2])
  with tf.GradientTape() as tape:
    tape.watch(x)
    loss = tf.reduce_sum(weights * flow.inverse(flow.forward(x)))
  np.testing.assert_allclose(tape.gradient(loss, x), weights, atol=1e-5)
  assert bool(flow.trainable_variables) != is_frozen


def test_trainable_must_be_a_bool():
  with pytest.raises(ValueError, match="`trainable` must be a `bool`. Received: 'no'"):
    make_glow().trainable = "no"


def test_a_bijector_without_variables_remembers_trainable():
  squeeze = tfp_glow.Squeeze()
  squeeze.trainable = False
  assert not squeeze.trainable


def test_followers_are_told_once():
  class Counter:
    count = 0

    def add(self):
      self.count += 1

  counter, chain = Counter(), tfp_glow.Chain([tfb.Shift(tf.Variable(0.5)), make_glow()])
  ownership.on_trainable_changed(chain, counter.add)
  for value in (False, True):
    chain.trainable = value
  assert counter.count == 2
  chain.parts[1].blocks[0].template.actnorm.trainable = False
  assert counter.count == 3


# Users' own networks, and other bijectors.


def test_networks_that_are_frozen_before_they_are_built():
  network = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(4)])
  coupling = tfp_glow.AffineCoupling(network, event_ndims=1)
  coupling.trainable = False
  coupling.build([4])
  assert len(coupling.variables) == 4 and not coupling.trainable_variables
  network.layers[1].trainable = True
  assert names_of(coupling.trainable_variables) == names_of(v.value for v in network.layers[1].variables)


def test_layers_of_networks_in_a_users_own_loop():
  network = keras.Sequential([keras.Input([2]), keras.layers.Dense(3), keras.layers.Dense(4)])
  coupling = tfp_glow.AffineCoupling(network, event_ndims=1)
  network.layers[0].trainable = False
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(coupling.inverse_and_log_det(np.ones([3, 4], np.float32))[1])
  gradients = tape.gradient(loss, coupling.variables)
  assert [g is None for g in gradients] == [True, True, False, False]


def test_variables_of_tfp_in_a_chain():
  shift = tf.Variable(0.5)
  inner = make_glow()
  chain = tfp_glow.Chain([tfb.Shift(shift), tfb.Invert(tfb.Invert(inner))])
  model = tfp_glow.FlowModel(chain)
  chain.trainable = False
  assert not chain.trainable and not shift.trainable and not inner.trainable and not inner.trainable_variables
  assert not model.trainable_variables and not model.distribution.trainable_variables
  chain.trainable = True
  assert shift.trainable and len(model.trainable_variables) == len(inner.trainable_variables) + 1


@pytest.mark.slow
def test_residual_blocks():
  flow = small_models.residual_flow()
  model = tfp_glow.FlowModel(small_models.of_standard_normal(flow), num_bits=None)
  points = small_models.points()
  model.adapt(points)
  scan = flow.parts[-1]
  parameters = [scan.stacked(v) for v in scan.template.block.network.trainable_variables]
  scan.template.block.trainable = False
  small_models.compiled(model, run_eagerly=True)
  before = [v.numpy() for v in parameters]
  others = [v.numpy() for v in model.distribution.trainable_variables]
  model.fit(points, batch_size=32, verbose=0)
  assert all(np.any(v.numpy() != old) for v, old in zip(model.distribution.trainable_variables, others))
  assert len(parameters) >= 4
  for value, old in zip(parameters, before):
    np.testing.assert_array_equal(value, old)


def test_a_step_alone_is_a_bijector_of_its_own():
  """The documentation recommends it."""
  def make_step(seed):
    network = tfp_glow.networks.CouplingNetwork(4, 4, seed=seed)
    return tfp_glow.GlowStep(tfp_glow.ActNorm(4), tfp_glow.InvertibleConv1x1(4, seed=seed),
                             tfp_glow.AffineCoupling(network))

  first, others = make_step(0), tfp_glow.Scan(lambda k: make_step(1 + k), 2, [2, 2, 4])
  first.build([2, 2, 4])
  chain = tfp_glow.Chain([tfp_glow.Squeeze(), first, others])
  first.trainable = False
  assert names_of(chain.trainable_variables) == names_of(others.trainable_variables) and others.trainable_variables

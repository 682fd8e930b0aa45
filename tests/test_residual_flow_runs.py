"""Runs of residual flows: resumed, saved, with other precision. `test_workers.py` has runs of workers."""

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from small_models import points, residual_flow

import tfp_glow
from tfp_glow import callbacks
from tfp_glow.networks.lipschitz import LearnedOrder, LipschitzDense, LipSwish

tfb, tfd = tfp.bijectors, tfp.distributions


def point_model(seed=0):
  """Trained eagerly, without tracing."""
  return small_models.residual_model(residual_flow(num_dense_blocks=1, seed=seed),
                                     keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5), run_eagerly=True)


def everything_in(model):
  """All variables: weights, vectors of the power iterations, seeds of noise, and the optimizer's."""
  return [v.numpy() for v in model.weights + model.optimizer.variables]


def assert_equal(found, expected):
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a, b)


def state_of(model):
  """What follows the weights."""
  return [v.numpy() for v in model.distribution.bijector._variables_of_update()]


@pytest.mark.slow
def test_a_resumed_run_is_as_one_without_interruption(tmp_path):
  def run(folder, epochs, seed=0):
    model, state = point_model(seed), callbacks.TrainingState(tmp_path / folder)
    start = state_of(model)
    model.fit(points(16), batch_size=16, shuffle=False, verbose=0, initial_epoch=state.restore(model), epochs=epochs,
              callbacks=[state])
    return model, start

  whole, start = run("whole", 2)
  run("ended", 1)
  resumed, _ = run("ended", 2, seed=1)  # Nothing of the other initial values is left.
  assert_equal(everything_in(resumed), everything_in(whole))
  for before, after in zip(start, state_of(whole), strict=True):
    assert (before != after).any()
  assert all(seeds[..., 1].max() >= 2 for seeds in state_of(whole) if seeds.dtype == np.int32)


@pytest.mark.parametrize("run_eagerly", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_norms_are_measured_after_updates_alone(run_eagerly, monkeypatch):
  """Not after each batch of an update; their estimates have different noise nevertheless."""
  num_measured, original = tf.Variable(0), LipschitzDense.next_vectors

  def counted(layer):
    num_measured.assign_add(1)
    return original(layer)

  monkeypatch.setattr(LipschitzDense, "next_vectors", counted)
  network = keras.Sequential([LipschitzDense(2, seed=0)])
  block = tfp_glow.InvertibleResidualBlock(network, event_ndims=1, seed=0)
  block.build([2])
  model = tfp_glow.FlowModel(
      tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [2]), block), num_bits=None)
  model.compile(keras.optimizers.Adam(0.1, gradient_accumulation_steps=3), run_eagerly=run_eagerly)
  model.adapt(points(8))
  at_start, kernel = int(num_measured), network.layers[0].kernel.numpy()
  for batch in range(1, 8):
    model.train_on_batch(points(8))
    assert int(num_measured) - at_start == batch // 3
    assert (network.layers[0].kernel.numpy() != kernel).any() == (batch >= 3)
    assert block.noise_seeds()[0].numpy()[1] == batch


# Precision.


def test_the_flow_keeps_its_precision_under_a_policy_of_less():
  expected = residual_flow(num_dense_blocks=1).inverse_and_log_det(points(8))
  before = keras.config.dtype_policy()
  keras.config.set_dtype_policy("mixed_bfloat16")
  try:
    found = residual_flow(num_dense_blocks=1).inverse_and_log_det(points(8))
    with pytest.raises(ValueError, match="`network` must compute in the dtype of the block.*Received: bfloat16"):
      tfp_glow.InvertibleResidualBlock(LipschitzDense(2), event_ndims=1).build([2])
  finally:
    keras.config.set_dtype_policy(before)
  assert_equal(found, expected)


@pytest.mark.slow
def test_points_of_any_size_come_back():
  flow = residual_flow()
  for size in (1e-6, 1e3, 1e6):
    y = (size * points(8)).astype(np.float32)
    z = flow.inverse(y).numpy()
    np.testing.assert_allclose(flow.forward(z), y, rtol=1e-5, atol=1e-5 * size + 1e-6)


# Users' own flows.


def block_of_learned_orders(name, seed):
  outer, inner = LearnedOrder(), LearnedOrder()
  network = keras.Sequential([LipSwish(), LipschitzDense(8, domain=outer, codomain=inner, seed=seed),
                              LipSwish(), LipschitzDense(2, domain=inner, codomain=outer, seed=seed + 1)])
  return tfp_glow.InvertibleResidualBlock(network, event_ndims=1, seed=seed, name=name)


def flow_of_learned_orders():
  return tfb.Chain([block_of_learned_orders("first", 0), tfp_glow.ActNorm(2, 1), block_of_learned_orders("second", 2)])


@pytest.mark.slow
def test_learned_orders_are_trained_and_saved(tmp_path):
  base = tfd.Sample(tfd.Normal(0., 1.), [2])
  model = small_models.compiled(
      tfp_glow.FlowModel(tfd.TransformedDistribution(base, flow_of_learned_orders()), num_bits=None), run_eagerly=True)
  train = lambda model, count=8: model.fit(points(count), batch_size=8, shuffle=False, verbose=0)
  train(model, 24)
  orders = [v.numpy() for v in model.distribution.trainable_variables if "logit" in v.name]
  assert len(orders) == 4 and all(abs(order + np.log(3.)) > 0.01 for order in orders)
  np.testing.assert_allclose(model.decode(model.encode(points())), points(), atol=1e-4)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.distribution.log_prob(points(8)), model.distribution.log_prob(points(8)))
  train(model)
  train(loaded)
  assert_equal(everything_in(loaded), everything_in(model))


@pytest.mark.slow
def test_parts_of_compositions_are_asked_for_the_estimate_of_training(monkeypatch):
  asked = []
  original = tfp_glow.InvertibleResidualBlock._residual

  def record(self, y, weights, training):
    asked.append((self.name, training))
    return original(self, y, weights, training)

  monkeypatch.setattr(tfp_glow.InvertibleResidualBlock, "_residual", record)
  flow = tfb.Invert(tfb.Invert(tfb.Chain([tfb.Shift(1.), flow_of_learned_orders()])))
  model = tfp_glow.FlowModel(tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [2]), flow), num_bits=None)
  for training in (True, False):
    asked.clear()
    model._likelihood.log_prob(points(4), training=training)
    assert set(asked) == {("first", training), ("second", training)}
  assert model._likelihood.log_det_estimator.startswith("Russian roulette: 20 terms")

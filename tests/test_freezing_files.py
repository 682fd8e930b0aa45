"""Models with frozen parts in files: saved, loaded, trained on."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import perturb
from frozen_flows import IMAGES, SHAPE, compile_eagerly, fit, make_glow, moved_by, names_of

import tfp_glow
from tfp_glow import callbacks

tfb, tfd = tfp.bijectors, tfp.distributions


@keras.saving.register_keras_serializable("test_freezing")
def _whitening_step(k):
  return tfp_glow.Whitening(2)


@pytest.mark.slow
def test_parts_without_parameters_in_files(tmp_path):
  rows = np.random.default_rng(0).normal(2., 3., [50, 2]).astype(np.float32)
  whitening = tfp_glow.Scan(_whitening_step, 2, [2])
  chain = tfp_glow.Chain([tfp_glow.Standardization(2), whitening, tfp_glow.ActNorm(2, event_ndims=1)])
  model = tfp_glow.FlowModel(tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [2]), chain), num_bits=None)
  model.adapt(rows)
  chain.parts[0].trainable = whitening.trainable = False
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  parts = loaded.distribution.bijector.parts
  assert [part.trainable for part in parts] == [False, False, True]
  loaded.adapt(5. * rows)
  for variable, old in zip([v for part in parts[:2] for v in part.variables],
                           [v for part in chain.parts[:2] for v in part.variables], strict=True):
    np.testing.assert_array_equal(variable, old)
  assert all(np.any(v.numpy() != old.numpy()) for v, old in zip(parts[2].variables, chain.parts[2].variables))


def _fitted_and_loaded(model, folder):
  """Fits the model once, saves it, and returns what is loaded."""
  compile_eagerly(model)
  fit(model)
  model.save(folder / "model.keras")
  return keras.models.load_model(folder / "model.keras")


@pytest.mark.slow
@pytest.mark.parametrize("is_frozen_first", [True, False])
def test_frozen_parts_in_files(is_frozen_first, tmp_path):
  glow = make_glow()
  glow.blocks[0].trainable = not is_frozen_first
  model = tfp_glow.FlowModel(glow)
  glow.blocks[0].trainable = False
  loaded = _fitted_and_loaded(model, tmp_path)
  np.testing.assert_array_equal(loaded.log_prob(IMAGES), model.log_prob(IMAGES))
  found = loaded.distribution.bijector
  assert not found.blocks[0].trainable and not found.blocks[0].trainable_variables and found.blocks[1].trainable
  for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
    np.testing.assert_array_equal(a, b, err_msg=a.path)
  assert moved_by(loaded, fit) == moved_by(model, fit)
  np.testing.assert_array_equal(loaded.log_prob(IMAGES), model.log_prob(IMAGES))
  found.blocks[0].trainable = True
  compile_eagerly(loaded)
  assert any(name.startswith("block0") for name in moved_by(loaded, fit))


@pytest.mark.slow
def test_unfrozen_parts_in_files(tmp_path):
  """Parts that were frozen at first: neither weights nor the optimizer's variables change places."""
  glow = make_glow()
  glow.blocks[0].trainable = False
  model = tfp_glow.FlowModel(glow)
  glow.blocks[0].trainable = True
  loaded = _fitted_and_loaded(model, tmp_path)
  for each in (model, loaded):
    fit(each)
  np.testing.assert_array_equal(loaded.log_prob(IMAGES), model.log_prob(IMAGES))


@pytest.mark.slow
def test_a_context_network_that_is_frozen_after_the_model_is_made(tmp_path):
  vectors = np.random.default_rng(0).standard_normal([24, 3]).astype(np.float32)
  network = keras.Sequential([keras.Input([3]), keras.layers.Dense(3), keras.layers.Dense(3)])
  glow = tfp_glow.GlowBijector(SHAPE, 1, 1, 4, seed=0, context_shape=(3,), context_network=network)
  perturb(glow)
  model = tfp_glow.FlowModel(glow)
  network.layers[0].trainable = False
  compile_eagerly(model)
  model.fit(IMAGES, {"context": vectors}, verbose=0)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.log_prob(IMAGES, context=vectors), model.log_prob(IMAGES, context=vectors))
  assert len(loaded.trainable_variables) == len(model.trainable_variables) == len(glow.trainable_variables)


@pytest.mark.slow
def test_variables_of_tfp_in_files(tmp_path):
  chain = tfp_glow.Chain([tfb.Shift(tf.Variable(tf.zeros(SHAPE))), make_glow()])
  model = tfp_glow.FlowModel(chain)
  chain.trainable = False
  chain.parts[1].blocks[1].trainable = True
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.log_prob(IMAGES), model.log_prob(IMAGES))
  names = lambda model: names_of(model.distribution.trainable_variables)
  assert names(loaded) == names(model) and len(names(model)) == len(loaded.trainable_variables)


@pytest.mark.slow
def test_a_run_with_frozen_parts_is_resumed(tmp_path):
  def run(folder, epochs):
    glow = make_glow()
    glow.blocks[0].trainable = False
    model = compile_eagerly(tfp_glow.FlowModel(glow), keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5))
    state = callbacks.TrainingState(folder)
    model.fit(IMAGES, batch_size=12, shuffle=False, initial_epoch=state.restore(model), epochs=epochs, verbose=0,
              callbacks=[state])
    return model

  run(tmp_path / "parts", 1)
  found, expected = run(tmp_path / "parts", 2), run(tmp_path / "whole", 2)
  for a, b in zip(found.weights + found.optimizer.variables, expected.weights + expected.optimizer.variables,
                  strict=True):
    np.testing.assert_array_equal(a, b, err_msg=a.path)

"""Files that version 0.1.0 wrote, in the folder `written_before`, still mean the same."""

import pathlib

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow

FOLDER = pathlib.Path(__file__).parent / "written_before"
IMAGES, LABELS = small_models.images(), (np.arange(24) % 3).astype(np.int32)


@pytest.fixture(scope="module")
def expected():
  with np.load(FOLDER / "expected.npz") as arrays:
    return dict(arrays)


@pytest.mark.slow
def test_a_glow_goes_on_where_it_was(expected, eagerly):
  model = keras.models.load_model(FOLDER / "glow.keras")
  np.testing.assert_allclose(model.log_prob(IMAGES, LABELS), expected["log_prob"], rtol=1e-5)
  np.testing.assert_allclose(model.encode(IMAGES, LABELS), expected["latents"], rtol=1e-3, atol=1e-4)
  np.testing.assert_array_equal(model.sample(6, seed=1, labels=LABELS[:6]), expected["samples"])
  history = model.fit(IMAGES, LABELS, batch_size=8, epochs=1, verbose=0).history
  # A further epoch, in another order. Without Adam's averages and step count it would be far off.
  np.testing.assert_allclose(history["bits_per_dim"], expected["next_bits"], rtol=0.02)


@pytest.mark.slow
def test_a_residual_flow_is_the_same(expected, eagerly):
  model = keras.models.load_model(FOLDER / "residual.keras")
  np.testing.assert_allclose(model.log_prob(small_models.points()), expected["residual_log_prob"], rtol=1e-4, atol=1e-4)


def _flow_of_a_frozen_network():
  network = keras.Sequential([keras.Input([3]), keras.layers.Dense(3), keras.layers.Dense(3)])
  network.layers[0].trainable = False
  return tfp_glow.GlowBijector((4, 4, 1), 1, 1, 4, context_shape=(3,), context_network=network)


@pytest.mark.slow
def test_layers_that_were_frozen_at_first(expected, eagerly, tmp_path):
  """In these files they come last, among layers of the same shape; now they do not."""
  images, context = small_models.images(24, (4, 4, 1)), np.random.default_rng(0).standard_normal([24, 3])
  of_weights = tfp_glow.FlowModel(_flow_of_a_frozen_network())
  of_weights.load_weights(FOLDER / "frozen.weights.h5")
  model = keras.models.load_model(FOLDER / "frozen.keras")
  for each in (model, of_weights):
    found = each.log_prob(images, context=context.astype(np.float32))
    np.testing.assert_allclose(found, expected["frozen_log_prob"], rtol=1e-5)
    assert [v.trainable for v in each.variables if v.shape == (3, 3)] == [False, True]
  assert [v.trainable for v in model.variables] == [v.trainable for v in of_weights.variables]
  model.fit(images, {"context": context.astype(np.float32)}, batch_size=8, verbose=0)
  model.save(tmp_path / "model.keras")
  again = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(again.log_prob(images, context=context), model.log_prob(images, context=context))
  again.save_weights(tmp_path / "model.weights.h5")
  of_weights.load_weights(tmp_path / "model.weights.h5")
  np.testing.assert_array_equal(of_weights.log_prob(images, context=context), model.log_prob(images, context=context))


@pytest.mark.slow
def test_a_savedmodel_serves_the_same(expected):
  served = tf.saved_model.load(FOLDER / "savedmodel").signatures["log_prob"](images=tf.constant(IMAGES))
  np.testing.assert_allclose(served["log_prob"], expected["served"], rtol=1e-5)

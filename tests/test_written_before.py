"""Files that version 0.1.0 wrote, in the folder `written_before`, still mean the same."""

import pathlib

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow  # noqa: F401  Registers what `.keras` files are made of.

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
  # Another epoch of another order; but with Adam's averages, and the steps counted, or it would be far off.
  np.testing.assert_allclose(history["bits_per_dim"], expected["next_bits"], rtol=0.02)


@pytest.mark.slow
def test_a_residual_flow_is_the_same(expected, eagerly):
  model = keras.models.load_model(FOLDER / "residual.keras")
  np.testing.assert_allclose(model.log_prob(small_models.points()), expected["residual_log_prob"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_savedmodel_serves_the_same(expected):
  served = tf.saved_model.load(FOLDER / "savedmodel").signatures["log_prob"](images=tf.constant(IMAGES))
  np.testing.assert_allclose(served["log_prob"], expected["served"], rtol=1e-5)

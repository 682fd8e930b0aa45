"""Saved models that go on training as if they had not stopped."""

import forks
import keras
import numpy as np
import pytest
import small_models
from saving_cases import IMAGES, assert_equal, everything_in, fit, saved_and_loaded

import tfp_glow

LABELS = np.arange(16) % 3


def _schedule():
  return keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=12, warmup_steps=2, warmup_target=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("make_optimizer", [
    lambda: "adam", lambda: keras.optimizers.AdamW(_schedule(), global_clipnorm=10., use_ema=True, ema_momentum=0.5),
    lambda: keras.optimizers.SGD(1e-2, momentum=0.9, gradient_accumulation_steps=3),
    lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.RMSprop(1e-3))])
def test_training_goes_on_as_if_it_had_not_stopped(make_optimizer, tmp_path):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(), seed=7), make_optimizer(), run_eagerly=True)
  fit(model, epochs=2)
  loaded = saved_and_loaded(model, tmp_path)
  assert type(loaded.optimizer) is type(model.optimizer) and loaded.optimizer.iterations == model.optimizer.iterations
  assert loaded.optimizer.get_config() == model.optimizer.get_config()
  before = everything_in(model)
  assert_equal(everything_in(loaded), before)
  assert fit(loaded, epochs=2) == fit(model, epochs=2)
  assert_equal(everything_in(loaded), everything_in(model))
  assert any((a != b).any() for a, b in zip(before, everything_in(model)))


@pytest.mark.slow
def test_a_model_that_has_seen_nothing_is_initialised_by_fit(tmp_path):
  make = lambda: small_models.compiled(
      tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1)), run_eagerly=True)
  model = make()
  loaded = saved_and_loaded(model, tmp_path)
  assert not loaded.distribution.bijector.initialized
  fit(model)
  fit(loaded)
  assert_equal(everything_in(loaded), everything_in(model))


@pytest.mark.slow
def test_model_checkpoint(tmp_path):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), run_eagerly=True)
  every, best = (keras.callbacks.ModelCheckpoint(tmp_path / name, **options) for name, options in (
      ("{epoch}.keras", {}), ("best.keras", {"monitor": "bits_per_dim", "save_best_only": True})))
  model.fit(IMAGES, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[every, best])
  resumed = keras.models.load_model(tmp_path / "2.keras")
  fit(resumed)
  assert_equal(everything_in(resumed), everything_in(model))
  assert_equal(everything_in(keras.models.load_model(tmp_path / "best.keras")), everything_in(model))


_LOAD = """
import tfp_glow, keras
import numpy as np
data = np.load("data.npz")
for name, arrays in (("glow", (data["images"], data["labels"])), ("residual", (data["points"],))):
  model = keras.models.load_model(f"{name}.keras")
  history = model.fit(*arrays, batch_size=8, shuffle=False, verbose=0).history
  np.savez(f"{name}_resumed.npz", *[v.numpy() for v in model.weights + model.optimizer.variables], loss=history["loss"])
"""


def _train(folder):
  """Trains, saves, and goes on in the same process."""
  glow = tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1, num_classes=3), num_bits=5, weight_y=0.01)
  models = {"glow": small_models.compiled(glow, run_eagerly=True),
            "residual": small_models.residual_model(
                small_models.residual_flow(num_dense_blocks=1),
                keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5), run_eagerly=True)}
  points = small_models.points(8)
  data = {"glow": (IMAGES[::-1], LABELS), "residual": (points[::-1], None)}
  fit(glow, IMAGES, LABELS)
  fit(models["residual"], points)
  for name, model in models.items():
    model.save(folder / f"{name}.keras")
    history = fit(model, *data[name])
    np.savez(folder / f"{name}_not_stopped.npz", *everything_in(model), loss=history["loss"])
  np.savez(folder / "data.npz", images=IMAGES[::-1], labels=LABELS, points=points[::-1])


@pytest.mark.slow
def test_a_fresh_process_goes_on_as_if_it_had_not_stopped(tmp_path):
  """It does not initialise again from images in another order, and the noise of a residual flow continues.

  Both processes are fresh: in one that has run for long, TensorFlow may round the last bit differently.
  """
  forks.run(tmp_path, _train, tmp_path)
  forks.run(tmp_path, forks.execute, tmp_path, _LOAD)
  for name in ("glow", "residual"):
    expected, found = (dict(np.load(tmp_path / f"{name}_{end}.npz")) for end in ("not_stopped", "resumed"))
    assert expected.keys() == found.keys()
    assert_equal(found.values(), expected.values())

"""`examples/train_glow.py`: averages of weights, accumulated batches, learning rates, and which weights are kept."""

import argparse
import math
import signal
import sys
import types

import example_runs
import numpy as np
import pytest
import small_models
import tensorflow as tf
import train_glow
import train_glow_runs

from tfp_glow import callbacks


def _compiled_model(monkeypatch, folder, *options):
  """The model that the script would train on images of `small_models`, nine batches an epoch."""
  monkeypatch.setattr(sys, "argv", ["train_glow.py", *example_runs.TINY, *options, f"--output={folder}"])
  args = train_glow.parse_args()
  model = train_glow.make_model(args, small_models.SHAPE)
  train_glow.compile_model(model, args, steps_per_epoch=9)
  return model


@pytest.mark.slow
@pytest.mark.usefixtures("one_layer_glow", "eagerly")
def test_averages_are_validated_and_kept_while_the_weights_train_on(monkeypatch, tmp_path):
  weights, validated, taken = [], [], []

  class Record(callbacks.TimeLimit):

    def on_train_batch_end(self, batch, logs=None):
      weights.append([v.numpy() for v in self.model.weights])

    def on_test_end(self, logs=None):
      validated.append([v.numpy() for v in self.model.weights])

    def on_epoch_end(self, epoch, logs=None):
      for found, expected in zip([v.numpy() for v in self.model.weights], weights[-1], strict=True):
        np.testing.assert_array_equal(found, expected)

  monkeypatch.setattr(callbacks, "TimeLimit", Record)
  monkeypatch.setattr(train_glow, "save_results", lambda model, test_images, history, *_: taken.append(
      ([v.numpy() for v in model.weights], history["val_bits_per_dim"])))
  assert train_glow_runs.call(monkeypatch, "--epochs=2", "--ema=0.9", "--time-limit=9", "--output", tmp_path) == 0
  averages, expected = weights[0], []
  for step, values in enumerate(weights, start=1):
    averages = [average + 0.1 * (value - average) for average, value in zip(averages, values)]
    if step % (len(weights) // 2) == 0:
      expected.append(averages)
  (kept, bits), = taken
  for found, wanted in zip([*validated, kept], [*expected, expected[np.argmin(bits)]], strict=True):
    for value, average in zip(found, wanted, strict=True):
      np.testing.assert_allclose(value, average, rtol=1e-4, atol=1e-6)
  assert max(np.abs(raw - average).max() for raw, average in zip(weights[-1], averages)) > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("one_layer_glow", "eagerly")
def test_a_run_with_averages_goes_on_with_the_weights(monkeypatch, tmp_path):
  """Also after the rest of an epoch, at whose end `fit` has replaced them with their averages."""

  class Terminate(callbacks.TimeLimit):

    def on_epoch_begin(self, epoch, logs=None):
      self._is_second = epoch == 1

    def on_train_batch_end(self, batch, logs=None):
      if self._is_second and batch == 1:
        signal.raise_signal(signal.SIGTERM)

  taken = []
  monkeypatch.setattr(train_glow, "save_results", lambda model, test_images, history, *_: taken.append(
      (history["loss"], history["val_loss"], small_models.weights_of(model))))
  options = ["--epochs=3", "--batch-size=400", "--ema=0.9", "--learning-rate=0.1"]
  assert train_glow_runs.call(monkeypatch, *options, "--output", tmp_path / "whole") == 0
  with monkeypatch.context() as ended:
    ended.setattr(callbacks, "TimeLimit", Terminate)
    with pytest.raises(SystemExit, match="143"):
      train_glow_runs.call(monkeypatch, *options, "--time-limit=9", "--output", tmp_path / "ended")
  assert train_glow_runs.call(monkeypatch, *options, "--output", tmp_path / "ended") == 0
  for whole, in_parts in zip(*taken, strict=True):
    for one, other in zip(whole, in_parts, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_accumulated_batches_are_one_batch(monkeypatch, tmp_path):
  images, found = small_models.images(24), []
  for num_parts in (1, 2):
    model = _compiled_model(monkeypatch, tmp_path, f"--accumulation-steps={num_parts}", "--ema=0.5",
                            "--warm-up-steps=0", "--schedule=constant", "--max-gradient-norm=0.1")
    model.adapt(images)
    parts = np.split(images, 3 * num_parts)
    for part in [*parts, *parts[1:num_parts]]:  # Averages follow an update with the next batch.
      model.train_on_batch(part)
    assert int(model.optimizer.iterations) == 3
    weights = small_models.weights_of(model)
    train_glow.take_averages(model)
    found.append([*weights, *small_models.weights_of(model)])
  for one, other in zip(*found, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("one_layer_glow", "eagerly")
def test_a_warm_up_counts_batches_whether_or_not_they_update(monkeypatch, tmp_path):
  model = _compiled_model(monkeypatch, tmp_path, "--accumulation-steps=2", "--warm-up-steps=4", "--learning-rate=1e-2")
  for rate in (0., 0.25, 0.5):
    assert float(model.optimizer.learning_rate) == pytest.approx(rate * 1e-2)
    model.train_on_batch(small_models.images(2))
  assert int(model.optimizer.iterations) == 1


def test_learning_rate_warms_up_and_falls_to_zero():
  args = argparse.Namespace(epochs=10, learning_rate=1e-2, schedule="cosine", warm_up_steps=None)
  schedule = train_glow.learning_rate_schedule(args, steps_per_epoch=20)
  rates = [float(schedule(step)) for step in range(201)]
  assert rates[0] == 0. and rates[-1] == pytest.approx(0., abs=1e-9)
  assert max(rates) == pytest.approx(1e-2) and rates.index(max(rates)) == 10


@pytest.mark.parametrize("best, now, expected", [
    (2., 3., "best"), (3., 2., "now"), (math.inf, 2., "now"), (2., math.nan, "best"), (2., 2., "best")])
def test_best_weights_are_kept(best, now, expected):
  loaded = []
  model = types.SimpleNamespace(
      distribute_strategy=tf.distribute.get_strategy(), weights=[], evaluate=lambda *_, **__: {"bits_per_dim": now},
      load_weights=loaded.append)
  bits = train_glow.keep_best(model, None, types.SimpleNamespace(best=best, filepath="weights"))
  assert (loaded, bits) == ((["weights"], best) if expected == "best" else ([], now))

"""`examples/train_glow.py`: Ctrl-C, time limits, and divergence."""

import math
import signal
import types

import example_runs
import forks
import keras
import numpy as np
import pytest
import tensorflow as tf
import train_glow
import train_glow_runs

from tfp_glow import callbacks


@pytest.mark.slow
def test_ctrl_c_saves_what_there_is(tmp_path):
  folder = tmp_path / "output"
  with forks.Fork(tmp_path, example_runs.run_script, "--epochs=10000", f"--output={folder}") as script:
    script.send_at("Epoch 3/10000", signal.SIGINT)
    assert script.exit_code() == 130, script.output()
    printed = "".join(script.output())
  assert "Interrupted: training ends with this batch" in printed
  assert "Traceback" not in printed and "The same command resumes" in printed
  train_glow_runs.check_outputs(folder, is_finished=False)
  assert train_glow_runs.results(folder)["interrupted"] and 2 < train_glow_runs.results(folder)["epochs"] < 10000


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once(tmp_path):
  folder = tmp_path / "output"
  with forks.Fork(tmp_path, example_runs.run_script, "--epochs=10000", f"--output={folder}") as script:
    script.send_at("Epoch 2/10000", signal.SIGINT)
    script.send_at("Ctrl-C again ends at once", signal.SIGINT)
    assert script.exit_code() == 130, script.output()
    printed = "".join(script.output())
  assert "the results are not complete" in printed and "Traceback" not in printed
  assert not (folder / "results.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_layer_glow", "eagerly")
def test_ctrl_c_before_the_first_epoch_ends(monkeypatch, tmp_path):
  class Interrupt(callbacks.TimeLimit):

    def on_train_batch_end(self, batch, logs=None):
      assert batch == 0, "trains on after Ctrl-C"
      signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(callbacks, "TimeLimit", Interrupt)
  before = signal.getsignal(signal.SIGINT)
  try:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert train_glow_runs.call(monkeypatch, "--epochs=9", "--time-limit=9", f"--output={tmp_path}") == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  finally:
    signal.signal(signal.SIGINT, before)
  train_glow_runs.check_outputs(tmp_path)  # No epoch has been finished: there is no state.
  assert train_glow_runs.results(tmp_path)["epochs"] == 1


def test_an_ignored_ctrl_c_stays_ignored():
  class Press(keras.callbacks.Callback):

    def on_train_batch_end(self, batch, logs=None):
      signal.raise_signal(signal.SIGINT)

  model = keras.Sequential([keras.layers.Dense(1)])
  model.compile("sgd", "mse")
  stop, before = callbacks.StopOnInterrupt(), signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    history = model.fit(np.ones([4, 1]), np.ones([4, 1]), batch_size=1, epochs=2, verbose=0, callbacks=[stop, Press()])
  finally:
    signal.signal(signal.SIGINT, before)
  assert len(history.epoch) == 2 and not stop.interrupted


@pytest.mark.slow
def test_time_limit_ends_training_within_an_epoch():
  class Counter(keras.callbacks.Callback):
    num_batches = 0

    def on_train_batch_end(self, batch, logs=None):
      self.num_batches += 1

  model = keras.Sequential([keras.layers.Dense(1)])
  model.compile("sgd", "mse")
  data, counter = tf.data.Dataset.from_tensors((np.ones([1, 1]), np.ones([1, 1]))).repeat(), Counter()
  history = model.fit(data, steps_per_epoch=10**9, verbose=0, callbacks=[callbacks.TimeLimit(1.), counter])
  assert len(history.epoch) == 1 and 0 < counter.num_batches < 10**9


@pytest.mark.parametrize("seconds", [0, -1., math.nan])
def test_time_limit_must_be_positive(seconds):
  with pytest.raises(ValueError, match="`seconds` must be positive. Received"):
    callbacks.TimeLimit(seconds)


@pytest.mark.slow
@pytest.mark.usefixtures("one_layer_glow", "eagerly")
def test_divergence_is_an_error(monkeypatch, tmp_path, capsys):
  assert train_glow_runs.call(monkeypatch, "--epochs=2", "--learning-rate=1e30", "--output", tmp_path) == 1
  error = capsys.readouterr().err
  assert "Training stopped at step " in error and "is not finite" in error
  assert str(tmp_path / train_glow.BEST_UNTIL_NOW) in error
  assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_layer_glow", "eagerly")
def test_weights_from_before_a_divergence_stay(monkeypatch, tmp_path):
  class Spoil(keras.callbacks.Callback):

    def __init__(self, _):
      super().__init__()

    def on_epoch_begin(self, epoch, logs=None):
      if epoch == 1:
        variable = self.model.distribution.trainable_variables[0]
        variable.assign(np.full(variable.shape, np.nan))

  monkeypatch.setattr(callbacks, "TimeLimit", Spoil)
  assert train_glow_runs.call(monkeypatch, "--epochs=3", "--batch-size=1500", "--time-limit=9", "--output",
                              tmp_path) == 1
  assert {path.name for path in tmp_path.iterdir()} == {train_glow.STATE, train_glow.BEST_UNTIL_NOW}


def test_validation_that_is_not_finite_is_an_error():
  model = types.SimpleNamespace(
      distribute_strategy=tf.distribute.get_strategy(), evaluate=lambda *_, **__: {"bits_per_dim": math.nan})
  with pytest.raises(FloatingPointError, match="validation split must be finite. Received: nan"):
    train_glow.keep_best(model, None, types.SimpleNamespace(best=math.inf, filepath="weights"))

"""Tests of `callbacks.TrainingState`: runs that are killed, and states that cannot be resumed."""

import functools
import pathlib
import random
import resource
import shutil
import signal
import time

import forks
import keras
import killable_runs
import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow
from tfp_glow import callbacks

IMAGES = small_models.images(20)
NUM_KILLS = 12


def _model(optimizer=None):
  schedule = keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=12)
  optimizer = optimizer or keras.optimizers.Adam(schedule, use_ema=True, ema_momentum=0.5)
  return small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), optimizer, run_eagerly=True)


def _fit(folder, epochs, model=None, callback=None, settings=None):
  """Trains to the end of `epochs` epochs of three steps; returns the model and the callback."""
  model = model or _model()
  state = callbacks.TrainingState(folder, settings)
  model.fit(IMAGES, batch_size=8, shuffle=False, initial_epoch=state.restore(model), epochs=epochs, verbose=0,
            callbacks=[state] + ([callback] if callback else []))
  return model, state


def _everything_in(model):
  return [v.numpy() for v in model.weights + model.optimizer.variables]


def _assert_equal(found, expected):
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
  """The folder of a run that has finished two epochs of three steps."""
  folder = tmp_path_factory.mktemp("two_epochs") / "state"
  _fit(folder, 2, settings={"width": (8, 8)})
  return folder


@pytest.fixture
def folder(two_epochs, tmp_path):
  """A copy of it that a test may change."""
  return shutil.copytree(two_epochs, tmp_path / "state")


@pytest.mark.slow
def test_a_resumed_run_is_as_one_without_interruption(folder, tmp_path):
  model, state = _fit(folder, 4, settings={"width": (8, 8)})
  expected, whole = _fit(tmp_path / "whole", 4)
  assert model.optimizer.iterations.numpy() == 12
  _assert_equal(_everything_in(model), _everything_in(expected))
  assert state.history == whole.history and len(state.history["loss"]) == 4
  assert sorted(path.name for path in folder.glob("*.index")) == ["epoch-3.index", "epoch-4.index"]
  assert state.exists()
  state.delete()
  assert not folder.exists() and not state.exists()


@pytest.mark.slow
def test_seconds_add_up(folder):
  state = callbacks.TrainingState(folder, {"width": (8, 8)})
  assert state.seconds == 0.
  state.restore(_model())
  before = state.seconds
  assert before > 0.
  _, state = _fit(folder, 3, settings={"width": (8, 8)})
  assert state.seconds > before


@pytest.mark.slow
@pytest.mark.parametrize("with_steps", [True, False])
def test_an_epoch_that_was_cut_short_is_not_kept(folder, with_steps):
  class Stop(keras.callbacks.Callback):

    def on_train_batch_end(self, batch, logs=None):
      self.model.stop_training = batch == 1

  model, state = _model(), callbacks.TrainingState(folder, {"width": (8, 8)})
  batches = (IMAGES[i:i + 8] for i in range(0, 20, 8))  # Keras does not know the length of a generator.
  model.fit(IMAGES if with_steps else ((batch,) for batch in batches), batch_size=8 if with_steps else None,
            shuffle=False, initial_epoch=state.restore(model), epochs=4, verbose=0, callbacks=[Stop(), state])
  assert len(state.history["loss"]) == 3  # But there is a warning.
  again = callbacks.TrainingState(folder, {"width": (8, 8)})
  assert again.restore(_model()) == 2 and len(again.history["loss"]) == 2


def _unfinished(folder):
  """Files of states that are being written, and when they changed."""
  paths = list(folder.glob("epoch-*"))
  names = {path.name for path in paths}
  found = set()
  for path in paths:
    if path.name.split(".")[0].split("_")[0] + ".index" not in names:
      try:
        found.add((path.name, path.stat().st_mtime_ns))
      except FileNotFoundError:
        pass  # It was finished meanwhile.
  return found


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
  """The result of a run of `killable_runs`."""
  folder = tmp_path_factory.mktemp("left_alone")
  forks.run(folder, killable_runs.train, folder / "state", folder / "result.npz")
  return np.load(folder / "result.npz")


def _check_ends_like(left_alone, folder, result):
  """A run that is resumed from a folder, to the end."""
  forks.run(result.parent, killable_runs.train, folder, result)
  found = np.load(result)
  assert sorted(found.files) == sorted(left_alone.files) and len(left_alone["loss"]) == 60
  for name in left_alone.files:
    np.testing.assert_array_equal(found[name], left_alone[name], err_msg=name)


@pytest.mark.slow
def test_runs_that_a_cluster_ends_end_like_one_that_was_left_alone(left_alone, tmp_path):
  rng = random.Random(0)
  folder, num_within = tmp_path / "state", 0
  for index in range(10):
    with forks.Fork(tmp_path, killable_runs.train, folder, tmp_path / "ended.npz") as run:
      names = f"epoch-{2 * index + 1}*.index"
      run.wait_until(lambda: list(folder.glob(names)), "epoch")  # noqa: B023  Called at once.
      run.wait_until(lambda: rng.random() < 0.02, "moment", seconds=0.001)
      run.send(signal.SIGTERM)
      assert run.exit_code() == callbacks.StopOnPreemption.EXIT_CODE == 143, run.output()
    num_within += bool(list(folder.glob("epoch-*+*.index")))
  assert num_within > 2, "hardly any state was written within an epoch"
  _check_ends_like(left_alone, folder, tmp_path / "ended.npz")


@pytest.mark.slow
def test_killed_runs_end_like_one_that_was_left_alone(left_alone, tmp_path):
  rng = random.Random(0)
  folder, states, mid_write = tmp_path / "state", set(), 0
  last = lambda: max((int(path.stem.removeprefix("epoch-")) for path in folder.glob("epoch-*.index")), default=0)

  for kill in range(NUM_KILLS):
    with forks.Fork(tmp_path, killable_runs.train, folder, tmp_path / "killed.npz") as run:
      wait_until = functools.partial(run.wait_until, seconds=0.0003)
      before = _unfinished(folder)
      num_epochs = last() + rng.randrange(3)
      wait_until(lambda: last() >= num_epochs, "epoch")  # noqa: B023  Called at once.
      if kill % 2:
        wait_until(lambda: not _unfinished(folder) <= before, "state")  # noqa: B023
      else:
        time.sleep(rng.uniform(0., 1.))
      run.send(signal.SIGKILL)
      assert run.exit_code() == -signal.SIGKILL
    mid_write += not _unfinished(folder) <= before
    states.add(tuple(sorted(path.name for path in folder.glob("*.index"))))
    assert not (tmp_path / "killed.npz").exists()
  assert mid_write >= NUM_KILLS // 4 and len(states) > 4, "the kills came too late or too early to show anything"
  _check_ends_like(left_alone, folder, tmp_path / "killed.npz")


@pytest.mark.slow
def test_a_run_that_was_killed_after_its_last_epoch(tmp_path):
  """Keras assigns averaged weights at the end of `fit`."""
  folder = tmp_path / "state"
  expected, _ = _fit(folder, 2)
  model = _model()
  assert callbacks.TrainingState(folder).restore(model) == 2
  model.optimizer.finalize_variable_values(model.trainable_variables)
  _assert_equal(small_models.weights_of(model), small_models.weights_of(expected))


def test_epochs_without_data_are_not_kept(folder):
  """Keras runs through all epochs after the data have ended."""
  state = callbacks.TrainingState(folder, {"width": (8, 8)})
  state.set_model(_model())
  state.set_params({"steps": 2})
  state.restore(state.model)
  state.on_train_begin()
  for epoch, num_batches in ((2, 2), (3, 0)):
    state.on_epoch_begin(epoch)
    for batch in range(num_batches):
      state.on_train_batch_end(batch)
    state.on_epoch_end(epoch, {"loss": 1.})
  assert callbacks.TrainingState(folder, {"width": (8, 8)}).restore(_model()) == 3


def test_a_model_that_was_compiled_anew(folder):
  model, state = _model(), callbacks.TrainingState(folder, {"width": (8, 8)})
  state.restore(model)
  small_models.compiled(model, keras.optimizers.Adam(0.), run_eagerly=True)
  model.fit(IMAGES, batch_size=8, shuffle=False, initial_epoch=2, epochs=3, verbose=0, callbacks=[state])
  other = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), keras.optimizers.Adam(0.))
  assert callbacks.TrainingState(folder, {"width": (8, 8)}).restore(other) == 3
  assert other.optimizer.iterations.numpy() == 3


# States that cannot be resumed.


def test_a_folder_that_holds_another_run(folder):
  model, state = _model(), callbacks.TrainingState(folder, {"width": (8, 8)})
  with pytest.raises(ValueError, match=rf"`initial_epoch`.*`folder`.*{folder} with states after \[1, 2\]"):
    model.fit(IMAGES, epochs=2, verbose=0, callbacks=[state])
  assert model.optimizer.iterations.numpy() == 0
  assert state.restore(model) == 2
  with pytest.raises(ValueError, match="`initial_epoch`.*epoch 1 after 2 finished ones"):
    model.fit(IMAGES, initial_epoch=1, epochs=3, verbose=0, callbacks=[state])


def _truncate(path):
  path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])


def _flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize("damage, suffix", [
    (_truncate, "data-00000-of-00001"), (_flip_a_bit, "data-00000-of-00001"),
    (pathlib.Path.unlink, "data-00000-of-00001"), (_truncate, "index"),
    (lambda path: path.write_text("not a checkpoint"), "index")])
def test_a_damaged_state_is_an_error_and_the_one_before_is_still_there(folder, damage, suffix):
  damage(folder / f"epoch-2.{suffix}")
  model = _model()
  model.optimizer.build(model.trainable_variables)
  before = _everything_in(model)
  state = callbacks.TrainingState(folder, {"width": (8, 8)})
  match = rf"(?s)`folder`.*damaged.*epoch-2\.\* to resume from epoch 1.*Received: {folder}"
  with pytest.raises(ValueError, match=match):
    state.restore(model)
  _assert_equal(_everything_in(model), before)
  for path in folder.glob("epoch-2.*"):
    path.unlink()
  assert state.restore(model) == 1 and model.optimizer.iterations.numpy() == 3


def test_the_only_state_damaged(folder):
  for path in folder.glob("epoch-1.*"):
    path.unlink()
  _truncate(folder / "epoch-2.index")
  with pytest.raises(ValueError, match="to begin anew"):
    callbacks.TrainingState(folder, {"width": (8, 8)}).restore(_model())


@pytest.mark.parametrize("make, match", [
    (lambda: _model(keras.optimizers.SGD(1e-2)), "`model` must be compiled with Adam.*Received: SGD"),
    (lambda: _model(keras.optimizers.AdamW(1e-2, use_ema=True)), "`model` must be compiled with Adam.*Received: AdamW"),
    (lambda: _model(keras.optimizers.Adam(1e-2, use_ema=True)), "same model and optimizer.*learning_rate"),
    (lambda: small_models.compiled(tfp_glow.FlowModel(small_models.gaussian((4, 4, 3)))), "same model and optimizer"),
    (lambda: tfp_glow.FlowModel(small_models.gaussian()), "`model` must be compiled"),
])
def test_the_state_of_another_model(folder, make, match):
  model = make()
  before = [v.numpy() for v in model.weights]
  with pytest.raises(ValueError, match=match):
    callbacks.TrainingState(folder, {"width": (8, 8)}).restore(model)
  _assert_equal([v.numpy() for v in model.weights], before)


def test_the_state_of_other_settings(folder):
  with pytest.raises(ValueError, match=r"`settings`.*: {'width': \[8, 8\]}. Received: {'width': \[9, 8\]}"):
    callbacks.TrainingState(folder, {"width": (9, 8)}).restore(_model())


def test_a_checkpoint_of_something_else(folder):
  tf.train.Checkpoint(v=tf.Variable(1.)).write(str(folder / "epoch-3"))
  with pytest.raises(ValueError, match="same model and optimizer"):
    callbacks.TrainingState(folder, {"width": (8, 8)}).restore(_model())


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_last_state_is_still_there(folder):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # No file may grow beyond so many bytes.
  try:
    with pytest.raises(OSError, match=rf"(?s)`folder`.*that after epoch 2 is still there.*Received: {folder}"):
      _fit(folder, 3, settings={"width": (8, 8)})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)
  model, _ = _fit(folder, 3, settings={"width": (8, 8)})
  assert model.optimizer.iterations.numpy() == 9
  assert not _unfinished(folder)


@pytest.mark.slow
def test_what_a_killed_run_left_is_cleared_away(folder):
  (folder / "epoch-2 (copy).index").write_text("somebody else's")
  (folder / "epoch-3_temp").mkdir()
  (folder / "epoch-3.data-00000-of-00001").write_text("unfinished")
  shutil.copy(folder / "epoch-2.index", folder / "epoch-2.index.tempstate123")
  _fit(folder, 4, settings={"width": (8, 8)})
  assert sorted(path.name for path in folder.iterdir()) == ["epoch-2 (copy).index"] + [
      f"epoch-{k}.{suffix}" for k in (3, 4) for suffix in ("data-00000-of-00001", "index")]

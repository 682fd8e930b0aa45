"""Tests of `examples/train_glow.py`: whole runs of tiny models, and its parts."""

import argparse
import functools
import json
import math
import pathlib
import signal
import sys
import types

import example_runs
import forks
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import train_glow
from PIL import Image

import tfp_glow
from tfp_glow import callbacks, data

TINY = example_runs.TINY
ROOT = pathlib.Path(__file__).parent.parent

slow = pytest.mark.slow


def call(monkeypatch, *options):
  """Runs the script's `main` in this process; returns the exit code."""
  monkeypatch.setattr(sys, "argv", ["train_glow.py", *TINY, *map(str, options)])
  return train_glow.main()


def compiled_model(monkeypatch, folder, *options):
  """What the script would train on images of `small_models`, nine batches an epoch."""
  monkeypatch.setattr(sys, "argv", ["train_glow.py", *TINY, *options, f"--output={folder}"])
  args = train_glow.parse_args()
  model = train_glow.make_model(args, small_models.SHAPE)
  train_glow.compile_model(model, args, steps_per_epoch=9)
  return model


def results(folder):
  return json.loads((folder / "results.json").read_text())


def check_outputs(folder, is_finished=True):
  expected = set(train_glow.OUTPUTS) | (set() if is_finished else {train_glow.STATE, train_glow.BEST_UNTIL_NOW})
  assert {path.name for path in folder.iterdir()} == expected
  margin, gap, tile = 100, 4, 68
  sizes = {"samples.png": (margin + gap + 16 * tile, gap + 5 * tile),
           "interpolations.png": (gap + 16 * tile, gap + 8 * tile),
           "reconstructions.png": (margin + gap + 16 * tile, gap + 4 * tile),
           "training_curve.png": (800, 500)}
  for name, size in sizes.items():
    with Image.open(folder / name) as picture:
      picture.load()
      assert (picture.format, picture.size) == ("PNG", size), name
  files = sorted((folder / "test_images").iterdir())
  images = np.stack([np.asarray(Image.open(file))[..., np.newaxis] for file in files])
  (expected,) = data.load_images("digits", "test", batch_size=1000)
  np.testing.assert_array_equal(images, expected[:32])
  assert math.isfinite(results(folder)["bits_per_dim"])
  signatures = tf.saved_model.load(folder / "saved_model").signatures
  images = signatures["sample"](num_samples=tf.constant(2), temperature=tf.constant(1.), seed=tf.constant([0, 1]))
  assert images["images"].shape == (2, 8, 8, 1) and images["images"].dtype == tf.uint8


@pytest.fixture
def quick(monkeypatch):
  """What `call` trains has the flow of `example_runs`, too."""
  monkeypatch.setattr(tfp_glow, "GlowBijector", example_runs.flow)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run that was left alone, in a process of its own: what it printed, and its folder."""
  folder = tmp_path_factory.mktemp("finished")
  output = folder / "new" / "folder"
  printed, _ = forks.run(folder, example_runs.run_script, "--epochs=2", "--deterministic", f"--output={output}")
  return printed, output


@slow
def test_run_leaves_everything(finished):
  printed, folder = finished
  check_outputs(folder)
  assert "Epoch 2/2" in printed and "val_bits_per_dim" in printed
  result, where, *next_commands = printed.splitlines()[-5:]
  assert f"Test bits per dim: {results(folder)['bits_per_dim']:.4f}" in result
  assert str(folder) in result and str(folder / "report.html") in where
  for command in next_commands:
    _, script, *_ = command.split()
    assert (ROOT / script).exists() and command.startswith("  python examples/")


@slow
def test_results_say_how_they_came_about(finished):
  found = results(finished[1])
  assert found["epochs"] == 2 and not found["interrupted"] and found["seconds"] > 0.
  assert found["settings"]["num_bits"] == 4 and found["settings"]["max_shift"] == 0.75
  assert found["settings"]["num_hidden"] == 4 and found["settings"]["data"] == "digits"
  assert found["versions"]["tensorflow"] == tf.__version__ and found["versions"]["keras"] == keras.__version__


@slow
@pytest.mark.usefixtures("quick")
def test_weights_give_the_number(finished, monkeypatch):
  _, folder = finished
  monkeypatch.setattr(sys, "argv", ["train_glow.py", *TINY, f"--output={folder / 'other'}"])
  args = train_glow.parse_args()
  model = train_glow.make_model(args, (8, 8, 1))
  model.compile()
  model.load_weights(folder / "model.weights.h5")
  found = results(folder)
  assert found["num_parameters"] == sum(v.shape.num_elements() for v in model.distribution.trainable_variables)
  splits = train_glow.training_data.load_splits(args)
  np.testing.assert_allclose(train_glow.evaluate(model, splits["test"]), found["bits_per_dim"], rtol=1e-5)
  np.testing.assert_allclose(train_glow.evaluate(model, splits["validation"]), found["validation_bits_per_dim"],
                             rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "eagerly")
def test_another_seed_gives_another_number(monkeypatch, tmp_path):
  """The same seed, the same one: see `test_a_killed_run_goes_on_by_itself`."""
  found = []
  monkeypatch.setattr(train_glow, "save_results", lambda model, test_images, history, results, *_: found.append(
      results["validation_bits_per_dim"]))
  for seed in ("0", "1"):
    assert call(monkeypatch, "--epochs=1", "--batch-size=1500", f"--seed={seed}", f"--output={tmp_path / seed}") == 0
  assert found[0] != found[1]


@slow
def test_ctrl_c_saves_what_there_is(tmp_path):
  folder = tmp_path / "output"
  with forks.Fork(tmp_path, example_runs.run_script, "--epochs=10000", f"--output={folder}") as script:
    script.send_at("Epoch 3/10000", signal.SIGINT)
    assert script.exit_code() == 130, script.output()
    printed = "".join(script.output())
  assert "Interrupted: training ends with this batch" in printed
  assert "Traceback" not in printed and "The same command resumes" in printed
  check_outputs(folder, is_finished=False)
  assert results(folder)["interrupted"] and 2 < results(folder)["epochs"] < 10000


@slow
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
@pytest.mark.usefixtures("quick", "eagerly")
def test_ctrl_c_before_the_first_epoch_ends(monkeypatch, tmp_path):
  class Interrupt(callbacks.TimeLimit):

    def on_train_batch_end(self, batch, logs=None):
      assert batch == 0, "trains on after Ctrl-C"
      signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(callbacks, "TimeLimit", Interrupt)
  before = signal.getsignal(signal.SIGINT)
  try:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert call(monkeypatch, "--epochs=9", "--time-limit=9", f"--output={tmp_path}") == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  finally:
    signal.signal(signal.SIGINT, before)
  check_outputs(tmp_path)  # No epoch has been finished: there is no state.
  assert results(tmp_path)["epochs"] == 1


@slow
@pytest.mark.usefixtures("quick")
def test_a_killed_run_goes_on_by_itself(finished, monkeypatch, tmp_path, capsys):
  _, whole = finished
  folder = tmp_path / "output"
  for number, exit_code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
    run = functools.partial(example_runs.run_script, ended_by=number)
    with forks.Fork(tmp_path, run, "--epochs=2", "--deterministic", f"--output={folder}") as script:
      assert script.exit_code() == exit_code, script.output()
  assert "Resuming after epoch 1 of 2" in script.output()[0] and "goes on from there when" in script.output()[0]
  # It would be so for all tests that follow.
  monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
  assert call(monkeypatch, "--epochs=2", "--deterministic", "--num-steps=2", "--output", folder) == 2
  error = capsys.readouterr().err
  assert "`settings`" in error and "'num_steps': 2" in error
  assert call(monkeypatch, "--epochs=2", "--deterministic", "--output", folder) == 0
  assert "Resuming after 3 batches of epoch 2 of 2" in capsys.readouterr().out
  check_outputs(folder)
  for key in ("bits_per_dim", "validation_bits_per_dim", "epochs"):
    assert results(folder)[key] == results(whole)[key]
  for name in ("samples.png", "training_curve.png"):
    assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "eagerly")
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
  assert call(monkeypatch, "--epochs=2", "--ema=0.9", "--time-limit=9", "--output", tmp_path) == 0
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
@pytest.mark.usefixtures("quick", "eagerly")
def test_a_run_with_averages_goes_on_with_the_weights(monkeypatch, tmp_path):
  """Also after the rest of an epoch, at whose end `fit` has put averages in their place."""

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
  assert call(monkeypatch, *options, "--output", tmp_path / "whole") == 0
  with monkeypatch.context() as ended:
    ended.setattr(callbacks, "TimeLimit", Terminate)
    with pytest.raises(SystemExit, match="143"):
      call(monkeypatch, *options, "--time-limit=9", "--output", tmp_path / "ended")
  assert call(monkeypatch, *options, "--output", tmp_path / "ended") == 0
  for whole, in_parts in zip(*taken, strict=True):
    for one, other in zip(whole, in_parts, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_accumulated_batches_are_one_batch(monkeypatch, tmp_path):
  images, found = small_models.images(24), []
  for num_parts in (1, 2):
    model = compiled_model(monkeypatch, tmp_path, f"--accumulation-steps={num_parts}", "--ema=0.5", "--warm-up-steps=0",
                           "--schedule=constant", "--max-gradient-norm=0.1")
    model.adapt(images)
    parts = np.split(images, 3 * num_parts)
    for part in [*parts, *parts[1:num_parts]]:  # Averages follow an update until the next one.
      model.train_on_batch(part)
    assert int(model.optimizer.iterations) == 3
    weights = small_models.weights_of(model)
    train_glow.take_averages(model)
    found.append([*weights, *small_models.weights_of(model)])
  for one, other in zip(*found, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "eagerly")
def test_a_warm_up_counts_batches_whether_or_not_they_update(monkeypatch, tmp_path):
  model = compiled_model(monkeypatch, tmp_path, "--accumulation-steps=2", "--warm-up-steps=4", "--learning-rate=1e-2")
  for rate in (0., 0.25, 0.5):
    assert float(model.optimizer.learning_rate) == pytest.approx(rate * 1e-2)
    model.train_on_batch(small_models.images(2))
  assert int(model.optimizer.iterations) == 1


@pytest.mark.slow
def test_a_damaged_state_leaves_everything_there(monkeypatch, tmp_path, capsys):
  for name in ("training_state/epoch-1.index", "best_until_now.weights.h5", "samples.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("of yesterday")
  assert call(monkeypatch, "--output", tmp_path) == 2
  assert "damaged" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "eagerly")
def test_divergence_is_an_error(monkeypatch, tmp_path, capsys):
  assert call(monkeypatch, "--epochs=2", "--learning-rate=1e30", "--output", tmp_path) == 1
  error = capsys.readouterr().err
  assert "Training stopped at step " in error and "is not finite" in error
  assert str(tmp_path / train_glow.BEST_UNTIL_NOW) in error
  assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "eagerly")
def test_weights_from_before_a_divergence_stay(monkeypatch, tmp_path):
  class Spoil(keras.callbacks.Callback):

    def __init__(self, _):
      super().__init__()

    def on_epoch_begin(self, epoch, logs=None):
      if epoch == 1:
        variable = self.model.distribution.trainable_variables[0]
        variable.assign(np.full(variable.shape, np.nan))

  monkeypatch.setattr(callbacks, "TimeLimit", Spoil)
  assert call(monkeypatch, "--epochs=3", "--batch-size=1500", "--time-limit=9", "--output", tmp_path) == 1
  assert {path.name for path in tmp_path.iterdir()} == {train_glow.STATE, train_glow.BEST_UNTIL_NOW}


def test_validation_that_is_not_finite_is_an_error():
  model = types.SimpleNamespace(
      distribute_strategy=tf.distribute.get_strategy(), evaluate=lambda *_, **__: {"bits_per_dim": math.nan})
  with pytest.raises(FloatingPointError, match="validation split must be finite. Received: nan"):
    train_glow.keep_best(model, None, types.SimpleNamespace(best=math.inf, filepath="weights"))


@slow
@pytest.mark.usefixtures("eagerly")
def test_folder_of_colour_images_with_other_settings(monkeypatch, tmp_path):
  rng = np.random.default_rng(0)
  for split, count in (("train", 20), ("val", 3), ("test", 1)):
    (tmp_path / "images" / split).mkdir(parents=True)
    for index in range(count):
      Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(tmp_path / "images" / split / f"{index}.png")
  output = tmp_path / "output"
  assert call(monkeypatch, "--data", tmp_path / "images", "--image-size=4", "--flip", "--max-shift=1", "--epochs=1",
              "--coupling=additive", "--permutation=shuffle", "--time-limit=5", "--output", output) == 0
  assert {path.name for path in output.iterdir()} == set(train_glow.OUTPUTS)
  assert results(output)["settings"]["num_bits"] == 8
  # One image to test is enough: it is interpolated with itself.
  assert Image.open(output / "interpolations.png").size == (4 + 16 * 68, 4 + 68)
  assert Image.open(output / "reconstructions.png").size == (100 + 4 + 68, 4 + 2 * 68)


@pytest.mark.parametrize("options, message", [
    (["--epochs=0"], "--epochs: must be a positive whole number. Received: '0'"),
    (["--num-steps=two"], "--num-steps: must be a positive whole number. Received: 'two'"),
    (["--batch-size=-1"], "--batch-size: must be a positive whole number. Received: '-1'"),
    (["--learning-rate=nan"], "--learning-rate: must be a positive number. Received: 'nan'"),
    (["--time-limit=0"], "--time-limit: must be a positive number. Received: '0'"),
    (["--seed=-1"], "--seed: must be a whole number of at least 0. Received: '-1'"),
    (["--max-shift=inf"], "--max-shift: must be a number of at least 0. Received: 'inf'"),
    (["--num-bits=9"], "--num-bits: invalid choice: 9"),
    (["--coupling=cubic"], "--coupling: invalid choice: 'cubic'"),
    (["--strategy=two"], "--strategy: invalid choice: 'two'"),
    (["--strategy=multiworker", "--time-limit=1"], "--time-limit must not be given with --strategy=multiworker"),
    (["--image-size=6", "--num-blocks=2"], "--image-size must be divisible by 2 ** num_blocks = 4"),
])
def test_bad_arguments(monkeypatch, tmp_path, capsys, options, message):
  with pytest.raises(SystemExit) as ending:
    call(monkeypatch, "--output", tmp_path / "new", *options)
  assert ending.value.code == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options, message", [
    (["--data=./nowhere"], "an existing folder. Received: "),
    (["--num-blocks=4"], "divisible by 2 ** `num_glow_blocks` = 16"),
    (["--max-shift=9"], "--max-shift must not be larger than the images, 8x8. Received: 9"),
])
def test_bad_data(monkeypatch, tmp_path, capsys, options, message):
  assert call(monkeypatch, "--output", tmp_path / "new", *options) == 2
  error = capsys.readouterr().err
  assert error.startswith("train_glow.py: error: ") and message in error
  assert not (tmp_path / "new").exists()


def test_output_that_is_a_file(monkeypatch, tmp_path, capsys):
  (tmp_path / "file").write_text("")
  with pytest.raises(SystemExit):
    call(monkeypatch, "--output", tmp_path / "file")
  assert f"--output must be a folder. Received: {tmp_path / 'file'}" in capsys.readouterr().err


def test_earlier_results_are_kept(monkeypatch, tmp_path, capsys):
  (tmp_path / "results.json").write_text("{}")
  with pytest.raises(SystemExit):
    call(monkeypatch, "--output", tmp_path)
  assert "--overwrite" in capsys.readouterr().err
  assert (tmp_path / "results.json").exists()


def test_overwrite_clears_results_and_nothing_else(tmp_path):
  for name in ("saved_model/saved_model.pb", "results.json", "notes.txt", "best_until_now.weights.h5"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
  train_glow.prepare_output(argparse.Namespace(output=tmp_path), keep_best_until_now=False)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "training_state"]
  assert not list((tmp_path / "training_state").iterdir())


@pytest.mark.parametrize("fill, mode", [("zeros", "constant"), ("nearest", "edge")])
def test_shifts_are_whole_pixels_and_all_are_made(fill, mode):
  images = np.random.default_rng(0).integers(1, 256, (500, 6, 5, 1)).astype(np.uint8)
  args = argparse.Namespace(max_shift=1.49, shift_fill=fill, flip=False, seed=0)
  shifted = next(train_glow.training_data.augment(tf.data.Dataset.from_tensors(images), args, 0).as_numpy_iterator())
  padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode)
  windows = [padded[:, i:i + 6, j:j + 5] for i in range(3) for j in range(3)]
  matches = np.array([(window == shifted).all((1, 2, 3)) for window in windows])
  assert shifted.dtype == np.uint8 and (matches.sum(0) == 1).all()
  assert (matches.sum(1) > 25).all()  # about 56 of each


@pytest.mark.slow
def test_shifts_and_flips_depend_on_the_step_alone():
  images = tf.data.Dataset.from_tensors(np.random.default_rng(0).integers(1, 256, (50, 6, 5, 1)).astype(np.uint8))
  args = argparse.Namespace(max_shift=1.49, shift_fill="zeros", flip=True, seed=0)
  augment = lambda images, first_step: list(
      train_glow.training_data.augment(images, args, first_step).as_numpy_iterator())
  first, second, third = augment(images.repeat(3), 0)
  np.testing.assert_array_equal(augment(images.repeat(2), 1), [second, third])
  assert (first != second).any()


@pytest.mark.slow
def test_workers_of_several_replicas_augment_and_go_on_as_one_process(monkeypatch):
  """Two workers with two replicas each, whose datasets have two elements a step."""

  class Strategy:
    distribute_datasets_from_function = staticmethod(lambda load: [
        load(tf.distribute.InputContext(2, worker, 4)) for worker in range(2)])

  training_data = train_glow.training_data
  monkeypatch.setattr(training_data.replicas, "has_workers", lambda strategy: strategy is not None)
  args = argparse.Namespace(data="digits", batch_size=300, image_size=None, shorter_side=None, conditional=False,
                            seed=3, data_dir=None, max_shift=1.49, shift_fill="zeros", flip=True)
  splits = training_data.load_splits(args)
  sorted_rows = lambda *parts: np.sort(np.concatenate(parts).reshape(-1, 64), axis=0)
  alone = list(training_data.to_train(splits, None, args, range(2, 4), 0).as_numpy_iterator())
  for num_trained in (0, 3):
    shares = training_data.to_train(splits, Strategy, args, range(2, 4), num_trained)
    assert all(share.cardinality() == tf.data.INFINITE_CARDINALITY for share in shares)
    first, second = (list(share.take(2 * 7).as_numpy_iterator()) for share in shares)
    for step, expected in enumerate(alone[num_trained:num_trained + 7]):
      parts = slice(2 * step, 2 * step + 2)
      np.testing.assert_array_equal(sorted_rows(*first[parts], *second[parts]), sorted_rows(expected))


def test_flips_mirror_half_of_the_images():
  images = np.random.default_rng(0).integers(0, 256, (200, 6, 5, 3)).astype(np.uint8)
  args = argparse.Namespace(max_shift=0, flip=True, seed=0)
  flipped = next(train_glow.training_data.augment(tf.data.Dataset.from_tensors(images), args, 0).as_numpy_iterator())
  same = (flipped == images).all((1, 2, 3))
  np.testing.assert_array_equal(flipped[~same], images[~same, :, ::-1])
  assert 60 < same.sum() < 140


@pytest.mark.slow
def test_labels_stay_with_their_images():
  labels = np.arange(1, 251, dtype=np.int64)
  images = np.tile(labels[:, np.newaxis, np.newaxis, np.newaxis], [1, 6, 5, 1]).astype(np.uint8)
  args = argparse.Namespace(max_shift=1.49, shift_fill="nearest", flip=True, seed=0)
  dataset = tf.data.Dataset.from_tensors((images, labels))
  (augmented, same_labels), = train_glow.training_data.augment(dataset, args, 0)
  np.testing.assert_array_equal(same_labels, labels)
  np.testing.assert_array_equal(augmented, images)


@pytest.mark.parametrize("missing, expected", [
    (["validation"], {"train": "train[:95%]", "validation": "train[95%:]", "test": "test"}),
    (["validation", "test"], {"train": "train[:85%]", "validation": "train[85%:90%]", "test": "train[90%:]"}),
    ([], {"train": "train", "validation": "validation", "test": "test"})])
def test_missing_splits_are_parts_of_train(missing, expected, monkeypatch):
  def load_images(name, split, **_):
    if split in missing:
      raise ValueError("`split`")
    return tf.data.Dataset.from_tensors(np.frombuffer(split.encode().ljust(16), np.uint8).reshape(1, 4, 4, 1))

  monkeypatch.setattr(train_glow.data, "load_images", load_images)
  args = argparse.Namespace(data="x", batch_size=1, image_size=None, shorter_side=None, conditional=False, seed=0,
                            data_dir=None, max_shift=0, flip=False)
  splits = train_glow.training_data.load_splits(args)
  loaded = {split: load().element_spec for split, load in splits.pop("load").items()}
  assert loaded == {split: splits[split].element_spec for split in expected}
  splits["train_epochs"] = splits["train_epochs"](epochs=range(1))
  found = {key: next(iter(split)).numpy().tobytes().decode().strip() for key, split in splits.items()}
  assert found.pop("train_epochs") == found["train"]
  assert found == expected


def test_mirrored_strategy_takes_all_devices():
  strategy = train_glow.make_strategy(argparse.Namespace(strategy="mirrored"))
  assert isinstance(strategy, tf.distribute.MirroredStrategy)
  assert strategy.num_replicas_in_sync == len(tf.config.list_logical_devices("CPU")) > 1


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


def test_interpolations_of_classes_begin_and_end_at_their_images():
  """Also where neighbours are of different classes."""
  def encode(images, labels):
    return images.reshape(len(images), -1).astype(np.float32) + 1000 * labels[:, np.newaxis]

  def decode(z, labels):
    return (z - 1000 * labels[:, np.newaxis]).reshape(-1, 4, 4, 1)

  model = types.SimpleNamespace(encode=encode, decode=decode)
  images, labels = np.random.default_rng(0).integers(0, 256, [3, 4, 4, 1]), np.array([2, 0, 1])
  rows = train_glow.run_pictures._interpolations(model, images, labels)
  np.testing.assert_allclose(rows[:, 0], images, atol=1e-3)
  np.testing.assert_allclose(rows[:, -1], np.roll(images, -1, axis=0), atol=1e-3)


@pytest.mark.parametrize("num_classes, expected", [(3, [0, 1, 2]), (1000, [*range(10)])])
def test_samples_of_classes_are_a_row_for_each(num_classes, expected):
  sample = lambda count, temperature, labels, seed: np.full([count, 1], labels)
  rows, names = train_glow.run_pictures._samples(types.SimpleNamespace(sample=sample), num_classes, seed=0)
  assert [row[0, 0] for row in rows] == expected and names == [f"class {label}" for label in expected]


def test_pictures_enlarge_pixel_by_pixel(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3)).astype(np.uint8)
  train_glow.run_pictures.save_grid(tmp_path / "grid.png", images)
  picture = np.asarray(Image.open(tmp_path / "grid.png"))
  assert picture.shape == (4 + 2 * 68, 4 + 3 * 68, 3)
  np.testing.assert_array_equal(picture[72:136, 140:204], images[1, 2].repeat(4, 0).repeat(4, 1))
  assert (picture[:4] == 255).all() and (picture[:, 68:72] == 255).all()


@slow
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

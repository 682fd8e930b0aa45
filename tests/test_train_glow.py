"""`examples/train_glow.py`: whole runs of tiny models, and what they leave."""

import argparse
import functools
import pathlib
import signal
import sys

import example_runs
import forks
import keras
import numpy as np
import pytest
import tensorflow as tf
import train_glow
import train_glow_runs
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run without interruption, in a process of its own: its output, and its folder."""
  folder = tmp_path_factory.mktemp("finished")
  output = folder / "new" / "folder"
  printed, _ = forks.run(folder, example_runs.run_script, "--epochs=2", "--deterministic", f"--output={output}")
  return printed, output


@pytest.mark.slow
def test_run_leaves_everything(finished):
  printed, folder = finished
  train_glow_runs.check_outputs(folder)
  assert "Epoch 2/2" in printed and "val_bits_per_dim" in printed
  result, where, *next_commands = printed.splitlines()[-5:]
  assert f"Test bits per dim: {train_glow_runs.results(folder)['bits_per_dim']:.4f}" in result
  assert str(folder) in result and str(folder / "report.html") in where
  for command in next_commands:
    _, script, *_ = command.split()
    assert (ROOT / script).exists() and command.startswith("  python examples/")


@pytest.mark.slow
def test_results_say_how_they_came_about(finished):
  found = train_glow_runs.results(finished[1])
  assert found["epochs"] == 2 and not found["interrupted"] and found["seconds"] > 0.
  assert found["settings"]["num_bits"] == 4 and found["settings"]["max_shift"] == 0.75
  assert found["settings"]["num_hidden"] == 4 and found["settings"]["data"] == "digits"
  assert found["versions"]["tensorflow"] == tf.__version__ and found["versions"]["keras"] == keras.__version__


@pytest.mark.slow
@pytest.mark.usefixtures("one_layer_glow")
def test_weights_give_the_number(finished, monkeypatch):
  _, folder = finished
  monkeypatch.setattr(sys, "argv", ["train_glow.py", *example_runs.TINY, f"--output={folder / 'other'}"])
  args = train_glow.parse_args()
  model = train_glow.make_model(args, (8, 8, 1))
  model.compile()
  model.load_weights(folder / "model.weights.h5")
  found = train_glow_runs.results(folder)
  assert found["num_parameters"] == sum(v.shape.num_elements() for v in model.distribution.trainable_variables)
  splits = train_glow.training_data.load_splits(args)
  np.testing.assert_allclose(train_glow.evaluate(model, splits["test"]), found["bits_per_dim"], rtol=1e-5)
  np.testing.assert_allclose(train_glow.evaluate(model, splits["validation"]), found["validation_bits_per_dim"],
                             rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("one_layer_glow", "eagerly")
def test_another_seed_gives_another_number(monkeypatch, tmp_path):
  """The same seed gives the same number: see `test_a_killed_run_goes_on_by_itself`."""
  found = []
  monkeypatch.setattr(train_glow, "save_results", lambda model, test_images, history, results, *_: found.append(
      results["validation_bits_per_dim"]))
  for seed in ("0", "1"):
    assert train_glow_runs.call(monkeypatch, "--epochs=1", "--batch-size=1500", f"--seed={seed}",
                                f"--output={tmp_path / seed}") == 0
  assert found[0] != found[1]


@pytest.mark.slow
@pytest.mark.usefixtures("one_layer_glow")
def test_a_killed_run_goes_on_by_itself(finished, monkeypatch, tmp_path, capsys):
  _, whole = finished
  folder = tmp_path / "output"
  for number, exit_code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
    run = functools.partial(example_runs.run_script, ended_by=number)
    with forks.Fork(tmp_path, run, "--epochs=2", "--deterministic", f"--output={folder}") as script:
      assert script.exit_code() == exit_code, script.output()
  assert "Resuming after epoch 1 of 2" in script.output()[0] and "goes on from there when" in script.output()[0]
  # It would stay switched on for all later tests.
  monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
  assert train_glow_runs.call(monkeypatch, "--epochs=2", "--deterministic", "--num-steps=2", "--output", folder) == 2
  error = capsys.readouterr().err
  assert "`settings`" in error and "'num_steps': 2" in error
  assert train_glow_runs.call(monkeypatch, "--epochs=2", "--deterministic", "--output", folder) == 0
  assert "Resuming after 3 batches of epoch 2 of 2" in capsys.readouterr().out
  train_glow_runs.check_outputs(folder)
  for key in ("bits_per_dim", "validation_bits_per_dim", "epochs"):
    assert train_glow_runs.results(folder)[key] == train_glow_runs.results(whole)[key]
  for name in ("samples.png", "training_curve.png"):
    assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_folder_of_colour_images_with_other_settings(monkeypatch, tmp_path):
  rng = np.random.default_rng(0)
  for split, count in (("train", 20), ("val", 3), ("test", 1)):
    (tmp_path / "images" / split).mkdir(parents=True)
    for index in range(count):
      Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(tmp_path / "images" / split / f"{index}.png")
  output = tmp_path / "output"
  assert train_glow_runs.call(
      monkeypatch, "--data", tmp_path / "images", "--image-size=4", "--flip", "--max-shift=1", "--epochs=1",
      "--coupling=additive", "--permutation=shuffle", "--time-limit=5", "--output", output) == 0
  assert {path.name for path in output.iterdir()} == set(train_glow.OUTPUTS)
  assert train_glow_runs.results(output)["settings"]["num_bits"] == 8
  # One image to test is enough: it is interpolated with itself.
  assert Image.open(output / "interpolations.png").size == (4 + 16 * 68, 4 + 68)
  assert Image.open(output / "reconstructions.png").size == (100 + 4 + 68, 4 + 2 * 68)


def test_mirrored_strategy_takes_all_devices():
  strategy = train_glow.make_strategy(argparse.Namespace(strategy="mirrored"))
  assert isinstance(strategy, tf.distribute.MirroredStrategy)
  assert strategy.num_replicas_in_sync == len(tf.config.list_logical_devices("CPU")) > 1

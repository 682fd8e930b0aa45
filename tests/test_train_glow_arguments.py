"""`examples/train_glow.py`: arguments and output folders that it refuses, and what `--overwrite` clears."""

import argparse

import pytest
import train_glow
import train_glow_runs


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
    train_glow_runs.call(monkeypatch, "--output", tmp_path / "new", *options)
  assert ending.value.code == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options, message", [
    (["--data=./nowhere"], "an existing folder. Received: "),
    (["--num-blocks=4"], "divisible by 2 ** `num_glow_blocks` = 16"),
    (["--max-shift=9"], "--max-shift must not be larger than the images, 8x8. Received: 9"),
])
def test_bad_data(monkeypatch, tmp_path, capsys, options, message):
  assert train_glow_runs.call(monkeypatch, "--output", tmp_path / "new", *options) == 2
  error = capsys.readouterr().err
  assert error.startswith("train_glow.py: error: ") and message in error
  assert not (tmp_path / "new").exists()


def test_output_that_is_a_file(monkeypatch, tmp_path, capsys):
  (tmp_path / "file").write_text("")
  with pytest.raises(SystemExit):
    train_glow_runs.call(monkeypatch, "--output", tmp_path / "file")
  assert f"--output must be a folder. Received: {tmp_path / 'file'}" in capsys.readouterr().err


def test_earlier_results_are_kept(monkeypatch, tmp_path, capsys):
  (tmp_path / "results.json").write_text("{}")
  with pytest.raises(SystemExit):
    train_glow_runs.call(monkeypatch, "--output", tmp_path)
  assert "--overwrite" in capsys.readouterr().err
  assert (tmp_path / "results.json").exists()


def test_overwrite_clears_results_and_nothing_else(tmp_path):
  for name in ("saved_model/saved_model.pb", "results.json", "notes.txt", "best_until_now.weights.h5"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
  train_glow.prepare_output(argparse.Namespace(output=tmp_path), keep_best_until_now=False)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "training_state"]
  assert not list((tmp_path / "training_state").iterdir())


@pytest.mark.slow
def test_a_damaged_state_leaves_everything_there(monkeypatch, tmp_path, capsys):
  for name in ("training_state/epoch-1.index", "best_until_now.weights.h5", "samples.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("of yesterday")
  assert train_glow_runs.call(monkeypatch, "--output", tmp_path) == 2
  assert "damaged" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 3

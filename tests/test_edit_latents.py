"""Tests of `examples/edit_latents.py`: a whole run with a tiny model, and its parts."""

import argparse
import functools
import json
import sys

import edit_latents
import numpy as np
import pytest
import tensorflow as tf
import threadpoolctl
import train_glow
from PIL import Image

import tfp_glow
from tfp_glow import pictures

TINY = ["--num-blocks=2", "--num-steps=1", "--num-hidden=4", "--batch-size=256", "--epochs=1"]
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")


def call(monkeypatch, module, *options):
  """Runs the `main` of a script in this process; returns the exit code."""
  monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, options)])
  return module.main()


@pytest.fixture(scope="module", autouse=True)
def without_graphs():
  """A few eager steps of a tiny model take less time than building its graphs."""
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The folder of a run of `train_glow.py`, without its pictures and its SavedModel."""
  folder = tmp_path_factory.mktemp("run")
  save_results = functools.partial(train_glow.save_results, save_pictures=lambda *_: None)
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(train_glow, "save_results", save_results)
    monkeypatch.setattr(tfp_glow.FlowModel, "export", lambda *_: None)
    assert call(monkeypatch, train_glow, *TINY, "--output", folder) == 0
  return folder


@pytest.fixture(scope="module")
def edited(run, tmp_path_factory):
  """The output of a run, and its folder."""
  folder = tmp_path_factory.mktemp("edited") / "new" / "folder"
  printed = []
  # On a busy machine the threads of NumPy wait for each other.
  with pytest.MonkeyPatch.context() as monkeypatch, threadpoolctl.threadpool_limits(1):
    monkeypatch.setattr("builtins.print", lambda *args, **_: printed.append(" ".join(map(str, args))))
    assert call(monkeypatch, edit_latents, run, "--edit", 3, 8, "--edit", 1, 7, "--strengths", 0, 0.5, 1.5, "--output",
                folder) == 0
  return "\n".join(printed), folder


def numbers(folder):
  return json.loads((folder / edit_latents.NUMBERS).read_text())


@pytest.mark.slow
def test_run_leaves_everything(edited):
  printed, folder = edited
  assert {path.name for path in folder.iterdir()} == set(edit_latents.OUTPUTS)
  for name in (name for name in edit_latents.OUTPUTS if name.endswith("png")):
    with Image.open(folder / name) as picture:
      picture.load()
      assert picture.format == "PNG" and min(picture.size) > 150
  assert printed.splitlines()[-1].startswith(f"In {folder}: ")
  for edit in numbers(folder)["edits"]:
    assert f"{edit['from']} to {edit['to']}: {edit['num_images']} images of the test split" in printed
    for share in edit["share_of_to"]:
      assert f"{share:.3f}" in printed
  directions = np.load(folder / edit_latents.DIRECTIONS)
  assert {name: array.shape for name, array in directions.items()} == {"3 to 8": (64,), "1 to 7": (64,)}


@pytest.mark.slow
def test_numbers_are_about_real_edits(edited):
  found = numbers(edited[1])
  assert found["classifier_accuracy"] > 0.85
  for edit, names in zip(found["edits"], (("3", "8"), ("1", "7")), strict=True):
    assert (edit["from"], edit["to"]) == names and edit["strength"] == [0., 0.5, 1.5]
    assert edit["num_images"] in (18, 19)  # All images of the data set.
    # A flow that has learned little keeps pixels, and these show the difference of two digits.
    assert edit["share_of_to"][0] < 0.2 and edit["share_of_from"][0] > 0.8
    assert edit["share_of_to"][-1] > 0.5 and edit["share_of_from"][-1] < 0.2
    assert edit["probability_of_to"][0] < edit["probability_of_to"][1] < edit["probability_of_to"][-1]
  for path in found["interpolations"]:
    for way in ("line", "arc"):
      assert path[way]["share"] == [i / 8. for i in range(9)]
      assert path[way]["probability_of_to"][0] < 0.2 and path[way]["probability_of_to"][-1] > 0.8
      assert path[way]["share_of_from"][0] > 0.8 and path[way]["share_of_from"][-1] < 0.2
    assert path["line"]["norm"][4] < path["arc"]["norm"][4]
    assert path["line"]["norm"][::8] == path["arc"]["norm"][::8]


@pytest.mark.slow
def test_numbers_of_samples(edited):
  found = numbers(edited[1])
  assert found["temperatures"]["temperature"] == list(edit_latents.SAMPLE_TEMPERATURES)
  assert found["level_temperatures"]["temperature"] == [[1., 0.], [0., 1.], [1., 1.]]
  assert found["temperatures"]["num_classes"][0] == 1.  # All samples are equal.
  assert 1. < found["temperatures"]["num_classes"][-1] <= 10.
  for key in ("confidence", "num_classes"):
    assert found["temperatures"][key][-1] == found["level_temperatures"][key][-1]
    assert found["temperatures"][key][-1] not in found["level_temperatures"][key][:-1]
  assert all(0.1 < confidence <= 1. for confidence in found["temperatures"]["confidence"])


def test_classifier_depends_on_its_seed():
  rng = np.random.default_rng(0)
  train = edit_latents.Images(rng.integers(0, 256, [60, 2, 2, 1]).astype(np.uint8), np.arange(60) % 3)
  first, second, other = (edit_latents.fit_classifier(train, seed).coefs_[0] for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, second)
  assert (first != other).any()


def test_samples_depend_on_their_seed(monkeypatch, tmp_path):
  seeds = []
  monkeypatch.setattr(_Identity, "sample", lambda self, num_samples, temperature, seed: (
      seeds.append(seed) or np.full([num_samples, 1, 2, 1], 51 * round(5 * temperature), np.uint8)), raising=False)
  temperatures = {"cold": 0., "warm": 1.}
  found = edit_latents.save_samples(tmp_path / "samples.png", _Identity(), _AlwaysSure(), temperatures, seed=7)
  assert seeds == [7, 7]
  assert found == {"temperature": [0., 1.], "confidence": [1., 1.], "num_classes": [1., 1.]}


class _AlwaysSure:
  """Classifies dark images as class 0, bright ones as class 1."""

  def predict_proba(self, images):
    return np.eye(2)[np.round(images[:, 0]).astype(int)]


class _Classifier:
  """The first pixel of an image is its class, the second one its probability."""
  classes_ = np.array([2, 5, 7])

  def predict_proba(self, images):
    probabilities = np.repeat((1. - images[:, 1:2]) / 2., 3, axis=1)
    probabilities[np.arange(len(images)), np.searchsorted(self.classes_, np.round(255. * images[:, 0]))] = images[:, 1]
    return probabilities


def test_along_path():
  images = np.zeros([2, 4, 1, 2, 1], np.uint8)
  images[..., 0, 0] = [[[2], [2], [7], [5]], [[7], [7], [7], [5]]]
  images[..., 1, 0] = 204  # 4/5
  found = edit_latents.along_path(_Classifier(), images, [2, 7])
  assert found["share_of_to"] == [0.25, 0.75] and found["share_of_from"] == [0.5, 0.]
  np.testing.assert_allclose(found["probability_of_to"], [(0.8 + 3 * 0.1) / 4., (3 * 0.8 + 0.1) / 4.], rtol=1e-6)


class _Identity:
  """A model with pixels as latents."""

  def encode(self, images):
    return images.reshape(len(images), -1).astype(np.float32)

  def decode(self, z):
    return z.reshape(-1, 1, 2, 1)


def test_latents_move_from_the_mean_of_one_class_to_that_of_the_other():
  images = np.random.default_rng(0).integers(0, 256, [50, 1, 2, 1]).astype(np.uint8)
  train = edit_latents.Images(images, np.arange(50) % 5)
  direction = edit_latents.class_direction(_Identity(), train, [1, 3])
  expected = np.subtract(*(images[label::5].mean(0, dtype=float).ravel() for label in (3, 1)))
  np.testing.assert_allclose(direction, expected, rtol=1e-5)
  z = images[:10].reshape(10, 2).astype(np.float32)
  found = edit_latents.moved(z, direction, [0., -2., 0.5])
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [z, z - 2. * expected, z + expected / 2.], rtol=1e-5)


def test_many_images_go_in_batches(monkeypatch):
  sizes = []
  monkeypatch.setattr(_Identity, "decode", lambda self, z: sizes.append(len(z)) or z.reshape(-1, 1, 2, 1))
  z = np.arange(2. * 3 * 70).reshape(3, 70, 2)
  images = edit_latents.decode(_Identity(), z)
  assert sizes == [100, 100, 10]
  np.testing.assert_array_equal(images, z.reshape(3, 70, 1, 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("options, message", [
    (["--edit", 3, 3], "--edit must be two different classes of [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]. Received: 3 3"),
    (["--edit", 3, 10], "Received: 3 10"),
])
def test_bad_classes(run, monkeypatch, tmp_path, capsys, options, message):
  assert call(monkeypatch, edit_latents, run, *options, "--output", tmp_path / "new") == 2
  error = capsys.readouterr().err
  assert error.startswith("edit_latents.py: error: ") and message in error
  assert not (tmp_path / "new").exists()


def test_run_with_classes(tmp_path):
  settings = argparse.Namespace(
      data="digits", data_dir=None, conditional=True, weight_y=0., num_blocks=1, num_steps=1, num_hidden=4,
      coupling="affine", permutation="conv1x1", gradient="autodiff", num_bits=4, seed=0)
  with pytest.raises(ValueError, match=f"the run must be one without --conditional.*Received: {tmp_path}"):
    edit_latents.load_model(tmp_path, settings, (8, 8, 1))


@pytest.mark.parametrize("content", [None, "", "{}", "of yesterday"])
def test_run_that_is_none(monkeypatch, tmp_path, capsys, content):
  if content is not None:
    (tmp_path / "results.json").write_text(content)
  assert call(monkeypatch, edit_latents, tmp_path) == 2
  error = capsys.readouterr().err
  assert "the run must be the output folder of a finished run of examples/train_glow.py" in error
  assert error.endswith(f"Received: {tmp_path}\n") and not (tmp_path / "edits").exists()


@pytest.mark.parametrize("options, message", [
    (["--edit", "3"], "--edit: expected 2 arguments"), (["--edit", "3", "x"], "--edit: must be a whole number"),
    (["--strengths", "nan"], "--strengths: must be a finite number. Received: 'nan'"),
    (["--strengths", "abc"], "--strengths: must be a finite number. Received: 'abc'"),
    (["--seed=-1"], "--seed: must be"),
])
def test_bad_arguments(monkeypatch, tmp_path, capsys, options, message):
  with pytest.raises(SystemExit) as ending:
    call(monkeypatch, edit_latents, tmp_path, *options)
  assert ending.value.code == 2
  assert message in capsys.readouterr().err


def test_tables_are_aligned(capsys):
  edit_latents.print_table("A title", {"strength": [0.5, 10.], "name": ["a", "level 1"]})
  title, header, *lines = capsys.readouterr().out.splitlines()[1:]
  assert title == "A title" and header.split() == ["strength", "name"]
  assert [line.split(maxsplit=1) for line in lines] == [["0.500", "a"], ["10.000", "level 1"]]
  assert len({len(line) for line in [header, *lines]}) == 1


def test_default_edits_are_of_existing_classes():
  assert all(0 <= label < 10 for edits in edit_latents.DEFAULT_EDITS.values() for edit in edits for label in edit)
  assert all(len(set(names)) == 10 for names in edit_latents.CLASS_NAMES.values())


def test_names_of_rows_and_columns_are_at_the_middles_of_images():
  rows = [np.stack([np.full([4, 2, 1], 3 * i + j, np.uint8) for j in range(3)]) for i in range(2)]
  picture = pictures.tile(rows)[..., 0]
  columns = np.array(edit_latents.middles(picture.shape[1], 3))
  for i, row in enumerate(edit_latents.middles(picture.shape[0], 2)):
    for j, column in enumerate(columns):
      (top, *_, bottom), (left, *_, right) = (np.unique(places) for places in np.nonzero(picture == 3 * i + j))
      assert (row, column) == ((top + bottom + 1) / 2, (left + right + 1) / 2)

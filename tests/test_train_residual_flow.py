"""Tests of `examples/train_residual_flow.py`: whole runs of tiny models, and its densities."""

import json
import sys

import densities
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import train_glow
import train_residual_flow as script
from PIL import Image

import tfp_glow
from tfp_glow.networks import lipschitz

TINY = ["--num-dense-blocks=1", "--num-dense-hidden=4", "--epochs=1", "--batch-size=1000"]
TINY_IMAGES = ["--data=digits", "--batch-size=1500", "--num-scales=1", "--num-blocks=1", "--num-hidden=4"]

slow = pytest.mark.slow


def call(monkeypatch, *options):
  """Runs the script's `main` in this process; returns the exit code."""
  monkeypatch.setattr(sys, "argv", ["train_residual_flow.py", *TINY, *map(str, options)])
  return script.main()


def results(folder):
  return json.loads((folder / "results.json").read_text())


@pytest.fixture
def few_points(monkeypatch):
  monkeypatch.setattr(densities, "NUM_POINTS", 1000)
  monkeypatch.setattr(densities, "NUM_CELLS", 20)
  monkeypatch.setattr(densities, "NUM_PICTURE_POINTS", 1000)


@slow
@pytest.mark.usefixtures("eagerly")
def test_two_models_of_a_density(monkeypatch, tmp_path, few_points, capsys):
  flow, couplings = tmp_path / "flow", tmp_path / "couplings"
  assert call(monkeypatch, "--output", flow) == 0
  assert call(monkeypatch, "--model=couplings", "--beside", flow, "--output", couplings) == 0
  for folder, num_panels in ((flow, 2), (couplings, 3)):
    assert {path.name for path in folder.iterdir()} == set(script.OUTPUTS_OF_DENSITIES)
    assert Image.open(folder / "densities.png").size == (400 * num_panels, 437)
    found = results(folder)
    # For two dimensions, and in bits instead of nats.
    np.testing.assert_allclose(found["bits_per_dim"], -found["nats"] / 2. / np.log(2.), rtol=1e-4)
    assert 0.2 < found["share_on_squares"] < 0.8 and found["nats"] < found["best_nats"]
    signatures = tf.saved_model.load(folder / "saved_model").signatures
    points = signatures["sample"](num_samples=tf.constant(2), temperature=tf.constant(1.), seed=tf.constant([0, 1]))
    assert points["images"].shape == (2, 2)
  counts = [results(folder)["num_parameters"] for folder in (flow, couplings)]
  assert abs(counts[1] / counts[0] - 1.) < 0.2
  assert "val_bits_per_dim" in capsys.readouterr().out
  # Results of two runs do not mix; the same command with the same seed gives the same model.
  with pytest.raises(SystemExit):
    call(monkeypatch, "--output", couplings)
  assert "--overwrite" in capsys.readouterr().err
  before, again = results(couplings), []
  monkeypatch.setattr(script, "save_results", lambda model, test_points, history, results, *_: again.append(results))
  assert call(monkeypatch, "--model=couplings", "--output", couplings, "--overwrite") == 0
  assert again[0]["validation_bits_per_dim"] == before["validation_bits_per_dim"]
  assert not any((couplings / name).exists() for name in script.OUTPUTS_OF_DENSITIES if name != train_glow.WEIGHTS)


@slow
@pytest.mark.usefixtures("eagerly")
def test_a_run_is_resumed(monkeypatch, tmp_path, few_points, capsys):
  """With averages, which do not replace the weights in the state."""
  ended, found = tmp_path / "ended", []
  options = ["--ema=0.9", "--batch-size=250", "--output", ended]

  def killed(model, test_points, history, results, *_):
    found.append(results)
    sys.exit("killed")

  save_results = script.save_results
  monkeypatch.setattr(script, "save_results", killed)
  with pytest.raises(SystemExit, match="killed"):
    call(monkeypatch, "--data=moons", *options)
  monkeypatch.setattr(script, "save_results", save_results)
  (ended / train_glow.BEST_UNTIL_NOW).unlink()  # Nor does anything else.
  assert call(monkeypatch, "--data=two_spirals", *options) == 2
  assert "`settings`" in capsys.readouterr().err
  assert call(monkeypatch, "--data=moons", *options) == 0
  assert "Resuming after epoch 1 of 1" in capsys.readouterr().out
  assert results(ended)["epochs"] == 1 and "share_on_squares" not in results(ended)
  for name in ("bits_per_dim", "validation_bits_per_dim"):
    assert results(ended)[name] == pytest.approx(found[0][name], rel=1e-6)


@slow
@pytest.mark.usefixtures("eagerly")
def test_norms_follow_averages_and_back():
  model = small_models.residual_model(small_models.residual_flow(num_dense_blocks=1),
                                      keras.optimizers.Adam(0.3, use_ema=True, ema_momentum=0.9))
  points = small_models.points()
  model.adapt(points)
  for _ in range(5):
    model.train_on_batch(points)
  before = [v.numpy() for v in model.weights]
  swap = train_glow.AveragesValidated()
  swap.set_model(model)
  swap.on_test_begin()
  block, = (part for part in model.distribution.bijector.submodules
            if isinstance(part, tfp_glow.InvertibleResidualBlock))
  for layer in lipschitz.constrained_layers(block.network):
    assert float(layer.norm()) == pytest.approx(np.linalg.norm(layer.kernel.numpy(), 2), rel=1e-3)
  swap.on_epoch_end(0)
  for variable, value in zip(model.weights, before, strict=True):
    np.testing.assert_array_equal(variable.numpy(), value)


@slow
@pytest.mark.usefixtures("eagerly")
def test_images(monkeypatch, tmp_path):
  """Up to the point where a function of `train_glow.py` saves the results."""
  saved = []
  monkeypatch.setattr(train_glow, "save_results", lambda model, images, history, results, start, args: (
      saved.append((model, results, args))))
  assert call(monkeypatch, *TINY_IMAGES, "--output", tmp_path) == 0
  (model, found, args), = saved
  assert 0. < found["validation_bits_per_dim"] < 4. and args.num_bits == model.num_bits == 4
  assert model.sample(2, seed=0).shape == (2, 8, 8, 1)


@pytest.mark.parametrize("options, message", [
    (["--data=digits", "--model=couplings"], "are for densities"),
    (["--data=digits", "--beside", "elsewhere"], "are for densities"),
    (["--data=digits", "--num-scales=3", "--image-size=6"], "divisible by 2 ** (num_scales - 1) = 4"),
    (["--data=moons", "--num-scales=3"], "--num-scales must not be given with --data moons: it is for images"),
    (["--coefficient=1.5"], "a number between 0 and 1"),
])
def test_bad_options(monkeypatch, tmp_path, capsys, options, message):
  with pytest.raises(SystemExit):
    call(monkeypatch, *options, "--output", tmp_path)
  assert message in capsys.readouterr().err


def test_a_run_that_does_not_exist(monkeypatch, tmp_path, capsys):
  assert call(monkeypatch, "--beside", tmp_path / "nothing", "--output", tmp_path / "new") == 2
  assert "--beside must be folders of runs" in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_densities_are_drawn_by_seeds_and_fit_the_picture(name):
  points, again, others = (densities.draw(name, 5000, *seed) for seed in ((0, 1), (0, 1), (0, 2)))
  np.testing.assert_array_equal(points, again)
  assert points.shape == (5000, 2) and points.dtype == np.float32 and np.abs(points - others).max() > 0.1
  assert np.mean(np.abs(points).max(1) < densities.SIDE) > 0.99
  assert np.all(np.std(points, axis=0) > 0.5) and np.all(np.abs(np.mean(points, axis=0)) < 0.3)


def test_the_checkerboard_is_uniform_on_every_other_square():
  points = densities.draw("checkerboard", 80_000, 0)
  assert densities.share_on_squares(points) == 1.
  assert densities.share_on_squares(points + [2., 0.]) == densities.share_on_squares(points * [-1., 1.]) == 0.
  uniform = np.random.default_rng(0).uniform(-4., 4., [80_000, 2])
  assert abs(densities.share_on_squares(uniform) - 0.5) < 0.01
  counts, _, _ = np.histogram2d(*points.T, 16, [[-4., 4.]] * 2)
  np.testing.assert_allclose(counts[counts > 0.], 80_000 / 128, rtol=0.2)


@pytest.mark.slow
def test_the_grid_has_the_density_at_the_middle_of_its_cells():

  class Slope:

    def log_prob(self, points):
      return np.log(10. + points[:, 0] + 0.1 * points[:, 1])

  grid = densities.density_on_grid(Slope())
  assert grid.shape == (200, 200) and grid[0, -1] > grid[0, 0] and grid[-1, 0] > grid[0, 0]
  np.testing.assert_allclose(grid[0, 0], 10. - 3.98 - 0.398, rtol=1e-6)
  histogram = densities._histogram(densities.draw("checkerboard", 200_000, 0))
  np.testing.assert_allclose(histogram.sum() * 0.04**2, 1., rtol=1e-6)
  assert histogram[10, 10] > 0. and histogram[10, 60] == 0. and histogram[60, 10] == 0.

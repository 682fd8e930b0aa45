"""Tests of `examples/posterior.py` and `examples/conditional_images.py`: whole runs of tiny models, and measures."""

import json
import sys

import conditional_images
import image_files
import numpy as np
import posterior
import pytest
import simulators
import train_glow
from PIL import Image

TINY = {posterior: ["--num-simulations=512", "--num-steps=1", "--num-hidden=4", "--epochs=1"],
        conditional_images: ["--num-blocks=1", "--num-steps=1", "--num-hidden=4", "--num-features=2", "--epochs=1",
                             "--batch-size=750", "--num-images=20"]}
each_script = pytest.mark.parametrize("script", TINY, ids=lambda script: script.__name__)


def call(script, monkeypatch, *options):
  """Runs the script's `main`; returns the exit code."""
  monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *TINY[script], *map(str, options)])
  return script.main()


@pytest.fixture
def quickly(eagerly, monkeypatch):
  for script, settings in ((posterior, {"NUM_TEST": 100, "NUM_VALIDATION": 100, "NUM_RANKS": 30, "NUM_CELLS": 10}),
                           (conditional_images, {"NUM_SAMPLES": 2, "NUM_SHOWN": 1, "CLASSIFIER_STEPS": 2})):
    for name, value in settings.items():
      monkeypatch.setattr(script, name, value)


# Runs.


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("simulator", simulators.SIMULATORS)
@pytest.mark.parametrize("model", ["couplings", "residual_flow"])
def test_posterior(simulator, model, monkeypatch, tmp_path, capsys):
  assert call(posterior, monkeypatch, f"--simulator={simulator}", f"--model={model}", "--output", tmp_path) == 0
  assert {path.name for path in tmp_path.iterdir()} == set(posterior.OUTPUTS)
  results = json.loads((tmp_path / "results.json").read_text())
  names = [*simulators.SIMULATORS[simulator].names, "log-density"]
  assert list(results["ranks"]) == names and results["settings"]["model"] == model
  assert results["num_parameters"] > 10
  assert results["nats"].keys() - {"exact posterior"} == {"posterior", "prior"}
  assert ("exact posterior" in results["nats"]) == (simulator == "linear_gaussian")
  assert results["nats"]["prior"] == pytest.approx(-np.log(2. * np.pi) - 1., abs=0.5)
  assert np.isfinite(results["nats"]["posterior"])
  printed = capsys.readouterr().out
  assert all(f"{name:<22} {results['ranks'][name]['chi_square']:18.1f}" in printed for name in names)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("task", conditional_images.TASKS)
def test_conditional_images(task, monkeypatch, tmp_path, capsys):
  assert call(conditional_images, monkeypatch, f"--task={task}", "--output", tmp_path) == 0
  assert {path.name for path in tmp_path.iterdir()} == set(conditional_images.OUTPUTS)
  results = json.loads((tmp_path / "results.json").read_text())
  names = {"bits_per_dim", "right_class", "error", "spread"} | ({"reduced"} if task == "super-resolution" else set())
  for row in (results["given_context"], results["without_context"]):
    assert row.keys() == names and 2. < row["bits_per_dim"] < 8.
    assert all(0. <= row[name] <= 1. for name in names - {"bits_per_dim"}) and row["spread"] > 0.01
  assert results["num_parameters"] > results["num_parameters_without"] > 100
  assert Image.open(tmp_path / "samples.png").size == (100 + 12 * 68 + 4, 3 * 68 + 4)
  assert f"{results['given_context']['bits_per_dim']:14.3f}" in capsys.readouterr().out


# What is refused.


@each_script
def test_results_of_two_runs_do_not_mix(script, monkeypatch, tmp_path, capsys):
  (tmp_path / "results.json").write_text("{}")
  for folder, message in ((tmp_path, "--overwrite replaces them"), (tmp_path / "results.json", "must be a folder")):
    with pytest.raises(SystemExit):
      call(script, monkeypatch, "--output", folder)
    error = capsys.readouterr().err
    assert message in error and error.endswith(f"Received: {folder}\n")


@each_script
@pytest.mark.parametrize("option", ["--seed=-1", "--batch-size=0", "--num-steps=x", "--learning-rate=nan"])
def test_bad_options(script, option, monkeypatch, capsys):
  with pytest.raises(SystemExit):
    call(script, monkeypatch, option)
  key, value = option.split("=")
  error = capsys.readouterr().err
  assert f"{key}: must be " in error and error.endswith(f"Received: '{value}'\n")


@pytest.mark.parametrize("options, message", [
    (["--factor=3"], "--factor must divide the height and width of the images, 8x8. Received: 3"),
    (["--data=nowhere.npz"], "nowhere.npz"), (["--task=inpainting", "--num-blocks=3"], "`output_shape` must")])
def test_what_does_not_fit_the_images(options, message, monkeypatch, tmp_path, capsys):
  assert call(conditional_images, monkeypatch, *options, "--output", tmp_path / "new") == train_glow.EXIT_USAGE
  assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_inpainting_needs_a_size_that_can_be_halved_once_more(monkeypatch, capsys):
  with pytest.raises(SystemExit):
    call(conditional_images, monkeypatch, "--task=inpainting", "--num-blocks=2", "--image-size=28")
  assert "--image-size must be divisible by 2 ** (num_blocks + 1) = 8" in capsys.readouterr().err


# Simulators.


def test_exact_posterior_is_by_bayes_rule():
  simulator = simulators.LinearGaussian()
  (_, x), line = simulators.draw(simulator, 3, 0), np.linspace(-5., 5., 201)
  theta = np.stack(np.meshgrid(line, line), axis=-1).reshape([-1, 2])
  for observation in x:
    noise = (observation - theta @ simulator.MATRIX.T) / simulator.DEVIATION
    joint = np.exp(-0.5 * np.sum(theta**2, axis=1) - 0.5 * np.sum(noise**2, axis=1))
    found = np.exp(simulator.log_posterior(theta, observation))
    np.testing.assert_allclose(found, joint / joint.sum() / (line[1] - line[0])**2, atol=1e-9)


@pytest.mark.parametrize("simulator", simulators.SIMULATORS.values(), ids=simulators.SIMULATORS)
def test_simulators_are_drawn_by_seeds_and_scaled(simulator):
  (theta, x), again, others = (simulators.draw(simulator, 2000, *seed) for seed in ((0, 1), (0, 1), (0, 2)))
  np.testing.assert_array_equal(x, again[1])
  assert x.shape == (2000, simulator.num_numbers) and x.dtype == theta.dtype == np.float32
  assert np.abs(x - others[1]).max() > 0.1
  np.testing.assert_allclose([theta.mean(), theta.std()], [0., 1.], atol=0.05)
  assert 0.3 < x.std() < 2. and np.abs(x.mean()) < 1.


def test_an_epidemic_reaches_no_more_than_there_are():
  simulator, rng = simulators.Epidemic(), np.random.default_rng(0)
  reported = lambda *theta: np.expm1(2.5 * (simulator.simulate(np.tile(theta, [500, 1]), rng) + 1.)).sum(axis=1)
  usual, fast, brief = reported(0., 0.), reported(2., 0.), reported(0., 3.)
  assert fast.max() <= simulator.POPULATION and usual.mean() > 100.
  assert brief.mean() < 0.5 * usual.mean() < usual.mean() < fast.mean()


# What is measured.


class ExactPosterior:
  """The posterior of `LinearGaussian`, except that its samples have another `width`."""

  def __init__(self, width):
    self._simulator, self._width = simulators.LinearGaussian(), width

  def sample(self, num_samples, seed, context):
    del num_samples
    simulator = self._simulator
    mean = context @ simulator.GAIN.T
    noise = np.random.default_rng(seed).standard_normal(mean.shape) @ np.linalg.cholesky(simulator.COVARIANCE).T
    return mean + self._width * noise

  def log_prob(self, theta, context):
    return self._simulator.log_posterior(theta, context)


@pytest.mark.parametrize("width", [1., 0.7, 1.4])
def test_ranks_tell_whether_a_posterior_is_as_wide_as_it_should_be(width):
  simulator = simulators.LinearGaussian()
  theta, x = simulators.draw(simulator, 1000, 3)
  ranks = posterior.ranks_of(ExactPosterior(width), theta, x, simulator.names, seed=0)
  assert list(ranks) == ["theta 1", "theta 2", "log-density"]
  for of_one in ranks.values():
    assert of_one.min() >= 0 and of_one.max() <= posterior.NUM_SAMPLES
    assert posterior.histogram(of_one).sum() == 1000
    p_value = posterior.uniformity(of_one)["p_value"]
    assert p_value > 0.01 if width == 1. else p_value < 1e-6


def test_uniformity():
  """Against the formula."""
  ranks = np.concatenate([np.arange(100), np.full([100], 7)])
  found = posterior.uniformity(ranks)
  assert found["chi_square"] == pytest.approx((19 * 5.**2 + 95.**2) / 10.)


@pytest.mark.parametrize("task_name", conditional_images.TASKS)
def test_contexts_and_events(task_name):
  images = image_files.pixels(3, 8, 8, 2)
  task = conditional_images.TASKS[task_name]((8, 8, 2), 4)
  context, event = task.context_of(images).numpy(), task.event_of(images)
  assert context.shape[1:] == task.context_shape and event.shape[1:] == task.event_shape
  np.testing.assert_array_equal(task.whole(event, images), images)
  if task_name == "inpainting":
    np.testing.assert_allclose(context[:, 0] * 127.5 + 127.5, images[:, 3], atol=1e-4)
    np.testing.assert_array_equal(task.shown(images)[:, :4], images[:, :4])
  else:
    means = images.reshape([3, 2, 4, 2, 4, 2]).mean(axis=(2, 4))
    np.testing.assert_allclose(context * 127.5 + 127.5, means, atol=1e-3)
    np.testing.assert_allclose(task.shown(images)[:, ::4, ::4], means, atol=0.51)


class Oracle:
  """Samples the truth, plus or minus `off` levels."""

  context_shape = (1,)

  def __init__(self, truth, off):
    self._truth, self._off = truth, off

  def sample(self, num_samples, seed, context):
    del num_samples, context
    return (self._truth + (self._off if seed % 2 else -self._off)).astype(np.uint8)

  def evaluate(self, *_, **__):
    return {"bits_per_dim": 1.5}


@pytest.mark.parametrize("task_name", conditional_images.TASKS)
@pytest.mark.parametrize("off", [0, 3])
def test_measures(task_name, off, monkeypatch):
  monkeypatch.setattr(conditional_images, "classes_of", lambda classifier, images: classifier(images))
  images = image_files.pixels(8, 8, 8, 1) // 2 + 50
  classifier = lambda images: np.where(images.mean(axis=(1, 2, 3)) > 0., 1, 0)
  labels = np.array([1] * 6 + [0] * 2)
  task = conditional_images.TASKS[task_name]((8, 8, 1), 2)
  model = Oracle(task.event_of(images).astype(int), off)
  found = conditional_images.measures(model, None, images, labels, task, classifier, seed=0)
  assert found["bits_per_dim"] == 1.5 and found["right_class"] == 0.75
  assert found["error"] == pytest.approx(0., abs=1e-9)
  assert found["spread"] == pytest.approx(np.sqrt(8. / 7.) * off / 255.)
  if task_name == "super-resolution":
    assert found["reduced"] == pytest.approx(off / 255., abs=1e-6)

"""Two and three worker processes on loopback train one model."""

import json
import re
import signal

import distributed_runs
import example_runs
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import train_glow_runs

import tfp_glow

IMAGES = distributed_runs.IMAGES
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """The reports of two workers, and the folder of the chief."""
  folder = tmp_path_factory.mktemp("two")
  with distributed_runs.Workers(2, distributed_runs.glow_worker, folder) as workers:
    return workers.reports(), folder


@pytest.fixture(scope="module")
def alone():
  """The model and the history of the same training in one process."""
  return distributed_runs.train(tf.distribute.get_strategy(), **distributed_runs.ONE_LAYER, seed=1)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  """Three workers, their reports, and their common folder; at the end the chief is killed."""
  folder = tmp_path_factory.mktemp("three")
  distributed_runs.fill_folder(folder / "images")
  with distributed_runs.Workers(3, distributed_runs.gaussian_worker, folder) as workers:
    reports = workers.reports()
    workers.kill(0)
    yield workers, reports, folder


def test_initialisation_is_that_of_the_chief(two, alone):
  chief, other = (report["adapted"] for report in two[0])
  for a, b, expected in zip(chief, other, alone[0].adapted_weights, strict=True):
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, expected, atol=1e-5)


def test_two_workers_train_as_one_process(two, alone):
  model, history = alone
  _check_training(two[0], model, history)
  evaluation = model.evaluate(IMAGES, batch_size=8, verbose=0)[0]
  np.testing.assert_allclose([report["evaluation"]["bits_per_dim"] for report in two[0]], evaluation, rtol=1e-5)


def test_two_workers_train_a_residual_flow_as_two_replicas(two):
  """They draw the same noise; the second worker starts from other weights than the chief."""
  chief, other = (report["residual"] for report in two[0])
  assert chief == other
  model, history = distributed_runs.train_residual(distributed_runs.mirrored(2))
  np.testing.assert_allclose(chief["history"]["bits_per_dim"], history["bits_per_dim"], rtol=1e-4)
  for found, expected in zip(chief["weights"], distributed_runs.values_of(model), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_three_workers_train_as_one_process(three):
  model, history = distributed_runs.train_gaussian(tf.distribute.get_strategy())
  _check_training(three[1], model, history)
  evaluation, prediction = model.evaluate(IMAGES, verbose=0)[0], model.predict(IMAGES, verbose=0)
  for report in three[1]:
    np.testing.assert_allclose(report["evaluation"]["bits_per_dim"], evaluation, rtol=1e-5)
    np.testing.assert_allclose(report["prediction"], prediction, rtol=1e-5)


def test_three_workers_that_read_their_own_files_train_as_one_process(three):
  """They initialise, train, evaluate and predict; the last batches are uneven, and some workers get none."""
  _, reports, folder = three
  model, history, prediction = distributed_runs.train_on_a_folder(tf.distribute.get_strategy(), folder / "images")
  of_folder = [report["folder"] for report in reports]
  _check_training(of_folder, model, history)
  for report in of_folder:
    np.testing.assert_allclose(report["prediction"], prediction, rtol=1e-5)
  decoded = [(folder / f"decoded_{index}").read_text().splitlines() for index in range(3)]
  for paths in decoded:  # Once in two epochs: its share, and files where two shares meet.
    assert len(paths) == len(set(paths)) and len(paths) <= (19 + 7) * 3 / 8 + 4
  assert len(set(sum(decoded, []))) == 19 + 7


def test_a_worker_whose_share_is_not_finite_stops_all(three):
  failures = [report["failure"] for report in three[1]]
  assert sum("a value of the images is not finite" in failure for failure in failures) == 1
  assert sum("a quantity of another replica is not finite" in failure for failure in failures) == 2
  for report in three[1]:
    assert report["state_error"] == "`folder`: an error of the chief"


def test_a_step_takes_two_exchanges_and_a_batch_of_evaluation_none(three):
  assert [report["exchanges"] for report in three[1]] == [{"train": 2, "test": 0}] * 3


def test_the_chief_alone_draws(three, tmp_path):
  assert sorted(path.name for path in three[2].glob("drawn*")) == ["drawn_by_0", "drawn_by_the_chief"]
  distributed_runs.draw(tf.distribute.get_strategy(), 0, tmp_path)
  for folder in ("drawn_by_0", "drawn_by_the_chief"):
    drawn, expected = ({path.name: path for path in (root / folder).iterdir()} for root in (three[2], tmp_path))
    assert drawn.keys() == expected.keys() and len(drawn) == 6
    for name in ("samples_0001.png", "interpolations_0001.png"):
      assert drawn[name].read_bytes() == expected[name].read_bytes()


def _check_training(reports, model, history):
  for report in reports:
    assert report["history"].keys() == history.keys() and report["history"] == reports[0]["history"]
    for key, values in history.items():
      np.testing.assert_allclose(report["history"][key], values, rtol=1e-5)
    for a, b, expected in zip(report["weights"], reports[0]["weights"], distributed_runs.values_of(model), strict=True):
      np.testing.assert_array_equal(a, b)
      np.testing.assert_allclose(a, expected, atol=1e-5)


def test_the_chief_alone_samples_saves_and_exports(two):
  (chief, _), folder = two
  model = tfp_glow.FlowModel(example_runs.flow(small_models.SHAPE, seed=5))
  model.load_weights(folder / "model.weights.h5")
  for a, b in zip(chief["weights"], distributed_runs.values_of(model), strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(chief["sample"], model.sample(2, seed=0))
  whole = keras.models.load_model(folder / "model.keras")
  for a, b in zip(chief["weights"], distributed_runs.values_of(whole), strict=True):
    np.testing.assert_array_equal(a, b)
  answer = tf.saved_model.load(str(folder / "saved_model")).signatures["log_prob"](images=tf.constant(IMAGES))
  np.testing.assert_allclose(answer["log_prob"], model.log_prob(IMAGES), rtol=1e-5)


def test_example_with_two_workers_one_of_which_is_killed(tmp_path, monkeypatch):
  """The chief then ends, to be started again. Later one gets a SIGTERM, in SLURM, and both end with their state."""
  make = lambda work, ended: distributed_runs.Workers(2, work, tmp_path, ended, "--epochs=2", "--strategy=multiworker")
  with make(distributed_runs.example_worker, {1: signal.SIGKILL}) as workers:
    assert workers.exit_code(1) == -signal.SIGKILL
    assert workers.exit_code(0) == 138, workers.output(0)[1]
    assert "Another worker is gone: " in workers.output(0)[1] and "task:1" in workers.output(0)[1]
  assert (tmp_path / "output_0" / "training_state").exists()
  with make(distributed_runs.slurm_worker, {1: signal.SIGTERM}) as workers:
    assert [workers.exit_code(index) for index in range(2)] == [143, 143], workers.output(0)[1]
    assert "Resuming after epoch 1 of 2" in workers.output(0)[0] and workers.output(1)[0] == ""
  with make(distributed_runs.slurm_worker, {}) as workers:
    assert [workers.exit_code(index) for index in range(2)] == [0, 0], workers.output(0)[1]
    assert "Resuming after 4 batches of epoch 2 of 2" in workers.output(0)[0] and workers.output(1)[0] == ""
  assert not (tmp_path / "output_1").exists() and not (tmp_path / "output_0" / "training_state").exists()
  results = json.loads((tmp_path / "output_0" / "results.json").read_text())
  monkeypatch.setattr(tfp_glow, "GlowBijector", example_runs.flow)
  assert train_glow_runs.call(monkeypatch, "--epochs=2", "--output", tmp_path / "alone") == 0
  expected = json.loads((tmp_path / "alone" / "results.json").read_text())
  assert results["epochs"] == expected["epochs"] == 2
  np.testing.assert_allclose(results["bits_per_dim"], expected["bits_per_dim"], rtol=1e-4)


# At the end, when the death has been noticed.


def test_a_killed_chief_ends_the_workers_with_an_error(three):
  for index in (1, 2):
    _check_end(three[0], index)


def _check_end(workers, index):
  assert workers.exit_code(index) != 0
  assert re.search("Collective ops is aborted|unhealthy", workers.output(index)[1])

"""`benchmarks/ablation.py`, `callbacks.py` and `paper_sizes.py` run, at sizes at which they say nothing."""

import concurrent.futures
import json
import math
import time
import types
from concurrent.futures import process

import architecture_sizes
import benchmark_scripts
import numpy as np
import pytest

import tfp_glow

ablation = benchmark_scripts.load("ablation")
callbacks = benchmark_scripts.load("callbacks")
paper_sizes = benchmark_scripts.load("paper_sizes")


@benchmark_scripts.benchmark
@benchmark_scripts.needs_fashion_mnist
def test_trainings_of_the_ablation(monkeypatch):
  pytest.importorskip("tensorflow_datasets", reason="an extra, `data`")
  monkeypatch.setattr(ablation, "STEPS_PER_EPOCH", 2)
  monkeypatch.setattr(ablation, "NUM_TEST_BATCHES", 1)
  monkeypatch.setattr(ablation, "ARCHITECTURE", {"num_glow_blocks": 1, "num_steps_per_block": 2, "num_hidden": 4})
  curve = ablation.train("shuffle", "additive", 0, 2)
  assert len(curve) == 2 and all(0. < bits < 20. for bits in curve)
  assert ablation.train("shuffle", "additive", 0, 2) == curve
  assert ablation.train("shuffle", "affine", 0, 2) != curve != ablation.train("conv1x1", "additive", 0, 2)


@benchmark_scripts.benchmark
@benchmark_scripts.needs_fashion_mnist
def test_a_training_of_the_ablation_may_diverge(monkeypatch, capsys):
  pytest.importorskip("tensorflow_datasets", reason="an extra, `data`")
  fit = tfp_glow.FlowModel.fit

  def diverge(self, *args, **kwargs):
    fit(self, *args, **{**kwargs, "epochs": 1})
    raise FloatingPointError("The loss is gone.")

  monkeypatch.setattr(tfp_glow.FlowModel, "fit", diverge)
  monkeypatch.setattr(ablation, "STEPS_PER_EPOCH", 1)
  monkeypatch.setattr(ablation, "NUM_TEST_BATCHES", 1)
  monkeypatch.setattr(ablation, "ARCHITECTURE", {"num_glow_blocks": 1, "num_steps_per_block": 1, "num_hidden": 4})
  curve = ablation.train("reverse", "additive", 3, 3)
  assert len(curve) == 3 and 0. < curve[0] < 20. and np.isnan(curve[1:]).all()
  assert "reverse, additive, seed 3: The loss is gone." in capsys.readouterr().err


def test_a_failure_loses_no_training_of_the_ablation(tmp_path, monkeypatch):
  path = tmp_path / "ablation.json"
  read = lambda: json.loads(path.read_text()) if path.exists() else []
  others = [(permutation, coupling, 0) for permutation in ablation.PERMUTATIONS for coupling in ablation.COUPLINGS]
  failing = others.pop()

  def train(permutation, coupling, seed, num_epochs):
    if (permutation, coupling, seed) != failing:
      return [4.] * num_epochs
    for _ in range(1000):
      if len(read()) == len(others):
        break
      time.sleep(0.01)
    raise RuntimeError("out of luck")

  monkeypatch.setattr(ablation, "train", train)
  monkeypatch.setattr(ablation.concurrent.futures, "ProcessPoolExecutor",
                      lambda *_, **__: concurrent.futures.ThreadPoolExecutor(2))
  with pytest.raises(RuntimeError, match="out of luck"):
    ablation.train_all([0], 2, path)
  assert [(row["permutation"], row["coupling"], row["seed"]) for row in read()] == others
  assert all(row["bits_per_dim"] == [4., 4.] for row in read())


def test_figure_and_table_of_the_ablation(tmp_path, monkeypatch, capsys):
  bits = {"reverse": 3.9, "shuffle": 3.7, "conv1x1": 3.5}
  curves = {(permutation, coupling): [[6., bits[permutation] + (coupling == "additive") + tenth] for tenth in (0., 0.1)]
            for permutation in ablation.PERMUTATIONS for coupling in ablation.COUPLINGS}
  monkeypatch.setattr(ablation, "train_all", lambda seeds, num_epochs, path: curves)
  benchmark_scripts.call(ablation, f"--output={tmp_path / 'new'}")
  rows = capsys.readouterr().out.splitlines()[2:]
  assert rows == ["| reverse | 4.950 (4.900 to 5.000) | 3.950 (3.900 to 4.000) |",
                  "| shuffle | 4.750 (4.700 to 4.800) | 3.750 (3.700 to 3.800) |",
                  "| conv1x1 | 4.550 (4.500 to 4.600) | 3.550 (3.500 to 3.600) |"]
  assert (tmp_path / "new" / "ablation.png").stat().st_size > 0


def test_trainings_of_the_ablation_that_diverge_are_counted(tmp_path, monkeypatch, capsys):
  ends = {"additive": [3.5, math.nan, 3.7], "affine": [math.nan, math.nan]}
  curves = {(permutation, coupling): [[6., end] for end in ends[coupling]]
            for permutation in ablation.PERMUTATIONS for coupling in ablation.COUPLINGS}
  monkeypatch.setattr(ablation, "train_all", lambda seeds, num_epochs, path: curves)
  benchmark_scripts.call(ablation, f"--output={tmp_path}")
  assert capsys.readouterr().out.splitlines()[2:] == [
      f"| {permutation} | 3.600 (3.500 to 3.700), 1 of 3 diverged | 2 of 2 diverged |"
      for permutation in ablation.PERMUTATIONS]


@pytest.mark.parametrize("num_epochs, shown", [(1, [100]), (3, [200, 300])])
def test_figure_of_the_ablation_is_never_empty(tmp_path, monkeypatch, num_epochs, shown):
  import matplotlib.axes
  drawn = []
  plot = matplotlib.axes.Axes.plot
  monkeypatch.setattr(matplotlib.axes.Axes, "plot", lambda self, x, y, **kwargs: drawn.append((x, y)) or plot(
      self, x, y, **kwargs))
  curves = {(permutation, coupling): [[6., 5., 4.][:num_epochs]]
            for permutation in ablation.PERMUTATIONS for coupling in ablation.COUPLINGS}
  monkeypatch.setattr(ablation, "train_all", lambda seeds, num_epochs, path: curves)
  benchmark_scripts.call(ablation, f"--output={tmp_path}")
  assert drawn == 6 * [(shown, [6., 5., 4.][:num_epochs][-len(shown):])]


@benchmark_scripts.benchmark
def test_costs_of_callbacks(capsys):
  benchmark_scripts.call(callbacks, "--num-blocks=1", "--steps=1", "--epochs=3")
  rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
  assert [row[0].strip(" `") for row in rows] == ["SampleGrid", "LatentInterpolation", "BitsPerDimCurve"]
  assert all(float(seconds) > 0. for row in rows for seconds in row[1:])


def test_callbacks_are_timed_call_by_call():
  seconds = iter([0., 1., 10., 13., 20., 25.])
  callback = types.SimpleNamespace(on_epoch_begin=lambda epoch: None, on_epoch_end=lambda epoch, logs=None: None)
  times = callbacks.Times(callback)
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(callbacks.time, "process_time", lambda: next(seconds))
    callback.on_epoch_begin(0)
    callback.on_epoch_end(0, logs={})
    callback.on_epoch_end(1, logs={})
  assert times.before == [1.] and times.after == [3., 5.]


@benchmark_scripts.benchmark
@pytest.mark.parametrize("section, name, options, num_parameters", [
    ("glow", "cifar10", ("--num-blocks=1", "--num-steps=2", "--num-hidden=4"),
     architecture_sizes.glow(1, 2, "affine", None, width=4)),
    ("residual_flow", "CIFAR-10", ("--num-scales=1", "--num-blocks=1", "--num-hidden=4", "--num-dense-blocks=1",
                                   "--num-dense-hidden=5"), architecture_sizes.residual_flow(1, 1, 4, 1, 5)),
    ("residual_flow", "CIFAR-10",
     ("--data=mnist", "--image-size=28", "--num-scales=1", "--num-blocks=1", "--num-hidden=4", "--num-dense-blocks=1",
      "--num-dense-hidden=5"),
     architecture_sizes.residual_flow(1, 1, 4, 1, 5, size=28, channels=1)),
])
def test_paper_sizes(section, name, options, num_parameters, capsys):
  overrides = [f"--override={option}" for option in options]
  benchmark_scripts.call(paper_sizes, "--only", section, "--preset=cifar10", *overrides)
  shown = capsys.readouterr().out
  (found, parameters, *others), = [
      [cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith(f"| {name}")]
  assert (found, parameters) == (name, f"{num_parameters:,}") and "Unchanged" not in shown
  assert len(others) == 3 and float(others[-1]) > 0.


def test_paper_sizes_go_on_after_a_process_that_was_ended(monkeypatch, capsys):
  def measure(script, options, num_steps):
    if options == ("--preset=cifar10",):
      raise process.BrokenProcessPool
    return {"parameters": 1000, "first_step": 2., "further_step": 1., "peak": 3., "losses": [], "unchanged": ["w"]}

  monkeypatch.setattr(paper_sizes, "measure", measure)
  benchmark_scripts.call(paper_sizes, "--only=glow", "--preset=cifar10", "--preset=imagenet32")
  lines = capsys.readouterr().out.splitlines()
  assert lines[-4:] == ["| cifar10 | its process was ended: too little memory? | | | |",
                        "| imagenet32 | 1,000 | 2 | 1.0 | 3.0 |", "", "Unchanged in imagenet32: w"]

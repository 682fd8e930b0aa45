"""The benchmarks run, at sizes at which they say nothing."""

import argparse
import concurrent.futures
import importlib.util
import itertools
import json
import math
import pathlib
import runpy
import subprocess
import sys
import time
import types
from concurrent.futures import process

import architecture_sizes
import numpy as np
import pytest
import served_models
import tensorflow as tf

import tfp_glow
from tfp_glow import data

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"
TINY = ("--num_levels=1", "--num_steps=1", "--num_hidden=4", "--batch_size=2", "--calls=1", "--seconds=0.1")
SPEED = {"step": 1000., "log_prob": 1000., "sample": 1000.}  # Milliseconds, by the clock below.


def benchmark(test):
  """Marks what is slow and about nothing of the package."""
  return pytest.mark.slow(pytest.mark.benchmark(test))


def _load(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


results = _load("results")
run = _load("run")
health = _load("health")
serving = _load("serving")
ablation = _load("ablation")
class_samples = _load("class_samples")
page = _load("page")
callbacks = _load("callbacks")
paper_sizes = _load("paper_sizes")
_load("gpu_common")
input_script = _load("input")
needs_fashion_mnist = pytest.mark.skipif(not pathlib.Path("/usr/share/datasets/fashion-mnist").exists(),
                                         reason="needs Debian's package dataset-fashion-mnist")
residual = _load("residual")
replicas = _load("replicas")


for module in ("systems", "residual_systems"):
  _load(module)
measure_script = _load("measure")


@pytest.fixture(name="saved")
def fixture_saved(tmp_path, monkeypatch):
  """Reads what `--save` has kept; not among the files of the pages."""
  monkeypatch.setattr(results, "FOLDER", tmp_path / "saved")
  return results.read


@pytest.fixture(name="main")
def fixture_main(monkeypatch):
  """Runs a script with options, in this process."""

  def main(script, *options):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *options])
    script.main()

  return main


@pytest.fixture(name="measure")
def fixture_measure(monkeypatch, capsys):
  """As `run.measure`, in this process, which has imported what they import."""

  def measure(system, measurement, *options):
    monkeypatch.setattr(sys, "argv", ["measure.py", system, measurement, *options])
    measure_script.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])

  return measure


@pytest.fixture(name="clock")
def fixture_clock(monkeypatch):
  """Is a second later each time that `measure.py` asks for the time: what it makes of that is known."""
  seconds = itertools.count()
  monkeypatch.setattr(measure_script, "time", types.SimpleNamespace(perf_counter=lambda: float(next(seconds))))


@benchmark
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("system, measurement, expected", [
    ("tfp_glow", "speed", SPEED), ("convolutions", "speed", SPEED), ("FlowModel", "speed", SPEED),
    ("tfp_glow.residual", "speed", SPEED), ("tfb.Glow", "start", {"first_step": 1., "later_step": 1.}),
    ("tfp_glow", "fit", {"bare": 100., "fit": 100.})])
def test_measurements(measure, system, measurement, expected):
  assert measure(system, measurement, *TINY) == expected


@benchmark
def test_measurements_of_memory():
  """In processes of their own, whose peak is not that of the one that starts them: this one, and a GiB in use."""
  held = np.ones([2**30], np.uint8)
  found = run.measure("tfp_glow", "memory", *TINY)
  assert found.keys() == {"peak", "parameters"}
  assert 0. < found["parameters"] < found["peak"] < measure_script.peak() and held.all()
  found = run.measure("tfp_glow.residual", "working_memory", *TINY)
  assert found.keys() == {"steps", "all"} and 0. < found["steps"] < found["all"]


@benchmark
def test_measurements_of_normflows():
  pytest.importorskip("normflows", reason="an extra, `benchmarks`")
  found = run.measure("normflows", "speed", *TINY)
  assert found.keys() == {"step", "log_prob", "sample"}


@benchmark
@pytest.mark.parametrize("system", ["FlowModel", "tfb.Glow", "normflows"])
def test_stress(measure, system):
  if system == "normflows":
    pytest.importorskip("normflows", reason="an extra, `benchmarks`")
    measure = run.measure
  found = measure(system, "health", *TINY[:-2], "--calls=2", "--kinds", "constant", "extreme", "--bits", "1",
                  "--rates", "1e-3", "1e25", "--seeds=1")
  assert [(f["kind"], f["learning_rate"], f["sampled"]) for f in found] == [
      (kind, rate, rate == 1e-3) for kind in ("constant", "extreme") for rate in (1e-3, 1e25)]


@benchmark
@needs_fashion_mnist
def test_invertibility(measure):
  pytest.importorskip("tensorflow_datasets", reason="an extra, `data`")
  found = measure("tfp_glow", "invertibility", *TINY)
  assert len(found["images"]) == 5 and all(f["error"] < 1e-3 and f["changed"] == 0 for f in found["images"].values())


def test_shares_are_of_all_trainings(monkeypatch, capsys, saved, main):
  measure = lambda system, *options: [
      {"learning_rate": rate, "trained": "--batch_size=64" in options or system != "tfb.Glow",
       "sampled": system == "FlowModel" or rate < 1e-2}
      for rate in health.RATES]
  monkeypatch.setattr(run, "measure", measure)
  monkeypatch.setattr(run, "peers", lambda: ["tfb.Glow"])
  main(health, "--only=stress", "--seeds=1", "--steps=1", "--save")
  ours, _, peer = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:5]
  assert ours.split("|")[2:4] == [" 8 of 8 ", " 8 of 8 "]
  assert peer.split("|")[2:] == [" 4 of 8 ", " 4 of 8 ", " 2 of 2 ", " 2 of 2 ", " 0 of 2 ", " 0 of 2 ", ""]
  assert [row[1:] for row in saved("stress")["rows"]] == [
      ["4 of 4"] * 4, ["4 of 4", "2 of 4"] * 2, ["0 of 4", "2 of 4", "4 of 4", "2 of 4"]]


def test_a_failed_measurement_ends_the_run():
  with pytest.raises(SystemExit, match="failed:(.|\n)*invalid choice: 'nonsense'"):
    run.measure("tfp_glow", "nonsense")


def test_tables_hold_ratios_within_a_round(monkeypatch, capsys, saved, main):
  shares = {"convolutions": 1., "tfp_glow": 1.5, "tfb.Glow": 4.}
  calls = []

  def measure(system, *_):
    calls.append(system)
    milliseconds = shares[system] * 2.**((len(calls) - 1) // 5)  # The machine gets slower round by round.
    return {"step": milliseconds, "log_prob": milliseconds, "sample": milliseconds}

  monkeypatch.setattr(run, "measure", measure)
  monkeypatch.setattr(run, "peers", lambda: ["tfb.Glow"])
  main(run, "--only=speed", "--rounds=3", "--save")
  assert calls == 3 * ["convolutions", "tfp_glow", "tfp_glow", "tfp_glow", "tfb.Glow"]
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  for row, system in zip(rows, calls):
    assert row.count(f"{shares[system]:.2f} ({shares[system]:.2f} to {shares[system]:.2f})") == 3, row
  assert saved("speed")["rows"][-1] == ["`tfb.Glow`", *3 * ["4.00 (4.00 to 4.00)"]]


@benchmark
def test_first_steps_of_replicas():
  found = run.measure("tfp_glow", "replicas", "--replicas=2", *TINY)
  assert found.keys() == {"seconds", "processor", "peak"} and found["peak"] > 100.


def test_operations_are_those_of_the_paper():
  """As docs/gpu.md has them: 1.54e12 for 64 images, without the pass that rebuilds activations."""
  preset = runpy.run_path(str(FOLDER.parent / "examples" / "presets.py"))["PRESETS"]["cifar10"]
  assert preset.gradient == "reversible"
  assert 64 * replicas.operations(preset) * 3 / 4 == pytest.approx(1.54e12, rel=0.01)


@benchmark
def test_operations_do_not_depend_on_the_number_of_levels():
  one, two = (run.measure("tfp_glow", "operations", *TINY, f"--num_levels={levels}") for levels in (1, 2))
  for name in ("step, autodiff", "step, reversible", "log_prob", "sample"):
    assert 10 < one[name] == two[name] < 100
  assert one["FlowModel, beside a loop with SGD"] < two["FlowModel, beside a loop with SGD"]


def test_exchange_by_rings():
  assert replicas.Cluster(1, 8, 100.).seconds(400) == pytest.approx(7.)
  assert replicas.Cluster(4, 8, 100., 50.).seconds(400) == pytest.approx(7. + 12.)
  eight = replicas.Cluster(1, 8, 100.)
  assert replicas.speed_up(eight, 0, 1., 16) == 8.
  assert replicas.speed_up(eight, 400, 7., 8) == pytest.approx(4.)  # Exchange takes as long as computing.


def test_peers_that_diverge_do_not_win(monkeypatch, capsys, main):
  bits = {"5e-04": 4., "1e-03": 3., "2e-03": math.nan}
  measure = lambda system, measurement, rate, seconds, seed, *_: {
      "bits_per_dim": bits[f"{float(rate.split('=')[1]):.0e}"] + 0.1 * int(seed.split("=")[1]), "steps": 7}
  monkeypatch.setattr(run, "measure", measure)
  main(run, "--only=quality", "--seconds=1")
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  assert rows[0].split("|")[2:5] == [" 3.10 (3.00 to 3.20) ", " 7 ", " 0.001 "]


def test_tables_of_serving_hold_ratios_within_a_round(monkeypatch, capsys, saved):
  asked = []

  def measure(system, measurement, *options):
    asked.append((system, measurement, *options[1:]))
    # The machine gets slower round by round: the first of `asked` is the export.
    time = 2.**(len(asked) // 2) * (1.5 if system == "SavedModel" else 1.)
    return {"export": {"FlowModel": 1., "SavedModel": 2.}, "load": {"load": time}}.get(measurement, {"log_prob": time})

  monkeypatch.setattr(run, "measure", measure)
  monkeypatch.setattr(sys, "argv", ["serving.py", "--rounds=2", "--save", "--num_hidden=8"])
  serving.main()
  rows = [line for line in capsys.readouterr().out.splitlines() if "`log_prob`" in line]
  assert len(rows) == 3 and all(row.endswith("| 1.50 (1.50 to 1.50) |") for row in rows)
  assert all("--num_hidden=8" in options and "--save" not in options for _, _, *options in asked)
  assert saved("serving_latency")["rows"] == [["`log_prob`", "1.50 (1.50 to 1.50)", "1.50 (1.50 to 1.50)"]]
  assert [system for system, *_ in asked[1:5]] == ["FlowModel", "SavedModel", "SavedModel", "FlowModel"]


@benchmark
@pytest.mark.usefixtures("clock")
def test_measurements_of_serving(tmp_path):
  architecture = measure_script.systems.Architecture(
      num_levels=1, num_steps=1, num_hidden=4, batch_size=2, image_shape=(4, 4, 1))
  args = lambda system: argparse.Namespace(system=system, folder=tmp_path, calls=1)
  found = measure_script._export(args("tfp_glow"), architecture)
  sizes = {name: sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and part in str(path))
           for name, part in (("FlowModel", "model.keras"), ("SavedModel", "saved_model"))}
  assert {name: size * 2**20 for name, size in found.items()} == pytest.approx(sizes)
  for system in found:
    latency = measure_script._latency(args(system), architecture)
    assert latency == dict.fromkeys(("log_prob", "encode", "decode", "sample", "interpolate"), 1000.)
    assert measure_script._load(args(system), architecture) == {"load": 1.}


@benchmark
@needs_fashion_mnist
def test_trainings_of_the_ablation(monkeypatch):
  pytest.importorskip("tensorflow_datasets", reason="an extra, `data`")
  monkeypatch.setattr(ablation, "_STEPS_PER_EPOCH", 2)
  monkeypatch.setattr(ablation, "_NUM_TEST_BATCHES", 1)
  monkeypatch.setattr(ablation, "_ARCHITECTURE", {"num_glow_blocks": 1, "num_steps_per_block": 2, "num_hidden": 4})
  curve = ablation._train("shuffle", "additive", 0, 2)
  assert len(curve) == 2 and all(0. < bits < 20. for bits in curve)
  assert ablation._train("shuffle", "additive", 0, 2) == curve
  assert ablation._train("shuffle", "affine", 0, 2) != curve != ablation._train("conv1x1", "additive", 0, 2)


@benchmark
@needs_fashion_mnist
def test_a_training_of_the_ablation_may_diverge(monkeypatch, capsys):
  pytest.importorskip("tensorflow_datasets", reason="an extra, `data`")
  fit = tfp_glow.FlowModel.fit

  def diverge(self, *args, **kwargs):
    fit(self, *args, **{**kwargs, "epochs": 1})
    raise FloatingPointError("The loss is gone.")

  monkeypatch.setattr(tfp_glow.FlowModel, "fit", diverge)
  monkeypatch.setattr(ablation, "_STEPS_PER_EPOCH", 1)
  monkeypatch.setattr(ablation, "_NUM_TEST_BATCHES", 1)
  monkeypatch.setattr(ablation, "_ARCHITECTURE", {"num_glow_blocks": 1, "num_steps_per_block": 1, "num_hidden": 4})
  curve = ablation._train("reverse", "additive", 3, 3)
  assert len(curve) == 3 and 0. < curve[0] < 20. and np.isnan(curve[1:]).all()
  assert "reverse, additive, seed 3: The loss is gone." in capsys.readouterr().err


def test_a_failure_loses_no_training_of_the_ablation(tmp_path, monkeypatch):
  path = tmp_path / "ablation.json"
  read = lambda: json.loads(path.read_text()) if path.exists() else []
  others = [(permutation, coupling, 0) for permutation in ablation._PERMUTATIONS for coupling in ablation._COUPLINGS]
  failing = others.pop()

  def train(permutation, coupling, seed, num_epochs):
    if (permutation, coupling, seed) != failing:
      return [4.] * num_epochs
    for _ in range(1000):
      if len(read()) == len(others):
        break
      time.sleep(0.01)
    raise RuntimeError("out of luck")

  monkeypatch.setattr(ablation, "_train", train)
  monkeypatch.setattr(ablation.concurrent.futures, "ProcessPoolExecutor",
                      lambda *_, **__: concurrent.futures.ThreadPoolExecutor(2))
  with pytest.raises(RuntimeError, match="out of luck"):
    ablation._train_all([0], 2, path)
  assert [(row["permutation"], row["coupling"], row["seed"]) for row in read()] == others
  assert all(row["bits_per_dim"] == [4., 4.] for row in read())


def test_figure_and_table_of_the_ablation(tmp_path, monkeypatch, capsys):
  bits = {"reverse": 3.9, "shuffle": 3.7, "conv1x1": 3.5}
  curves = {(permutation, coupling): [[6., bits[permutation] + (coupling == "additive") + tenth] for tenth in (0., 0.1)]
            for permutation in ablation._PERMUTATIONS for coupling in ablation._COUPLINGS}
  monkeypatch.setattr(ablation, "_train_all", lambda seeds, num_epochs, path: curves)
  monkeypatch.setattr(sys, "argv", ["ablation.py", f"--output={tmp_path / 'new'}"])
  ablation.main()
  rows = capsys.readouterr().out.splitlines()[2:]
  assert rows == ["| reverse | 4.950 (4.900 to 5.000) | 3.950 (3.900 to 4.000) |",
                  "| shuffle | 4.750 (4.700 to 4.800) | 3.750 (3.700 to 3.800) |",
                  "| conv1x1 | 4.550 (4.500 to 4.600) | 3.550 (3.500 to 3.600) |"]
  assert (tmp_path / "new" / "ablation.png").stat().st_size > 0


def test_trainings_of_the_ablation_that_diverge_are_counted():
  assert ablation._cell([3.5, math.nan, 3.7]) == "3.600 (3.500 to 3.700), 1 of 3 diverged"
  assert ablation._cell([math.nan, math.nan]) == "2 of 2 diverged"


@pytest.mark.parametrize("num_epochs, shown", [(1, [100]), (3, [200, 300])])
def test_figure_of_the_ablation_is_never_empty(tmp_path, monkeypatch, num_epochs, shown):
  import matplotlib.axes
  drawn = []
  plot = matplotlib.axes.Axes.plot
  monkeypatch.setattr(matplotlib.axes.Axes, "plot", lambda self, x, y, **kwargs: drawn.append((x, y)) or plot(
      self, x, y, **kwargs))
  curves = {(permutation, coupling): [[6., 5., 4.][:num_epochs]]
            for permutation in ablation._PERMUTATIONS for coupling in ablation._COUPLINGS}
  ablation._draw(curves, tmp_path / "ablation.png")
  assert drawn == 6 * [(shown, [6., 5., 4.][:num_epochs][-len(shown):])]


@pytest.mark.slow
@pytest.mark.parametrize("shift, least, most", [(0, 0.95, 1.), (1, 0., 0.05)])
def test_classes_of_samples_are_compared_with_those_asked_for(tmp_path, monkeypatch, capsys, saved, shift, least, most):
  """The model draws real images, of the class it is asked for, or of the next one."""
  batches = data.load_images("digits", "train", 2000, with_labels=True, seed=0)
  images, labels = next(iter(batches.as_numpy_iterator()))

  def sample(num_samples, temperature, seed, labels_asked):
    del temperature, seed
    wanted = (labels_asked + shift) % 10
    drawn = [images[labels == label][index % 100] for index, label in enumerate(wanted)]
    assert len(drawn) == num_samples
    return {"images": tf.constant(np.stack(drawn))}

  saved_model = types.SimpleNamespace(signatures={"sample": lambda labels, **kwargs: sample(
      labels_asked=labels.numpy(), **{name: value.numpy() for name, value in kwargs.items()})})
  monkeypatch.setattr(tf.saved_model, "load", lambda path: saved_model)
  settings = {"data": "digits", "image_size": None, "shorter_side": None, "data_dir": None, "num_bits": 4,
              "conditional": True, "batch_size": 64, "max_shift": 0., "seed": 0, "weight_y": 0.01}
  (tmp_path / "results.json").write_text(json.dumps({"settings": settings, "bits_per_dim": 2.345}))
  monkeypatch.setattr(sys, "argv", ["class_samples.py", str(tmp_path), "--samples=20", "--save"])
  class_samples.main()
  shown = [line.split("|")[2].strip() for line in capsys.readouterr().out.splitlines()[2:]]
  assert saved("class_samples_digits_0.01")["rows"] == [["`--weight-y 0.01`", "2.35", *shown]]
  shares = [float(share.strip("%")) / 100. for share in shown]
  assert len(shares) == 1 + len(class_samples._TEMPERATURES)
  assert shares[0] > 0.95 and all(least <= share <= most for share in shares[1:])


def test_classes_of_samples_need_a_run_by_class(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["class_samples.py", str(tmp_path)])
  with pytest.raises(SystemExit):
    class_samples.main()
  (tmp_path / "results.json").write_text(json.dumps({"settings": {"conditional": False}}))
  with pytest.raises(SystemExit):
    class_samples.main()
  assert capsys.readouterr().err.count("Received: ") == 2


@benchmark
def test_page_is_asked_everything(grey_path, tmp_path, monkeypatch, capfd, saved):
  np.savez(tmp_path / "directions.npz", **served_models.directions())
  (tmp_path / "saved_model").symlink_to(grey_path)
  (tmp_path / "results.json").write_text(json.dumps({"settings": {"data": "../grey.npz"}}))
  options = [tmp_path / "saved_model", "--directions", tmp_path / "directions.npz", "--calls=2", "--save"]
  monkeypatch.setattr(sys, "argv", ["page.py", *map(str, options)])
  page.main()
  rows = [line.split("|")[1:-1] for line in capfd.readouterr().out.splitlines()[2:]]
  assert [row[0].strip(" `/") for row in rows] == [f"api/{name}" for name in (
      "model", "image", "edit", "interpolate", "sample")]
  assert all(0 <= int(median) <= int(worst) for _, median, worst in rows)
  assert [cells[1] for cells in saved("page_grey")["rows"]] == [
      f"{median.strip()} ({worst.strip()})" for _, median, worst in rows]


@benchmark
def test_page_without_a_model_is_an_error(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path)])
  with pytest.raises(SystemExit, match=f"serve.py {tmp_path} .*failed"):
    page.main()
  assert "serve.py: error: " in capfd.readouterr().err


def test_page_is_saved_for_models_whose_data_are_known_only(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path / "saved_model"), "--save"])
  with pytest.raises(SystemExit):
    page.main()
  assert "--save needs a model in the output folder" in capsys.readouterr().err


def test_page_is_asked_with_a_class_and_all_sliders(monkeypatch):
  asked = []
  answers = {"/api/model": {"classes": ["cat"], "directions": ["darker", "3 to 8"]},
             "/api/sample": {"images": ["a", "b", "c"]}}
  monkeypatch.setattr(page, "_ask", lambda connection, path, body: asked.append((path, body)) or answers[path])
  questions = page._questions(None)
  assert asked == [("/api/model", None), ("/api/sample", questions["/api/sample"])]
  assert questions["/api/edit"] == {"image": "a", "strengths": {"darker": 0.5, "3 to 8": 0.5}, "label": 0}
  assert questions["/api/interpolate"] == {"first": "a", "second": "b", "label": 0}
  assert all(body["label"] == 0 for path, body in questions.items() if body)


@benchmark
def test_costs_of_callbacks(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["callbacks.py", "--num-blocks=1", "--steps=1", "--epochs=3"])
  callbacks.main()
  rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
  assert [row[0].strip(" `") for row in rows] == ["SampleGrid", "LatentInterpolation", "BitsPerDimCurve"]
  assert all(float(seconds) > 0. for row in rows for seconds in row[1:])


@benchmark
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
def test_paper_sizes(section, name, options, num_parameters, monkeypatch, capsys):
  monkeypatch.syspath_prepend(FOLDER)  # For the process that it starts.
  overrides = [f"--override={option}" for option in options]
  monkeypatch.setattr(sys, "argv", ["paper_sizes.py", "--only", section, "--preset=cifar10", *overrides])
  paper_sizes.main()
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
  monkeypatch.setattr(sys, "argv", ["paper_sizes.py", "--only=glow", "--preset=cifar10", "--preset=imagenet32"])
  paper_sizes.main()
  lines = capsys.readouterr().out.splitlines()
  assert lines[-4:] == ["| cifar10 | its process was ended: too little memory? | | | |",
                        "| imagenet32 | 1,000 | 2 | 1.0 | 3.0 |", "", "Unchanged in imagenet32: w"]


@benchmark
@needs_fashion_mnist
def test_input(monkeypatch, capsys):
  pytest.importorskip("tensorflow_datasets", reason="an extra, `data`")
  monkeypatch.setattr(sys, "argv", ["input.py", "--tiny", "--images=10"])
  input_script.main()
  output = capsys.readouterr().out
  rows = [line.split("|")[1:-1] for line in output.splitlines() if line.startswith("| ")]
  names = [row[0].strip() for row in rows if "images/s" not in "".join(row[1:])]
  assert names.count("`load_images`") == 7 and names.count("bare `tf.data`") == 7
  assert {"bare `tf.data` with `cache()`", "2", "4"} <= set(names) and "tiny: 1 x 2" in output
  has_torch = importlib.util.find_spec("torchvision") is not None
  assert ("PyTorch's `ImageFolder`" in names) == has_torch == ("torchvision is not installed" not in output)


@pytest.mark.slow
def test_epochs_of_input_take_turns(monkeypatch, capsys):
  """Ratios are those within a round, of second epochs."""
  times = {"ours": 1., "other": 4.}
  asked = []

  def rate(name):
    asked.append(name)
    return 1e6 / times[name] / 2.**((len(asked) - 1) // 5)  # The machine gets slower round by round.

  monkeypatch.setattr(input_script, "_rate", rate)
  contestants = {"ours": lambda: "ours", "other": lambda: "other", "process": lambda: lambda: [1., rate("other")]}
  input_script._compare("files", argparse.Namespace(rounds=2, tiny=False), 8, contestants)
  assert asked == 2 * ["ours", "ours", "other", "other", "other"]
  rows = capsys.readouterr().out.splitlines()
  assert rows[0].startswith("| files, 8x8 |") and rows[2].endswith("| 1.00 (1.00 to 1.00) |")
  assert rows[3].startswith("| other | 187,500 (125,000 to 250,000) |") and "| 0.25 (0.25 to 0.25) |" in rows[3]
  assert rows[4].startswith("| process | 1 (1 to 1) |")


def test_input_of_the_page_is_in_round_numbers(monkeypatch):
  rates = {input_script._OURS: 2345., input_script._BARE: 96_543., input_script._CACHED: 193_456.}
  monkeypatch.setattr(input_script, "_rate", lambda made: rates[made])
  contestants = {name: lambda name=name: name for name in rates}
  contestants[input_script._TORCHS] = lambda: lambda: [12., 96.]
  row = input_script._compare("files", argparse.Namespace(rounds=1, tiny=False), None, contestants)
  assert row == ["files, as they are", "2,300", "2,300", "97,000 and 97,000; with `cache()` 193,000", "12 and 96"]
  assert len(row) == len(input_script._PAGE_COLUMNS)


def test_callbacks_are_timed_call_by_call():
  seconds = iter([0., 1., 10., 13., 20., 25.])
  callback = types.SimpleNamespace(on_epoch_begin=lambda epoch: None, on_epoch_end=lambda epoch, logs=None: None)
  times = callbacks._Times(callback)
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(callbacks.time, "process_time", lambda: next(seconds))
    callback.on_epoch_begin(0)
    callback.on_epoch_end(0, logs={})
    callback.on_epoch_end(1, logs={})
  assert times.before == [1.] and times.after == [3., 5.]


@pytest.mark.parametrize("script", [
    run, health, serving, ablation, page, replicas,
    *(pytest.param(script, marks=[pytest.mark.slow, pytest.mark.benchmark])
      for script in (class_samples, callbacks, input_script))])
def test_every_measurement_is_described(script):
  done = subprocess.run([sys.executable, script.__file__, "--help"], capture_output=True, text=True, check=True)
  assert done.stdout.count(script.__doc__.strip()) == 1
  assert all(name in done.stdout for name in getattr(script, "_SECTIONS", ()))


@benchmark
@pytest.mark.parametrize("gradient", ["memory_efficient", "neumann", "plain"])
def test_gradients_of_normflows(gradient):
  pytest.importorskip("normflows", reason="an extra, `benchmarks`")
  found = run.measure("normflows.residual", "speed", f"--gradient={gradient}", *TINY)
  assert found.keys() == {"step", "log_prob", "sample"}


def test_tables_of_residual_flows(monkeypatch, capsys):
  asked = []

  def measure(system, measurement, *options):
    asked.append((system, measurement, *options))
    slower = {"tfp_glow.residual": 1., "normflows.residual": 2.}[system]
    time = slower * 10. * 2.**((len(asked) - 1) // 4)  # The machine gets slower round by round.
    return {"speed": {"step": time, "log_prob": 2. * time}, "working_memory": {"steps": 1., "all": 300. * slower}}[
        measurement]

  monkeypatch.setattr(run, "measure", measure)
  monkeypatch.setattr(run, "peers", lambda: ["normflows"])
  residual._speed(argparse.Namespace(rounds=3, save=False))
  assert len(asked) == 12 and all(options[2:5] == (*residual._OPTIONS, "--num_steps=3") for options in asked)
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  assert rows[0] == "| `tfp_glow` | 1.00 (1.00 to 1.00), 20 ms | 1.00 (1.00 to 1.00), 40 ms |"
  assert len(rows) == 4 and all("| 2.00 (2.00 to 2.00), 40 ms |" in row for row in rows[1:])
  del asked[:]
  residual._blocks(argparse.Namespace(rounds=1, save=False))
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  assert [row.count("300 MiB") for row in rows] == [3, 0, 0, 0] and all(row.count("600 MiB") == 3 for row in rows[1:])

"""`run.py`, `measure.py`, `health.py`, `replicas.py` and `residual.py` run, at sizes at which they say nothing."""

import math
import runpy
import subprocess
import sys

import benchmark_scripts
import numpy as np
import pytest

run = benchmark_scripts.load("run")
health = benchmark_scripts.load("health")
replicas = benchmark_scripts.load("replicas")
residual = benchmark_scripts.load("residual")
measure = benchmark_scripts.load("measure")
SPEED = {"step": 1000., "log_prob": 1000., "sample": 1000.}  # Milliseconds, by the clock of the test.


@benchmark_scripts.benchmark
@pytest.mark.usefixtures("benchmark_clock")
@pytest.mark.parametrize("system, measurement, expected", [
    ("tfp_glow", "speed", SPEED), ("convolutions", "speed", SPEED), ("FlowModel", "speed", SPEED),
    ("tfp_glow.residual", "speed", SPEED), ("tfb.Glow", "start", {"first_step": 1., "later_step": 1.}),
    ("tfp_glow", "fit", {"bare": 100., "fit": 100.})])
def test_measurements(system, measurement, expected):
  assert benchmark_scripts.measure(system, measurement, *benchmark_scripts.TINY) == expected


@benchmark_scripts.benchmark
def test_measurements_of_memory():
  """Processes of their own have a peak of their own, not that of this process, which holds one GiB."""
  held = np.ones([2**30], np.uint8)
  found = run.measure("tfp_glow", "memory", *benchmark_scripts.TINY)
  assert found.keys() == {"peak", "parameters"}
  assert 0. < found["parameters"] < found["peak"] < measure.peak() and held.all()
  found = run.measure("tfp_glow.residual", "working_memory", *benchmark_scripts.TINY)
  assert found.keys() == {"steps", "all"} and 0. < found["steps"] < found["all"]


@benchmark_scripts.benchmark
def test_measurements_of_normflows():
  pytest.importorskip("normflows", reason="an extra, `benchmarks`")
  found = run.measure("normflows", "speed", *benchmark_scripts.TINY)
  assert found.keys() == {"step", "log_prob", "sample"}


@benchmark_scripts.benchmark
@pytest.mark.parametrize("system", ["FlowModel", "tfb.Glow", "normflows"])
def test_stress(system):
  if system == "normflows":
    pytest.importorskip("normflows", reason="an extra, `benchmarks`")
  measure_stress = run.measure if system == "normflows" else benchmark_scripts.measure
  found = measure_stress(system, "health", *benchmark_scripts.TINY[:-2], "--calls=2", "--kinds", "constant", "extreme",
                         "--bits", "1", "--rates", "1e-3", "1e25", "--seeds=1")
  assert [(f["kind"], f["learning_rate"], f["sampled"]) for f in found] == [
      (kind, rate, rate == 1e-3) for kind in ("constant", "extreme") for rate in (1e-3, 1e25)]


@benchmark_scripts.benchmark
@benchmark_scripts.needs_fashion_mnist
def test_invertibility():
  pytest.importorskip("tensorflow_datasets", reason="an extra, `data`")
  found = benchmark_scripts.measure("tfp_glow", "invertibility", *benchmark_scripts.TINY)
  assert len(found["images"]) == 5 and all(f["error"] < 1e-3 and f["changed"] == 0 for f in found["images"].values())


def test_shares_are_of_all_trainings(monkeypatch, capsys, saved_tables):
  measure = lambda system, *options: [
      {"learning_rate": rate, "trained": "--batch_size=64" in options or system != "tfb.Glow",
       "sampled": system == "FlowModel" or rate < 1e-2}
      for rate in health.RATES]
  monkeypatch.setattr(run, "measure", measure)
  monkeypatch.setattr(run, "peers", lambda: ["tfb.Glow"])
  benchmark_scripts.call(health, "--only=stress", "--seeds=1", "--steps=1", "--save")
  ours, _, peer = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:5]
  assert ours.split("|")[2:4] == [" 8 of 8 ", " 8 of 8 "]
  assert peer.split("|")[2:] == [" 4 of 8 ", " 4 of 8 ", " 2 of 2 ", " 2 of 2 ", " 0 of 2 ", " 0 of 2 ", ""]
  assert [row[1:] for row in saved_tables("stress")["rows"]] == [
      ["4 of 4"] * 4, ["4 of 4", "2 of 4"] * 2, ["0 of 4", "2 of 4", "4 of 4", "2 of 4"]]


def test_a_failed_measurement_ends_the_run():
  with pytest.raises(SystemExit, match="failed:(.|\n)*invalid choice: 'nonsense'"):
    run.measure("tfp_glow", "nonsense")


def test_tables_hold_ratios_within_a_round(monkeypatch, capsys, saved_tables):
  shares = {"convolutions": 1., "tfp_glow": 1.5, "tfb.Glow": 4.}
  calls = []

  def measure(system, *_):
    calls.append(system)
    milliseconds = shares[system] * 2.**((len(calls) - 1) // 5)  # The machine gets slower round by round.
    return {"step": milliseconds, "log_prob": milliseconds, "sample": milliseconds}

  monkeypatch.setattr(run, "measure", measure)
  monkeypatch.setattr(run, "peers", lambda: ["tfb.Glow"])
  benchmark_scripts.call(run, "--only=speed", "--rounds=3", "--save")
  assert calls == 3 * ["convolutions", "tfp_glow", "tfp_glow", "tfp_glow", "tfb.Glow"]
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  for row, system in zip(rows, calls):
    assert row.count(f"{shares[system]:.2f} ({shares[system]:.2f} to {shares[system]:.2f})") == 3, row
  assert saved_tables("speed")["rows"][-1] == ["`tfb.Glow`", *3 * ["4.00 (4.00 to 4.00)"]]


@benchmark_scripts.benchmark
def test_first_steps_of_replicas():
  found = run.measure("tfp_glow", "replicas", "--replicas=2", *benchmark_scripts.TINY)
  assert found.keys() == {"seconds", "processor", "peak"} and found["peak"] > 100.


def test_operations_are_those_of_the_paper():
  """The number in docs/gpu.md: 1.54e12 for 64 images, without the pass that rebuilds activations."""
  preset = runpy.run_path(str(benchmark_scripts.FOLDER.parent / "examples" / "presets.py"))["PRESETS"]["cifar10"]
  assert preset.gradient == "reversible"
  assert 64 * replicas.operations(preset) * 3 / 4 == pytest.approx(1.54e12, rel=0.01)


@benchmark_scripts.benchmark
def test_operations_do_not_depend_on_the_number_of_levels():
  one, two = (run.measure("tfp_glow", "operations", *benchmark_scripts.TINY, f"--num_levels={levels}")
              for levels in (1, 2))
  for name in ("step, autodiff", "step, reversible", "log_prob", "sample"):
    assert 10 < one[name] == two[name] < 100
  assert one["FlowModel, beside a loop with SGD"] < two["FlowModel, beside a loop with SGD"]


def test_exchange_by_rings():
  assert replicas.Cluster(1, 8, 100.).seconds(400) == pytest.approx(7.)
  assert replicas.Cluster(4, 8, 100., 50.).seconds(400) == pytest.approx(7. + 12.)
  eight = replicas.Cluster(1, 8, 100.)
  assert replicas.speed_up(eight, 0, 1., 16) == 8.
  assert replicas.speed_up(eight, 400, 7., 8) == pytest.approx(4.)  # Exchange takes as long as computing.


def test_peers_that_diverge_do_not_win(monkeypatch, capsys):
  bits = {"5e-04": 4., "1e-03": 3., "2e-03": math.nan}
  measure = lambda system, measurement, rate, seconds, seed, *_: {
      "bits_per_dim": bits[f"{float(rate.split('=')[1]):.0e}"] + 0.1 * int(seed.split("=")[1]), "steps": 7}
  monkeypatch.setattr(run, "measure", measure)
  benchmark_scripts.call(run, "--only=quality", "--seconds=1")
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  assert rows[0].split("|")[2:5] == [" 3.10 (3.00 to 3.20) ", " 7 ", " 0.001 "]


@benchmark_scripts.benchmark
@pytest.mark.parametrize("gradient", ["memory_efficient", "neumann", "plain"])
def test_gradients_of_normflows(gradient):
  pytest.importorskip("normflows", reason="an extra, `benchmarks`")
  found = run.measure("normflows.residual", "speed", f"--gradient={gradient}", *benchmark_scripts.TINY)
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
  benchmark_scripts.call(residual, "--only=speed", "--rounds=3")
  assert len(asked) == 12 and all(options[2:5] == (*residual.OPTIONS, "--num_steps=3") for options in asked)
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  assert rows[0] == "| `tfp_glow` | 1.00 (1.00 to 1.00), 20 ms | 1.00 (1.00 to 1.00), 40 ms |"
  assert len(rows) == 4 and all("| 2.00 (2.00 to 2.00), 40 ms |" in row for row in rows[1:])
  del asked[:]
  benchmark_scripts.call(residual, "--only=blocks", "--rounds=1")
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  assert [row.count("300 MiB") for row in rows] == [3, 0, 0, 0] and all(row.count("600 MiB") == 3 for row in rows[1:])


@pytest.mark.parametrize("script", [
    "run", "health", "serving", "ablation", "page", "replicas",
    *(pytest.param(script, marks=[pytest.mark.slow, pytest.mark.benchmark])
      for script in ("class_samples", "callbacks", "input"))])
def test_every_measurement_is_described(script):
  script = benchmark_scripts.load(script)
  done = subprocess.run([sys.executable, script.__file__, "--help"], capture_output=True, text=True, check=True)
  assert done.stdout.count(script.__doc__.strip()) == 1
  assert all(name in done.stdout for name in getattr(script, "SECTIONS", ()))

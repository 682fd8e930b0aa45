"""The benchmarks run, at sizes at which they say nothing."""

import argparse
import importlib.util
import math
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"
TINY = ("--num_levels=1", "--num_steps=1", "--num_hidden=4", "--batch_size=2", "--calls=1", "--seconds=0.1")


def _load(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


run = _load("run")
health = _load("health")
serving = _load("serving")
residual = _load("residual")


@pytest.mark.slow
@pytest.mark.parametrize("system, measurement, keys", [
    ("tfp_glow", "speed", {"step", "log_prob", "sample"}), ("convolutions", "speed", {"step", "log_prob", "sample"}),
    ("tfb.Glow", "start", {"first_step", "later_step"}), ("tfp_glow", "memory", {"peak", "parameters"}),
    ("tfp_glow", "fit", {"bare", "fit"}), ("FlowModel", "speed", {"step", "log_prob", "sample"}),
    ("normflows", "speed", {"step", "log_prob", "sample"}),
    ("tfp_glow.residual", "speed", {"step", "log_prob", "sample"}),
    ("tfp_glow.residual", "working_memory", {"steps", "all"}),
    ("normflows.residual", "speed", {"step", "log_prob", "sample"})])
def test_measurements(system, measurement, keys):
  if system.startswith("normflows"):
    pytest.importorskip("normflows", reason="an extra, `benchmarks`")
  found = run._measure(system, measurement, *TINY)
  assert found.keys() == keys
  assert all(math.isfinite(value) and value > 0. for value in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("system", ["FlowModel", "tfb.Glow", "normflows"])
def test_stress(system):
  if system == "normflows":
    pytest.importorskip("normflows", reason="an extra, `benchmarks`")
  found = run._measure(system, "health", *TINY[:-2], "--calls=2", "--kinds", "constant", "extreme", "--bits", "1",
                       "--rates", "1e-3", "1e25", "--seeds=1")
  assert [(f["kind"], f["learning_rate"], f["sampled"]) for f in found] == [
      (kind, rate, rate == 1e-3) for kind in ("constant", "extreme") for rate in (1e-3, 1e25)]


@pytest.mark.slow
def test_invertibility():
  pytest.importorskip("tensorflow_datasets", reason="an extra, `data`")
  if not pathlib.Path("/usr/share/datasets/fashion-mnist").exists():
    pytest.skip("needs Debian's package dataset-fashion-mnist")
  found = run._measure("tfp_glow", "invertibility", *TINY)
  assert len(found["images"]) == 5 and all(f["error"] < 1e-3 and f["changed"] == 0 for f in found["images"].values())


def test_shares_are_of_all_trainings(monkeypatch, capsys):
  measure = lambda system, *_: [
      {"learning_rate": rate, "trained": True, "sampled": system == "FlowModel" or rate < 1e-2}
      for rate in health._RATES]
  monkeypatch.setattr(run, "_measure", measure)
  monkeypatch.setattr(run, "_peers", lambda: ["tfb.Glow"])
  health._stress(argparse.Namespace(seeds=1, steps=1))
  ours, _, peer = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  assert ours.split("|")[2:4] == [" 8 of 8 ", " 8 of 8 "]
  assert peer.split("|")[2:] == [" 8 of 8 ", " 4 of 8 ", " 2 of 2 ", " 2 of 2 ", " 0 of 2 ", " 0 of 2 ", ""]


def test_a_failed_measurement_ends_the_run():
  with pytest.raises(SystemExit, match="failed:(.|\n)*invalid choice: 'nonsense'"):
    run._measure("tfp_glow", "nonsense")


def test_tables_hold_ratios_within_a_round(monkeypatch, capsys):
  shares = {"convolutions": 1., "tfp_glow": 1.5, "tfb.Glow": 4.}
  calls = []

  def measure(system, *_):
    calls.append(system)
    milliseconds = shares[system] * 2.**((len(calls) - 1) // 5)  # The machine gets slower round by round.
    return {"step": milliseconds, "log_prob": milliseconds, "sample": milliseconds}

  monkeypatch.setattr(run, "_measure", measure)
  monkeypatch.setattr(run, "_peers", lambda: ["tfb.Glow"])
  run._speed(argparse.Namespace(rounds=3))
  assert calls == 3 * ["convolutions", "tfp_glow", "tfp_glow", "tfp_glow", "tfb.Glow"]
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  for row, system in zip(rows, calls):
    assert row.count(f"{shares[system]:.2f} ({shares[system]:.2f} to {shares[system]:.2f})") == 3, row


def test_peers_that_diverge_do_not_win(monkeypatch, capsys):
  bits = {"5e-04": 4., "1e-03": 3., "2e-03": math.nan}
  measure = lambda system, measurement, rate, *_: {
      "bits_per_dim": bits[f"{float(rate.split('=')[1]):.0e}"], "steps": 7}
  monkeypatch.setattr(run, "_measure", measure)
  run._quality(argparse.Namespace(seconds=1.))
  assert capsys.readouterr().out.splitlines()[2].split("|")[2:5] == [" 3.000 ", " 7 ", " 0.001 "]


def test_tables_of_serving_hold_ratios_within_a_round(monkeypatch, capsys):
  asked = []

  def measure(system, measurement, *options):
    asked.append((system, measurement, *options[1:]))
    # The machine gets slower round by round: the first of `asked` is the export.
    time = 2.**(len(asked) // 2) * (1.5 if system == "SavedModel" else 1.)
    return {"export": {"FlowModel": 1., "SavedModel": 2.}, "load": {"load": time}}.get(measurement, {"log_prob": time})

  monkeypatch.setattr(run, "_measure", measure)
  monkeypatch.setattr(sys, "argv", ["serving.py", "--rounds=2", "--num_hidden=8"])
  serving.main()
  rows = [line for line in capsys.readouterr().out.splitlines() if "`log_prob`" in line]
  assert len(rows) == 3 and all(row.endswith("| 1.50 (1.50 to 1.50) |") for row in rows)
  assert all("--num_hidden=8" in options for _, _, *options in asked)
  assert [system for system, *_ in asked[1:5]] == ["FlowModel", "SavedModel", "SavedModel", "FlowModel"]


@pytest.mark.slow
def test_measurements_of_serving(tmp_path):
  """In this process, which has imported what they import."""
  _load("systems")
  measure = _load("measure")
  architecture = measure.systems.Architecture(
      num_levels=1, num_steps=1, num_hidden=4, batch_size=2, image_shape=(4, 4, 1))
  args = lambda system: argparse.Namespace(system=system, folder=tmp_path, calls=1)
  found = measure._export(args("tfp_glow"), architecture)
  assert found.keys() == {"FlowModel", "SavedModel"} and all(size > 0. for size in found.values())
  for system in found:
    latency = measure._latency(args(system), architecture)
    assert latency.keys() == {"log_prob", "encode", "decode", "sample", "interpolate"}
    assert all(milliseconds > 0. for milliseconds in latency.values())
    assert measure._load(args(system), architecture)["load"] > 0.


@pytest.mark.parametrize("script", [run, health, serving])
def test_every_measurement_is_described(script):
  done = subprocess.run([sys.executable, script.__file__, "--help"], capture_output=True, text=True, check=True)
  assert all(name in done.stdout for name in script._SECTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["memory_efficient", "neumann", "plain"])
def test_gradients_of_normflows(gradient):
  pytest.importorskip("normflows", reason="an extra, `benchmarks`")
  assert run._measure("normflows.residual", "speed", f"--gradient={gradient}", *TINY)["step"] > 0.


def test_tables_of_residual_flows(monkeypatch, capsys):
  asked = []

  def measure(system, measurement, *options):
    asked.append((system, measurement, *options))
    slower = {"tfp_glow.residual": 1., "normflows.residual": 2.}[system]
    time = slower * 10. * 2.**((len(asked) - 1) // 4)  # The machine gets slower round by round.
    return {"speed": {"step": time, "log_prob": 2. * time}, "working_memory": {"steps": 1., "all": 300. * slower}}[
        measurement]

  monkeypatch.setattr(run, "_measure", measure)
  residual._speed(argparse.Namespace(rounds=3))
  assert len(asked) == 12 and all(options[2:5] == (*residual._OPTIONS, "--num_steps=3") for options in asked)
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  assert rows[0] == "| `tfp_glow` | 1.00 (1.00 to 1.00), 20 ms | 1.00 (1.00 to 1.00), 40 ms |"
  assert len(rows) == 4 and all("| 2.00 (2.00 to 2.00), 40 ms |" in row for row in rows[1:])
  del asked[:]
  residual._blocks(argparse.Namespace(rounds=1))
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
  assert [row.count("300 MiB") for row in rows] == [3, 0, 0, 0] and all(row.count("600 MiB") == 3 for row in rows[1:])

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


def _load_run():
  spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


run = _load_run()


@pytest.mark.slow
@pytest.mark.parametrize("system, measurement, keys", [
    ("tfp_glow", "speed", {"step", "log_prob", "sample"}), ("convolutions", "speed", {"step", "log_prob", "sample"}),
    ("tfb.Glow", "start", {"first_step", "later_step"}), ("tfp_glow", "memory", {"peak", "parameters"}),
    ("tfp_glow", "fit", {"bare", "fit"}), ("normflows", "speed", {"step", "log_prob", "sample"})])
def test_measurements(system, measurement, keys):
  if system == "normflows":
    pytest.importorskip("normflows", reason="an extra, `benchmarks`")
  found = run._measure(system, measurement, *TINY)
  assert found.keys() == keys
  assert all(math.isfinite(value) and value > 0. for value in found.values())


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


def test_every_measurement_is_described():
  done = subprocess.run([sys.executable, FOLDER / "run.py", "--help"], capture_output=True, text=True, check=True)
  assert all(name in done.stdout for name in run._SECTIONS)

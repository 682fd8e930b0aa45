"""`benchmarks/input.py` runs, at sizes at which it says nothing."""

import argparse
import importlib.util

import benchmark_scripts
import pytest

input_script = benchmark_scripts.load("input")


@benchmark_scripts.benchmark
@benchmark_scripts.needs_fashion_mnist
def test_input(capsys):
  pytest.importorskip("tensorflow_datasets", reason="an extra, `data`")
  benchmark_scripts.call(input_script, "--tiny", "--images=10")
  output = capsys.readouterr().out
  rows = [line.split("|")[1:-1] for line in output.splitlines() if line.startswith("| ")]
  names = [row[0].strip() for row in rows if "images/s" not in "".join(row[1:])]
  assert names.count("`load_images`") == 7 and names.count("bare `tf.data`") == 7
  assert {"bare `tf.data` with `cache()`", "2", "4"} <= set(names) and "tiny: 1 x 2" in output
  has_torch = importlib.util.find_spec("torchvision") is not None
  assert ("PyTorch's `ImageFolder`" in names) == has_torch == ("torchvision is not installed" not in output)


@pytest.mark.slow
def test_epochs_of_input_take_turns(monkeypatch, capsys):
  """Ratios are taken within a round, between second epochs."""
  times = {"ours": 1., "other": 4.}
  asked = []

  def rate(name):
    asked.append(name)
    return 1e6 / times[name] / 2.**((len(asked) - 1) // 5)  # The machine gets slower round by round.

  monkeypatch.setattr(input_script, "images_per_second", rate)
  contestants = {"ours": lambda: "ours", "other": lambda: "other", "process": lambda: lambda: [1., rate("other")]}
  input_script.compare("files", argparse.Namespace(rounds=2, tiny=False), 8, contestants)
  assert asked == 2 * ["ours", "ours", "other", "other", "other"]
  rows = capsys.readouterr().out.splitlines()
  assert rows[0].startswith("| files, 8x8 |") and rows[2].endswith("| 1.00 (1.00 to 1.00) |")
  assert rows[3].startswith("| other | 187,500 (125,000 to 250,000) |") and "| 0.25 (0.25 to 0.25) |" in rows[3]
  assert rows[4].startswith("| process | 1 (1 to 1) |")


def test_input_of_the_page_is_in_round_numbers(monkeypatch):
  rates = {input_script.OURS: 2345., input_script.BARE: 96_543., input_script.CACHED: 193_456.}
  monkeypatch.setattr(input_script, "images_per_second", lambda made: rates[made])
  contestants = {name: lambda name=name: name for name in rates}
  contestants[input_script.TORCHS] = lambda: lambda: [12., 96.]
  row = input_script.compare("files", argparse.Namespace(rounds=1, tiny=False), None, contestants)
  assert row == ["files, as they are", "2,300", "2,300", "97,000 and 97,000; with `cache()` 193,000", "12 and 96"]
  assert len(row) == len(input_script.PAGE_COLUMNS)

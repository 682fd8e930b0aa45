"""The scripts in `benchmarks`, as modules, and calls of them in this process at sizes that take no time."""

import contextlib
import importlib
import io
import json
import pathlib
import sys
from unittest import mock

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"
TINY = ("--num_levels=1", "--num_steps=1", "--num_hidden=4", "--batch_size=2", "--calls=1", "--seconds=0.1")
needs_fashion_mnist = pytest.mark.skipif(not pathlib.Path("/usr/share/datasets/fashion-mnist").exists(),
                                         reason="needs Debian's package dataset-fashion-mnist")


def benchmark(test):
  """Marks a test that is slow and tests no part of the package."""
  return pytest.mark.slow(pytest.mark.benchmark(test))


def load(name):
  """A script; it stays importable, as do those that it imports, for processes that it starts as well."""
  if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))
  return importlib.import_module(name)


def call(script, *options):
  """Runs a script with options."""
  with mock.patch.object(sys, "argv", [f"{script.__name__}.py", *map(str, options)]):
    script.main()


def measure(system, measurement, *options):
  """As `run.measure`, but in this process, which has imported what they import."""
  with contextlib.redirect_stdout(io.StringIO()) as output:
    call(load("measure"), system, measurement, *options)
  return json.loads(output.getvalue().splitlines()[-1])

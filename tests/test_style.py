"""The style of the whole repository, as `ruff.toml` has it."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def test_ruff_finds_nothing():
  if importlib.util.find_spec("ruff") is None:
    pytest.skip("needs ruff: pip install -e .[tests]")
  done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT, capture_output=True,
                        text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr

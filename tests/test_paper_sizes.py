"""The models of both papers make training steps at their full sizes: `pytest -m paper_size`, tens of minutes."""

import math
import pathlib
import sys

import architecture_sizes
import pytest
from presets import PRESETS

sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))  # Also for the processes that it starts.
import paper_sizes

pytestmark = [pytest.mark.paper_size, pytest.mark.slow]

_NUM_STEPS = 3  # The first step has rate 0; in the second, networks that end with zeros learn only their last layer.
_MOST_GIB = 24.
_NUM_CLASSES = {"cifar10_conditional": 10, "imagenet32_conditional": 1000}


def check(found, num_parameters):
  """Checks what `paper_sizes.measure` returns."""
  assert found["parameters"] == num_parameters
  assert len(found["losses"]) == _NUM_STEPS and all(map(math.isfinite, found["losses"]))
  assert not found["unchanged"]
  assert 4 * 4 * num_parameters / 2**30 < found["peak"] < _MOST_GIB  # Parameters, gradients, two averages.


@pytest.mark.parametrize("name", PRESETS)
def test_glow(name):
  found = paper_sizes.measure("train_glow", [f"--preset={name}"], _NUM_STEPS)
  preset = PRESETS[name]
  check(found, architecture_sizes.glow(preset.num_blocks, preset.num_steps, preset.coupling, _NUM_CLASSES.get(name)))


def test_residual_flow():
  found = paper_sizes.measure("train_residual_flow", paper_sizes.RESIDUAL_FLOW, _NUM_STEPS)
  check(found, architecture_sizes.residual_flow(3, 16, 512, 4, 128))

"""The tutorials: each runs from its first cell to its last, with as little training as possible."""

import importlib.util
import pathlib

import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "tutorials"
LITTLE = {
    "digits": {"num_epochs": 1},
    "editing": {"num_epochs": 1},
    "photos": {"num_epochs": 1, "num_photos": 100},
    "posterior": {"num_epochs": 1, "num_simulations": 2000},
    "residual_2d": {"num_epochs": 1},
}


def _script():
  spec = importlib.util.spec_from_file_location("execute_tutorials", FOLDER.parent / "execute_tutorials.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_each_tutorial_is_executed():
  assert {path.stem for path in FOLDER.glob("*.ipynb")} == LITTLE.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", LITTLE)
def test_tutorial_runs(name, monkeypatch):
  monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
  notebook = _script().execute(FOLDER / f"{name}.ipynb", **LITTLE[name])
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert all(cell.execution_count for cell in code)


@pytest.mark.parametrize("name", LITTLE)
def test_tutorial_is_shown_with_its_outputs(name):
  """All outputs, in order, because the site does not execute tutorials."""
  notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  (parameters,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", []))
  assert {line.split(" = ")[0] for line in parameters.source.splitlines()} == LITTLE[name].keys()
  outputs = [output for cell in code for output in cell.outputs]
  assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
  assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2

"""Executes the tutorials, notebooks in docs/tutorials, and writes their outputs into them.

  python docs/execute_tutorials.py            all of them
  python docs/execute_tutorials.py digits
"""

import pathlib
import sys
import tempfile

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent / "tutorials"
_TIMEOUT = 600  # seconds, of one cell on a busy machine


def main():
  for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
    print(name, flush=True)
    path = FOLDER / f"{name}.ipynb"
    nbformat.write(execute(path), path)


def execute(path, **parameters):
  """Runs all cells in a process of their own, in a folder of their own.

  Args:
    path: `pathlib.Path` of the notebook.
    **parameters: In place of what the cell with the tag "parameters" says.

  Returns:
    The notebook with its outputs, without what libraries write to standard error.

  Raises:
    nbclient.exceptions.CellExecutionError: if a cell raises an error.
  """
  notebook = nbformat.read(path, as_version=4)
  for cell in notebook.cells:
    if "parameters" in cell.metadata.get("tags", []) and parameters:
      cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
  with tempfile.TemporaryDirectory() as folder:
    nbclient.NotebookClient(notebook, timeout=_TIMEOUT, record_timing=False, kernel_name="python3",
                            resources={"metadata": {"path": folder}}).execute()
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
  return notebook


if __name__ == "__main__":
  main()

"""Tables of measured numbers, printed as Markdown and kept in `docs/results`, where `docs/tables.py` reads them.

A file has the name of its table. It holds the command that measured it, date, machine, versions, columns and rows.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "results"
_PACKAGES = ("tensorflow", "tensorflow-probability", "keras", "torch", "normflows", "scikit-learn")


def add_save(parser):
  """Adds the option `--save`, which `save` needs, to a parser."""
  parser.add_argument("--save", action="store_true",
                      help="keep the tables that a page shows in docs/results; then `python docs/tables.py` writes the "
                      "pages")


class Table:
  """A table whose rows are printed at once, so that a measurement that is ended keeps its rows so far.

  Args:
    *columns: Python `str`s, the header.
  """

  def __init__(self, *columns):
    self.columns, self.rows = columns, []
    print(markdown(columns, []), flush=True)

  def add(self, *cells):
    """Prints another row; cells are converted by `str`."""
    self.rows.append([str(cell) for cell in cells])
    print(_line(self.rows[-1]), flush=True)

  def save(self, args, name):
    """Calls the function `save`."""
    save(args, name, self.columns, self.rows)


def save(args, name, columns, rows):
  """Writes a table to its file, if the command line has `--save`.

  Args:
    args: Parsed arguments of a parser with `add_save`.
    name: Python `str`, the file's name without its ending, and the name in the page's mark.
    columns: Sequence of Python `str`s, the header.
    rows: Sequence of sequences of Python `str`s.

  Raises:
    ValueError: if columns and rows do not make a table.
  """
  if not args.save:
    return
  markdown(columns, rows)
  command = shlex.join(["python", f"benchmarks/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]])
  write(name, {"command": command, "date": datetime.date.today().isoformat(), "machine": _machine(),
               "versions": _versions(), "columns": columns, "rows": rows})


def write(name, content):
  """Writes a file, with a row of the table on each line, so that differences can be read."""
  to_json = lambda value: json.dumps(value, ensure_ascii=False)
  rows = ",\n".join(f"    {to_json(row)}" for row in content["rows"])
  fields = [f'  "{key}": {to_json(value)}' for key, value in content.items() if key != "rows"]
  FOLDER.mkdir(exist_ok=True)
  text = "{\n" + ",\n".join([*fields, f'  "rows": [\n{rows}\n  ]']) + "\n}\n"
  (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


def read(name):
  """The content of a file, a dict."""
  return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def markdown(columns, rows):
  """A table in Markdown.

  Args:
    columns: Sequence of Python `str`s, the header.
    rows: Sequence of sequences of as many Python `str`s.

  Returns:
    Python `str`, without a line break at its end.

  Raises:
    ValueError: if a row has another number of cells, or a cell holds a bar or a line break.
  """
  for cells in (columns, *rows):
    if len(cells) != len(columns) or any(set(cell) & set("|\n") for cell in cells):
      raise ValueError(f"`rows` must have {len(columns)} cells each, like `columns`, without bars and line breaks. "
                       f"Received: {cells}")
  return "\n".join([_line(columns), "|" + "---|" * len(columns), *map(_line, rows)])


def _line(cells):
  return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def _machine():
  cores = f"{len(os.sched_getaffinity(0))} CPU cores"
  if shutil.which("nvidia-smi") is None:
    return cores
  done = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True,
                        check=False)
  return ", ".join([*done.stdout.splitlines(), cores])


def _versions():
  installed = {distribution.name for distribution in importlib.metadata.distributions()}
  return {name: importlib.metadata.version(name) for name in _PACKAGES if name in installed}

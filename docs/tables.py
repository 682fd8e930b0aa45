"""Writes the marked tables and numbers of the README and of `docs` from the files of `docs/results`.

  python docs/tables.py            rewrites the pages
  python docs/tables.py --check    names the pages that differ, and exits with 1 if there are any

The mark of a table names its file. Whatever stands before the end is replaced, and blank lines are kept around it:

  <!-- results: speed -->
  <!-- end -->

Several names, with commas between, become one table: one below the other where their columns are the same, else side by
side where their first columns are. Tables of `COMPOSED` take cells of several files.

A number in a sentence has a mark on the same line, not at its beginning, where Markdown would end the paragraph. The
names are those of docs/values.py:

  After <!--=mnist_on_gpu_seconds-->334<!--/--> seconds

Scripts of `benchmarks` write the files with `--save` (`benchmarks/results.py`); those of examples are written by hand.
"""

import argparse
import pathlib
import re
import sys

sys.path += [str(pathlib.Path(__file__).parent.parent / "benchmarks"), str(pathlib.Path(__file__).parent)]
import results
import values

ROOT = pathlib.Path(__file__).parent.parent
_MARK = re.compile(r"<!-- results: (.+?) -->\n.*?<!-- end -->", re.S)
_START, _END = "<!-- results: ", "<!-- end -->"
_VALUE = re.compile(r"(?<=.)<!--=(\w+)-->[^<\n]*<!--/-->")
_VALUE_START, _VALUE_END = "<!--=", "<!--/-->"
_CALLS = ("training step", "log_prob", "sample")

# Columns and rows. A tuple in a row stands for the cell of a file in the row and the column of these names. Of a median
# with its range it is the median.
COMPOSED = {
    "summary": (("data", "here", "published"), (
        ("digits 8x8, 4 bits, 100 seconds", ("bits_per_dim", "digits, 8x8", "test bits per dim"), ""),
        ("Fashion-MNIST, padded to 32x32, 8 bits, 3 epochs",
         ("bits_per_dim", "Fashion-MNIST padded to 32x32", "test bits per dim"), ""),
        ("MNIST, 8 bits, an hour", ("bits_per_dim", "MNIST, 28x28", "test bits per dim"),
         "1.05 (a larger model, longer training)"),
        ("CIFAR-10 and the papers' other data sets", "not run", "3.35 (Glow), 3.28 (Residual Flows)"))),
    "summary_speed": (("", *_CALLS), tuple(
        (label, *(("speed", row, column) for column in _CALLS)) for label, row in (
            ("`tfp_glow`", "`tfp_glow`, autodiff"), ("`tfb.Glow`",) * 2, ("normflows (PyTorch)", "normflows")))),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--check", action="store_true", help="write nothing")
  is_check = parser.parse_args().check
  differing = differing_pages()
  for path, text in differing.items():
    print(path.relative_to(ROOT))
    if not is_check:
      path.write_text(text, encoding="utf-8")
  sys.exit(1 if is_check and differing else 0)


def pages():
  """Paths of all pages that may have marked tables."""
  return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def differing_pages():
  """From paths of the pages whose tables are not those of the files to what should be written there."""
  texts = {path: path.read_text(encoding="utf-8") for path in pages()}
  return {path: new for path, text in texts.items() if (new := with_tables(text, path.name)) != text}


def with_tables(text, page):
  """The text of a page with its tables and its numbers written anew.

  Args:
    text: Python `str`.
    page: Python `str`, the page's name, for messages.

  Raises:
    ValueError: if a mark has no end, or a number's is at the beginning of a line, or tables do not fit together.
    FileNotFoundError: if a mark names no file.
  """
  if not len(_MARK.findall(text)) == text.count(_START) == text.count(_END):
    raise ValueError(f"Each `{_START}... -->` must have its `{_END}`. Received: {page}")
  if not len(_VALUE.findall(text)) == text.count(_VALUE_START) == text.count(_VALUE_END):
    raise ValueError(f"Each `{_VALUE_START}NAME-->` must have its `{_VALUE_END}` on the same line, and not begin the "
                     f"line. Received: {page}")
  text = _VALUE.sub(lambda mark: f"{_VALUE_START}{mark[1]}-->{values.text_of(mark[1])}{_VALUE_END}", text)
  return _MARK.sub(lambda mark: f"<!-- results: {mark[1]} -->\n\n{results.markdown(*joined(mark[1]))}\n\n{_END}", text)


def used_files(text):
  """Names of the files that the tables and the numbers of a page are made of."""
  names = [name for mark in _MARK.findall(text) for name in mark.split(", ")]
  cells = [cell for name in names if name in COMPOSED for row in COMPOSED[name][1] for cell in row]
  return ({name for name in names if name not in COMPOSED} | {cell[0] for cell in cells if isinstance(cell, tuple)}
          | set().union(*map(values.files_of, _VALUE.findall(text))))


def joined(names):
  """Columns and rows of one table, or of several."""
  (columns, rows), *others = map(_table, names.split(", "))
  for more_columns, more_rows in others:
    if more_columns == columns:
      rows = [*rows, *more_rows]
    elif [row[0] for row in more_rows] == [row[0] for row in rows]:
      columns, rows = [*columns, *more_columns[1:]], [[*row, *more[1:]] for row, more in zip(rows, more_rows)]
    else:
      raise ValueError(f"Tables in one mark must have the same columns, or the same first column. Received: {names}")
  return columns, rows


def _table(name):
  if name not in COMPOSED:
    found = results.read(name)
    return found["columns"], found["rows"]
  columns, rows = COMPOSED[name]
  return columns, [[values.cell(*cell) if isinstance(cell, tuple) else cell for cell in row] for row in rows]


if __name__ == "__main__":
  main()

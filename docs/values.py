"""Numbers in sentences of the pages that come from files; `docs/tables.py` writes them into marks `<!--=NAME-->`."""

import configparser
import pathlib
import re
import shlex

import results

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SETUP = pathlib.Path(__file__).parent.parent / "setup.cfg"


def cell(name, row, column):
  """A cell of a file of `docs/results`. Of a median with its range it is the median.

  Args:
    name: Python `str`, the file's name without its ending.
    row: Python `str`, the first cell of the row.
    column: Python `str`.

  Raises:
    ValueError: if there is no such row or column.
    FileNotFoundError: if there is no such file.
  """
  found = results.read(name)
  cells = {cells[0]: dict(zip(found["columns"], cells)) for cells in found["rows"]}
  try:
    return cells[row][column].split(" (")[0]
  except KeyError:
    raise ValueError("`COMPOSED` and `VALUES` must name a row and a column of "
                     f"docs/results/{name}.json. Received: {row}, {column}") from None


def text_of(name):
  """What the mark of this name holds.

  Raises:
    ValueError: if there is no such name.
  """
  if name not in VALUES:
    raise ValueError(f"A mark must have a name of `VALUES` in docs/values.py. Received: {name}")
  make, *sources = VALUES[name]
  return make(*(cell(*source) if len(source) == 3 else source[0] for source in sources))


def files_of(name):
  """The names of the files that a value is made of."""
  _, *sources = VALUES[name]
  return {source[0] for source in sources if len(source) == 3 or source[0] in _OF_COMMANDS}


def _number(text):
  return float(text.replace(",", ""))


def _ratio(a, b):
  return f"{_number(a) / _number(b):.1f}"


def _ratio_in_words(a, b):
  return _WORDS[round(_number(a) / _number(b))]


def _minutes_in_words(seconds):
  return _WORDS[round(_number(seconds) / 60.)]


def _rounds_in_words(name):
  """Of the command that measured a file."""
  command = shlex.split(results.read(name)["command"])
  return _WORDS[int(command[command.index("--rounds") + 1])]


def _least_version(package):
  setup = configparser.ConfigParser()
  setup.read(_SETUP)
  if package == "python":
    return setup["options"]["python_requires"].removeprefix(">=")
  return re.search(rf"^{re.escape(package)}>=([\d.]+)", setup["options"]["install_requires"], re.M)[1]


_OF_COMMANDS = ("speed", "start")
_MNIST_ON_GPU = "gpu_mnist", "2 levels of 16 steps, 256 wide"
_QUALITY = ("quality", "`tfp_glow`"), ("quality", "normflows")

# From names to a function, and what it is given: cells (file, row, column), or a word.
VALUES = {
    "python": (_least_version, ("python",)),
    "tensorflow": (_least_version, ("tensorflow",)),
    "tfp": (_least_version, ("tensorflow-probability[tf]",)),
    "mnist_on_gpu": (str, (*_MNIST_ON_GPU, "test bits per dim")),
    "mnist_on_gpu_steps": (str, (*_MNIST_ON_GPU, "steps")),
    "mnist_on_gpu_seconds": (str, (*_MNIST_ON_GPU, "seconds of training")),
    "mnist_on_gpu_minutes": (_minutes_in_words, (*_MNIST_ON_GPU, "seconds of training")),
    "mnist_on_cpu": (str, ("bits_per_dim", "MNIST, 28x28", "test bits per dim")),
    "bound_1": (str, ("bounds", "1 draw", "bits per dim")),
    "bound_16": (str, ("bounds", "16 draws", "bits per dim")),
    "bound_weighted": (str, ("bounds", "16 draws, importance-weighted", "bits per dim")),
    "bound_error": (str, ("bounds", "1 draw", "standard error")),
    "speed_rounds": (_rounds_in_words, ("speed",)),
    "start_rounds": (_rounds_in_words, ("start",)),
    "steps_beside_normflows": (_ratio, *((*system, "steps") for system in _QUALITY)),
    "rate_beside_normflows": (_ratio_in_words, *((*system, "learning rate") for system in reversed(_QUALITY))),
}

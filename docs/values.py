"""Numbers in sentences of the pages that come from files; `docs/tables.py` writes them into marks `<!--=NAME-->`."""

import configparser
import functools
import pathlib
import re
import shlex

import results

_SETUP = pathlib.Path(__file__).parent.parent / "setup.cfg"


def cell(name, row, column):
  """A cell of a file of `docs/results`. Of a median with its range it is the median.

  Args:
    name: Python `str`, the file's name without its ending.
    row: Python `str`, the first cell of the row.
    column: Python `str`, its name, or `int`, its number, where several columns have the same name.

  Raises:
    ValueError: if there is no such row or column.
    FileNotFoundError: if there is no such file.
  """
  found = results.read(name)
  cells = {cells[0]: dict(zip(found["columns"], cells)) | dict(enumerate(cells)) for cells in found["rows"]}
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


def _numbers(text):
  """All numbers of a cell: [98.4, 2568.] of "98.4 %, 2,568 steps"."""
  return [float(found.replace(",", "")) for found in re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", text)]


def _two_digits(number):
  return f"{float(f'{number:.2g}'):,g}"


def _rounded(text):
  return f"{_numbers(text)[0]:.0f}"


def _ratio(a, b, place=0):
  """Of the numbers in one place of two cells."""
  return _two_digits(_numbers(a)[place] / _numbers(b)[place])


def _difference(a, b, place=0):
  return _two_digits(_numbers(a)[place] - _numbers(b)[place])


def _ratio_of_ratios(a, b, c, d):
  return _ratio(str(_numbers(a)[0] / _numbers(b)[0]), str(_numbers(c)[0] / _numbers(d)[0]))


def _images_per_second(milliseconds):
  """Of a training step on a GPU, which `benchmarks/gpu.py` measures with 64 images."""
  return _two_digits(64. / (_numbers(milliseconds)[0] / 1000.))


def _minutes(seconds):
  return f"{_numbers(seconds)[0] / 60.:.0f}"


def _rounds(name):
  """Of the command that measured a file."""
  command = shlex.split(results.read(name)["command"])
  return command[command.index("--rounds") + 1]


def _least_version(package):
  setup = configparser.ConfigParser()
  setup.read(_SETUP)
  if package == "python":
    return setup["options"]["python_requires"].removeprefix(">=")
  return re.search(rf"^{re.escape(package)}>=([\d.]+)", setup["options"]["install_requires"], re.M)[1]


_OF_COMMANDS = ("speed", "start")
_MNIST_ON_GPU = "gpu_mnist", "2 levels of 16 steps, 256 wide"
_QUALITY = ("quality", "`tfp_glow`"), ("quality", "normflows")
_EIGHT_DEVICES = ("replicas_start", "8"), ("replicas_start", "1")
_DIGITS = ("hybrid_digits", "residual"), ("hybrid_digits", "couplings")
_MNIST = ("hybrid_mnist", "couplings"), ("hybrid_mnist", "residual")
_IMAGES = (("residual_images", "residual flow, 2 scales of 4 blocks, 2 fully connected"),
           ("residual_images", "Glow, 2 scales of 4 (digits) and 8 steps"))

# From names to a function, and what it is given: cells (file, row, column), or a word.
VALUES = {
    "python": (_least_version, ("python",)),
    "tensorflow": (_least_version, ("tensorflow",)),
    "tfp": (_least_version, ("tensorflow-probability[tf]",)),
    "mnist_on_gpu": (str, (*_MNIST_ON_GPU, "test bits per dim")),
    "mnist_on_gpu_steps": (str, (*_MNIST_ON_GPU, "steps")),
    "mnist_on_gpu_seconds": (str, (*_MNIST_ON_GPU, "seconds of training")),
    "mnist_on_gpu_minutes": (_minutes, (*_MNIST_ON_GPU, "seconds of training")),
    "mnist_on_cpu": (str, ("bits_per_dim", "MNIST, 28x28", "test bits per dim")),
    "bound_1": (str, ("bounds", "1 draw", "bits per dim")),
    "bound_16": (str, ("bounds", "16 draws", "bits per dim")),
    "bound_weighted": (str, ("bounds", "16 draws, importance-weighted", "bits per dim")),
    "bound_error": (str, ("bounds", "1 draw", "standard error")),
    "speed_rounds": (_rounds, ("speed",)),
    "start_rounds": (_rounds, ("start",)),
    "steps_beside_normflows": (_ratio, *((*system, "steps") for system in _QUALITY)),
    "rate_beside_normflows": (_ratio, *((*system, "learning rate") for system in reversed(_QUALITY))),
    "first_step_of_tfb": (_rounded, (
        "start", "`tfb.Glow`", "seconds from construction to the end of the first training step")),
    "fashion_mnist": (str, ("bits_per_dim", "Fashion-MNIST padded to 32x32", "test bits per dim")),
    "gpu_step": (_rounded, ("gpu_speed", "ours, autodiff", "small, step")),
    "gpu_images": (_images_per_second, ("gpu_speed", "ours, autodiff", "small, step")),
    "gpu_images_paper": (_images_per_second, ("gpu_speed", "ours, autodiff", "paper's, step")),
    "replicas_processor_before": (_ratio, *((*row, 3) for row in _EIGHT_DEVICES)),
    "replicas_processor": (_ratio, *((*row, 4) for row in _EIGHT_DEVICES)),
    "replicas_memory_before": (_ratio, *((*row, 5) for row in _EIGHT_DEVICES)),
    "replicas_memory": (_ratio, *((*row, 6) for row in _EIGHT_DEVICES)),
    "hybrid_accuracy": (_difference, *((*row, "weight 1") for row in _DIGITS)),
    "hybrid_bits": (functools.partial(_difference, place=1), *((*row, "weight 1") for row in reversed(_DIGITS))),
    "hybrid_steps": (functools.partial(_ratio, place=2), *((*row, "weight 1") for row in reversed(_DIGITS))),
    "hybrid_steps_by_dim": (functools.partial(_ratio, place=2), *((*row, "weight 1/D") for row in reversed(_DIGITS))),
    "hybrid_steps_mnist": (functools.partial(_ratio, place=2), *((*row, "weight 1/D") for row in _MNIST)),
    "residual_step": (_ratio_of_ratios, *(
        (*row, column) for row in _IMAGES for column in ("seconds of training", "steps"))),
    "residual_log_prob": (str, ("residual_speed", "normflows, plain", "log_prob")),
    "breast_cancer": (_difference, ("vectors", "breast cancer, 569 x 30", "`VectorFlowBijector`"),
                      ("vectors", "breast cancer, 569 x 30", "mixture of Gaussians")),
}

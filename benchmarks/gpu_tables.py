"""The tables of docs/gpu.md and docs/health.md, of what `gpu.py` has found: for its option `--save`."""

import gpu_common as common

_MISSING = "not measured"


def tables(sections):
  """From names of files in `docs/results` to columns and rows.

  Args:
    sections: Dict from names of sections to dicts with "rows", from names of rows to dicts of their values.

  Returns:
    A dict. Tables without a single number are left out; a single missing number is "not measured".
  """
  found = {}
  for name, (section, make) in _TABLES.items():
    rows = _Rows(sections.get(section, {"rows": {}})["rows"])
    columns, lines = make(rows)
    if rows.are_used:
      found[name] = columns, lines
  return found


class _Rows:
  """Values of a section, as text."""

  def __init__(self, rows):
    self._rows = rows
    self.are_used = False

  def cell(self, row, form, *columns):
    """Values of a row in a format, such as `"{:.0f} ms"`."""
    values = [self._rows.get(row, {}).get(column) for column in columns]
    if any(isinstance(value, (str, type(None))) for value in values):  # JSON has NaN as a string.
      return _MISSING
    self.are_used = True
    return form.format(*values).replace("e-0", "e-")


def _products(rows):
  products = [f"product {size}" for size in ("16384 x 12 x 12", "256 x 96 x 96", "4096 x 512 x 512")]
  convolution = f"convolution 3x3, {common.PAPER.num_hidden} to 6"
  lines = []
  for label, function, mode, state in (
      ("TensorFlow's", "plain", "tf.function", "on"),
      ("TensorFlow's, TensorFloat-32 off", "plain", "tf.function", "off"),
      ("operands split in two, three products", "split", "tf.function", "on"),
      ("float64", "float64", "tf.function", "on"),
      ("multiplied and summed, no product", "multiply and sum", "tf.function", "on"),
      ("XLA's precision `HIGHEST`", "XLA's HIGHEST", "XLA", "on")):
    errors = [rows.cell(f"{case}: {function}, {mode}", "{:.0e}", f"error, TF32 {state}")
              for case in (*products, convolution)]
    timed = f"{products[0]}: {function}" + ", TF32 off" * (state == "off")
    times = [rows.cell(timed, "{:.3f}", f"ms, {mode}") for mode in ("tf.function", "XLA")]
    # What does not apply: few functions are for long sums and for convolutions, and one is XLA's alone.
    lines.append([label, *("" if text == _MISSING else text for text in (*errors, *times))])
  columns = ["", *(case.removeprefix("product ") for case in products), convolution.replace(
      "convolution 3x3", "3x3 convolution"), "ms", "ms, XLA"]
  return columns, lines


def _speed(rows):
  cell = lambda architecture, kind: rows.cell(f"{architecture}: {kind}, TF32, no XLA", "{:.0f} ms ({:.0f} to {:.0f})",
                                              "step, ms", "least, ms", "most, ms")
  return ["", "small, step", "paper's, step"], [
      [label, cell(common.SMALL, kind), cell(common.PAPER, kind)] for label, kind in (
          ('the bare convolutions, beside "now"', "bare convolutions"), ("ours, autodiff", "ours, autodiff"),
          ("ours, reversible", "ours, reversible"))]


def _memory(rows):
  depths = (4, 16, 32, 64)

  def line(label, gradient, column):
    of_depth = lambda depth: (f"{gradient}, {common.PAPER.num_levels} x {depth}, {common.PAPER.num_hidden} wide, "
                              f"batch of {common.PAPER.batch_size}")
    return [label, *(rows.cell(of_depth(depth), "{:,.0f}", column) for depth in depths)]

  return ["steps a level", *map(str, depths)], [
      line("autodiff", "autodiff", "peak, MiB"), line("reversible", "reversible", "peak, MiB"),
      line("parameters, gradients, moments", "autodiff", "parameters, gradients, Adam, MiB")]


def _exactness(rows):
  return _round_trips(rows, {
      "the model's methods, TensorFloat-32 off": "float32, model",
      "the model's methods": "TF32, model",
      "the model's methods, bfloat16 networks": "bfloat16, model",
      "a `tf.function` of the bijector, float32 networks": "TF32, tf.function",
      "a `tf.function` of the bijector, bfloat16 networks": "bfloat16, tf.function",
      "the same, compiled by XLA": "bfloat16, XLA"})


def _exactness_training(rows):
  return _round_trips(rows, {
      "the bijector with `training=True`": "TF32, as in training",
      "the bijector with `training=True`, bfloat16 networks": "bfloat16, as in training"})


def _round_trips(rows, names):
  return ["", "changed values", "by up to, grey levels", "log-probabilities moved by up to"], [
      [label, rows.cell(row, "{:,}", "changed"), rows.cell(row, "{}", "by up to"),
       rows.cell(row, "{:.2g} nats", "log-prob moved from float64's by up to, nats")] for label, row in names.items()]


def _gradients(rows):
  return ["precision", "reversible and autodiff, same precision", "autodiff, this precision and float32"], [
      [label, rows.cell(f"gradients, {precision}", "{:.1e}", "reversible from autodiff"),
       "" if precision == "float32" else rows.cell(f"gradients, {precision}", "{:.1e}", "autodiff from float32's")]
      for label, precision in (("float32", "float32"), ("TensorFloat-32", "TF32"), ("bfloat16 networks", "bfloat16"))]


# From names of files to the section that has the numbers, and a function that makes columns and rows of it.
_TABLES = {
    "gpu_products": ("products", _products), "gpu_speed": ("speed", _speed), "gpu_memory": ("memory", _memory),
    "gpu_exactness": ("exactness", _exactness), "gpu_exactness_training": ("exactness", _exactness_training),
    "gpu_gradients": ("exactness", _gradients)}

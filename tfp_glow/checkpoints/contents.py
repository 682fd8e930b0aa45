"""Compares the contents of a checkpoint with a model, and assigns them to it."""

import numpy as np

_MAX_LISTED = 50


def assign(rows, values):
  """Puts weights into variables.

  Args:
    rows: List of `(variable, names, convert)`: the `keras.Variable` holds `convert` of the array `name`, for the steps
      of a `Scan` stacked over all `names`.
    values: Dict from names to arrays.

  Raises:
    ValueError: if a value has another shape than the variable, is not finite, or `convert` raises this error.
  """
  for variable, names, convert in rows:
    parts = [_converted(name, values[name], convert) for name in names]
    value = np.stack(parts) if len(variable.shape) > parts[0].ndim else parts[0]
    if value.shape != tuple(variable.shape):
      raise ValueError(f"`values` must give {names[0]} the shape that `{variable.name}` {tuple(variable.shape)} needs. "
                       f"Received: {np.shape(values[names[0]])}")
    variable.assign(value)


def _converted(name, value, convert):
  value = np.asarray(value)
  if not np.all(np.isfinite(value)):
    raise ValueError(f"`values` must be finite. Received: NaN or infinite entries in {name}")
  try:
    return convert(value)
  except ValueError as error:
    raise ValueError(f"`values` must give {name} another value: {error}") from error


def differences(expected, found, unexpected):
  """The faults of a checkpoint, in words; empty if there are none.

  Args:
    expected: Dict from the names of a model's variables to shapes.
    found: Dict from names to shapes.
    unexpected: List of the names in `found` that a model does not use.
  """
  problems = {
      "missing": [f"{name} {_text(shape)}" for name, shape in expected.items() if name not in found],
      "unexpected": [f"{name} {_text(found[name])}" for name in unexpected],
      "of another shape": [f"{name} {_text(found[name])} instead of {_text(shape)}"
                           for name, shape in expected.items() if found.get(name, shape) != shape]}
  return "; ".join(f"{label}: {listed(items)}" for label, items in problems.items() if items)


def listed(items, count=_MAX_LISTED):
  """The first few of some words."""
  more = f" and {len(items) - count} more" if len(items) > count else ""
  return (", ".join(items[:count]) or "nothing") + more


def _text(shape):
  return f"[{', '.join(map(str, shape))}]"

"""`FlowModel.summary`: levels and steps of the flow, shapes and numbers of parameters."""

from typing import NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

tfb = tfp.bijectors
tfd = tfp.distributions


class Row(NamedTuple):
  """A part of a model.

  Attributes:
    depth: Python `int`, 0 for the parts that are in no other.
    name: Python `str`.
    kind: Python `str`, its class.
    shape: `tf.TensorShape` of one event after its `inverse`, which gets the event from the part before it; `None` if
      unknown.
    num_parameters: Python `int`, numbers in all variables of it and its parts, except variables that an earlier part
      has, too.
    is_trainable: Python `bool`, whether one of these variables is trained.
  """
  depth: int
  name: str
  kind: str
  shape: tf.TensorShape | None
  num_parameters: int
  is_trainable: bool


def rows_of(distribution, others=(), with_weights=False):
  """The parts of a model, in the order from images to latents.

  The numbers of parameters of the rows of depth 0 add up to that of the model.

  Args:
    distribution: `tfd.Distribution` over one image.
    others: Keras layers and variables of the model, whether or not they belong to its distribution.
    with_weights: Python `bool`: whether each weight of a network has a row.

  Returns:
    List of `Row`s.
  """
  seen = set()
  rows = _of_distribution(distribution, distribution.event_shape, _Counter(seen, 1, with_weights), 0)
  for other in others:
    variables = other.weights if isinstance(other, keras.Layer) else [other]
    row = Row(0, other.name, type(other).__name__, None, *_count(variables, seen, 1))
    rows += [row] if row.num_parameters else []
  return rows


class _Counter(NamedTuple):
  """What each level passes to its parts: variables already counted, and how many steps a variable stands for."""
  seen: set
  num_steps: int
  with_weights: bool

  def below(self, num_steps=1):
    return _Counter(set(self.seen), self.num_steps * num_steps, self.with_weights)


def _of_distribution(distribution, shape, counter, depth):
  if not hasattr(distribution, "bijector"):
    return _row_and_parts(distribution, shape, counter, depth)
  rows = _of_bijector(distribution.bijector, shape, counter, depth)
  base = distribution.distribution
  return rows + _of_distribution(base, base.event_shape, counter, depth)


def _of_bijector(bijector, shape, counter, depth):
  return _row_and_parts(bijector, _shape_after(bijector, shape), counter, depth, shape)


def _row_and_parts(module, shape, counter, depth, shape_before=None):
  """A row for a module, and those of its parts."""
  rows = _of_parts(module, shape_before, counter, depth + 1)
  counted = _count(module.variables, counter.seen, counter.num_steps)
  return [Row(depth, _name(module, counter.num_steps), _kind(module), shape, *counted), *rows]


def _of_parts(module, shape, counter, depth):
  shape = shape if _sequence(module) or hasattr(module, "template") else None
  counter = counter.below(getattr(module, "num_steps", 1))
  rows = []
  for part in _parts(module):
    if isinstance(part, tfd.Distribution):
      rows += _of_distribution(part, part.event_shape, counter, depth)
    elif isinstance(part, tfb.Bijector):
      shape = _shape_before(part, shape)
      rows += _of_bijector(part, shape, counter, depth)
      shape = _shape_after(part, shape)
  if counter.with_weights and isinstance(getattr(module, "network", None), keras.Layer):
    rows += [Row(depth, _weight_name(weight, counter.num_steps), "weight", None,
                 *_count([weight], counter.seen, counter.num_steps)) for weight in module.network.weights]
  return rows


def _parts(module):
  """The modules directly in a module; one step of a `Scan` stands for all of its steps."""
  if hasattr(module, "template"):
    return _parts(module.template) or [module.template]
  if _sequence(module):
    return _sequence(module)
  modules = [part for part in module.submodules if isinstance(part, (tfb.Bijector, tfd.Distribution))]
  within = {id(part) for outer in modules for part in outer.submodules}
  # Only the order in which they are held is known. Modules without parameters may be used anywhere: they are left out.
  return [part for part in modules if id(part) not in within and part.variables]


def _sequence(module):
  """The parts of a sequence of bijectors, in the order from images to latents."""
  parts = getattr(module, "parts", getattr(module, "bijectors", []))
  return list(parts) if isinstance(parts, (list, tuple)) else []


def _shape_before(bijector, shape):
  """The shape of an event on the data side: the bijector's own if it has one, else the given one."""
  own = bijector.event_shape_of(inverse=True) if hasattr(bijector, "event_shape_of") else tf.TensorShape(None)
  return own if own.is_fully_defined() else shape


def _shape_after(bijector, shape):
  if shape is None:
    return None
  try:
    after = bijector.inverse_event_shape(shape)
  except ValueError:  # The bijector does not take events of this shape.
    return None
  return after if after.is_fully_defined() else None


def _count(variables, seen, num_steps):
  """How many numbers the variables hold that have not been seen before, and whether one of them is trained."""
  new = [variable for variable in variables if id(_storage(variable)) not in seen]
  seen.update(id(_storage(variable)) for variable in new)
  return (num_steps * sum(tf.TensorShape(variable.shape).num_elements() for variable in new),
          any(variable.trainable for variable in new))


def _storage(variable):
  return variable.value if isinstance(variable, keras.Variable) else variable


def _name(module, num_steps):
  own = getattr(module, "num_steps", None)
  name = module.name if own is None else f"{module.name}: {own} {'step' if own == 1 else 'steps'}"
  return name if num_steps == 1 else f"{num_steps} x {name}"


def _weight_name(weight, num_steps):
  name = "/".join(weight.path.split("/")[-2:])
  return name if num_steps == 1 else f"{num_steps} x {name}"


def _kind(module):
  # A bijector of TFP may be wrapped in one of ours.
  of_tfp = getattr(module, "bijector", module) if hasattr(module, "event_shape_of") else module
  return type(of_tfp).__name__.lstrip("_")


def text_of(title, rows, totals, line_length=None, show_trainable=False):
  """A table like that of `keras.Model.summary`.

  Args:
    title: Python `str`.
    rows: List of `Row`s.
    totals: Dict from names to numbers, to print below the table.
    line_length: Python `int`, width of the table; `None`: as wide as needed.
    show_trainable: Python `bool`: whether a column shows which parts are trained.

  Returns:
    Python `str` of several lines.
  """
  table = [["Part (type)", "Output shape", "Param #"] + ["Trainable"] * show_trainable]
  for row in rows:
    shape = "" if row.shape is None else str((None, *row.shape.as_list()))
    table.append([f"{'  ' * row.depth}{row.name} ({row.kind})", shape, f"{row.num_parameters:,}"]
                 + [("yes" if row.is_trainable else "no") if row.num_parameters else "-"] * show_trainable)
  widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
  between = 2 * (len(widths) - 1)
  if line_length is not None:  # The names get the remaining width.
    widths[0] = max(8, line_length - sum(widths[1:]) - between)
  fitted = lambda line: [_fitted(cell, width, column == 2) for column, (cell, width) in enumerate(zip(line, widths))]
  lines = ["  ".join(fitted(line)).rstrip() for line in table]
  rule = sum(widths) + between
  return "\n".join([title, "=" * rule, lines[0], "-" * rule, *lines[1:], "=" * rule,
                    *(f"{name}: {number:,}" for name, number in totals.items())])


def _fitted(cell, width, to_the_right):
  if len(cell) > width:
    return cell[:width - 3] + "..."
  return cell.rjust(width) if to_the_right else cell.ljust(width)


def notes_on_precision(distribution):
  """Notes on networks that train in a lower precision than that of the flow.

  Args:
    distribution: `tfd.Distribution` over one image.

  Returns:
    List of lines, one for each lower precision.
  """
  lower = {layer.compute_dtype: module.dtype.name for module in _modules(distribution)
           for layer in getattr(module, "lower_layers", ())}
  return [f"Networks train in {low}: `fit` reports their bits per dimension, `evaluate` those of {full}"
          for low, full in sorted(lower.items())]


def _modules(module):
  """A module and all modules in it, with the parts of a step of a `Scan`."""
  for part in [module, *module.submodules]:
    yield part
    if hasattr(part, "template"):
      yield from _modules(part.template)


def totals_of(weights, optimizer_variables=()):
  """Numbers of parameters, as Keras counts them.

  Args:
    weights: List of `keras.Variable`s of the model.
    optimizer_variables: List of `keras.Variable`s of its optimizer.
  """
  size = lambda variables: sum(tf.TensorShape(variable.shape).num_elements() for variable in variables)
  trainable = size([weight for weight in weights if weight.trainable])
  totals = {"Total params": size(weights) + size(optimizer_variables), "Trainable params": trainable,
            "Non-trainable params": size(weights) - trainable}
  return totals | ({"Optimizer params": size(optimizer_variables)} if optimizer_variables else {})

"""Training state in a checkpoint of the authors' code: Adam's moments, and moving averages of the weights."""

import math
from typing import NamedTuple

import keras
import numpy as np

from tfp_glow._core.validation import is_int, is_number
from tfp_glow.checkpoints.contents import assign, listed

_LONGEST_GRADIENT = 1.  # Fixed in the authors' code.
_TRAINED = (".weight", ".bias", ".beta")
_ORDERS = (".domain", ".codomain")


class TrainingState(NamedTuple):
  """The state where training stopped; the dicts are from keys of the state dict to arrays."""
  averages: dict  # Of all parameters.
  means: dict  # Adam's means of the gradients of weights; `squares` has those of their squares.
  squares: dict
  num_updates: int
  adam: dict  # Keyword arguments of `keras.optimizers.Adam`.


def trained_keys(state):
  """Keys of the weights in a state dict, without learned orders, which may be trained or not."""
  return [key for key in state if key.endswith(_TRAINED)]


def training_state(optimizer, decay, averages, state, options):
  """The state of training in a checkpoint.

  Args:
    optimizer: The checkpoint's `optimizer_state_dict`.
    decay: Decay of its moving averages.
    averages: Dict from the keys of all parameters, in their order, to moving averages.
    state: Dict from the keys of the state dict to its arrays.
    options: Dict of the options of the command line.

  Returns:
    `TrainingState`.

  Raises:
    ValueError: if something is missing or does not fit; the message names it.
  """
  group, entries = _checked_parts(optimizer)
  keys, numbers = list(averages), group["params"]
  _expect(keys == [key for key in state if key in averages],
          "its moving averages do not match the parameters of its state dict and their order")
  _expect(len(numbers) == len(keys), f"its optimizer has {len(numbers)} parameters, {len(keys)} have a moving average")
  _expect(entries.keys() <= set(numbers), "its optimizer has moments of unknown parameters")
  entries = {key: entries[number] for key, number in zip(keys, numbers) if number in entries}
  trained = trained_keys(state)
  missing = [key for key in trained if key not in entries]
  _expect(not missing, f"its optimizer has no moments of {listed(missing)}")
  means, squares = ({key: _checked_moment(entries[key], name, key, state[key].shape) for key in trained}
                    for name in ("exp_avg", "exp_avg_sq"))
  negative = [key for key, square in squares.items() if np.any(square < 0.)]
  _expect(not negative, f"exp_avg_sq must not be negative: {listed(negative)}")
  steps = {_number_of_steps(entries[key].get("step"), key) for key in trained}
  _expect(len(steps) == 1, f"its weights have had different numbers of updates: {listed(sorted(map(str, steps)))}")
  return TrainingState(averages, means, squares, steps.pop(), _adam_arguments(group, decay, options))


def _expect(is_right, reason):
  if not is_right:
    raise ValueError(reason)


def _checked_parts(optimizer):
  """The only group of parameters, and the dict from the numbers of parameters to Adam's state of each."""
  groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
  _expect(isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict)
          and isinstance(groups[0].get("params"), list) and isinstance(optimizer.get("state"), dict),
          "its optimizer must have a state, and one group of parameters")
  return groups[0], optimizer["state"]


def _checked_moment(entry, name, key, shape):
  moment = entry.get(name) if isinstance(entry, dict) else None
  _expect(isinstance(moment, np.ndarray) and moment.shape == shape,
          f"{name} of {key} must be an array of shape {shape}")
  _expect(np.all(np.isfinite(moment)), f"{name} of {key} must be finite")
  return moment


def _number_of_steps(step, key):
  """As an `int`; later versions of PyTorch store it as a tensor."""
  step = step.item() if isinstance(step, np.ndarray) and step.size == 1 else step
  _expect(is_number(step) and step >= 1 and step == math.floor(step), f"step of {key} must be a number of updates")
  return int(step)


def _adam_arguments(group, decay, options):
  found = {"lr": options.get("lr"), "betas": group.get("betas"), "eps": group.get("eps"),
           "amsgrad": group.get("amsgrad", False), "weight_decay": group.get("weight_decay", 0),
           "annealing_iters": options.get("annealing_iters", 0), "update_freq": options.get("update_freq", 1),
           "decay": decay}
  wrong = [f"{name}={found[name]!r:.60}" for name, is_valid in _CHECKS.items() if not is_valid(found[name])]
  _expect(not wrong, f"its optimizer must be an Adam with moving averages of the weights, not with {', '.join(wrong)}")
  num_batches = found["update_freq"]
  return {"learning_rate": float(found["lr"]), "beta_1": found["betas"][0], "beta_2": found["betas"][1],
          "epsilon": found["eps"], "global_clipnorm": _LONGEST_GRADIENT, "use_ema": True,
          # Keras updates averages after each batch, even if several batches make an update.
          "ema_momentum": decay**(1. / num_batches),
          "gradient_accumulation_steps": num_batches if num_batches > 1 else None}


def _is_positive(value):
  return is_number(value) and 0. < value < math.inf


def _is_fraction(value):
  return is_number(value) and 0. <= value < 1.


def _are_betas(value):
  return isinstance(value, tuple) and len(value) == 2 and all(map(_is_fraction, value))


def _is_off(value):
  return not value


# What training here can resume. The authors' code adds decay to the gradients, before Adam's moments; Keras' Adam takes
# it off the weights. With `annealing_iters` their loss has another weight of the log-det in each step.
_CHECKS = {"lr": _is_positive, "betas": _are_betas, "eps": _is_positive, "amsgrad": _is_off, "weight_decay": _is_off,
           "annealing_iters": _is_off, "update_freq": is_int,
           "decay": lambda value: is_number(value) and 0. < value < 1.}


def compile_to_resume(model, rows, training):
  """Compiles a model with the Adam of the authors' code in its state when training stopped.

  Args:
    model: `FlowModel` with the weights.
    rows: List of `(variable, keys, convert)`, see `layout.flow_layout`, for all of its trainable variables.
    training: `TrainingState`.
  """
  optimizer = keras.optimizers.Adam(**training.adam)
  model.compile(optimizer)
  optimizer.build(model.trainable_variables)
  # The file's moments of orders belong to another loss than the one here: they start from 0.
  rows_of_weights = [row for row in rows if not row[1][0].endswith(_ORDERS)]
  for name, own, values in (("average", rows, training.averages), ("momentum", rows_of_weights, training.means),
                            ("velocity", rows_of_weights, training.squares)):
    slots = [variable for variable in optimizer.variables if variable.name.endswith(f"_{name}")]
    by_variable = {id(trained.value): slot for trained, slot in zip(model.trainable_variables, slots, strict=True)}
    assign([(by_variable[id(variable.value)], keys, convert) for variable, keys, convert in own
            if id(variable.value) in by_variable], values)
  num_batches = training.adam["gradient_accumulation_steps"] or 1
  iteration, = (variable for variable in optimizer.variables if variable.name == "iteration")
  iteration.assign(training.num_updates * num_batches)

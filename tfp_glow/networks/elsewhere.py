"""Whether a network reads anything but its inputs and its own variables, as far as Python shows it."""

import functools
import types

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat

_TENSORS = (tf.Tensor, tf.SparseTensor, tf.RaggedTensor, tf.IndexedSlices)  # (`tf.is_tensor` takes ten times as long.)

# Packages whose classes and functions read only what they are given.
_KNOWN = ("keras", "tensorflow", "tfp_glow", "numpy", "builtins", "functools", "typing", "abc", "inspect", "enum",
          "re", "threading")


def is_read_by(network):
  """Whether a Keras network may depend on tensors, arrays or variables that are not its `variables`.

  It may hold them in attributes, or functions of its own classes may find them in closures or globals. An earlier
  result of such a network may differ from what it would compute now.

  Args:
    network: Keras layer.
  """
  own = network.variables
  search = _Search({id(variable) for variable in own} | {id(variable.value) for variable in own})
  try:
    return search.finds_values_in(network)
  except (RecursionError, NotImplementedError):
    return True  # Nobody knows.


class _Search:
  """Looks through objects, each of them once."""

  def __init__(self, own):
    """Creates it.

    Args:
      own: Set of the `id`s of the network's own variables, which do not count.
    """
    self._own = own
    self._seen = {}

  def finds_values_in(self, value):
    """Whether an object holds tensors, arrays or variables of others, at any depth."""
    if id(value) in self._seen or id(value) in self._own:
      return False
    self._seen[id(value)] = value  # Kept alive, or another object might get its `id`.
    if isinstance(value, (tf.Variable, keras.Variable, np.ndarray, *_TENSORS)):
      return True
    return any(map(self.finds_values_in, _parts_of(value)))


def _parts_of(value):
  """A list of what an object holds and what the functions in it read."""
  if isinstance(value, types.ModuleType):
    return []  # Functions are asked which of its names they read.
  if isinstance(value, dict):
    return list(value.values())
  if isinstance(value, (list, tuple, set, frozenset)):
    return list(value)
  if isinstance(value, functools.partial):
    return [value.func, value.args, value.keywords]
  if isinstance(value, types.MethodType):
    return [value.__func__, value.__self__]
  if isinstance(value, (staticmethod, classmethod)):
    return [value.__func__]
  if isinstance(value, property):
    return [value.fget]
  if isinstance(value, types.FunctionType):
    return [] if _is_known(value) else _read_by_function(value)
  if isinstance(value, type):
    return [dict(vars(cls)) for cls in value.__mro__ if not _is_known(cls)]
  if isinstance(value, tf.types.experimental.PolymorphicFunction):  # A `tf.function`.
    return [value.python_function]
  if isinstance(value, keras.Operation):
    return [vars(value), type(value), *_compat.given_in_graphs_to(value)]
  if isinstance(value, tf.Module) or not _is_known(type(value)):
    return [getattr(value, "__dict__", None), type(value), *_slots_of(value)]
  return []


def _slots_of(value):
  """What an object holds outside of its `__dict__`."""
  names = [name for cls in type(value).__mro__ for name in np.atleast_1d(cls.__dict__.get("__slots__", []))]
  return [getattr(value, name, None) for name in names if name not in ("__dict__", "__weakref__")]


def _is_known(value):
  """Whether a class or a function is from one of the packages `_KNOWN`."""
  return _is_from_known(value.__module__ or "")


def _is_from_known(module):
  return module.partition(".")[0] in _KNOWN


def _read_by_function(function):
  cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
  names = {name for code in _codes_in(function.__code__) for name in code.co_names}
  found = _named(names, function.__globals__)
  return [*cells, *found, function.__defaults__, function.__kwdefaults__]


def _named(names, namespace):
  """A list of what has one of these names in a namespace, or in a module that has one of these names there."""
  found, ahead, seen = [], [namespace], []
  while ahead:
    seen.append(ahead.pop())
    values = [seen[-1][name] for name in names if name in seen[-1]]
    modules = [value for value in values if isinstance(value, types.ModuleType) and not _is_from_known(value.__name__)]
    ahead += [vars(module) for module in modules if not any(vars(module) is other for other in seen + ahead)]
    found += values
  return found


def _codes_in(code):
  """A code object, and those of the functions within."""
  inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
  return [code, *(found for part in inner for found in _codes_in(part))]

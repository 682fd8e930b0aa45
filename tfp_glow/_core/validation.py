"""Checks of arguments, with uniform messages."""

import math
import numbers

import numpy as np
import tensorflow as tf


def is_int(value, least=1, below=math.inf):
  """Whether it is an `int` of Python or NumPy, at least `least` and below `below`. A `bool` does not count."""
  return not isinstance(value, bool) and isinstance(value, numbers.Integral) and bool(least <= value < below)


def is_number(value):
  """Whether it is a real number of Python or NumPy. A `bool` does not count."""
  return not isinstance(value, bool) and isinstance(value, numbers.Real)


def check_counts(least=1, below=math.inf, **arguments):
  """Raises `ValueError` for an argument that is not an `int` of at least `least` and below `below`."""
  for name, value in arguments.items():
    if not is_int(value, least, below):
      expected = "a positive `int`" if least == 1 else f"an `int` of at least {least}"
      expected += f" and below {below}" * (below < math.inf)
      raise ValueError(f"`{name}` must be {expected}. Received: {value!r}")


def check_fractions(bound=1., **arguments):
  """Raises `ValueError` for an argument that is not a number above 0 and below `bound`."""
  for name, value in arguments.items():
    if not is_number(value) or not 0. < value < bound:
      raise ValueError(f"`{name}` must be a number above 0 and below {bound:g}. Received: {value!r}")


def check_positive(**arguments):
  """Raises `ValueError` for an argument that is not a positive, finite number."""
  for name, value in arguments.items():
    if not is_number(value) or not 0. < value < math.inf:
      raise ValueError(f"`{name}` must be a positive number. Received: {value!r}")


def check_bools(**arguments):
  """Raises `ValueError` for an argument that is not a `bool`, of Python or NumPy."""
  for name, value in arguments.items():
    if not isinstance(value, (bool, np.bool_)):
      raise ValueError(f"`{name}` must be a `bool`. Received: {value!r}")


def check_choice(name, value, choices):
  """Raises `ValueError` for a value that is not one of `choices`, a tuple of `str`s or of `int`s."""
  is_of_kind = isinstance(value, str) if isinstance(choices[0], str) else is_int(value, -math.inf)
  if not is_of_kind or value not in choices:
    raise ValueError(f"`{name}` must be one of {choices}. Received: {value!r}")


def check_seed(seed):
  """Raises `ValueError` for a seed that is neither an `int` of at least 0 nor `None`."""
  if seed is not None and not is_int(seed, 0):
    raise ValueError(f"`seed` must be an `int` of at least 0, or None. Received: {seed!r}")


def checked_tensor(name, value, dtype=None):
  """The argument called `name` as a tensor; raises `TypeError` if it is no array, no tensor and no list of numbers.

  Args:
    name: Python `str`.
    value: What the user gave.
    dtype: `tf.DType` of the result; `None`: that of `value`.
  """
  try:
    return tf.convert_to_tensor(value, dtype)
  except (TypeError, ValueError) as error:
    expected = "an array or tensor" if dtype is None else f"an array, or a tensor of {dtype.name}"
    received = "None" if value is None else type(value).__name__
    received += f" of {getattr(value.dtype, 'name', value.dtype)}" if hasattr(value, "dtype") else ""
    raise TypeError(f"`{name}` must be {expected}. Received: {received}") from error


def checked_event_shape(name, shape, vectors=False):
  """The shape of an image, `(height, width, channels)`, as a tuple of Python `int`s.

  Args:
    name: Python `str`, the name of the argument.
    shape: Iterable of `int`s.
    vectors: Python `bool`: whether the shape of a vector, `(channels,)`, is allowed as well.

  Raises:
    ValueError: if it is not of that form, or a size is not a positive `int`.
  """
  sizes = tuple(shape) if np.iterable(shape) else (shape,)
  if len(sizes) not in ((1, 3) if vectors else (3,)) or not all(map(is_int, sizes)):
    expected = "(height, width, channels)" + vectors * " or (channels,)"
    raise ValueError(f"`{name}` must be {expected}, positive `int`s. Received: {shape!r}")
  return tuple(map(int, sizes))


def checked_dtype(dtype):
  """The `tf.DType` of parameters; raises `ValueError` for any other than float32 and float64."""
  try:
    found = tf.as_dtype(dtype)
  except TypeError:
    found = None
  if found not in (tf.float32, tf.float64):
    raise ValueError("`dtype` must be float32 or float64, because log-determinants need this precision (a network's "
                     f"own Keras dtype policy may be lower). Received: {dtype if found is None else found.name!r}")
  return found

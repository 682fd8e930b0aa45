"""Checks of arguments, in one wording."""

import numbers

import tensorflow as tf


def check_counts(least=1, **arguments):
  """Raises `ValueError` for an argument that is not an `int` of at least `least`."""
  for name, value in arguments.items():
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
      expected = "a positive `int`" if least == 1 else f"an `int` of at least {least}"
      raise ValueError(f"`{name}` must be {expected}. Received: {value!r}")


def check_fractions(bound=1., **arguments):
  """Raises `ValueError` for an argument that is not a number above 0 and below `bound`."""
  for name, value in arguments.items():
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0. < value < bound:
      raise ValueError(f"`{name}` must be a number above 0 and below {bound:g}. Received: {value!r}")


def check_choice(name, value, choices):
  """Raises `ValueError` for a value that is not one of a tuple of `str`s, or of `int`s."""
  kind = str if isinstance(choices[0], str) else numbers.Integral
  if isinstance(value, bool) or not isinstance(value, kind) or value not in choices:
    raise ValueError(f"`{name}` must be one of {choices}. Received: {value!r}")


def check_seed(seed):
  """Raises `ValueError` for a seed that is neither an `int` of at least 0 nor `None`."""
  if seed is not None and (isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0):
    raise ValueError(f"`seed` must be an `int` of at least 0, or None. Received: {seed!r}")


def checked_dtype(dtype):
  """The `tf.DType` of parameters; raises `ValueError` for any other than float32 and float64."""
  try:
    found = tf.as_dtype(dtype)
  except TypeError:
    found = None
  if found not in (tf.float32, tf.float64):
    raise ValueError("`dtype` must be float32 or float64: log-determinants need their precision (a network may have "
                     f"less, by its own Keras dtype policy). Received: {dtype if found is None else found.name!r}")
  return found

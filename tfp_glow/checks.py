"""Checks of arguments, in one wording."""

import numbers


def check_counts(**arguments):
  """Raises `ValueError` for an argument that is not a positive `int`."""
  for name, value in arguments.items():
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
      raise ValueError(f"`{name}` must be a positive `int`. Received: {value!r}")


def check_fractions(bound=1., **arguments):
  """Raises `ValueError` for an argument that is not a number above 0 and below `bound`."""
  for name, value in arguments.items():
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0. < value < bound:
      raise ValueError(f"`{name}` must be a number above 0 and below {bound:g}. Received: {value!r}")


def check_choice(name, value, choices):
  """Raises `ValueError` for a value that is not one of a tuple of them."""
  if value not in choices:
    raise ValueError(f"`{name}` must be one of {choices}. Received: {value!r}")


def check_seed(seed):
  """Raises `ValueError` for a seed that is neither an `int` of at least 0 nor `None`."""
  if seed is not None and (isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0):
    raise ValueError(f"`seed` must be an `int` of at least 0, or None. Received: {seed!r}")

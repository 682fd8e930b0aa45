"""Type hints: every public function and method has them, for all that it takes and returns."""

import inspect

import pytest
from test_reference import NAMES


def _is_ours(owner):
  return owner.__module__.partition(".")[0] == "tfp_glow"


def _functions(value):
  """Dict from names to the functions of a public name, without those whose signature a base class sets.

  Base classes are those of Keras, TFP and Python.
  """
  if not inspect.isclass(value):
    return {value.__name__: value}
  others = [base for base in value.__mro__ if not _is_ours(base)]
  found = {}
  for owner in reversed([base for base in value.__mro__ if _is_ours(base)]):
    for name, member in vars(owner).items():
      function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
      is_public = name == "__init__" or not name.startswith("_") and not any(name in vars(base) for base in others)
      if is_public and inspect.isfunction(function):
        found[name] = function
  return found


def _without_hint(name, function):
  parameters = list(inspect.signature(function).parameters.values())
  missing = [p.name for p in parameters if p.annotation is p.empty and p.name not in ("self", "cls")]
  returns_something = inspect.signature(function).return_annotation is not inspect.Signature.empty
  return missing + ["return"] * (name != "__init__" and not returns_something)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_names_have_type_hints(name):
  missing = {f"{name}.{key}": _without_hint(key, function) for key, function in _functions(NAMES[name]).items()}
  assert not {key: names for key, names in missing.items() if names}

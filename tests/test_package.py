"""The package as such: what imports what, and what an import does."""

import ast
import configparser
import graphlib
import importlib
import pathlib
import re
import subprocess
import sys
from importlib import metadata

import keras
import pytest
import setuptools
from packaging import requirements

import tfp_glow
from tfp_glow import _core

PACKAGE = pathlib.Path(tfp_glow.__file__).parent

# Which rooms a room may import from. The files above the rooms only give names to what users import.
_MAY_IMPORT = {
    "_core": set(),
    "networks": {"_core"},
    "bijectors": {"_core", "networks"},
    "likelihood": {"_core", "bijectors"},
    "data": {"_core"},
    "storage": {"_core", "bijectors", "likelihood"},
    "training": {"_core", "networks", "likelihood", "data", "storage"},
    "checkpoints": {"_core", "networks", "bijectors", "likelihood", "training"},
}


def _modules():
  """From names, those of folders for their `__init__.py`, to files."""
  names = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
  return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def _imports(path):
  """The modules of the package that a file imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names if alias.name.startswith("tfp_glow")}
    elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfp_glow"):
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  known = _modules()
  names = {name.removeprefix("tfp_glow").lstrip(".") for name in found}
  return {name if name in known else name.rpartition(".")[0] for name in names}


@pytest.mark.parametrize("room", _MAY_IMPORT)
def test_rooms_import_one_way(room):
  imported = {name: _imports(path) for name, path in _modules().items() if name.partition(".")[0] == room}
  assert room in imported and len(imported) > 1, "an empty room"
  for module, names in imported.items():
    assert {name.partition(".")[0] for name in names} <= _MAY_IMPORT[room] | {room}, module


def test_every_file_is_in_a_room_or_gives_names():
  for module, path in _modules().items():
    if module.partition(".")[0] not in _MAY_IMPORT:
      assert not re.search(r"^(def|class) ", path.read_text(), re.M), module


def test_modules_import_no_circle():
  graphlib.TopologicalSorter({module: _imports(path) for module, path in _modules().items()}).prepare()


def test_relative_imports_do_not_hide_from_the_test():
  for path in _modules().values():
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(ast.parse(path.read_text())))


def test_only_one_file_knows_the_internal_cache():
  assert [name for name, path in _modules().items() if "_cache" in path.read_text()] == ["_core._compat"]


_IMPORT = """
import tensorflow_probability as tfp
bijectors = [value for value in vars(tfp.bijectors).values() if isinstance(value, type)]
state = lambda: [{key: id(value) for key, value in vars(cls).items()} for b in bijectors for cls in b.__mro__]
storage = tfp.bijectors.Bijector._cache.storage
before = state(), type(storage), id(storage)
import tfp_glow
storage = tfp.bijectors.Bijector._cache.storage
assert before == (state(), type(storage), id(storage))
"""


@pytest.mark.slow
def test_an_import_changes_nothing_of_tfp_and_prints_nothing():
  done = subprocess.run([sys.executable, "-W", "ignore", "-c", _IMPORT], capture_output=True, text=True, check=True,
                        cwd=PACKAGE.parent)
  # TensorFlow logs that it found no GPU and the like, with time stamps, whatever its log level is set to.
  lines = [line for line in done.stderr.splitlines() if line[:5] not in ("I0000", "W0000", "E0000", "WARNI", "To en")]
  assert done.stdout == "" and not lines


def test_another_backend_of_keras_is_refused(monkeypatch):
  monkeypatch.setattr(keras.config, "backend", lambda: "jax")
  with pytest.raises(ImportError, match="`KERAS_BACKEND` must be \"tensorflow\".*Received: 'jax'"):
    importlib.reload(_core)


def test_every_public_name_is_documented():
  for name in tfp_glow.__all__:
    if name != "__version__":
      assert (getattr(tfp_glow, name).__doc__ or "").strip(), name


def _requirements():
  parser = configparser.ConfigParser()
  parser.read(PACKAGE.parent / "setup.cfg")
  lines = parser["options"]["install_requires"].split("\n")
  return [requirements.Requirement(line) for line in lines if line]


def test_what_is_installed_is_within_the_bounds():
  for requirement in _requirements():
    assert requirement.specifier.contains(metadata.version(requirement.name)), requirement


def test_what_has_private_parts_in_use_has_an_upper_bound():
  bounded = {requirement.name for requirement in _requirements()
             if any(specifier.operator == "<" for specifier in requirement.specifier)}
  assert bounded >= {"tensorflow", "tensorflow-probability", "keras"}


def test_every_room_is_installed():
  rooms = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("*.py")}
  assert set(setuptools.find_packages(PACKAGE.parent, include=["tfp_glow*"])) == rooms

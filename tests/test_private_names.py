"""What is private of TensorFlow, Keras and TFP is in `_core/_compat.py` and nowhere else."""

import ast
import importlib
import pathlib

import keras
import pytest
import tensorflow_probability as tfp

import tfp_glow

tfb = tfp.bijectors
PACKAGE = pathlib.Path(tfp_glow.__file__).parent
# What TensorFlow, TFP and TFDS ask subclasses to override.
_HOOKS = {"_forward", "_inverse", "_forward_log_det_jacobian", "_inverse_log_det_jacobian", "_forward_event_shape",
          "_forward_event_shape_tensor", "_inverse_event_shape", "_inverse_event_shape_tensor", "_is_increasing",
          "_parameter_properties", "_generate_examples", "_abc_impl"}


def _trees():
  return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
          for path in PACKAGE.rglob("*.py")}


def _is_private(name):
  return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name != "_"


def _private_names(tree):
  """Private names that are read, written, or spelled out (as for `getattr`), and whether they belong to `self`."""
  of_text = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and _is_private(node.attr):
      yield node.attr, ast.unparse(node.value) in ("self", "cls", "super()")
    elif isinstance(node, ast.Constant) and _is_private(node.value) and node not in of_text and (
        node.value.isidentifier() and not node.value.startswith("_tfp_glow_")):
      yield node.value, False


def _own_names(tree):
  """Names that a class defines: its functions and attributes, and those of `self`."""
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
      yield node.attr


def _classes(module, tree):
  """The classes of a module, and the tree of each."""
  found = importlib.import_module(f"tfp_glow.{module}" if module != "__init__" else "tfp_glow")
  return [(getattr(found, node.name), node) for node in tree.body if isinstance(node, ast.ClassDef)]


# What bijectors of this package call on each other, and what a class reads from another instance.
_BETWEEN_BIJECTORS = {"_forward_and_log_det", "_inverse_and_log_det", "_initialize", "_initialize_back", "_walk",
                      "_depends_on_variables_only", "_keras_variables", "_variables_of_update", "_update", "_owned",
                      "_set_trainable", "_sync_trainable", "_tell_followers", "_add_follower"}
_BETWEEN_OTHERS = {"bijectors.recall": {"_bijector"}, "data.decoded_once": {"_num_bytes"}}


def _foreign_names(trees):
  """Modules, and the private names in them that are neither of the class that uses them, nor of a base or subclass."""
  own = {cls: set(_own_names(tree)) for module, tree in trees.items() for cls, tree in _classes(module, tree)}
  for module, tree in trees.items():
    known = _BETWEEN_OTHERS.get(module, set()) | _HOOKS
    if module.startswith("bijectors."):
      known |= _BETWEEN_BIJECTORS
    outside = ast.Module([node for node in tree.body if not isinstance(node, ast.ClassDef)], [])
    names = {name for name, _ in _private_names(outside)}
    for cls, tree_of_class in _classes(module, tree):
      inherited = set().union(*(own[other] for other in own if issubclass(cls, other) or issubclass(other, cls)))
      names |= {name for name, is_own in _private_names(tree_of_class) if not is_own or name not in inherited}
    yield module, names - known


def test_only_one_file_names_what_is_private():
  trees = _trees()
  found = {module: names for module, names in _foreign_names(trees) if names}
  assert found.pop("_core._compat") > {"_registry", "_direction", "_transform_fn"}
  assert found == {}


@pytest.mark.parametrize("module, code, name", [
    ("bijectors.base", "variable._value", "_value"), ("bijectors.scan", "variable._value", "_value"),
    ("bijectors.scan", "self._tracker", "_tracker"), ("training.replicas", "optimizer._name", "_name"),
    ("training.model", "super()._tracker", "_tracker"), ("data.load", "builder._walk", "_walk"),
    ("storage.saving", "getattr(value, '_update', None)", "_update"), ("likelihood.flows", "{'_inline': 1}", "_inline"),
    ("networks.glow", "type(self)._metaclass", "_metaclass")])
def test_what_is_private_is_found(module, code, name):
  trees = _trees()
  place = next((node for node in trees[module].body if isinstance(node, ast.ClassDef)), trees[module])
  place.body += ast.parse(f"def added(self, value, variable, builder, optimizer):\n  return {code}").body
  assert dict(_foreign_names(trees))[module] == {name}


def test_only_one_file_imports_what_is_private():
  for module, tree in _trees().items():
    names = {f"{node.module}.{alias.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for alias in node.names}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found = {name for name in names
             if name.startswith(("tensorflow.python", "tensorflow_probability.python", "keras.src"))}
    assert not found or module == "_core._compat", (module, found)


def test_nothing_private_is_overridden():
  """A method with the same name as a private one would be called in its place."""
  pending, overridden = [keras.Layer, keras.Model, tfb.Bijector, keras.callbacks.Callback], set()
  while pending:
    cls = pending.pop()
    pending += cls.__subclasses__()
    if cls.__module__.startswith("tfp_glow."):
      foreign = {name for base in cls.__mro__ if not base.__module__.startswith("tfp_glow.") for name in vars(base)}
      overridden |= {(cls.__module__, name) for name in vars(cls) if _is_private(name) and name in foreign - _HOOKS}
  assert overridden == {("tfp_glow._core._compat", "_maybe_symbolic_build")}

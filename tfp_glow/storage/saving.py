"""Distributions to JSON and back: what a `.keras` file holds of them besides the weights.

A distribution or bijector is written as its class and the arguments of its constructor. From a file, only classes of
TFP and of this package are made, and other objects are found only if they are registered with Keras. So a file that
somebody else has written cannot run other code.
"""

import base64
import contextlib
import functools
import inspect
import warnings

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow._core import _compat
from tfp_glow.bijectors.base import OnePassBijector

_PUBLIC = {"tfp.distributions": (tfp.distributions, tfp.distributions.Distribution),
           "tfp.bijectors": (tfp.bijectors, tfp.bijectors.Bijector),
           "tfp.util": (tfp.util, tfp.util.DeferredTensor), "tf.linalg": (tf.linalg, tf.linalg.LinearOperator)}
# Where Keras looks for its own functions.
_OF_KERAS = (keras.activations, keras.constraints, keras.initializers, keras.losses, keras.metrics, keras.regularizers)


def distribution_to_config(distribution):
  """The configuration from which `distribution_from_config` makes the distribution.

  An object that is used in several places, such as a `tf.Variable`, is then again one object.

  Args:
    distribution: `tfd.Distribution`.

  Returns:
    Nest of `dict`s, `list`s and Python values that JSON can hold. It contains the present value of each `tf.Variable`
    among the arguments, because constructors may compute with it.

  Raises:
    ValueError: if a part of the distribution is not of TFP or this package, and not registered with Keras.
  """
  return _Encoder().encode(distribution, "distribution")


def keras_config(value, path):
  """The configuration from which `keras.saving.deserialize_keras_object` makes an object of Keras.

  Args:
    value: The object.
    path: Python `str`, the object as a user would write it.

  Returns:
    Nest of `dict`s, `list`s and Python values that JSON can hold.

  Raises:
    ValueError: if Keras could not find a part of it.
  """
  try:
    with warnings.catch_warnings():
      # The configuration of an activation does not show that it was a lambda.
      warnings.filterwarnings("error", "The object being serialized includes a `lambda`")
      config = keras.saving.serialize_keras_object(value)
  except (NotImplementedError, OSError, TypeError, UserWarning, ValueError) as error:
    raise ValueError(f"{_cannot(path, value)}: {error}") from error
  lost = sorted(set(_not_to_be_found(config)))
  if lost:
    raise ValueError(f"{_cannot(path, value)}, with {', '.join(lost)} in it")
  return config


def check_is_found(cls):
  """Raises `ValueError` if Keras could not find a class by its name."""
  if keras.saving.get_registered_object(keras.saving.get_registered_name(cls)) is not cls:
    raise ValueError(f"The class of a model must be registered with Keras to be saved: decorate it with "
                     f'`@keras.saving.register_keras_serializable("my_package")`. Received: {cls!r}')


def distribution_from_config(config):
  """Makes the distribution that `distribution_to_config` was given; networks and variables that it makes are new.

  Args:
    config: What `distribution_to_config` returned, also after it was written to JSON and read.

  Returns:
    `tfd.Distribution`.

  Raises:
    ValueError: if `config` is something else, or names an object that is not registered with Keras in this process.
  """
  distribution = _Decoder().decode(config, "distribution")
  if not isinstance(distribution, tfp.distributions.Distribution):
    raise ValueError(f"`config` must be that of a distribution. Received: that of {distribution!r}")
  return distribution


class _Encoder:
  """Numbers objects in the order in which it finds them, and refers to known ones by their numbers."""

  def __init__(self):
    self._numbers = {}
    self._known = []  # Kept, so that their `id`s are not used again.

  def encode(self, value, path):
    """JSON of one argument; `path` is the argument as a user would write it."""
    if value is None or type(value) in (bool, int, float, str):
      return value
    if isinstance(value, list):
      return [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if type(value) is tuple:  # Named tuples have classes of their own.
      return {"tuple": self.encode(list(value), path)}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
      return {"dict": {key: self.encode(item, f"{path}[{key!r}]") for key, item in value.items()}}
    if isinstance(value, tf.TensorShape):
      return {"shape": None if value.rank is None else value.as_list()}
    if isinstance(value, (tf.DType, np.dtype)) or isinstance(value, type) and issubclass(value, np.generic):
      return {"dtype": tf.as_dtype(value).name}
    if id(value) in self._numbers:
      return {"shared": self._numbers[id(value)]}
    kind, content = self._encode_object(value, path)
    if kind in ("array", "registered"):
      return {kind: content}
    self._numbers[id(value)] = len(self._known)
    self._known.append(value)
    return {kind: {"number": self._numbers[id(value)], **content}}

  def _encode_object(self, value, path):
    if _is_variable(value):
      constraint = {} if value.constraint is None else {
          "constraint": self.encode(value.constraint, f"{path}.constraint")}
      return "variable", {"value": self.encode(value.numpy(), path), "trainable": _compat.was_made_trainable(value),
                          "name": value.name.split(":")[0], **constraint}
    name = _name_of(type(value))
    if name is not None:
      return "object", self._encode_arguments(value, name, path)
    if isinstance(value, (np.ndarray, np.generic)) or tf.is_tensor(value) and hasattr(value, "numpy"):
      array = np.asarray(value)
      if _is_plain(array.dtype):
        content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        return "array", {"dtype": tf.as_dtype(array.dtype).name, "shape": list(array.shape), "base64": content}
    if type(value) is functools.partial:
      return "partial", {key: self.encode(part, path) for key, part in (
          ("function", value.func), ("args", list(value.args)), ("kwargs", value.keywords))}
    if inspect.isclass(value) or inspect.isroutine(value):
      name = keras.saving.get_registered_name(value)
      if keras.saving.get_registered_object(name) is value:
        return "registered", name
    elif hasattr(value, "get_config"):
      return "keras", {"config": keras_config(value, path)}
    raise ValueError(_cannot(path, value))

  def _encode_arguments(self, value, name, path):
    arguments = _arguments(value)
    for key, parameter in _parameters(type(value)).items():
      if key in arguments and arguments[key] is parameter.default:
        del arguments[key]
    content = {}
    if isinstance(value, OnePassBijector):
      # It was taken from Keras' global configuration, which may be another when the bijector is made again.
      content["dtype_policy"] = value.dtype_policy.name
      if "dtype" in _parameters(type(value)):
        arguments["dtype"] = value.dtype
    return {"class": name, **content,
            "arguments": {key: self.encode(argument, f"{path}.{key}") for key, argument in arguments.items()}}


class _Decoder:
  """Makes objects from what `_Encoder` wrote."""

  def __init__(self):
    self._known = {}
    self._kinds = {
        "tuple": lambda content, path: tuple(self.decode(list(content), path)),
        "dict": self._decode_dict, "shape": lambda content, path: tf.TensorShape(content),
        "dtype": lambda content, path: _dtype(content), "array": lambda content, path: _array(content),
        "registered": lambda content, path: _registered(content), "shared": lambda content, path: self._known[content],
        "partial": self._decode_partial, "variable": self._decode_variable, "object": self._decode_object,
        "keras": self._decode_keras}

  def decode(self, config, path):
    """One argument, from its JSON."""
    if config is None or isinstance(config, (bool, int, float, str)):
      return config
    if isinstance(config, list):
      return [self.decode(item, f"{path}[{i}]") for i, item in enumerate(config)]
    if not isinstance(config, dict) or len(config) != 1 or not config.keys() <= self._kinds.keys():
      raise ValueError(f"`config` must hold one of {sorted(self._kinds)} for `{path}`. Received: {config!r:.200}")
    (kind, content), = config.items()
    try:
      return self._kinds[kind](content, path)
    except (AttributeError, KeyError, TypeError, tf.errors.OpError) as error:
      raise ValueError(f"`config` must hold what was saved for `{path}`, but it cannot be made: {error} "
                       f"Received: {config!r:.200}") from error

  def _decode_dict(self, content, path):
    return {key: self.decode(item, f"{path}[{key!r}]") for key, item in content.items()}

  def _decode_partial(self, content, path):
    function, args, kwargs = (self.decode(content[key], path) for key in ("function", "args", "kwargs"))
    return self._keep(content, functools.partial(function, *args, **kwargs))

  def _decode_variable(self, content, path):
    value = self.decode(content["value"], path)
    constraint = self.decode(content.get("constraint"), f"{path}.constraint")
    variable = tf.Variable(value, trainable=content["trainable"], name=content["name"], constraint=constraint)
    return self._keep(content, variable)

  def _decode_object(self, content, path):
    cls = _classes().get(content["class"])
    if cls is None:
      raise ValueError(f"`config` must name distributions and bijectors of TFP or `tfp_glow` only, for `{path}`. "
                       f"Received: {content['class']!r}")
    arguments = {key: self.decode(item, f"{path}.{key}") for key, item in content["arguments"].items()}
    with _dtype_policy(content.get("dtype_policy")):
      return self._keep(content, cls(**arguments))

  def _decode_keras(self, content, path):
    value = keras.saving.deserialize_keras_object(content["config"])
    if not hasattr(value, "get_config"):  # For example a function of Keras.
      raise ValueError(f"`config` must be that of a layer or another object of Keras for `{path}`. Received: {value!r}")
    return self._keep(content, value)

  def _keep(self, content, value):
    self._known[content["number"]] = value
    return value


def _is_variable(value):
  return isinstance(value, (tf.Variable, tf.distribute.DistributedValues)) and hasattr(value, "trainable")


def _is_plain(dtype):
  dtype = tf.as_dtype(dtype)
  return dtype.is_floating or dtype.is_integer or dtype.is_complex or dtype.is_bool


def _arguments(value):
  """The constructor's arguments that make an equal object with the same variables."""
  if isinstance(value, tfp.util.TransformedVariable):
    return {"initial_value": None, "bijector": value.bijector, "pretransformed_input": value.pretransformed_input,
            "name": value.name}
  if isinstance(value, tfp.util.DeferredTensor):
    return {"pretransformed_input": value.pretransformed_input, "dtype": value.dtype, "shape": value.shape,
            "name": value.name, **_compat.parts_of_deferred_tensor(value)}
  return {key: argument for key, argument in value.parameters.items() if key in _parameters(type(value))}


def _parameters(cls):
  """The parameters of a constructor that can be given by name."""
  parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
  return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _classes():
  """The only classes that objects are made of: a `dict` from their names in a file."""
  classes = {f"{prefix}.{name}": getattr(module, name)
             for prefix, (module, base) in _PUBLIC.items() for name in dir(module)
             if inspect.isclass(getattr(module, name)) and issubclass(getattr(module, name), base)}
  own = [cls for cls in _subclasses(OnePassBijector) if cls.__module__.startswith("tfp_glow.")]
  return classes | {f"tfp_glow.{cls.__name__}": cls for cls in own}


def _subclasses(cls):
  return [found for subclass in cls.__subclasses__() for found in [subclass, *_subclasses(subclass)]]


def _name_of(cls):
  """The name of a class in a file; `None` if it has none."""
  return next((name for name, public in _classes().items() if cls in (public, _compat.class_made_of(public))), None)


def _not_to_be_found(config):
  """The names of classes and functions that Keras could not find when it reads `config`."""
  if isinstance(config, dict):
    if config.get("class_name") == "__lambda__":
      yield "a lambda"
    elif "registered_name" in config:
      module = config.get("module") or ""
      name = config["config"] if config["class_name"] == "function" else config["registered_name"]
      of_keras = f"{module}.".startswith("keras.") or module == "builtins" and any(hasattr(m, name) for m in _OF_KERAS)
      found = keras.saving.get_registered_object(name)
      if not of_keras and found is None:
        yield name
      elif inspect.isclass(found) and not hasattr(found, "from_config"):
        yield f"{name}, which has no `from_config`,"
    config = list(config.values())
  if isinstance(config, (list, tuple)):
    for item in config:
      yield from _not_to_be_found(item)


def _cannot(path, value):
  return (f"`{path}` must be made of numbers, arrays, `tf.Variable`s, and distributions and bijectors of TFP or "
          "`tfp_glow`, or be registered with Keras, to be saved. Either decorate the named function, or the class with "
          '`get_config` and `from_config`, with `@keras.saving.register_keras_serializable("my_package")`; or use '
          f"`save_weights`, and `load_weights` into a model made by your own code. Received: {value!r}")


def _dtype(name):
  dtype = tf.as_dtype(name)
  if not _is_plain(dtype):
    raise TypeError(f"A dtype of numbers is needed, not {name}.")
  return dtype


def _array(content):
  flat = np.frombuffer(base64.b64decode(content["base64"]), _dtype(content["dtype"]).as_numpy_dtype)
  return flat.reshape(content["shape"]).copy()[()]  # A scalar, if it was one.


def _registered(name):
  found = keras.saving.get_registered_object(name)
  if found is None:
    raise ValueError(f"{name!r} must be registered with Keras before the file is loaded: import the module that "
                     "decorates it with `@keras.saving.register_keras_serializable`, or pass it in `custom_objects`. "
                     f"Received: a file that names {name!r}")
  return found


@contextlib.contextmanager
def _dtype_policy(name):
  """Sets Keras' global dtype policy within the context."""
  before = keras.config.dtype_policy()
  try:
    if name is not None:
      keras.config.set_dtype_policy(name)
    yield
  finally:
    keras.config.set_dtype_policy(before)

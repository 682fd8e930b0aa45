"""An optimizer's update in a graph, in fewer operations than Keras makes of it."""

import contextlib

import keras
import tensorflow as tf

from tfp_glow._core import _compat


@contextlib.contextmanager
def in_few_operations(optimizer):
  """A context in which the update of a Keras optimizer takes fewer operations.

  Keras reads the number of steps and the learning rate for each variable, and computes the same powers and roots of
  them again. In a graph these are read once. Adam and AdamW take one operation of TensorFlow for each variable, in
  place of sixteen. It computes the same, and rounds less: see `tests/test_operations.py`.

  Args:
    optimizer: Keras optimizer, built.
  """
  with _scalars_read_once(optimizer), _fused(getattr(optimizer, "inner_optimizer", optimizer)):
    yield


def _scalars_read_once(optimizer):
  if tf.executing_eagerly():
    return contextlib.nullcontext()
  inner = getattr(optimizer, "inner_optimizer", optimizer)
  # Looked up by its name, because `inner.learning_rate` would compute a schedule once more.
  rates = [variable for variable in inner.variables if variable.name == "learning_rate"]
  steps = [inner.iterations] if isinstance(inner.iterations, keras.Variable) else []  # A tensor with accumulation.
  return _ReadOnce(steps + rates)


class _ReadOnce(keras.StatelessScope):
  """In which variables are read once, until they are written; they are written at once, as without it."""

  def __init__(self, variables):
    super().__init__([(variable, tf.identity(variable.value)) for variable in variables])

  def add_update(self, update):
    variable, value = update
    self.state_mapping.pop(id(variable), None)
    self.__exit__(None, None, None)
    variable.assign(value)
    self.__enter__()


@contextlib.contextmanager
def _fused(optimizer):
  """A context in which an Adam updates each variable by TensorFlow's own operation; others are left as they are."""
  # A caller may have given this optimizer an update of its own, for example with other rates for some variables.
  has_own = not isinstance(vars(optimizer).get("update_step", None), (_FusedAdam, type(None)))
  if type(optimizer) not in (keras.optimizers.Adam, keras.optimizers.AdamW) or optimizer.amsgrad or has_own:
    yield
    return
  optimizer.update_step = _FusedAdam(optimizer)
  try:
    yield
  finally:
    vars(optimizer).pop("update_step", None)  # Another replica's thread may have been here before.


class _FusedAdam:
  """In the place of `update_step` of an Adam: the same formulas, Kingma and Ba (2015), section 2, last paragraph."""

  def __init__(self, adam):
    self._adam = adam
    self._scalars = {}

  def __call__(self, gradient, variable, learning_rate):
    moments = _compat.adam_moments(self._adam, variable)
    if moments is None:
      type(self._adam).update_step(self._adam, gradient, variable, learning_rate)
      return
    handles = {name: tensor.handle for name, tensor in zip(("var", "m", "v"), (variable, *moments))}
    tf.raw_ops.ResourceApplyAdam(**handles, **self._scalars_of(variable.dtype, learning_rate),
                                 grad=tf.cast(gradient, variable.dtype))

  def _scalars_of(self, dtype, learning_rate):
    """What all variables of a dtype have in common; a branch of a condition is a graph of its own."""
    key = tf.compat.v1.get_default_graph(), dtype
    if key not in self._scalars:
      adam = self._adam
      beta1, beta2, epsilon = (tf.constant(value, dtype) for value in (adam.beta_1, adam.beta_2, adam.epsilon))
      step = tf.cast(adam.iterations, dtype) + 1
      self._scalars[key] = {"beta1_power": beta1 ** step, "beta2_power": beta2 ** step, "beta1": beta1, "beta2": beta2,
                            "epsilon": epsilon, "lr": keras.ops.cast(learning_rate, dtype.name)}
    return self._scalars[key]

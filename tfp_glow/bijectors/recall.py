"""Recalls passes that TFP asks for in two calls, so that the second call need not compute them again.

`tfd.TransformedDistribution` draws by `forward(x)` and then calls `forward_log_det_jacobian(x)`. `tfb.Chain` walks from
the latents that its `inverse` returned back to the data, to sum log-dets there. If that way back were computed from the
latents, it would end elsewhere: far from the data, float32 rebuilds other values.

So a tensor that a pass returned knows that pass. A tensor that was given to a pass knows it as long as the returned
tensor lives. A pass is recalled only while the weights have not changed. The numbers are then those of the pass. Its
gradients are computed anew from the tensor and the weights when they are needed, so they are those of another
evaluation under any gradient tapes.
"""

import weakref

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core.gradients import custom_gradient, with_pull_back

# Attributes of tensors: the passes that returned them, and the last pass that they were given to.
_RETURNED_BY = "_tfp_glow_returned_by"
_GIVEN_TO = "_tfp_glow_given_to"


class Pass:
  """One evaluation of a bijector.

  The returned tensor keeps the pass alive, and so the given tensor, but not the other way round. So there is no cycle,
  and nothing outlives the user's own reference to the returned tensor.
  """

  def __init__(self, bijector, inverse, given, returned, log_det, kwargs):
    """Remembers the pass on its two tensors.

    Args:
      bijector: `OnePassBijector`.
      inverse: Python `bool`, the direction.
      given: Tensor.
      returned: Another tensor.
      log_det: Tensor, or `None` if it was not computed.
      kwargs: Dict of the other arguments.
    """
    self._bijector = bijector
    self._inverse = inverse
    self._given = given
    self._returned = weakref.ref(returned)
    self._log_det = log_det
    self._kwargs = {key: tf.nest.map_structure(_frozen, value) for key, value in kwargs.items()}
    self._weights = _WeightsInGraph() if tf.inside_function() else _Weights(bijector, self)
    others = (done for done in getattr(returned, _RETURNED_BY, ()) if done._bijector is not bijector)
    setattr(returned, _RETURNED_BY, (self, *others))
    setattr(given, _GIVEN_TO, weakref.ref(self))

  def log_det_that_came_with(self, bijector, kwargs):
    """The log-det, if this was a pass of the bijector's `inverse`; else `None`. It does not check the weights."""
    return self._log_det if self._inverse and self._is_by(bijector, kwargs) else None

  def again(self, bijector, inverse, kwargs):
    """Value and log-det of the same pass once more; `None` if this one does not hold for it."""
    if inverse != self._inverse or self._returned() is None or not self._holds(bijector, kwargs):
      return None
    return self._returned(), self._log_det

  def back(self, bijector, inverse, kwargs):
    """Value and log-det of a pass the other way, from what this returned; `None` if this one does not hold for it."""
    if inverse == self._inverse or self._given is None or not self._holds(bijector, kwargs):
      return None
    return self._given, -self._log_det

  def forget(self):
    """Drops the given tensor. Otherwise, in a loop of passes, each would keep all previous ones."""
    self._given = None

  def _holds(self, bijector, kwargs):
    return self._is_by(bijector, kwargs) and self._log_det is not None and self._weights.are_the_same()

  def _is_by(self, bijector, kwargs):
    return self._bijector is bijector and self._kwargs.keys() == kwargs.keys() and all(
        _are_same(frozen, kwargs[key]) for key, frozen in self._kwargs.items())


def log_det_that_came_with(tensor, bijector, kwargs):
  """The log-det of the bijector's `inverse` that returned a tensor; `None` if it did not come from there."""
  found = (done.log_det_that_came_with(bijector, kwargs) for done in getattr(tensor, _RETURNED_BY, ()))
  return next((log_det for log_det in found if log_det is not None), None)


def recall(bijector, inputs, inverse, kwargs, evaluate, way_back_only):
  """Value and log-det of a pass, from a remembered one that still holds; `None` if there is none.

  Args:
    bijector: `OnePassBijector`.
    inputs: Tensor.
    inverse: Python `bool`, the direction.
    kwargs: Dict of the other arguments.
    evaluate: Callable, from a tensor like `inputs` to value and log-det, for the gradients.
    way_back_only: Python `bool`: whether to use only passes that returned `inputs`, not those that were given it.
  """
  given_to = None if way_back_only else getattr(inputs, _GIVEN_TO, lambda: None)()
  answers = [] if given_to is None else [given_to.again(bijector, inverse, kwargs)]
  answers += [done.back(bijector, inverse, kwargs) for done in getattr(inputs, _RETURNED_BY, ())]
  answer = next((answer for answer in answers if answer is not None), None)
  if answer is None or not bijector.can_be_recalled:  # The second check is slow for large networks, and rarely needed.
    return None
  value, log_det = _with_gradients_of(evaluate, bijector, inputs, answer)
  # A composition asks next for another bijector's pass from here.
  setattr(value, _RETURNED_BY, getattr(answer[0], _RETURNED_BY, ()))
  return value, log_det


def _with_gradients_of(evaluate, bijector, inputs, answer):
  """`answer` with the gradients of `evaluate(inputs)` with the present weights."""
  variables = bijector._keras_variables()

  @custom_gradient
  def remembered(inputs, *weights):

    def run(inputs, weights):
      with keras.StatelessScope(state_mapping=list(zip(variables, weights))):
        return evaluate(inputs)

    def gradients(*d_answer):
      _, pull_back = with_pull_back(run, (tf.identity(inputs), [tf.identity(weight) for weight in weights]))
      d_inputs, d_weights = pull_back(d_answer)
      return d_inputs, *d_weights

    return tuple(map(tf.identity, answer)), gradients

  return remembered(inputs, *(tf.convert_to_tensor(v.value) for v in variables))


class _WeightsInGraph:
  """The weights at a place in a graph. They are the same at a later place if no operation in between may write."""

  def __init__(self):
    self._graph = tf.compat.v1.get_default_graph()
    self._num_operations = len(self._graph.get_operations())

  def are_the_same(self):
    return tf.inside_function() and self._graph is tf.compat.v1.get_default_graph() and not any(
        self._may_write(op) for op in self._graph.get_operations()[self._num_operations:])

  @staticmethod
  def _may_write(op):
    reads = ("ReadVariableOp", "VariableShape")
    return op.type not in reads and any(tensor.dtype == tf.resource for tensor in op.inputs)


class _Weights:
  """The weights at the time this is made. Only those of a bijector's last pass are kept, because copies take memory."""

  def __init__(self, bijector, of_pass):
    self._bijector = bijector
    self._pass = weakref.ref(of_pass)
    self._tensors = [tf.convert_to_tensor(v.value) for v in bijector._keras_variables()]
    bijector.keep_last(self)

  def forget(self):
    """Drops the weights and the pass, which is then recalled no more."""
    self._tensors = None
    if self._pass() is not None:
      self._pass().forget()

  def are_the_same(self):
    variables = self._bijector._keras_variables()
    return not tf.inside_function() and self._tensors is not None and len(self._tensors) == len(variables) and all(
        bool(tf.reduce_all(tf.equal(tensor, variable.value))) for tensor, variable in zip(self._tensors, variables))


def _frozen(value):
  """A copy of an argument, because an array, a list or a variable may be changed in place."""
  if isinstance(value, keras.Variable):
    value = value.value
  if isinstance(value, tf.Variable):
    # In a graph, writes to it are seen as operations.
    return value if tf.inside_function() else np.array(value.numpy())
  return value if value is None or tf.is_tensor(value) else np.array(value)


def _are_same(frozen, value):
  """Whether an argument, which may be a nest, is unchanged."""
  try:
    tf.nest.assert_same_structure(frozen, value)
  except (TypeError, ValueError):
    return False
  return all(map(_is_same, tf.nest.flatten(frozen), tf.nest.flatten(value)))


def _is_same(frozen, value):
  return frozen is value or (isinstance(frozen, np.ndarray) and not tf.is_tensor(_frozen(value))
                             and np.array_equal(frozen, value))

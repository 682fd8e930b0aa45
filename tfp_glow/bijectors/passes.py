"""`Pass`: one evaluation of a bijector, remembered on the tensors that it connected, for as long as it holds."""

import weakref

import numpy as np
import tensorflow as tf
from tensorflow.python import pywrap_tfe

# Where a pass is remembered: on the tensor that it returned, and on the one that it was given.
_RETURNED_BY = "_tfp_glow_returned_by"
_GIVEN_TO = "_tfp_glow_given_to"


def that_returned(tensor):
  """The `Pass` whose value `tensor` is, or `None`."""
  return getattr(tensor, _RETURNED_BY, None)


def that_was_given(tensor):
  """The last `Pass` that `tensor` was the input of, if anybody still has what it returned; else `None`."""
  return getattr(tensor, _GIVEN_TO, lambda: None)()


class Pass:
  """One evaluated pass of a bijector.

  The tensor returned keeps this alive, and with it the one given; not the other way round: no cycle, and nothing
  outlives the user's own reference to what was returned.
  """

  def __init__(self, bijector, inverse, input_, output, log_det, kwargs):
    self.bijector = bijector
    self.inverse = inverse
    self.input = input_
    self.output = weakref.ref(output)
    self.log_det = log_det
    self.kwargs = {key: _frozen(value) for key, value in kwargs.items()}
    self.state = _state(bijector)
    # Made here and now, so that just the tapes that saw this pass see it.
    self.witness = tf.identity(output)
    self.watched = self._watched()

  def remember(self):
    setattr(self.output(), _RETURNED_BY, self)
    setattr(self.input, _GIVEN_TO, weakref.ref(self))

  def is_by(self, bijector, kwargs):
    return self.bijector is bijector and self.kwargs.keys() == kwargs.keys() and all(
        _is_same(frozen, kwargs[key]) for key, frozen in self.kwargs.items())

  def still_holds(self):
    """Whether a new evaluation would give the same numbers, seen by the same gradient tapes.

    Of a log-det asked for at the output of a pass the gradients flow to what the pass was given and to the weights, not
    to that output: all that `log_prob` needs.
    """
    if not _is_state(self.state, self.bijector):
      return False
    now = self._watched()
    # With several tapes, or a persistent one, TensorFlow does not tell whether they are the same as then.
    return now == self.watched and now[0] < 2 and now[0] == _tapes_that_watch(
        [self.witness, self.log_det])

  def _watched(self):
    """How many tapes watch anything here, and how many each: the input, the output, the weights."""
    tensors = [self.input, self.output()] + [v.read_value() for v in self.bijector.trainable_variables]
    return [_tapes_that_watch(tensors)] + [_tapes_that_watch([tensor]) for tensor in tensors]


def _state(bijector):
  """A token of the weights of a bijector as they are: equal tokens, equal weights."""
  if tf.inside_function():
    graph = tf.compat.v1.get_default_graph()
    return graph, len(graph.get_operations())
  numbers = [v for v in bijector.variables if v.dtype != tf.bool]
  return b"".join(tf.fingerprint(tf.reshape(v, [1, -1])).numpy().tobytes() for v in numbers)


def _is_state(state, bijector):
  if not tf.inside_function() or isinstance(state, bytes):
    return not tf.inside_function() and state == _state(bijector)
  graph, num_operations = state
  return graph is tf.compat.v1.get_default_graph() and not any(
      _may_write(op) for op in graph.get_operations()[num_operations:])


def _may_write(op):
  reads = ("ReadVariableOp", "VariableShape")
  return op.type not in reads and any(tensor.dtype == tf.resource for tensor in op.inputs)


def _frozen(value):
  """The value of an argument as it is now: an array, a list or a variable may be changed in place."""
  if isinstance(value, tf.Variable):
    # In a graph, `_is_state` sees that it is written.
    return value if tf.inside_function() else np.array(value.numpy())
  return value if value is None or tf.is_tensor(value) else np.array(value)


def _is_same(frozen, value):
  return frozen is value or (isinstance(frozen, np.ndarray) and not tf.is_tensor(_frozen(value))
                             and np.array_equal(frozen, value))


def _tapes_that_watch(tensors):
  """0: none, 1: one that is not persistent, 2: more, or persistent."""
  return pywrap_tfe.TFE_Py_TapeSetPossibleGradientTypes(tensors)

"""Custom gradients, which graphs for evaluation can leave out, and pull-backs of functions."""

import contextlib
import functools
import threading

import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat, precision

_this_thread = threading.local()


def custom_gradient(function):
  """`tf.custom_gradient` whose gradients are computed in the precision of the value; none within `left_out`.

  Args:
    function: Callable, as for `tf.custom_gradient`.

  Returns:
    Callable.
  """

  def in_its_mode(*args):
    outputs, gradients = function(*args)
    mode = precision.mode()

    def gradients_in_its_mode(*d_outputs):
      with precision.entered(mode):
        return gradients(*d_outputs)

    return outputs, gradients_in_its_mode

  @functools.wraps(function)
  def evaluate(*args):
    if are_left_out():
      return function(*args)[0]
    if not tf.inside_function():
      return tf.custom_gradient(in_its_mode)(*args)
    outputs = tf.custom_gradient(in_its_mode)(*copied(args))
    _compat.forget_with_its_graph(tf.nest.flatten(outputs)[0].op)
    return outputs

  return evaluate


@contextlib.contextmanager
def left_out():
  """For functions traced for evaluation only: a SavedModel would otherwise hold their gradients and load slowly.

  A `tf.function` inside them that is first traced here has no gradients later either, because it is not traced again.
  So a network that is a `tf.function` must have been called before.
  """
  with _leaving_out(True):
    yield


def are_left_out():
  """Whether this thread traces for evaluation only; see `left_out`."""
  return getattr(_this_thread, "leaves_out", False)


@contextlib.contextmanager
def _leaving_out(value):
  before = are_left_out()
  _this_thread.leaves_out = value
  try:
    yield
  finally:
    _this_thread.leaves_out = before


def copied(nest):
  """Copies of the tensors in the current graph.

  A tape follows a tensor of another graph (that of a loop's forward pass, for example) at its first use only. Later
  gradients with respect to it would be zero.

  Args:
    nest: Nest of tensors.
  """
  return tf.nest.map_structure(tf.identity, nest)


def with_pull_back(function, arguments):
  """Evaluates a function, and returns a second one that pulls gradients back through it.

  Args:
    function: Callable, from `arguments` to a nest of tensors.
    arguments: Tuple of nests of tensors of the current graph; see `copied`.

  Returns:
    outputs: What the function returns.
    pull_back: Callable, from the gradients of the outputs to those of `arguments`, zero where there is none.
  """
  flat = tf.nest.flatten(arguments)
  floating = [tensor for tensor in flat if tensor.dtype.is_floating]
  with tf.GradientTape() as tape:
    tape.watch(floating)
    outputs = function(*arguments)

  def pull_back(d_outputs):
    found = iter(tape.gradient(outputs, floating, d_outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO))
    return tf.nest.pack_sequence_as(
        arguments, [next(found) if tensor.dtype.is_floating else tf.zeros_like(tensor) for tensor in flat])

  return outputs, pull_back


def linearized(function, x, weights):
  """Evaluates a function, and returns a second one that multiplies a tensor like the outputs by its Jacobian at `x`.

  Args:
    function: Callable, from a tensor and a nest of tensors to a tensor.
    x: Tensor.
    weights: Nest of tensors.

  Returns:
    outputs: What the function returns.
    pull_back: Callable; it can be called any number of times.
  """
  x = tf.identity(x)  # See `copied`.
  # These gradients are part of the value, so a SavedModel needs them, too.
  with _leaving_out(False), tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
    tape.watch(x)
    outputs = function(x, weights)
  return outputs, lambda d_outputs: tape.gradient(
      outputs, x, d_outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def only_if(predicate, function, otherwise, *inputs):
  """`function(*inputs)` if the predicate holds, otherwise `otherwise`. Gradients are computed only if it holds.

  In graphs, gradients evaluate the function again, in a branch of their own. The gradients of a `tf.cond` would keep
  their intermediate tensors in both cases, and XLA could not compile them for a branch with loops.

  Args:
    predicate: Bool scalar.
    function: Callable, from `inputs` to a floating tensor. It may read variables. Other tensors get no gradients.
    otherwise: Tensor with the shape and dtype of the function's result. It gets no gradients.
    *inputs: Floating tensors.

  Returns:
    Tensor.
  """
  if not tf.inside_function():
    return tf.cond(predicate, lambda: function(*inputs), lambda: otherwise)
  again = _Again(function, *inputs)
  pull_back = lambda d_value, *sources: again.pull_back(d_value, *sources[:len(inputs)])
  return _chosen(predicate, lambda: again(*inputs), otherwise, pull_back, [*inputs, *again.values()])


def stacked_if(predicate, function, otherwise, *inputs):
  """As `only_if`, for the stacked results of `function(0, ...)`, `function(1, ...)`, ..., one after the other.

  Gradients need the memory of one evaluation only. They are not those of a loop, whose shapes XLA does not know.

  Args:
    predicate: Bool scalar.
    function: Callable, from an int32 scalar and `inputs` to a floating tensor. It may read variables.
    otherwise: Tensor with the shape and dtype of the result; its first size is known. It gets no gradients.
    *inputs: Floating tensors.

  Returns:
    Tensor.
  """
  count = otherwise.shape[0]
  numbers = tf.range(count)
  if not tf.inside_function():
    return tf.cond(predicate, lambda: tf.stack([function(number, *inputs) for number in numbers]), lambda: otherwise)
  again = _Again(function, numbers[0], *inputs)

  def pull_back(d_value, *sources):

    def add(number, *totals):
      found = again.pull_back(d_value[number], number, *sources[:len(inputs)])[1:]
      return number + 1, *(total + _shaped_like(total, gradient) for total, gradient in zip(totals, found))

    start = [0, *map(tf.zeros_like, sources)]
    return tf.while_loop(lambda number, *_: number < count, add, start, parallel_iterations=1)[1:]

  value = lambda: tf.map_fn(lambda number: again(number, *inputs), numbers, fn_output_signature=otherwise.dtype,
                            parallel_iterations=1)
  return _chosen(predicate, value, otherwise, pull_back, [*inputs, *again.values()])


def _chosen(predicate, value, otherwise, pull_back, sources):
  """The result of `only_if`, from a function without arguments, and one from its gradient to those of the sources."""

  @custom_gradient
  def with_gradients(value, *sources):

    def gradients(d_value):
      found = tf.cond(predicate, lambda: pull_back(d_value, *sources), lambda: [tf.zeros_like(s) for s in sources])
      return tf.zeros_like(value), *(_shaped_like(source, gradient) for source, gradient in zip(sources, found))

    return tf.identity(value), gradients

  return with_gradients(tf.stop_gradient(tf.cond(predicate, value, lambda: otherwise)), *sources)


class _Again:
  """A function of tensors in a graph, with a pull-back that evaluates the function again."""

  def __init__(self, function, *inputs):
    self._traced = tf.function(function, autograph=False).get_concrete_function(*inputs)
    self._variables = list(self._traced.trainable_variables)

  def __call__(self, *inputs):
    return self._traced(*inputs)

  def values(self):
    """The values of the variables that the function reads."""
    return [tf.convert_to_tensor(variable) for variable in self._variables]

  def pull_back(self, d_value, *inputs):
    """The gradients with respect to the inputs (zero for integers), then those with respect to the variables."""
    inputs = copied(inputs)
    with tf.GradientTape() as tape:
      tape.watch([tensor for tensor in inputs if tensor.dtype.is_floating])
      value = self._traced(*inputs)
    found = tape.gradient(value, [*inputs, *self._variables], d_value,
                          unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(gradient) for gradient in found]


def _shaped_like(tensor, gradient):
  """Sets the static shape of a tensor's gradient, which may be unknown."""
  gradient.set_shape(tensor.shape)
  return gradient


def not_differentiable(value, *arguments):
  """`value`, with NaN as its gradient with respect to `arguments`, so that nobody takes it for zero."""

  @custom_gradient
  def hide(value, *arguments):

    def gradients(d_value):
      poison = tf.where(tf.reduce_any(tf.not_equal(d_value, 0.)), tf.constant(np.nan, d_value.dtype), 0.)
      return tf.zeros_like(d_value), *(tf.fill(tf.shape(a), tf.cast(poison, a.dtype)) for a in arguments)

    return tf.identity(value), gradients

  return hide(tf.stop_gradient(value), *(a for a in arguments if a.dtype.is_floating))

"""`Scan`: many steps of a flow as one traced step over stacked parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat, gradients
from tfp_glow._core.validation import check_choice, check_counts
from tfp_glow.bijectors import ownership
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.step import step_of

_GRADIENTS = ("autodiff", "reversible")


class Scan(OnePassBijector):
  """`K` steps that differ only in their parameters.

  Each parameter of a step is held once, with shape `[K, ...]`, and one step is traced, in a loop. So the size of the
  graph, the start-up time and the number of variables do not depend on `K`.

  `inverse` (data to latent) runs the steps in order, `forward` in reverse.

  What is frozen in the `template` is frozen in all steps. To freeze one step alone, make it a separate bijector in a
  `Chain`, with a `Scan` of the others.

  References:
    `flowjax.bijections.Scan` (https://github.com/danielward27/flowjax).
  """

  _passes_arguments_on = True

  def __init__(self, make_step: Callable[[int], OnePassBijector], num_steps: int,
               event_shape: Sequence[int] | tf.TensorShape, gradient: str = "autodiff",
               redraw: Callable[[OnePassBijector], list[np.ndarray]] | None = None, dtype: tf.DType | str | None = None,
               validate_args: bool = False, name: str = "scan"):
    """Creates the steps and stacks their parameters.

    Args:
      make_step: Callable, from the index of a step (a Python `int`) to a `OnePassBijector` that keeps the event's
        shape. Steps may differ only in the values of their parameters.
      num_steps: Python `int`, `K`, at least 1.
      event_shape: Static shape of one event, e.g. `[H, W, C]`.
      gradient: `"autodiff"`: backpropagation through the steps, which keeps the activations of all of them.
        `"reversible"`: the activations of each step are computed again from its output, so that their memory does not
        depend on `K`. This costs one more evaluation of a coupling's network (a third more time); two more if the step
        contains layers from outside of this package.
      redraw: Callable, from the first step to the initial values of the next one, in the order of its variables. It is
        called instead of `make_step` for all other steps, because drawing values is quicker than building layers.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if an argument is not as above, the steps differ in more than values, or a network in them holds state
        that a call changes (BatchNormalization, Dropout).
    """
    parameters = dict(locals())
    check_counts(num_steps=num_steps)
    check_choice("gradient", gradient, _GRADIENTS)
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self._num_steps = int(num_steps)
    self._gradient = gradient
    make = lambda k: _make(make_step, k, self._event_shapes[True], self.dtype)
    # The first step is the template. It runs with slices of the stacks instead of its own variables, which are not
    # parameters of anything. `tf.Module` and checkpoints must not see them, and do not look into a `Step`.
    self._step = step_of(make(0))
    self._template_variables = _compat.untracked(self, self.template._keras_variables())
    draw = lambda k: redraw(self.template) if redraw else _values_of(make(k), k, self.template)
    arrays = [np.repeat(variable.numpy()[np.newaxis], num_steps, axis=0) for variable in self._template_variables]
    for k in range(1, num_steps):
      for array, value in zip(arrays, draw(k)):
        array[k] = value
    self._stacks = _compat.untracked(self, [
        self._add_variable(variable.path.replace("/", "_"), array, _compat.was_made_trainable(variable.value),
                           variable.aggregation)
        for variable, array in zip(self._template_variables, arrays)])
    sources = {id(owned.variable): owned.source for owned in self.template._owned()}
    self._sources = _compat.untracked(self, [sources[id(variable)] for variable in self._template_variables])
    self._follow_template()
    ownership.on_trainable_changed(self.template, self._follow_template)

  def stacked(self, variable: keras.Variable) -> keras.Variable:
    """The stacked parameter `[K, ...]` of all steps for a variable of the template.

    Args:
      variable: `keras.Variable` of `template`.

    Returns:
      `keras.Variable` `[K, ...]`.

    Raises:
      ValueError: if it is not a variable of the template.
    """
    for own, stack in zip(self._template_variables, self._stacks):
      if own is variable:
        return stack
    raise ValueError(f"`variable` must be a `keras.Variable` of the `template` of `{self.name}`. "
                     f"Received: {variable!r}")

  @property
  def template(self) -> OnePassBijector:
    """The step that is traced. The values of its own variables are not used; see `stacked`.

    What is frozen in it (see `trainable`) is frozen in all steps.
    """
    return self._step.bijector

  def _set_trainable(self, value):
    super()._set_trainable(value)
    self.template._set_trainable(value)

  def _own(self):
    return [ownership.Owned(*owned) for owned in zip(self._sources, self._stacks, self._own_variables)]

  def _follow_template(self):
    ownership.sync_trainable(self)

  @property
  def num_steps(self) -> int:
    """Number of steps, `K`."""
    return self._num_steps

  @property
  def is_stochastic(self) -> bool:
    return self.template.is_stochastic

  @property
  def has_costly_log_det(self) -> bool:
    return self.template.has_costly_log_det

  @property
  def argument_names(self) -> frozenset[str]:
    return self.template.argument_names

  @property
  def num_classes(self) -> int | None:
    return self.template.num_classes

  @property
  def context_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    return self.template.context_shape

  def _depends_on_variables_only(self):
    return self.template.can_be_recalled

  @property
  def log_det_estimator(self) -> str | None:
    return self.template.log_det_estimator

  def _forward_and_log_det(self, x, **kwargs):
    return self._run(x, False, kwargs)

  def _inverse_and_log_det(self, y, **kwargs):
    return self._run(y, True, kwargs)

  def _run(self, inputs, inverse, kwargs):
    values = {id(variable): tf.convert_to_tensor(self.stacked(variable).value) for variable in self._template_variables}
    arguments = (lambda variable: values[id(variable)]), inputs.shape[1:], inverse
    weights, constants = self._step.prepare(*arguments)
    stacks = weights, [values[id(variable)] for variable in self._step.variables]
    entered = self._step.enter(inputs)
    if self._gradient == "reversible":
      prepare_back = lambda: self._step.prepare_back(*arguments)
      outputs, log_det = self._apply_steps_reversibly(entered, stacks, prepare_back, inverse, kwargs)
    elif gradients.are_left_out():
      outputs, log_det = self._apply_steps(entered, stacks, inverse, kwargs)
    elif self._step.has_pull_back and tf.inside_function():
      outputs, log_det = self._apply_steps_and_keep(entered, stacks, inverse, kwargs)
    else:
      outputs, log_det = self._apply_steps(entered, stacks, inverse, kwargs, self._reader_with_gradients(stacks))
    # A constant that is the same for all steps is not stacked.
    constant = tf.reduce_sum(tf.broadcast_to(constants, [self._num_steps]))
    return self._step.leave(outputs), log_det + constant

  def _apply_steps(self, inputs, stacks, inverse, kwargs, read=None):
    """All steps, with weights and variables `stacks`; returns values and the value-dependent log-dets, `[N]`."""

    def step(slices, value, log_det):
      weights, variables = slices
      with self._scope(variables):
        value, step_log_det = self._step.apply(value, weights, inverse, **kwargs)
      return (value, log_det + step_log_det), []

    return self._repeat(step, (inputs, _no_log_det(inputs)), stacks, [], inverse, read)[0]

  def _apply_steps_and_keep(self, inputs, stacks, inverse, context):
    """`_apply_steps` with the steps' own gradients, which take fewer operations than TensorFlow's.

    Only for graphs: there TensorFlow drops the activations if nobody asks for gradients.
    """

    @gradients.custom_gradient
    def run(*flat):
      inputs_again, stacks_again, context_again = tf.nest.pack_sequence_as((inputs, stacks, context), flat)

      def step(slices, value, log_det):
        next_value, step_log_det, activations = self._step.apply_and_keep(value, slices[0], inverse, **context_again)
        return (next_value, log_det + step_log_det), [value, *activations]

      like = [inputs_again, *self._step.activations_like(inputs_again, _row_specs(stacks_again[0]))]
      (outputs, log_det), kept = self._repeat(
          step, (inputs_again, _no_log_det(inputs_again)), stacks_again, like, inverse)

      def pull_back(d_outputs, d_log_det):

        def step_back(slices, d_outputs, d_context):
          ((weights, _), (value, *activations)) = slices
          d_value, d_weights, d_step_context = self._step.pull_back(
              value, activations, weights, d_outputs, d_log_det, inverse, **context_again)
          return (d_value, _added(d_context, d_step_context)), tf.nest.flatten(d_weights)

        like = tf.nest.flatten(_row_specs(stacks_again))
        (d_inputs, d_context), d_stacks = self._repeat(
            step_back, (d_outputs, _zeros_like(context_again)), (stacks_again, kept), like, not inverse)
        return d_inputs, *map(_stacked, d_stacks), *d_context

      return (outputs, log_det), pull_back

    return run(*tf.nest.flatten((inputs, stacks, context)))

  def _apply_steps_reversibly(self, inputs, stacks, prepare_back, inverse, kwargs):
    """`_apply_steps`, keeping only its outputs for the gradients."""
    context = {key: kwargs[key] for key in ("context",) if key in kwargs}

    @gradients.custom_gradient
    def run(*flat):
      inputs_again, stacks_again, context_again = tf.nest.pack_sequence_as((inputs, stacks, context), flat)
      outputs, log_det = self._apply_steps(inputs_again, stacks_again, inverse, kwargs | context_again)

      def pull_back(d_outputs, d_log_det):
        return self._rebuild_steps(outputs, stacks_again, prepare_back(), d_outputs, d_log_det, inverse,
                                   kwargs | context_again, _zeros_like(context_again))

      return (outputs, log_det), pull_back

    return run(*tf.nest.flatten((inputs, stacks, context)))

  def _rebuild_steps(self, outputs, stacks, weights_back, d_outputs, d_log_det, inverse, kwargs, d_context):
    """The gradients of `_apply_steps` with respect to its inputs, to each of `stacks`, and to the context.

    `d_context` is the gradient with respect to the context to start from.
    """

    def step(slices, outputs, d_outputs, d_context):
      (weights, variables), weights_back = slices
      with self._scope(variables):
        inputs, d_inputs, d_weights, d_variables, d_step_context = self._step.rebuild(
            outputs, weights, weights_back, variables, d_outputs, d_log_det, inverse, **kwargs)
      return (inputs, d_inputs, _added(d_context, d_step_context)), tf.nest.flatten((d_weights, d_variables))

    like = tf.nest.flatten(_row_specs(stacks))
    (_, d_inputs, d_context), d_stacks = self._repeat(
        step, (outputs, d_outputs, d_context), (stacks, weights_back), like, not inverse)
    return d_inputs, *map(_stacked, d_stacks), *d_context

  def noise_seeds(self) -> list[keras.Variable]:
    return [self.stacked(variable) for variable in self.template.noise_seeds()]

  def _variables_of_update(self):
    return [self.stacked(variable) for variable in self.template._variables_of_update()]

  def _update(self):
    variables = self._variables_of_update()
    if not variables:
      return []

    def step(values):
      with keras.StatelessScope(state_mapping=list(zip(self._template_variables, values))):
        return (), self.template._update()

    stacks = [tf.convert_to_tensor(stack.value) for stack in self._stacks]
    like = [tf.TensorSpec(variable.shape[1:], variable.dtype) for variable in variables]
    return list(map(_stacked, self._repeat(step, (), stacks, like, True)[1]))

  def _scope(self, variables):
    """A context in which the template's variables have these values."""
    return keras.StatelessScope(state_mapping=list(zip(self._step.variables, variables)))

  def _repeat(self, step, state, stacks, results_like, first_to_last, read=None):
    """Runs a function on slice after slice of `stacks`.

    Args:
      step: Callable, from slices and state to the next state and a list of results.
      state: Tuple of tensors.
      stacks: Nest of tensors `[K, ...]`, or of results of another `_repeat`.
      results_like: List of tensors or `tf.TensorSpec`s with the dtypes and static shapes of the results.
      first_to_last: Python `bool`; `False`: it starts at the last slice.
      read: Callable, from an index to the slices; `None`: slicing, whose gradient in TensorFlow is slow.

    Returns:
      state: What the last call returned.
      results: List of the results of all calls, for `_stacked` or for the `stacks` of another `_repeat`.
    """
    read = read or (lambda k: _rows(stacks, k))
    if self._num_steps == 1:  # No loop: TensorFlow takes long to trace gradients of loops.
      state, results = step(read(0), *state)
      return state, [result[tf.newaxis] for result in results]
    first, change = (0, 1) if first_to_last else (self._num_steps - 1, -1)

    def body(k, state, arrays):
      state, results = step(read(k), *state)
      return k + change, state, [array.write(k, result) for array, result in zip(arrays, results)]

    arrays = [tf.TensorArray(like.dtype, self._num_steps, element_shape=like.shape) for like in results_like]
    state_shapes = tf.nest.map_structure(lambda t: t.shape, state)
    invariants = (tf.TensorShape([]), state_shapes, [tf.TensorShape(None)] * len(arrays))
    # Only the number of steps ends the loop: XLA needs that number, and any other condition takes more operations.
    _, state, arrays = tf.while_loop(lambda *_: tf.constant(True), body, (first, state, arrays),
                                     maximum_iterations=self._num_steps, shape_invariants=invariants)
    return state, arrays

  def _reader_with_gradients(self, stacks):
    """A function from an index to the slices, for a loop that TensorFlow differentiates.

    The gradient of slicing, `stack[k]`, would be a sum of K tensors of the size of the stack.
    """
    if self._num_steps == 1:
      return None
    arrays = tf.nest.map_structure(
        lambda t: tf.TensorArray(t.dtype, self._num_steps, element_shape=t.shape[1:]).unstack(t), stacks)
    return lambda k: tf.nest.map_structure(lambda array: array.read(k), arrays)

  def _walk(self, y, **kwargs):
    for k, values in enumerate(self._rows()):
      with keras.StatelessScope(state_mapping=list(zip(self._template_variables, values))):
        for name, y, log_det in self.template._walk(y, **kwargs):
          yield f"{self.name}, step of flow {k}, {name}", y, log_det

  def _rows(self):
    """The values of the variables of each step."""
    return zip(*(tf.unstack(stack.value) for stack in self._stacks))

  def _initialize(self, y, **condition):
    initialize = functools.partial(self.template._initialize, **condition)
    return self._initialize_steps(y, initialize, first_to_last=True)

  def _initialize_back(self, x, **condition):
    initialize = functools.partial(self.template._initialize_back, **condition)
    return self._initialize_steps(x, initialize, first_to_last=False)

  def _initialize_steps(self, values, initialize, first_to_last):
    """Initialises step after step: each is loaded into the template, and read from it afterwards."""

    def initialize_step(values, row):
      for variable, value in zip(self._template_variables, row):
        variable.assign(value)
      values = initialize(values)
      return values, [tf.convert_to_tensor(variable.value) for variable in self._template_variables]

    # Traced once, because running all operations of all steps one by one would take longer. A concrete function,
    # because TensorFlow would warn about a `tf.function` that each flow traces again.
    function, rows, order = None, [], slice(None, None, 1 if first_to_last else -1)
    for row in list(self._rows())[order]:
      function = function or tf.function(initialize_step, autograph=False).get_concrete_function(values, list(row))
      values, row = function(values, list(row))
      rows.append(row)
    for stack, *column in zip(self._stacks, *rows[order]):
      stack.assign(tf.stack(column))
    return values


def _rows(stacks, k):
  """`stack[k]` for a nest of stacks (tensors or arrays), in fewer operations."""
  begin, end, stride = tf.reshape(k, [1]), tf.reshape(k + 1, [1]), tf.ones([1], tf.int32)
  row = lambda stack: stack.read(k) if isinstance(stack, tf.TensorArray) else tf.strided_slice(
      stack, begin, end, stride, shrink_axis_mask=1)
  return tf.nest.map_structure(row, stacks)


def _row_specs(stacks):
  return tf.nest.map_structure(lambda stack: tf.TensorSpec(stack.shape[1:], stack.dtype), stacks)


def _stacked(results):
  return results.stack() if isinstance(results, tf.TensorArray) else results


def _zeros_like(context):
  """A list of zeros like the tensors of a nest."""
  return [tf.zeros_like(tensor) for tensor in tf.nest.flatten(context)]


def _added(total, found):
  """Adds a nest of tensors (`None` if there are none) to a list of as many tensors."""
  return [a + b for a, b in zip(total, [] if found is None else tf.nest.flatten(found), strict=True)]


def _no_log_det(values):
  """Zeros, one for each event."""
  return tf.zeros(tf.shape(values)[:1], values.dtype)


def _make(make_step, k, event_shape, dtype):
  step = make_step(k)
  if not isinstance(step, OnePassBijector):
    raise ValueError(f"`make_step` must return a `OnePassBijector`. Received: {step!r}")
  if step.dtype != dtype:
    raise ValueError(f"`make_step` must return steps of the dtype of the `Scan`, {dtype}. Received: {step.dtype}")
  if step.inverse_event_shape(event_shape) != event_shape:
    raise ValueError(f"`make_step` must return steps that keep the event shape {event_shape}. "
                     f"Received: one that makes it {step.inverse_event_shape(event_shape)}")
  if hasattr(step, "build"):
    step.build(event_shape)
  return step


def _values_of(step, k, first):
  """The values of the variables of step `k`; raises `ValueError` if it differs from the first in anything else."""
  variables = lambda step: [(v.shape, v.dtype, v.trainable) for v in step._keras_variables()]
  describe = lambda step: f"{type(step).__name__} with {variables(step)}"
  if describe(step) != describe(first):
    raise ValueError("`make_step` must return steps that differ only in the values of their parameters. "
                     f"Received: step 0 is {describe(first)}, step {k} is {describe(step)}")
  return [v.numpy() for v in step._keras_variables()]

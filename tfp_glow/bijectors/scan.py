"""`Scan`: many steps of a flow as one traced step over stacked parameters."""

import numbers

import keras
import tensorflow as tf

from tfp_glow.bijectors.one_pass import OnePassBijector

_GRADIENTS = ("autodiff",)


class Scan(OnePassBijector):
  """`K` steps that differ in nothing but their parameters.

  Each parameter of a step is held once, with shape `[K, ...]`, and one step is traced, in a loop: the size of the graph,
  the time to start and the number of variables do not depend on `K`.

  `inverse` (data to latent) runs the steps in order, `forward` in reverse.

  References:
    `flowjax.bijections.Scan` (https://github.com/danielward27/flowjax).
  """

  def __init__(self, make_step, num_steps, event_shape, gradient="autodiff", dtype=None, validate_args=False,
               name="scan"):
    """Creates the steps and stacks their parameters.

    Args:
      make_step: Callable, from the index of a step (a Python `int`) to a `OnePassBijector` that keeps the event's shape.
        All steps must be alike but for the values of their parameters.
      num_steps: Python `int`, `K`, at least 1.
      event_shape: Static shape of one event, e.g. `[H, W, C]`.
      gradient: `"autodiff"`: backpropagation through the loop, which keeps the activations of every step.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if an argument is not as above, the steps are not alike, or a network in them holds state that a call
        changes (BatchNormalization, Dropout).
    """
    parameters = dict(locals())
    if isinstance(num_steps, bool) or not isinstance(num_steps, numbers.Integral) or num_steps < 1:
      raise ValueError(f"`num_steps` must be a positive `int`. Received: {num_steps!r}")
    if gradient not in _GRADIENTS:
      raise ValueError(f"`gradient` must be one of {_GRADIENTS}. Received: {gradient!r}")
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self._num_steps = int(num_steps)
    steps = [_make(make_step, k, self._event_shapes[True], self.dtype) for k in range(num_steps)]
    # The first step serves as the template: run with slices of the stacks in place of its own variables, which are
    # nobody's parameters. Neither `tf.Module` nor a checkpoint may see them.
    self._template = self._no_dependency(steps[0])
    self._template_variables = self._no_dependency(steps[0]._keras_variables())
    self._stacks = self._no_dependency(
        [self._add_variable(alike[0].path.replace("/", "_"), tf.stack([v.value for v in alike]), alike[0].trainable)
         for alike in zip(*_alike(steps))])

  _TF_MODULE_IGNORED_PROPERTIES = OnePassBijector._TF_MODULE_IGNORED_PROPERTIES.union(("_template",))

  def stacked(self, variable):
    """The parameter `[K, ...]` of all steps that stands in for a variable of the template step.

    Args:
      variable: `keras.Variable` of `template`.
    """
    return next(stack for own, stack in zip(self._template_variables, self._stacks) if own is variable)

  @property
  def template(self):
    """The step that is traced. The values of its own variables mean nothing; see `stacked`."""
    return self._template

  @property
  def num_steps(self):
    """Number of steps, `K`."""
    return self._num_steps

  def _forward_and_log_det(self, x):
    return self._run(x, inverse=False)

  def _inverse_and_log_det(self, y):
    return self._run(y, inverse=True)

  def _run(self, inputs, inverse):
    weights, constants = self._template._prepare(
        lambda variable: self.stacked(variable).value, inputs.shape[1:], inverse)
    in_loop = self._template._variables_of_apply()
    sliced = tf.nest.flatten(weights) + [self.stacked(variable).value for variable in in_loop]
    outputs, log_det = self._loop(inputs, sliced, weights, in_loop, inverse)
    # Exact where the constant is the same for all steps and so not stacked.
    constant = tf.reduce_sum(tf.broadcast_to(constants, [self._num_steps]))
    return outputs, log_det + constant

  def _loop(self, inputs, sliced, weights, in_loop, inverse):
    """Runs the steps with parameters `sliced`, tensors `[K, ...]`."""
    # Read from arrays: the gradient of `stacked[k]` would be a sum of K tensors of the size of the stack.
    arrays = [tf.TensorArray(t.dtype, self._num_steps, element_shape=t.shape[1:]).unstack(t) for t in sliced]
    num_weights = len(tf.nest.flatten(weights))

    def step(k, value, log_det):
      index = k if inverse else self._num_steps - 1 - k
      slices = [array.read(index) for array in arrays]
      with keras.StatelessScope(state_mapping=list(zip(in_loop, slices[num_weights:]))):
        value, step_log_det = self._template._apply(
            value, tf.nest.pack_sequence_as(weights, slices[:num_weights]), inverse)
      return k + 1, value, log_det + step_log_det

    log_det = tf.zeros(tf.shape(inputs)[:1], inputs.dtype)
    _, outputs, log_det = tf.while_loop(
        lambda k, *_: k < self._num_steps, step, (0, inputs, log_det), maximum_iterations=self._num_steps,
        shape_invariants=(tf.TensorShape([]), inputs.shape, inputs.shape[:1]))
    return outputs, log_det

  def _initialize(self, y):
    """Step after step, with the template as the workbench."""
    columns = {id(variable): [] for variable in self._template_variables}
    for k in range(self._num_steps):
      for variable in self._template_variables:
        variable.assign(self.stacked(variable).value[k])
      y = self._template._initialize(y)
      for variable in self._template_variables:
        columns[id(variable)].append(tf.convert_to_tensor(variable.value))
    for variable in self._template_variables:
      self.stacked(variable).assign(tf.stack(columns[id(variable)]))
    return y


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


def _alike(steps):
  """The variables of each step, if they differ in nothing but their values."""
  variables = [step._keras_variables() for step in steps]
  first, *others = [[(tuple(v.shape), v.dtype, v.trainable) for v in of_step] for of_step in variables]
  for k, other in enumerate(others, 1):
    if type(steps[k]) is not type(steps[0]) or other != first:
      raise ValueError("`make_step` must return steps that differ in nothing but the values of their parameters. "
                       f"Received: step 0 is {type(steps[0]).__name__} with {first}, step {k} is "
                       f"{type(steps[k]).__name__} with {other}")
  return variables

"""`Step`: a bijector as `Scan` runs it, with its pass split into work done once and work done in each step."""

import tensorflow as tf

from tfp_glow._core.gradients import with_pull_back


class Step:
  """A pass in parts: `prepare` for all steps at once, `enter` once, `apply` for each step, `leave` once.

  This class does everything in `apply`, and is right for any `OnePassBijector`. A bijector with a faster way has a
  method `as_step` that returns a subclass. A subclass may have its own gradients: `apply_and_keep` then returns the
  activations that `pull_back` needs.
  """

  def __init__(self, bijector):
    """Creates the step.

    Args:
      bijector: `OnePassBijector`.
    """
    self._bijector = bijector

  @property
  def bijector(self):
    """The `OnePassBijector`."""
    return self._bijector

  @property
  def variables(self):
    """The `keras.Variable`s that `apply` reads itself, in addition to its `weights`."""
    return self._bijector._keras_variables()

  @property
  def has_pull_back(self):
    """Whether `apply_and_keep`, `activations_like` and `pull_back` are implemented."""
    return False

  def prepare(self, value, event_shape, inverse):
    """Computes what depends only on the parameters, for all steps at once.

    Args:
      value: Callable, from a `keras.Variable` of the bijector to its value, or to the stacked values of many bijectors.
        All results then have the same first dimension.
      event_shape: Static shape of one event.
      inverse: Python `bool`, the direction.

    Returns:
      weights: Nest of floating tensors, for `apply`.
      log_det: The part of the direction's log-det that does not depend on the input.
    """
    del value, event_shape, inverse
    return (), tf.zeros([], self._bijector.dtype)

  def prepare_back(self, value, event_shape, inverse):
    """What `rebuild` needs for this direction in addition to the weights of `apply`; arguments as in `prepare`."""
    return self.prepare(value, event_shape, not inverse)[0]

  def enter(self, values):
    """Converts values to the form that `apply` takes and returns."""
    return values

  def leave(self, values):
    """The inverse of `enter`."""
    return values

  def apply(self, inputs, weights, inverse, **kwargs):
    """The work that `prepare` did not do: returns the value and the part of the log-det that depends on the input."""
    del weights
    bijector = self._bijector
    return (bijector._inverse_and_log_det if inverse else bijector._forward_and_log_det)(inputs, **kwargs)

  def rebuild(self, outputs, weights, weights_back, variables, d_outputs, d_log_det, inverse, **kwargs):
    """Gradients of `apply`, with its inputs computed from its outputs.

    Args:
      outputs: The outputs of `apply`.
      weights: As given to `apply`.
      weights_back: From `prepare_back`.
      variables: List of the values of the step's `variables`, which `apply` reads.
      d_outputs: Gradient with respect to `outputs`.
      d_log_det: Gradient with respect to the log-det that `apply` returned, `[N]`.
      inverse: The direction of `apply`.
      **kwargs: The other arguments of `apply`.

    Returns:
      inputs: The inputs of `apply`.
      d_inputs: The gradient with respect to them.
      d_weights: Nest like `weights`.
      d_variables: List like `variables`.
      d_context: Nest like the argument `context`; `None` if there is none.
    """
    inputs, _ = self.apply(outputs, weights_back, not inverse, **kwargs)
    condition = {key: kwargs.pop(key) for key in ("context",) if key in kwargs}

    def apply(inputs, weights, variables, condition):
      del variables  # `apply` reads them itself.
      again, log_det = self.apply(inputs, weights, inverse, **condition, **kwargs)
      return again, tf.broadcast_to(log_det, tf.shape(d_log_det))

    _, pull_back = with_pull_back(apply, (inputs, weights, variables, condition))
    *gradients, d_condition = pull_back((d_outputs, d_log_det))
    return inputs, *gradients, d_condition.get("context")

  def activations_like(self, inputs, weights):
    """`tf.TensorSpec`s of the activations that `apply_and_keep` returns for arguments like these."""
    raise NotImplementedError

  def apply_and_keep(self, inputs, weights, inverse, context=None):
    """The results of `apply`, and a list of activations for `pull_back`."""
    raise NotImplementedError

  def pull_back(self, inputs, activations, weights, d_outputs, d_log_det, inverse, context=None):
    """Gradients of `apply_and_keep`.

    Args:
      inputs: As given to `apply_and_keep`.
      activations: As `apply_and_keep` returned them.
      weights: As given to `apply_and_keep`.
      d_outputs: Gradient with respect to its outputs.
      d_log_det: Gradient with respect to its log-det, `[N]`.
      inverse: As given to `apply_and_keep`.
      context: As given to `apply_and_keep`.

    Returns:
      d_inputs: The gradient with respect to `inputs`.
      d_weights: Nest like `weights`.
      d_context: Tensor like `context`; `None` if there is none.
    """
    raise NotImplementedError

  def run(self, inputs, inverse, context):
    """Runs all parts of a single step; returns value and log-det of its bijector."""
    weights, constant = self.prepare(lambda v: tf.convert_to_tensor(v.value), inputs.shape[1:], inverse)
    outputs, log_det = self.apply(self.enter(inputs), weights, inverse, context=context)
    return self.leave(outputs), log_det + constant


def step_of(bijector):
  """The `Step` of a `OnePassBijector`."""
  return bijector.as_step() if hasattr(bijector, "as_step") else Step(bijector)

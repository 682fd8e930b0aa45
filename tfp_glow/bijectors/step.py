"""`Step`: a bijector as `Scan` runs it, its pass taken apart into what is done once and what is done in each step."""

import tensorflow as tf

from tfp_glow._core.gradients import with_pull_back


class Step:
  """A pass in parts: `prepare` for all steps at once, `enter` once, `apply` of each, `leave` once.

  This one does all in `apply`, and is right for any `OnePassBijector`; those for which there is more to gain have an
  `as_step` that returns another. Such a one may have gradients of its own: `apply_and_keep` then returns the
  activations that its `pull_back` needs.
  """

  def __init__(self, bijector):
    """Takes a bijector apart.

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
    """The `keras.Variable`s that `apply` reads by itself."""
    return self._bijector._keras_variables()

  @property
  def has_pull_back(self):
    """Whether there are `apply_and_keep`, `activations_like` and `pull_back`."""
    return False

  def prepare(self, value, event_shape, inverse):
    """What depends on the parameters alone, and so need not be computed step by step.

    Args:
      value: Callable, from a `keras.Variable` of the bijector to its value; or to those of many alike, stacked along a
        first dimension, which all that is returned then has, too.
      event_shape: Static shape of one event.
      inverse: Python `bool`: for which direction.

    Returns:
      weights: Nest of floating tensors, handed to `apply`.
      log_det: The part of the direction's log-det that does not depend on the input.
    """
    del value, event_shape, inverse
    return (), tf.zeros([], self._bijector.dtype)

  def prepare_back(self, value, event_shape, inverse):
    """What `rebuild` of this direction needs besides the weights of `apply`; arguments as in `prepare`."""
    return self.prepare(value, event_shape, not inverse)[0]

  def enter(self, values):
    """Values in the form in which `apply` takes and returns them."""
    return values

  def leave(self, values):
    """The inverse of `enter`."""
    return values

  def apply(self, inputs, weights, inverse, **kwargs):
    """The rest of the work of `prepare`: returns value and the part of the log-det that depends on the input."""
    del weights
    bijector = self._bijector
    return (bijector._inverse_and_log_det if inverse else bijector._forward_and_log_det)(inputs, **kwargs)

  def rebuild(self, outputs, weights, weights_back, variables, d_outputs, d_log_det, inverse, **kwargs):
    """Gradients of `apply` without its inputs, which are computed from its outputs.

    Args:
      outputs: What `apply` returned.
      weights: What it was given.
      weights_back: From `prepare_back`.
      variables: List of the values of `variables`, which a call of `apply` reads as well.
      d_outputs: Gradient with respect to `outputs`.
      d_log_det: Gradient with respect to the log-det that `apply` returned, `[N]`.
      inverse: The direction of `apply`.
      **kwargs: What else it was given.

    Returns:
      inputs: What `apply` was given.
      d_inputs: The gradient with respect to it.
      d_weights: Nest as `weights`.
      d_variables: List as `variables`.
      d_context: Nest as the argument `context`, `None` if there is none.
    """
    inputs, _ = self.apply(outputs, weights_back, not inverse, **kwargs)
    condition = {key: kwargs.pop(key) for key in ("context",) if key in kwargs}

    def apply(inputs, weights, variables, condition):
      del variables  # They are read by `apply` itself.
      again, log_det = self.apply(inputs, weights, inverse, **condition, **kwargs)
      return again, tf.broadcast_to(log_det, tf.shape(d_log_det))

    _, pull_back = with_pull_back(apply, (inputs, weights, variables, condition))
    *gradients, d_condition = pull_back((d_outputs, d_log_det))
    return inputs, *gradients, d_condition.get("context")

  def activations_like(self, inputs, weights):
    """`tf.TensorSpec`s of the activations that `apply_and_keep` returns, from what is like its arguments."""
    raise NotImplementedError

  def apply_and_keep(self, inputs, weights, inverse, context=None):
    """What `apply` returns, and a list of tensors for `pull_back`."""
    raise NotImplementedError

  def pull_back(self, inputs, activations, weights, d_outputs, d_log_det, inverse, context=None):
    """Gradients of `apply_and_keep`.

    Args:
      inputs: What it was given.
      activations: What it returned last.
      weights: What it was given.
      d_outputs: Gradient with respect to its outputs.
      d_log_det: Gradient with respect to its log-det, `[N]`.
      inverse: What it was given.
      context: What it was given.

    Returns:
      d_inputs: The gradient with respect to `inputs`.
      d_weights: Nest as `weights`.
      d_context: Tensor like `context`, `None` if there is none.
    """
    raise NotImplementedError

  def run(self, inputs, inverse, context):
    """All parts, of one step alone: value and log-det of its bijector."""
    weights, constant = self.prepare(lambda v: tf.convert_to_tensor(v.value), inputs.shape[1:], inverse)
    outputs, log_det = self.apply(self.enter(inputs), weights, inverse, context=context)
    return self.leave(outputs), log_det + constant


def step_of(bijector):
  """The `Step` of a `OnePassBijector`."""
  return bijector.as_step() if hasattr(bijector, "as_step") else Step(bijector)

"""The step of flow of Glow."""

from __future__ import annotations

from collections import abc

import tensorflow as tf

from tfp_glow._core.numerics import log_scale_of
from tfp_glow.bijectors import halves
from tfp_glow.bijectors.actnorm import ActNorm
from tfp_glow.bijectors.channels import num_positions
from tfp_glow.bijectors.composition import Sequence
from tfp_glow.bijectors.conv1x1 import InvertibleConv1x1
from tfp_glow.bijectors.coupling import AdditiveCoupling, AffineCoupling
from tfp_glow.bijectors.permutation import ChannelPermutation
from tfp_glow.bijectors.step import Step


class GlowStep(Sequence):
  """One step of flow, of images or vectors; `inverse` is actnorm, then permutation, then coupling.

  Actnorm and permutation are one matrix product: `((y + b) * s) @ W = y @ (s W) + (b s) @ W`.

  References:
    Kingma and Dhariwal, "Glow" (2018), figure 2 (a).
  """

  def __init__(self, actnorm: ActNorm, permutation: InvertibleConv1x1 | ChannelPermutation,
               coupling: AffineCoupling | AdditiveCoupling, validate_args: bool = False, name: str = "glow_step"):
    """Creates the step.

    Args:
      actnorm: `ActNorm`.
      permutation: `InvertibleConv1x1` or `ChannelPermutation`.
      coupling: `AffineCoupling` or `AdditiveCoupling`. All three must have the same `event_ndims`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if the `event_ndims` differ.
    """
    parameters = dict(locals())
    ranks = [part.inverse_min_event_ndims for part in (actnorm, permutation, coupling)]
    if len(set(ranks)) > 1:
      raise ValueError("`actnorm`, `permutation` and `coupling` must have the same `event_ndims`. "
                       f"Received: {ranks}")
    event_shape = [None] * (ranks[0] - 1) + [actnorm.shift.shape[0]]
    super().__init__([actnorm, permutation, coupling], forward_event_shape=event_shape, inverse_event_shape=event_shape,
                     dtype=actnorm.dtype, validate_args=validate_args, parameters=parameters, name=name)
    self.actnorm = actnorm
    self.permutation = permutation
    self.coupling = coupling

  def build(self, event_shape: abc.Sequence[int] | tf.TensorShape) -> None:
    """Builds the coupling's network for events of this shape.

    Args:
      event_shape: Static shape of one event, `[H, W, C]` or `[C]`.

    Raises:
      ValueError: if the network does not fit them; see `AffineCoupling.build`.
    """
    self.coupling.build(event_shape)

  def as_step(self) -> Step:
    """See `step.step_of`.

    Returns:
      `Step`.
    """
    return _FusedStep(self)

  def _forward_and_log_det(self, x, context=None):
    return self.as_step().run(x, inverse=False, context=context)

  def _inverse_and_log_det(self, y, context=None):
    return self.as_step().run(y, inverse=True, context=context)


class _FusedStep(Step):
  """Actnorm and permutation as one product of `halves`, prepared for all steps at once, and the coupling's step."""

  def __init__(self, bijector):
    super().__init__(bijector)
    self._coupling = bijector.coupling.as_step()

  @property
  def variables(self):
    return self._coupling.variables

  @property
  def has_pull_back(self):
    return self._coupling.has_pull_back

  def prepare(self, value, event_shape, inverse):
    matrix, log_det = self._matrix(value, inverse)
    weights, _ = self._coupling.prepare(value, event_shape, inverse)
    return (matrix, weights), num_positions(event_shape, self._bijector.dtype) * log_det

  def prepare_back(self, value, event_shape, inverse):
    return self._matrix(value, not inverse)[0], self._coupling.prepare_back(value, event_shape, inverse)

  def _matrix(self, value, inverse):
    """The `halves.affine_matrix` of actnorm and permutation, and their log-det at one position."""
    actnorm = self._bijector.actnorm
    shift, log_scale = value(actnorm.shift), log_scale_of(value(actnorm.log_scale), actnorm.log_scale_factor)
    matrix, log_det = self._bijector.permutation.matrix(value, inverse)
    log_det_actnorm = tf.reduce_sum(log_scale, -1)
    if inverse:
      matrix = tf.expand_dims(tf.exp(log_scale), -1) * matrix
      bias = tf.reduce_sum(tf.expand_dims(shift, -1) * matrix, -2)
    else:
      matrix, bias = matrix * tf.expand_dims(tf.exp(-log_scale), -2), -shift
    return halves.affine_matrix(matrix, bias), log_det + (log_det_actnorm if inverse else -log_det_actnorm)

  def enter(self, values):
    return self._coupling.enter(values)

  def leave(self, values):
    return self._coupling.leave(values)

  def apply(self, inputs, weights, inverse, context=None):
    matrix, coupling_weights = weights
    if inverse:
      return self._coupling.apply(halves.product(inputs, matrix), coupling_weights, inverse, context)
    outputs, log_det = self._coupling.apply(inputs, coupling_weights, inverse, context)
    return halves.product(outputs, matrix), log_det

  def activations_like(self, inputs, weights):
    return self._coupling.activations_like(inputs, weights[1])

  def apply_and_keep(self, inputs, weights, inverse, context=None):
    matrix, coupling_weights = weights
    between = halves.product(inputs, matrix) if inverse else inputs
    outputs, log_det, activations = self._coupling.apply_and_keep(between, coupling_weights, inverse, context)
    return outputs if inverse else halves.product(outputs, matrix), log_det, activations

  def pull_back(self, inputs, activations, weights, d_outputs, d_log_det, inverse, context=None):
    matrix, coupling_weights = weights
    pull_back = lambda inputs, d_outputs: self._coupling.pull_back(
        inputs, activations, coupling_weights, d_outputs, d_log_det, inverse, context)
    if inverse:  # The product is cheap: it is computed again instead of kept.
      d_between, d_coupling_weights, d_context = pull_back(halves.product(inputs, matrix), d_outputs)
      d_inputs, d_matrix = halves.product_pull_back(inputs, matrix, d_between)
    else:
      between = self._coupling.outputs_again(inputs, activations, inverse)
      d_between, d_matrix = halves.product_pull_back(between, matrix, d_outputs)
      d_inputs, d_coupling_weights, d_context = pull_back(inputs, d_between)
    return d_inputs, (d_matrix, d_coupling_weights), d_context

  def rebuild(self, outputs, weights, weights_back, variables, d_outputs, d_log_det, inverse, context=None):
    (matrix, coupling_weights), (matrix_back, coupling_weights_back) = weights, weights_back
    rebuild = lambda outputs, d_outputs: self._coupling.rebuild(
        outputs, coupling_weights, coupling_weights_back, variables, d_outputs, d_log_det, inverse, context)
    if inverse:
      between, d_between, d_coupling_weights, *others = rebuild(outputs, d_outputs)
      inputs = halves.product(between, matrix_back)
      d_inputs, d_matrix = halves.product_pull_back(inputs, matrix, d_between)
    else:
      between = halves.product(outputs, matrix_back)
      d_between, d_matrix = halves.product_pull_back(between, matrix, d_outputs)
      inputs, d_inputs, d_coupling_weights, *others = rebuild(between, d_between)
    return inputs, d_inputs, (d_matrix, d_coupling_weights), *others

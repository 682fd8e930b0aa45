"""The authors' power iteration, which gives the norms of their evaluation.

It stops early: it compares the root mean square of a change with an absolute tolerance, which a long vector meets
before it has converged. The norms are then too small, and layers normalised by them exceed their bound.
"""

import numpy as np
import tensorflow as tf

from tfp_glow._core import precision
from tfp_glow.checkpoints.residual_flows.layout import parts_of
from tfp_glow.networks import norms
from tfp_glow.networks.lipschitz import constrained_layers

_MAX_ITERATIONS = 200


def update_as_authors(flow, tolerance, num_iterations):
  """Updates the vectors of all layers as the authors' `update_lipschitz` does, in float32.

  Args:
    flow: `ResidualFlowBijector`.
    tolerance: Python `float`, the authors' `sn_tol`.
    num_iterations: Python `int`, the authors' `n_lipschitz_iters`, a fixed number; `None`: by the tolerance.
  """
  for layer, stacked, is_stack in _layers_of(flow):
    rows = _rows(layer, stacked, is_stack)
    vectors = [_iterate(layer, *row, tolerance, num_iterations) for row in rows]
    for variable, new in zip(layer.vectors, zip(*vectors)):
      stacked(variable).assign(np.stack(new) if is_stack else new[0])


def norms_in_use(flow):
  """The norm of each layer's map in use, found by this package's power iteration: a float array."""
  state = [variable for variable in flow.variables if not variable.trainable]
  before = [variable.numpy() for variable in state]
  used = _all_norms(flow)
  try:
    tf.function(flow.after_update, autograph=False).get_concrete_function()()
    true = _all_norms(flow)
  finally:
    for variable, value in zip(state, before):
      variable.assign(value)
  coefficients = [layer.coefficient for layer, stacked, is_stack in _layers_of(flow)
                  for _ in _rows(layer, stacked, is_stack)]
  return true / np.maximum(1., used / coefficients)


def _all_norms(flow):
  """Norms from the current vectors."""
  return np.array([_norm(layer, *row) for layer, stacked, is_stack in _layers_of(flow)
                   for row in _rows(layer, stacked, is_stack)])


def _layers_of(flow):
  """For each layer of a template: `(layer, from its variables to those of all steps, whether these are stacks)`."""
  for step, _, stacked in parts_of(flow)[1]:
    for layer in constrained_layers(step.block.network):
      yield layer, stacked, stacked(layer.kernel) is not layer.kernel


def _rows(layer, stacked, is_stack):
  """`(kernel, u, v, order of inputs, order of outputs)` for each step."""
  values = [stacked(variable).numpy() for variable in (layer.kernel, *layer.vectors)]
  rows = list(zip(*values)) if is_stack else [tuple(values)]
  orders = [_orders(order, stacked, len(rows)) for order in (layer.domain, layer.codomain)]
  return [(*row, *pair) for row, *pair in zip(rows, *orders)]


def _orders(order, stacked, count):
  if not isinstance(order, norms.LearnedOrder):
    return [float(order)] * count
  raw = np.reshape(stacked(order.logit), [-1]).astype(np.float64)
  return [float(number) for number in 1. + 4. / (1. + np.exp(-raw))]


@precision.full()
def _norm(layer, kernel, u, v, domain, codomain):
  kernel, u, v = (tf.constant(array, tf.float64) for array in (kernel, u, v))
  return float(norms.at_vectors(lambda v: layer.linear_map(v, kernel), u, v, domain, codomain))


@precision.full()
def _iterate(layer, kernel, u, v, domain, codomain, tolerance, num_iterations):
  kernel, u, v = (tf.constant(array, tf.float32) for array in (kernel, u, v))
  for _ in range(_MAX_ITERATIONS if num_iterations is None else num_iterations):
    u_before, v_before = u, v
    u = norms.dual(layer.linear_map(v, kernel), codomain, u)
    v = norms.dual(layer.transposed_map(u, kernel), norms.conjugate(domain), v)
    if num_iterations is None and all(_has_settled(*pair, tolerance) for pair in ((u, u_before), (v, v_before))):
      break
  return u.numpy(), v.numpy()


def _has_settled(vector, before, tolerance):
  change = tf.sqrt(tf.reduce_mean((vector - before)**2))
  return bool(change < tolerance * (1. + tf.reduce_max(vector)))

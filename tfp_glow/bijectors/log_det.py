"""The log-determinant of `y + g(y)`, exact or estimated by the power series of the logarithm.

`J` is the Jacobian of `g`, of norm below 1:

```none
log |det(I + J)| = sum over k of (-1)^(k + 1) / k * trace(J^k)        and        trace(A) = mean of probe^T A probe
```
"""

import functools

import numpy as np
import scipy.stats
import tensorflow as tf

from tfp_glow._core.gradients import copied, custom_gradient, linearized, not_differentiable, with_pull_back

# For the numbers of terms that the roulette may draw.
_TAILS = {
    "geometric": lambda k: scipy.stats.geom(0.5).sf(k - 1),
    "poisson": lambda k: scipy.stats.poisson(2.).sf(k - 1),
}
ROULETTES = tuple(_TAILS)
PROBES = ("gaussian", "rademacher")

_FEW = 8  # Events of up to this many numbers have the rows of their Jacobian computed one by one.

# What the seed of an estimate draws.
_NUM_TERMS, _PROBE = range(2)


def tail_probabilities(roulette):
  """`P(N >= k)` for `k = 1, 2, ...`, as far as uniform numbers of 32 bits resolve it.

  The last `k` is 33 for `"geometric"` and 16 for `"poisson"`. Later terms would occur once in billions of draws, with
  weights of billions, and no mean of draws would show them.

  Args:
    roulette: `"geometric"`: `N` has the distribution `0.5 ** N`, from 1. `"poisson"`: Poisson with mean 2.

  Returns:
    float64 array.
  """
  tail = _TAILS[roulette](np.arange(1, 100))
  return tail[tail > 2.**-33]


def num_copies(num_dims):
  """Number of copies of each event, one after the other, that `exact` passes to the branch.

  Args:
    num_dims: Python `int`, number of numbers in an event.
  """
  return 1 if num_dims <= _FEW else num_dims


def exact(branch, y, weights):
  """`y + g(y)` and its log-determinant from the whole Jacobian, for events of few numbers.

  Args:
    branch: Callable `g`, from a tensor like `y` and a nest `weights` to a tensor like `y`.
    y: Tensor `[N] + event_shape`.
    weights: Nest of tensors.

  Returns:
    outputs: Tensor like `y`.
    log_det: Tensor `[N]`. It and its gradient are NaN where its sign shows that `g` does not contract.
  """
  num_dims = y.shape[1:].num_elements()
  residual, jacobian = (_jacobian_by_rows if num_copies(num_dims) == 1 else _jacobian_at_once)(branch, y, weights)
  return y + residual, _log_det(tf.eye(num_dims, dtype=y.dtype) + jacobian)


def _jacobian_by_rows(branch, y, weights):
  """`g(y)` and its Jacobian `[N, D, D]`, with the least work; but the graph grows with `D`."""
  residual, pull_back = linearized(branch, y, weights)
  num_dims = y.shape[1:].num_elements()
  rows = [pull_back(tf.zeros_like(y) + tf.constant(np.reshape(row, y.shape[1:]), y.dtype)) for row in np.eye(num_dims)]
  return residual, tf.stack([tf.reshape(row, [-1, num_dims]) for row in rows], axis=1)


def _jacobian_at_once(branch, y, weights):
  """The same from `D` copies of each event, which cost work and memory."""
  event_shape = y.shape[1:]
  num_dims = event_shape.num_elements()
  copies = tf.stack([y] * num_dims, axis=1)  # XLA would not compile gradients of a broadcast in a `Scan`.
  directions = tf.zeros_like(copies) + tf.reshape(tf.eye(num_dims, dtype=y.dtype), [num_dims, *event_shape])
  flat = lambda x: tf.reshape(x, [-1, *event_shape])
  residuals, pull_back = linearized(branch, flat(copies), weights)
  jacobian = tf.reshape(pull_back(flat(directions)), [-1, num_dims, num_dims])
  return tf.reshape(residuals, [-1, num_dims, *event_shape])[:, 0], jacobian


def _log_det(matrices):
  """Log-determinants of `[N, D, D]` whose minors are not near zero, so that elimination needs no pivots.

  `I + J` is such a matrix if `J` contracts in the norm of any order. If `J` contracts in any norm at all, the
  determinant is positive: a path to that of `I` exists on which it is never 0. If it is not positive, the result and
  its gradient are NaN.

  For small `D` this is several times faster than a decomposition and its gradient, and XLA can compile it.
  """
  total, sign = 0., 1.
  while matrices.shape[-1]:
    pivots, row, column = matrices[:, :1, :1], matrices[:, :1, 1:], matrices[:, 1:, :1]
    total += tf.math.log(tf.abs(pivots[:, 0, 0]))
    sign *= tf.sign(pivots[:, 0, 0])
    matrices = matrices[:, 1:, 1:] - column * (row / pivots)
  return tf.where(sign > 0., tf.ones_like(total), np.nan) * total


class SeriesEstimator:
  """Estimates the log-determinant by a few terms of its power series, all with the same random probe.

  An unbiased estimate draws the number of terms, and divides each term by the probability that it occurs. (Terms that
  no draw reaches are the only bias; see `tail_probabilities`.)

  Gradients need memory for the inputs and one tensor of their shape. The gradient evaluates the branch once more and
  does not keep its activations. It is the Neumann series. With `d_log_det`, the gradient of each event's log-det,

  ```none
  weighted = sum over k of (-1)^k * probe^T J^k
  gradient of sum(d_log_det * log |det(I + J)|) = gradient of sum(d_log_det * (weighted J probe)), weighted held.
  ```

  Its terms have the weights of the value's terms. `weighted` is a sum of the value's vector-Jacobian products. The
  authors' code computes this gradient in the forward pass. It evaluates nothing twice, but assumes the same
  `d_log_det` for all events. Here `d_log_det` may differ. Second derivatives are not available: they are NaN.

  References:
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019), sections 3.1, 3.2 and appendix C.
  """

  def __init__(self, num_terms, roulette, probe):
    """Creates the estimator.

    Args:
      num_terms: Python `int`, number of terms that always occur.
      roulette: One of `ROULETTES`, the distribution of the number of further terms. `None`: no further terms, and the
        estimate is biased.
      probe: One of `PROBES`, the distribution of the probe's numbers.
    """
    tail = np.zeros([0]) if roulette is None else tail_probabilities(roulette)
    self._num_terms = num_terms
    self._tail = tail
    self._coefficients = np.concatenate([np.ones([num_terms]), 1. / tail])
    self._probe = probe

  def __call__(self, branch, y, weights, seed):
    """`y + g(y)` and the estimate of its log-determinant.

    Args:
      branch: See `exact`.
      y: See `exact`.
      weights: See `exact`.
      seed: Integer tensor `[2]`. Replicas draw different probes, but the same number of terms.

    Returns:
      outputs: Tensor like `y`.
      log_det: Tensor `[N]`. It and its gradient are NaN where the terms show that `g` does not contract.
    """
    probe = _draw_probe(self._probe, _of_replica(_fold_in(seed, _PROBE)), y)
    return self.evaluate(branch, y, weights, probe, self._draw_num_terms(seed))

  def evaluate(self, branch, y, weights, probe, num_terms):
    """As a call, but with a given probe (a tensor like `y`) and number of terms (an integer scalar)."""

    def run(y, *flat):
      packed = tf.nest.pack_sequence_as(weights, flat)
      # `_pull_back` has the gradients of the series, so outer tapes need not see it. A persistent outer tape would make
      # TensorFlow trace the loop again and again.
      residual, pull_back = linearized(branch, *tf.nest.map_structure(tf.stop_gradient, (y, packed)))
      log_det, weighted = self._sum(pull_back, probe, num_terms)
      weighted = not_differentiable(weighted, y, *flat)
      # Makes the next block wait. Otherwise TensorFlow might delay the work of many blocks, and keep their activations.
      with tf.control_dependencies([log_det, weighted]):
        outputs = y + residual
      return (outputs, log_det), functools.partial(_pull_back, branch, y, packed, probe, weighted)

    return custom_gradient(run)(y, *tf.nest.flatten(weights))

  def _sum(self, pull_back, probe, num_terms):
    """The estimate `[N]`, and `weighted` for its gradient."""
    coefficients = tf.constant(self._coefficients, probe.dtype)
    axes = list(range(1, probe.shape.rank))
    # A contraction in the norm of any order never makes a vector longer than this, however often it is applied. The
    # factor allows for rounding errors.
    longest = 1.01 * probe.shape[1:].num_elements() * tf.reduce_sum(probe**2, axes)

    def add_term(k, power, log_det, weighted, contracts):
      power = pull_back(power)  # probe^T J^k
      factor = coefficients[k - 1] * (1. - 2. * tf.cast(k % 2, probe.dtype))
      log_det -= factor / tf.cast(k, probe.dtype) * tf.reduce_sum(power * probe, axes)
      contracts &= tf.reduce_sum(power**2, axes) <= longest
      return k + 1, power, log_det, weighted + factor * power, contracts

    count = tf.shape(probe)[:1]
    start = 1, probe, tf.zeros(count, probe.dtype), probe, tf.fill(count, True)
    _, _, log_det, weighted, contracts = tf.while_loop(lambda k, *_: k <= num_terms, add_term, start,
                                                       maximum_iterations=len(self._coefficients))
    return tf.where(contracts, log_det, np.nan), tf.where(_per_event(contracts, probe), weighted, np.nan)

  def _draw_num_terms(self, seed):
    uniform = _uniform([], _fold_in(seed, _NUM_TERMS), tf.float64)
    return self._num_terms + tf.reduce_sum(tf.cast(uniform <= self._tail, tf.int32))


def _pull_back(branch, y, weights, probe, weighted, d_outputs, d_log_det):
  """Gradients of `SeriesEstimator.evaluate` with respect to `y` and the flat `weights`."""

  def evaluate_again(y, weights):
    residual, pull_back = linearized(branch, y, weights)
    return residual, pull_back(_per_event(d_log_det, weighted) * weighted)

  # Waits for the gradient. Otherwise all blocks would be evaluated at once, and their activations kept.
  with tf.control_dependencies([d_outputs]):
    y_again = tf.identity(y)
  _, pull_back = with_pull_back(evaluate_again, (y_again, copied(weights)))
  d_y, d_weights = pull_back((d_outputs, probe))
  d_flat = tf.nest.flatten(d_weights)
  with tf.control_dependencies(d_flat):
    d_inputs = d_outputs + d_y
  return d_inputs, *d_flat


def _draw_probe(distribution, seed, y):
  if distribution == "rademacher":
    return 2. * tf.round(_uniform(tf.shape(y), seed, y.dtype)) - 1.
  # The Box-Muller transform: XLA makes different normal numbers from the same bits.
  radius, angle = tf.unstack(_uniform(tf.concat([[2], tf.shape(y)], 0), seed, y.dtype), 2)
  return tf.sqrt(-2. * tf.math.log(radius)) * tf.cos(2. * np.pi * angle)


def _uniform(shape, seed, dtype):
  """Uniform numbers between `2 ** -33` and 1, in steps of `2 ** -32` as far as the dtype resolves them."""
  # The same numbers on every device, and under XLA, which would choose a different generator.
  bits = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
  # Otherwise one float32 number in 66 million would be 0, and its logarithm infinite.
  return tf.maximum((tf.cast(bits, dtype) + (2.**31 + 0.5)) / 2.**32, 2.**-33)


def _fold_in(seed, salt):
  return tf.random.experimental.stateless_fold_in(seed, salt, alg="philox")


def _of_replica(seed):
  context = tf.distribute.get_replica_context()
  return _fold_in(seed, 0 if context is None else context.replica_id_in_sync_group)


def _per_event(values, like):
  """From `[N]` to `[N, 1, ..., 1]`."""
  return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))

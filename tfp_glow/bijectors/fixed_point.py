"""Inverts `y + g(y)` by a fixed-point iteration, and differentiates through it."""

import numpy as np
import tensorflow as tf

from tfp_glow._core.gradients import copied, custom_gradient, linearized, not_differentiable, with_pull_back


def solve(branch, x, weights, tolerance, max_iterations, name):
  """Finds `y` with `y + g(y) = x`, as the limit of `y <- x - g(y)`, which converges because `g` contracts.

  An event is done when a step moves none of its numbers by more than the tolerance, relative to 1 plus the largest
  number of `y` and `x`. It then stays unchanged, even if others need more steps. (`x` may be far larger than `y` if `g`
  adds something that does not depend on `y`; rounding errors are then those of `x`.) An event is also done when its
  steps have long been near the tolerance and do not become smaller: they are then rounding errors within `g`.

  The gradient is that of the implicit function. It solves `d_x + d_x J = d_y` in the same way, with a tolerance
  relative to the largest number alone, because gradients may have any size. It keeps only `y` in memory. Second
  derivatives are not available: they are NaN.

  Args:
    branch: Callable `g`, from a tensor like `x` and a nest `weights` to a tensor like `x`.
    x: Tensor `[N] + event_shape`.
    weights: Nest of tensors.
    tolerance: Python `float`.
    max_iterations: Python `int`.
    name: Python `str`, the name of the bijector, for the error message.

  Returns:
    Tensor like `x`. Events that are not done after `max_iterations` raise `tf.errors.InvalidArgumentError`. Where XLA
    compiles the function, which drops the check, they are NaN.

  References:
    Behrmann et al., "Invertible Residual Networks" (2019), algorithm 1.
  """
  settled = lambda step, start, has_unit, what: _settled(
      step, start, has_unit, tolerance, max_iterations, f"{what} of `{name}.forward`")

  @custom_gradient
  def run(x, *flat):
    packed = tf.nest.pack_sequence_as(weights, flat)
    y = settled(lambda y: x - branch(y, packed), x, True, "the fixed point")

    def gradients(d_y):
      _, pull_back = linearized(branch, y, packed)
      d_x = not_differentiable(settled(lambda d_x: d_y - pull_back(d_x), d_y, False, "the gradient"), d_y, y, *flat)
      _, pull_back_to_weights = with_pull_back(lambda packed: branch(y, packed), (copied(packed),))
      d_packed, = pull_back_to_weights(-d_x)
      return d_x, *tf.nest.flatten(d_packed)

    return y, gradients

  return run(x, *tf.nest.flatten(weights))


# Steps of a contraction become smaller within this many steps. Steps of up to `_NEAR` times the tolerance may be
# rounding errors alone.
_LONG = 50
_NEAR = 30.


def _settled(step, start, has_unit, tolerance, max_iterations, what):
  """The fixed point of `step` for each event, from `start`.

  The tolerance is relative to the largest number of `y`; with `has_unit`, to 1 plus the largest of `y` and `start`.
  """
  axes = list(range(1, start.shape.rank))
  largest = lambda values: tf.reduce_max(tf.abs(values), axes)
  size = (lambda y: 1. + tf.maximum(largest(y), largest(start))) if has_unit else largest

  def is_settled(distance, num_since):
    return (distance <= tolerance) | (distance <= _NEAR * tolerance) & (num_since >= _LONG)

  def move(y, moves, distance, least, num_since):
    y_next = step(y)
    distance_next = tf.math.divide_no_nan(largest(y_next - y), size(y_next))
    y = tf.where(tf.reshape(moves, [-1] + [1] * len(axes)), y_next, y)
    distance = tf.where(moves, distance_next, distance)
    num_since = tf.where(distance < least, 0, num_since + 1)
    least = tf.minimum(least, distance)
    # Values that are NaN or infinite never come back.
    moves &= ~is_settled(distance, num_since) & tf.math.is_finite(distance)
    return y, moves, distance, least, num_since

  count = tf.shape(start)[:1]
  infinite = tf.fill(count, tf.constant(np.inf, start.dtype))
  y, _, distance, _, num_since = tf.while_loop(
      lambda _, moves, *__: tf.reduce_any(moves), move,
      (start, tf.fill(count, True), infinite, infinite, tf.zeros(count, tf.int32)), maximum_iterations=max_iterations)
  is_done = is_settled(distance, num_since)
  # A non-finite gradient has no solution. As elsewhere, the result is NaN, not an error.
  is_excused = not has_unit and ~tf.reduce_all(tf.math.is_finite(start), axes)
  message = [f"{what} must be reached in `max_iterations` = {max_iterations}, to a relative {tolerance:g}: the network "
             "must contract, and its inputs must be finite. Received: the last step moved each event by", distance]
  with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(is_done | is_excused), message)]):
    return tf.where(tf.reshape(is_done, [-1] + [1] * len(axes)), y, np.nan)

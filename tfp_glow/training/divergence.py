"""Numerical health: the first quantity of a training step that is not finite, and the message for the user."""

import numpy as np
import tensorflow as tf

# Gradients with a norm above the square root of this are shortened, so that their squares, and those of a sum over
# replicas, do not overflow.
_MAX_SQUARES = 1e30
# The largest entry is then reduced to this, which is still far more than clipping leaves.
_LARGEST_ENTRY = 1e12


def largest_entries(gradients):
  """The largest magnitude in each gradient if all of them together are too long or not finite; else 0.

  Args:
    gradients: List of floating tensors.

  Returns:
    float64 tensor `[len(gradients)]`; infinite where an entry is not finite.
  """
  dtype = tf.float64 if tf.float64 in {gradient.dtype for gradient in gradients} else tf.float32
  # One pass over the data, without a copy. The rest runs only in the rare cases in which this overflows.
  squares = tf.reduce_sum(tf.cast(tf.stack([tf.cast(tf.nn.l2_loss(g), dtype) for g in gradients]), tf.float64))

  def entries():
    # Constants that all share: each would be a node of the graph.
    infinite = {dtype: tf.constant(np.inf, dtype) for dtype in {g.dtype for g in gradients}}
    axes = {rank: tf.constant(np.arange(rank, dtype=np.int32)) for rank in {g.shape.rank for g in gradients} - {None}}
    largest = [_largest_entry(g, infinite[g.dtype], axes.get(g.shape.rank)) for g in gradients]
    return tf.cast(tf.stack([tf.cast(entry, dtype) for entry in largest]), tf.float64)

  return tf.cond(squares < _MAX_SQUARES, lambda: tf.zeros([len(gradients)], tf.float64), entries)


def _largest_entry(gradient, infinite, axes):
  # A maximum may ignore a NaN.
  return tf.reduce_max(tf.abs(tf.where(tf.math.is_finite(gradient), gradient, infinite)), axes)


def shortened(gradients, largest):
  """Gradients in the same direction, but short enough that their squares do not overflow.

  A norm that overflows turns all gradients into NaN in an optimizer that clips, and leaves Adam's averages infinite.

  Args:
    gradients: List of floating tensors and `None`s.
    largest: float64 scalar: if the gradients are too long, at least the largest magnitude of their entries; else 0.

  Returns:
    List like `gradients`.
  """
  factor = tf.math.divide_no_nan(tf.constant(_LARGEST_ENTRY, tf.float64), largest)
  present = [gradient for gradient in gradients if gradient is not None]
  factors = {dtype: tf.cast(factor, dtype) for dtype in {g.dtype for g in present}}
  found = iter(tf.cond(largest > 0., lambda: [factors[g.dtype] * g for g in present], lambda: present))
  return [None if gradient is None else next(found) for gradient in gradients]


def describe(tensor):
  """Says how many entries of a tensor are not finite, and where the first one is."""
  values = np.asarray(tensor)
  bad = np.argwhere(~np.isfinite(values))
  if not len(bad):
    return f"shape {values.shape}, between {values.min():.3g} and {values.max():.3g}" if values.size else "nothing"
  first = tuple(bad[0].tolist())
  return (f"shape {values.shape}, {len(bad)} of {values.size} NaN or infinite, "
          f"the first {values[first]} at {list(first)}")


def message(step, what, received):
  """The error message when training stops.

  Args:
    step: Python `int`, the number of the training step, from 1.
    what: Python `str`, the quantity.
    received: Python `str`, what was found.
  """
  return (f"Training stopped at step {step}: {what} is not finite. Weights and optimizer are as they were before that "
          "step. If the data is sound, train anew with a lower learning rate, a warm-up, or clipping "
          "(`global_clipnorm` of Keras' optimizers): earlier steps may already have spoiled these weights. "
          f"Received: {received}")


def first_non_finite(likelihood, images, condition, noise_seed, trained, gradients_are_finite):
  """Computes a training step's loss again, part by part, and finds the first quantity that is not finite.

  Args:
    likelihood: `ImageLikelihood`.
    images: Tensor `[N] + event_shape`, the batch.
    condition: Dict of labels and contexts, see `ImageSpec`.
    noise_seed: Integer tensor `[2]` of the dequantization noise.
    trained: List of trained variables.
    gradients_are_finite: Bools, one for the gradient of each of them.

  Returns:
    what: Python `str`, the quantity and its part of the model.
    received: Python `str`, what was found there.
  """
  for what, tensor in _quantities(likelihood, images, condition, noise_seed):
    if not np.isfinite(tensor).all():
      return what, describe(tensor)
  # From latents to data, the order of backpropagation.
  for variable, is_finite in reversed(list(zip(trained, gradients_are_finite, strict=True))):
    if not is_finite:
      return f"the gradient of `{variable.name}`", f"that variable with {describe(variable)}"
  return "the loss", "finite values when computed again: it depends on rounding"


def _quantities(likelihood, images, condition, noise_seed):
  """Yields names and tensors, in the order of computation."""
  values = likelihood.to_values(images, noise_seed)
  yield "a value of the images", values
  for context in tf.nest.flatten(condition.get("context", [])):
    yield "a value of the contexts", context
  for variable in likelihood.distribution.variables:
    if variable.dtype.is_floating:
      yield f"the parameter `{variable.name}`", variable
  for part, value, log_det in likelihood.walk(values, condition):
    yield f"the value after {part}", value
    yield f"the log-determinant of {part}", log_det
  yield "the log-probability of the latents", likelihood.log_density(
      likelihood.to_values(images, noise_seed), condition, training=True)

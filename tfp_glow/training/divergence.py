"""Numerical health: which quantity of a training step is not finite first, and what to tell the user."""

import numpy as np
import tensorflow as tf

# Gradients longer than the root of this are shortened. Their squares, and those of a sum over replicas, must not
# overflow.
_MAX_SQUARES = 1e30
# What the largest entry is then reduced to: still far more than clipping leaves of it.
_LARGEST_ENTRY = 1e12


def largest_entries(gradients):
  """The largest magnitude in each gradient if they are too long, or not finite, together; else 0.

  Args:
    gradients: List of floating tensors.

  Returns:
    float64 tensor `[len(gradients)]`; infinite where an entry is not finite.
  """
  dtype = tf.float64 if tf.float64 in {gradient.dtype for gradient in gradients} else tf.float32
  # One pass over the data, without a copy; the rest is for those rare cases in which that overflows.
  squares = tf.reduce_sum(tf.cast(tf.stack([tf.cast(tf.nn.l2_loss(g), dtype) for g in gradients]), tf.float64))

  def entries():
    # Constants that all share: each would be a node of the graph.
    infinite = {dtype: tf.constant(np.inf, dtype) for dtype in {g.dtype for g in gradients}}
    axes = {rank: tf.constant(np.arange(rank, dtype=np.int32)) for rank in {g.shape.rank for g in gradients}}
    largest = [_largest_entry(g, infinite[g.dtype], axes[g.shape.rank]) for g in gradients]
    return tf.cast(tf.stack([tf.cast(entry, dtype) for entry in largest]), tf.float64)

  return tf.cond(squares < _MAX_SQUARES, lambda: tf.zeros([len(gradients)], tf.float64), entries)


def _largest_entry(gradient, infinite, axes):
  # A maximum may pass over a NaN.
  return tf.reduce_max(tf.abs(tf.where(tf.math.is_finite(gradient), gradient, infinite)), axes)


def shortened(gradients, largest):
  """Gradients in the same direction, and so short that their squares do not overflow.

  A norm that overflows makes NaN of all of them in an optimizer that clips, and Adam's averages infinite for ever.

  Args:
    gradients: List of floating tensors, `None` among them.
    largest: float64 scalar: at least the largest magnitude of all their entries, if they are too long; else 0.

  Returns:
    List as `gradients`.
  """
  factor = tf.math.divide_no_nan(tf.constant(_LARGEST_ENTRY, tf.float64), largest)
  present = [gradient for gradient in gradients if gradient is not None]
  factors = {dtype: tf.cast(factor, dtype) for dtype in {g.dtype for g in present}}
  found = iter(tf.cond(largest > 0., lambda: [factors[g.dtype] * g for g in present], lambda: present))
  return [None if gradient is None else next(found) for gradient in gradients]


def describe(tensor):
  """How much of a tensor is not finite, and where that begins."""
  values = np.asarray(tensor)
  bad = np.argwhere(~np.isfinite(values))
  if not len(bad):
    return f"shape {values.shape}, between {values.min():.3g} and {values.max():.3g}" if values.size else "nothing"
  first = tuple(bad[0].tolist())
  return (f"shape {values.shape}, {len(bad)} of {values.size} NaN or infinite, "
          f"the first {values[first]} at {list(first)}")


def message(step, what, received):
  """What a user is told when training stops.

  Args:
    step: Python `int`, the number of the training step, the first is 1.
    what: Python `str`, the quantity.
    received: Python `str`.
  """
  return (f"Training stopped at step {step}: {what} is not finite. Weights and optimizer are left as they were before "
          "that step. If the data is sound, begin again with a lower learning rate, a warm-up, or clipping "
          "(`global_clipnorm` of Keras' optimizers); the steps before may have spoiled these weights already. "
          f"Received: {received}")


def first_non_finite(likelihood, images, condition, noise_seed, trained, gradients_are_finite):
  """Computes a training step's loss again, part after part, and finds where it goes wrong.

  Args:
    likelihood: `ImageLikelihood`.
    images: Tensor `[N] + event_shape`, the batch.
    condition: Dict of what is known of the images, see `ImageSpec`.
    noise_seed: Integer tensor `[2]` of the dequantization noise.
    trained: List of variables.
    gradients_are_finite: Bools, of the gradients that those variables got.

  Returns:
    what: Python `str`, the quantity with the part of the model that it belongs to.
    received: Python `str`, what was found there.
  """
  for what, tensor in _quantities(likelihood, images, condition, noise_seed):
    if not np.isfinite(tensor).all():
      return what, describe(tensor)
  # From the latents back to the data: the order of backpropagation.
  for variable, is_finite in reversed(list(zip(trained, gradients_are_finite, strict=True))):
    if not is_finite:
      return f"the gradient of `{variable.name}`", f"that variable with {describe(variable)}"
  return "the loss", "finite values when computed again: rounding decides"


def _quantities(likelihood, images, condition, noise_seed):
  """Yields names and tensors, in the order in which one depends on the other."""
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

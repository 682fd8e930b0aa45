"""What keeps weights and optimizer from an update that is not finite."""

import contextlib
import weakref
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_glow.training import divergence, replicas


class Batch(NamedTuple):
  """What a training step computes its loss from.

  Attributes:
    images: Tensor `[N] + event_shape`.
    labels: Integer tensor `[N]`, or `None`.
    noise_seed: Integer tensor `[2]` of the dequantization noise.
  """
  images: tf.Tensor
  labels: tf.Tensor | None
  noise_seed: tf.Tensor


class StopUnlessFinite:
  """Ends training by an error that names the quantity that is not finite; for steps that can call Python."""

  def __init__(self, likelihood):
    """Creates it.

    Args:
      likelihood: `ImageLikelihood`.
    """
    self._likelihood = likelihood
    self._variables = []
    self._failure = None

  def apply(self, update, terms, are_finite, variables, batch):
    """Updates weights and optimizer, but only if all is finite, on all replicas.

    Args:
      update: Callable without arguments.
      terms: Tensor of what is to be reported of the step.
      are_finite: Bool tensor: of the losses, then of the gradients of the variables.
      variables: List of variables.
      batch: `Batch`.

    Returns:
      `terms`.
    """
    self._variables = variables
    with tf.control_dependencies([self._stop_unless(are_finite, batch)]):
      update()
    return terms

  @contextlib.contextmanager
  def failure_named(self):
    """Has TensorFlow's error of a training step that is not finite replaced by one that says what it was."""
    self._failure = None
    try:
      yield
      return
    except tf.errors.OpError:
      if self._failure is None:
        raise
    raise FloatingPointError(self._failure)  # Not from within, where it would drag TensorFlow's trace along.

  def _stop_unless(self, are_finite, batch):
    """A tensor that is there only if all replicas have found all to be finite; else there is an error on each."""
    inputs = [batch.noise_seed, batch.images] + ([] if self._likelihood.spec.num_classes is None else [batch.labels])
    # Known to all before any of them stops: it would leave others waiting.
    num_failed = replicas.sum_over_replicas(tf.cast(~tf.reduce_all(are_finite), tf.int32))
    stop = weakref.WeakMethod(self._stop)  # TensorFlow never lets go of the functions that it calls.
    has_workers = replicas.has_workers(tf.distribute.get_strategy())
    is_sound = tf.cond(
        tf.equal(num_failed, 0), lambda: tf.constant(True),
        lambda: tf.py_function(lambda *args: stop()(has_workers, *args), [are_finite, *inputs], tf.bool))
    # Those of the same process leave it to the replica that has failed to say why, and never get beyond this.
    return replicas.sum_over_replicas(tf.cast(is_sound, tf.int32))

  def _stop(self, has_workers, are_finite, noise_seed, images, labels=None):
    if not np.all(are_finite):
      what, received = divergence.first_non_finite(
          self._likelihood, images, labels, noise_seed, self._variables, are_finite[1:].numpy())
    elif has_workers:
      what, received = "a quantity of another replica", "finite ones here"
    else:
      return True
    self._failure = divergence.message(int(noise_seed[1]) + 1, what, received)
    raise FloatingPointError(self._failure)


class SkipUnlessFinite:
  """Skips the update and reports NaN; for steps that XLA compiles: they cannot call Python.

  `StopWhenNotFinite` then ends the training.
  """

  def __init__(self, mean):
    """Creates it.

    Args:
      mean: `keras.metrics.Mean` of what is reported: once it is not finite no update follows, as an execution may be of
        several steps.
    """
    self._mean = mean

  def apply(self, update, terms, are_finite, variables, batch):
    """As `StopUnlessFinite.apply`, but returns NaN in the place of `terms` if not all is finite."""
    del variables, batch
    is_finite = tf.reduce_all(are_finite) & tf.math.is_finite(self._mean.total)
    tf.cond(is_finite, update, lambda: None)
    return tf.where(is_finite, terms, np.nan)


class StopWhenNotFinite(keras.callbacks.Callback):
  """Ends a training whose steps `SkipUnlessFinite` guards."""

  def on_train_batch_end(self, batch, logs=None):
    if not np.isfinite(logs["loss"]).all():
      step = int(self.model.optimizer.iterations.numpy()) + 1
      raise FloatingPointError(divergence.message(step, "the loss or a gradient", "steps compiled by XLA; with "
                                                  "`compile(jit_compile=False)` this message names the layer"))

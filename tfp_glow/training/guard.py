"""What keeps weights and optimizer from an update that is not finite: an error that names where it began."""

import contextlib
import re
import weakref
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_glow.training import divergence, replicas

# What TensorFlow says of a check in a graph that has failed, which this package made: its parts, in brackets each.
_FAILED_CHECK = re.compile(r"assertion failed: \[(`.*?)\]\s*\n", re.DOTALL)


@contextlib.contextmanager
def checks_told_first():
  """Has what a check in a graph says come before TensorFlow's page on where in the graph that was."""
  try:
    yield
    return
  except tf.errors.InvalidArgumentError as error:
    found = _FAILED_CHECK.search(error.message)
    if found is None:
      raise
    message = found[1].replace("] [", "", 1)
  raise tf.errors.InvalidArgumentError(None, None, message)


class Batch(NamedTuple):
  """What a training step computes its loss from.

  Attributes:
    images: Tensor `[N] + event_shape`.
    condition: Dict of what is known of the images: integer `labels` `[N]`, and their `context`; see `ImageSpec`.
    noise_seed: Integer tensor `[2]` of the dequantization noise.
  """
  images: tf.Tensor
  condition: dict[str, Any]
  noise_seed: tf.Tensor


class StopUnlessFinite:
  """Ends training by an error that names the quantity that is not finite."""

  def __init__(self, likelihood):
    """Creates it.

    Args:
      likelihood: `ImageLikelihood`.
    """
    self._likelihood = likelihood
    self._variables = []
    self._failure = None

  def check(self, num_failed, are_finite, variables, batch):
    """A tensor that is there only if all is finite on all replicas; else there is an error on each.

    Args:
      num_failed: Floating scalar, the number of replicas on which something is not finite, the same on each.
      are_finite: Bool tensor of this replica: of its loss, then of its gradients of the variables.
      variables: List of variables.
      batch: `Batch`.
    """
    self._variables = variables
    batch = Batch(batch.images, self._likelihood.spec.taken(batch.condition), batch.noise_seed)
    form = tf.nest.map_structure(lambda _: None, batch)
    stop = weakref.WeakMethod(self._stop)  # TensorFlow never lets go of the functions that it calls.
    has_workers = replicas.has_workers(tf.distribute.get_strategy())
    is_sound = tf.cond(
        tf.equal(num_failed, 0), lambda: tf.constant(True),
        lambda: tf.py_function(
            lambda are_finite, *parts: stop()(has_workers, are_finite, tf.nest.pack_sequence_as(form, parts)),
            [are_finite, *tf.nest.flatten(batch)], tf.bool))
    # Those of the same process leave it to the replica that has failed to say why, and never get beyond this.
    # (A floating number: the libraries that exchange those of GPUs know no Booleans.)
    return replicas.sum_over_replicas(tf.cast(is_sound, tf.float32))

  @contextlib.contextmanager
  def failure_named(self):
    """Has TensorFlow's error of a training step that is not finite replaced by one that says what it was."""
    self._failure = None
    try:
      with checks_told_first():
        yield
      return
    except tf.errors.OpError:
      if self._failure is None:
        raise
    raise FloatingPointError(self._failure)  # Not from within, where it would drag TensorFlow's trace along.

  def _stop(self, has_workers, are_finite, batch):
    if not np.all(are_finite):
      what, received = divergence.first_non_finite(
          self._likelihood, *batch, self._variables, are_finite[1:].numpy())
    elif has_workers:
      what, received = "a quantity of another replica", "finite ones here"
    else:
      return True
    self._failure = divergence.message(int(batch.noise_seed[1]) + 1, what, received)
    raise FloatingPointError(self._failure)

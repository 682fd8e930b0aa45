"""Keeps weights and optimizer from updates that are not finite, by an error that names where these began."""

import contextlib
import re
import weakref
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_glow.training import divergence, replicas

# TensorFlow's message about a failed check of this package in a graph: the parts of the text, each in brackets.
_FAILED_CHECK = re.compile(r"assertion failed: \[(`.*?)\]\s*\n", re.DOTALL)


@contextlib.contextmanager
def checks_told_briefly():
  """Shortens the error of a failed check in a graph to its own message, without TensorFlow's page about the graph."""
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
  """The input of a training step.

  Attributes:
    images: Tensor `[N] + event_shape`.
    condition: Dict of integer `labels` `[N]` and `context`, if there are any; see `ImageSpec`.
    noise_seed: Integer tensor `[2]` of the dequantization noise.
  """
  images: tf.Tensor
  condition: dict[str, Any]
  noise_seed: tf.Tensor


class StopUnlessFinite:
  """Ends training with an error that names the quantity that is not finite."""

  def __init__(self, likelihood):
    """Creates it.

    Args:
      likelihood: `ImageLikelihood`.
    """
    self._likelihood = likelihood
    self._variables = []
    self._failure = None

  def check(self, num_failed, are_finite, variables, batch):
    """A tensor to depend on: computing it is an error on each replica unless all is finite on all replicas.

    Args:
      num_failed: Floating scalar, the number of replicas on which something is not finite, the same on each.
      are_finite: Bool tensor of this replica: for its loss, then for the gradient of each variable.
      variables: List of variables.
      batch: `Batch`.
    """
    self._variables = variables
    batch = Batch(batch.images, self._likelihood.spec.taken(batch.condition), batch.noise_seed)
    form = tf.nest.map_structure(lambda _: None, batch)
    stop = weakref.WeakMethod(self._stop)  # TensorFlow never frees the functions that it calls.
    has_workers = replicas.has_workers(tf.distribute.get_strategy())
    is_sound = tf.cond(
        tf.equal(num_failed, 0), lambda: tf.constant(True),
        lambda: tf.py_function(
            lambda are_finite, *parts: stop()(has_workers, are_finite, tf.nest.pack_sequence_as(form, parts)),
            [are_finite, *tf.nest.flatten(batch)], tf.bool))
    # Other replicas of the same process never get beyond this exchange: the replica that failed raises the error.
    # (A floating number, because the libraries of exchange between GPUs do not support Booleans.)
    return replicas.sum_over_replicas(tf.cast(is_sound, tf.float32))

  @contextlib.contextmanager
  def failure_named(self):
    """Replaces TensorFlow's error of a training step that is not finite by one that names the quantity."""
    self._failure = None
    try:
      with checks_told_briefly():
        yield
      return
    except tf.errors.OpError:
      if self._failure is None:
        raise
    raise FloatingPointError(self._failure)  # Outside of `except`, so that it comes without TensorFlow's traceback.

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

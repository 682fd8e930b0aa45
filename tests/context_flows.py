"""A flow with contexts and classes, all its values as NumPy formulas, and images with contexts."""

import numpy as np
import small_models
import tensorflow as tf

from tfp_glow.bijectors.base import OnePassBijector

SHAPE, NUM_VALUES, NUM_CLASSES = small_models.SHAPE, 32, 3
_RNG = np.random.default_rng(0)
IMAGES = small_models.images(12)
LABELS = (np.arange(12) % NUM_CLASSES).astype(np.int32)
VECTORS = _RNG.normal(size=[12, 5]).astype(np.float32)
DICTS = {"pose": VECTORS[:, :2], "grey": _RNG.normal(size=[12, 2, 2, 1]).astype(np.float32)}
MIDPOINTS = (IMAGES.astype(np.float64) + 0.5) / 256. - 0.5


class AffineOfContext(OnePassBijector):
  """`forward(x) = x * exp(log_scale[label]) + context @ kernel + shift[label]`.

  The parts of a context are flattened and concatenated in the order of their names.
  """

  def __init__(self, event_shape=SHAPE, context_shape=(5,), num_classes=None, seed=0):
    parameters = dict(locals())
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype="float32",
                     parameters=parameters, name="affine")
    self._context_shape, self._num_classes = context_shape, num_classes
    rng = np.random.default_rng(seed)
    size, num_rows = int(np.prod(event_shape)), num_classes or 1
    add = lambda name, *shape: self._add_variable(name, tf.constant(0.2 * rng.normal(size=shape), tf.float32))
    self.log_scale, self.shift = add("log_scale", num_rows), add("shift", num_rows, size)
    shapes = context_shape.values() if isinstance(context_shape, dict) else [context_shape]
    self.kernel = add("kernel", sum(int(np.prod(shape)) for shape in shapes), size) if context_shape else None
    self.initialized_with = None

  @property
  def num_classes(self):
    return self._num_classes

  @property
  def context_shape(self):
    return self._context_shape

  @property
  def argument_names(self):
    return frozenset(["context"] * bool(self._context_shape) + ["labels"] * bool(self._num_classes))

  def _initialize(self, y, **condition):
    self.initialized_with = condition
    return super()._initialize(y, **condition)

  def _forward_and_log_det(self, x, labels=None, context=None):
    log_scale, shift = self._of(x, labels, context)
    return x * tf.exp(_as(log_scale, x)) + shift, log_scale * x.shape[1:].num_elements()

  def _inverse_and_log_det(self, y, labels=None, context=None):
    log_scale, shift = self._of(y, labels, context)
    return (y - shift) * tf.exp(-_as(log_scale, y)), -log_scale * y.shape[1:].num_elements()

  def _of(self, values, labels, context):
    rows = tf.zeros(tf.shape(values)[:1], tf.int32) if labels is None else labels
    if labels is not None:
      tf.debugging.assert_less(labels, self._num_classes, "`labels` must lie in 0 .. 2")
      tf.debugging.assert_non_negative(labels, "`labels` must lie in 0 .. 2")
    shift = tf.gather(tf.convert_to_tensor(self.shift), rows)
    if context is not None:
      shift += _flat(context) @ self.kernel
    return tf.gather(tf.convert_to_tensor(self.log_scale), rows), tf.reshape(shift, tf.shape(values))


def _as(numbers, values):
  return tf.reshape(numbers, [-1] + [1] * (values.shape.rank - 1))


def _flat(context):
  parts = tf.nest.flatten(context)
  return tf.concat([tf.reshape(part, [tf.shape(part)[0], -1]) for part in parts], axis=-1)


def log_prob(flow, values, labels, context, num_bits=8):
  """The log-probabilities of uint8 images at these values, by NumPy."""
  labels = np.broadcast_to(labels, [len(values)])
  log_scale, shift = np.float64(flow.log_scale.numpy())[labels], np.float64(flow.shift.numpy())[labels]
  if context is not None:
    shift = shift + np.float64(_flat(context).numpy()) @ np.float64(flow.kernel.numpy())
  z = (values.reshape([-1, NUM_VALUES]) - shift) * np.exp(-log_scale)[:, np.newaxis]
  log_density = -0.5 * (z**2 + np.log(2. * np.pi)).sum(-1) - NUM_VALUES * log_scale
  return log_density - NUM_VALUES * num_bits * np.log(2.)

"""Numbers that stay finite (bounded scales, statistics, clipped inputs), and random generators."""

import random

import numpy as np
import tensorflow as tf

from tfp_glow._core import precision
from tfp_glow._core.gradients import custom_gradient

# The original code trains `log_scale / 3` instead of `log_scale`, which makes its updates three times as large.
LOG_SCALE_FACTOR = 3.

# Learned log-scales are clipped to plus and minus this, half of float32's range. Then the scale, its inverse and the
# squares of both are finite and not 0.
MAX_LOG_SCALE = 40.


def generator(seed):
  """NumPy's generator for a seed. `None`: a new one each time (the same after `keras.utils.set_random_seed`)."""
  return np.random.default_rng(random.randrange(2**31) if seed is None else seed)


def bounded(log_scale, bound=MAX_LOG_SCALE):
  """`log_scale`, clipped to plus and minus `bound`.

  Beyond the bounds the gradient is that at the bound, so that training leads back, but clipped to -1 .. 1: with a
  network's scale at the bound, the gradient of the squared latent may have any size.

  Args:
    log_scale: Tensor.
    bound: Python `float`.
  """

  @custom_gradient
  def clip(x):
    clipped = _clipped(x, bound)
    return clipped, lambda d_outputs: tf.where(tf.equal(clipped, x), d_outputs, _clipped(d_outputs, 1.))

  return clip(log_scale)


def activation_statistics(x, factor=LOG_SCALE_FACTOR):
  """The shift and the raw log-scale for which `(x + shift) * exp(factor * log_scale)` has mean 0 and variance 1.

  A channel that is constant up to rounding says nothing about the deviation, and gets scale 1. (A batch of one image
  with a single position is an example.) A larger scale, step after step, would make other batches overflow.

  Args:
    x: Tensor `[..., C]`.
    factor: Python `float`.

  Returns:
    shift: Tensor `[C]`.
    log_scale: Tensor `[C]`.
  """
  axes = list(range(x.shape.rank - 1))
  shift = -tf.reduce_mean(x, axes)
  deviation = tf.sqrt(tf.reduce_mean(tf.square(x + shift), axes))
  log_scale = -tf.math.log(deviation + 1e-6) / factor
  is_constant = deviation <= 1e-6 * (1. + tf.abs(shift))
  return shift, tf.where(is_constant, tf.zeros_like(log_scale), log_scale)


def at_least_one(batch):
  """The batch, or one event of zeros if it is empty.

  TensorFlow's convolution on CPUs returns an empty batch unchanged, with the wrong number of channels. A replica's
  batch is empty if there are fewer events than replicas, for example.

  Args:
    batch: Tensor `[N, ...]`.

  Returns:
    Tensor `[max(N, 1), ...]`.
  """
  if batch.shape[0]:
    return batch
  missing = tf.cast(tf.equal(tf.shape(batch)[0], 0), tf.int32)
  return tf.pad(batch, [[0, missing]] + [[0, 0]] * (batch.shape.rank - 1))


def within_reach(inputs):
  """Inputs of a network, clipped to plus and minus 1000.

  Actnorms have scaled them to about 1. (A pixel that is black in all images but one is 900 deviations off, with 8
  bits.) Further out, convolutions and relus only multiply, coupling after coupling, until they overflow. The couplings
  stay invertible.
  """

  @custom_gradient
  def clip(x):
    clipped = _clipped(x, 1000.)
    return clipped, lambda d_outputs: within_reach_pull_back(x, clipped, d_outputs)

  return clip(inputs)


def within_reach_pull_back(inputs, clipped, d_outputs):
  """The gradient of `within_reach`, from its `inputs` and its result `clipped`: 0 where it clips."""
  return tf.where(tf.equal(inputs, clipped), d_outputs, tf.zeros([], d_outputs.dtype))


def _clipped(x, bound):
  """`tf.clip_by_value` as one operation, which TensorFlow Lite lacks."""
  bound = tf.constant(bound, x.dtype)
  if precision.is_lite():
    return tf.maximum(tf.minimum(x, bound), -bound)
  return tf.raw_ops.ClipByValue(t=x, clip_value_min=-bound, clip_value_max=bound)


def assign_unless_frozen(variable, value):
  """Assigns what data-dependent initialisation found, unless the variable is frozen.

  Args:
    variable: `keras.Variable`.
    value: Tensor.
  """
  if variable.trainable:
    variable.assign(value)


def log_scale_of(parameter, factor=LOG_SCALE_FACTOR):
  """The log-scale that a variable stands for: `factor` times its value, within bounds."""
  return bounded(factor * parameter)


def before_channels(x, num_dims):
  """From `[..., C]` to `[..., 1, ..., 1, C]` with `num_dims` dimensions of size 1; the static shape must be known."""
  return tf.reshape(x, x.shape[:-1].as_list() + [1] * num_dims + [x.shape[-1]])

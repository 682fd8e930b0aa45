"""Between uint8 images and continuous values; bits per dimension.

An image of `n` bits has `2 ** n` levels. Level `k` stands for the bin `[k, k + 1) / 2 ** n - 1 / 2` of width `2 ** -n`;
all bins together are `[-1/2, 1/2)`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import is_int

# Second entries of a noise's seed; the first is that of the model. Training has all from 0, the numbers of its steps;
# evaluation, by several draws, this and those below. So no two of them ever share their noise.
EVALUATION = -1
INITIALIZATION = -2**31


def check_num_bits(num_bits):
  """Raises `ValueError` unless `num_bits` is an `int` in 1 .. 8."""
  if not is_int(num_bits, 1, 9):
    raise ValueError(f"`num_bits` must be an `int` in 1 .. 8. Received: {num_bits!r}")


def dequantize(images: tf.Tensor | np.ndarray, num_bits: int, noise: float | tf.Tensor = 0.5,
               dtype: tf.DType = tf.float32) -> tf.Tensor:
  """From uint8 images to values in their bins.

  Args:
    images: uint8 tensor, 0 .. 255; with fewer than 8 bits the lowest bits are dropped.
    num_bits: Python `int`, 1 .. 8.
    noise: Where in its bin each value lies, 0 up to 1 (excluded). The default is the midpoint.
    dtype: Floating dtype of the result.

  Returns:
    Tensor of the shape of `images`, in `[-1/2, 1/2)`.

  Raises:
    ValueError: if `num_bits` is not as above.
  """
  check_num_bits(num_bits)
  levels = tf.floor(tf.cast(images, dtype) / 2.**(8 - num_bits))
  return (levels + tf.cast(noise, dtype)) / 2.**num_bits - 0.5


def quantize(values: tf.Tensor | np.ndarray, num_bits: int) -> tf.Tensor:
  """From values to the uint8 images whose bins they lie in; values beyond the bins become 0 and 255.

  Args:
    values: Floating tensor.
    num_bits: Python `int`, 1 .. 8.

  Returns:
    uint8 tensor of the shape of `values`: with fewer than 8 bits, multiples of `2 ** (8 - num_bits)`; and 255, as in
    the original, where a value lies beyond the brightest bin.

  Raises:
    ValueError: if `num_bits` is not as above.
  """
  check_num_bits(num_bits)
  levels = tf.floor((values + 0.5) * 2.**num_bits)
  return tf.cast(tf.clip_by_value(levels * 2.**(8 - num_bits), 0., 255.), tf.uint8)


def image_noise(images: tf.Tensor | np.ndarray, seed: Sequence[int] | tf.Tensor,
                dtype: tf.DType = tf.float32) -> tf.Tensor:
  """Uniform noise that depends on the seed and on the image, but not on the company in which the image comes.

  So a result does not change with the size of the batch, the order of the data or the number of replicas, and yet the
  noise of two images is independent (but for copies of one image).

  Args:
    images: uint8 tensor `[N] + event_shape`.
    seed: Integer tensor `[2]`.
    dtype: Floating dtype of the result.

  Returns:
    Tensor of the shape of `images`, in `(0, 1)`: multiples of `2 ** -16`, which with 8 bits before them fit a float32.
  """
  event_shape = tf.shape(images)[1:]
  # The same numbers on every device, and under XLA, which would choose another generator.
  fold_in = functools.partial(tf.random.experimental.stateless_fold_in, alg="philox")
  full_range = lambda salt: tf.random.stateless_uniform(
      event_shape, fold_in(seed, salt), minval=None, maxval=None, dtype=tf.int64, alg="philox")
  # A random linear hash of each image, then a bijective scramble (the finaliser of SplitMix64) of hash and position.
  axes = list(range(1, images.shape.rank))
  hashes = tf.reduce_sum(tf.cast(images, tf.int64) * tf.bitwise.bitwise_or(full_range(0), 1), axes, keepdims=True)
  bits = tf.bitwise.bitwise_xor(full_range(1), hashes)
  for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
    bits = tf.bitwise.bitwise_xor(bits, _shift_right(bits, shift)) * factor
  # No value may round up into the next bin.
  return (tf.cast(_shift_right(bits, 49), dtype) + 0.5) / 2.**15


def _shift_right(bits, count):
  """The logical shift: TensorFlow's keeps the sign."""
  shifted = tf.bitwise.right_shift(bits, tf.constant(count, tf.int64))
  return tf.bitwise.bitwise_and(shifted, 2**(64 - count) - 1)


def discrete_log_prob(log_prob: tf.Tensor | np.ndarray, num_dims: int, num_bits: int | None) -> tf.Tensor | np.ndarray:
  """From the log-density of a dequantized image to a log-probability of the image.

  With noise uniform in the bin its mean is a lower bound of `log P(image)` (Theis et al., "A note on the evaluation of
  generative models", 2015, section 3.1).

  Args:
    log_prob: Tensor, nats.
    num_dims: Number of values in an image.
    num_bits: Python `int`, 1 .. 8, or `None` for continuous data, which keeps its log-density.

  Returns:
    Tensor of the shape of `log_prob`, nats.

  Raises:
    ValueError: if `num_bits` is not as above.
  """
  if num_bits is not None:
    check_num_bits(num_bits)
  return log_prob if num_bits is None else log_prob - num_dims * num_bits * math.log(2.)


def bits_per_dim(log_prob: tf.Tensor | np.ndarray, num_dims: int) -> tf.Tensor | np.ndarray:
  """Bits per dimension, from nats per image.

  Args:
    log_prob: Tensor, nats: for images, what `discrete_log_prob` returns.
    num_dims: Number of values in an image.

  Returns:
    Tensor of the shape of `log_prob`.
  """
  return -log_prob / (num_dims * math.log(2.))

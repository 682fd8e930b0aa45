"""Conversion between uint8 or uint16 images and continuous values; bits per dimension.

An image of `n` bits has `2 ** n` levels. Level `k` stands for the bin `[k, k + 1) / 2 ** n - 1 / 2` of width `2 ** -n`;
all bins together are `[-1/2, 1/2)`.

Images of up to 8 bits are uint8 with values 0 .. 255; with fewer than 8 bits the lowest ones are dropped. Images of 9
to 16 bits are uint16 with values `0 .. 2 ** n - 1`, as cameras, scanners and satellites write them.

A level and a place in its bin share the 24 bits of a float32, because values are multiples of `2 ** -24`. A bin has
65,536 places with 8 bits, and 256 with 16 bits. Noise has no more places than that, so no sum is rounded, and no value
moves into another bin.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import is_int

# Second entries of a noise seed; the first is the model's. Training uses the numbers of its steps, from 0. Evaluation
# uses this one, and those below it for several draws. So no two of them share their noise.
EVALUATION = -1
INITIALIZATION = -2**31


# For uint8 and for uint16 images.
_MAX_BITS_OF_BYTES, _MAX_BITS = 8, 16
# Significant bits of a float32.
_PRECISION = 24


def check_num_bits(num_bits):
  """Raises `ValueError` unless `num_bits` is an `int` in 1 .. 16."""
  if not is_int(num_bits, 1, _MAX_BITS + 1):
    raise ValueError(f"`num_bits` must be an `int` in 1 .. {_MAX_BITS}. Received: {num_bits!r}")


def image_dtype(num_bits):
  """uint8, or uint16 for more than 8 bits."""
  return tf.uint8 if num_bits <= _MAX_BITS_OF_BYTES else tf.uint16


def largest_value(num_bits):
  """The largest value of an image, a Python `int`: 255, or `2 ** num_bits - 1` for more than 8 bits."""
  return 2**max(num_bits, _MAX_BITS_OF_BYTES) - 1


def dequantize(images: tf.Tensor | np.ndarray, num_bits: int, noise: float | tf.Tensor = 0.5,
               dtype: tf.DType = tf.float32) -> tf.Tensor:
  """From images to values in their bins.

  Args:
    images: uint8 tensor, 0 .. 255; with fewer than 8 bits the lowest bits are dropped. With more than 8 bits a uint16
      tensor, `0 .. 2 ** num_bits - 1`.
    num_bits: Python `int`, 1 .. 16.
    noise: Position of each value in its bin, from 0 up to 1 (excluded). The default is the midpoint. With more than 8
      bits it is rounded to what `dtype` can distinguish within the bin: multiples of 1/256 for 16 bits in float32.
    dtype: Floating dtype of the result.

  Returns:
    Tensor of the shape of `images`, in `[-1/2, 1/2)`; NaN where a uint16 value has more than `num_bits` bits.

  Raises:
    ValueError: if `num_bits` is not as above.
  """
  check_num_bits(num_bits)
  levels = tf.floor(tf.cast(images, dtype) / 2.**_num_dropped_bits(num_bits))
  noise = tf.cast(noise, dtype)
  if num_bits > _MAX_BITS_OF_BYTES:
    # A larger value would be rounded up into the next bin.
    noise = tf.minimum(noise, tf.constant(1. - 2.**-(_precision(dtype) - num_bits), dtype))
  if _MAX_BITS_OF_BYTES < num_bits < _MAX_BITS:
    # XLA drops the assertions that images have no more bits than this.
    levels = tf.where(levels > largest_value(num_bits), tf.constant(np.nan, dtype), levels)
  return (levels + noise) / 2.**num_bits - 0.5


def quantize(values: tf.Tensor | np.ndarray, num_bits: int) -> tf.Tensor:
  """From values to the images whose bins they lie in; values beyond all bins become the darkest or the brightest.

  Args:
    values: Floating tensor.
    num_bits: Python `int`, 1 .. 16.

  Returns:
    uint8 tensor of the shape of `values`. With fewer than 8 bits it has multiples of `2 ** (8 - num_bits)`, and 255 for
    values beyond the brightest bin, as in the original code. With more than 8 bits a uint16 tensor,
    `0 .. 2 ** num_bits - 1`.

  Raises:
    ValueError: if `num_bits` is not as above.
  """
  check_num_bits(num_bits)
  levels = tf.floor((values + 0.5) * 2.**num_bits)
  images = tf.clip_by_value(levels * 2.**_num_dropped_bits(num_bits), 0., float(largest_value(num_bits)))
  return tf.cast(images, image_dtype(num_bits))


def _num_dropped_bits(num_bits):
  """The number of lowest bits of an image that the model does not see."""
  return max(_MAX_BITS_OF_BYTES - num_bits, 0)


def _precision(dtype):
  """Significant bits of a floating dtype."""
  return 53 if tf.as_dtype(dtype) == tf.float64 else _PRECISION


def image_noise(images: tf.Tensor | np.ndarray, seed: Sequence[int] | tf.Tensor,
                dtype: tf.DType = tf.float32, num_bits: int = 8) -> tf.Tensor:
  """Uniform noise that depends on the seed and the image, but not on the other images in the batch.

  So a result does not change with the batch size, the order of the data or the number of replicas. The noise of two
  different images is still independent.

  Args:
    images: uint8 or uint16 tensor `[N] + event_shape`.
    seed: Integer tensor `[2]`.
    dtype: Floating dtype of the result.
    num_bits: Python `int`, 1 .. 16, of the images. With more than 8 bits, noise in float32 has fewer distinct values.

  Returns:
    Tensor of the shape of `images`, in `(0, 1)`: odd multiples of `2 ** -16`, which together with 8 bits fit a float32.
    With `n` > 8 bits, odd multiples of `2 ** -(24 - n)`, unless `dtype` is float64.

  Raises:
    ValueError: if `num_bits` is not as above.
  """
  check_num_bits(num_bits)
  images = tf.convert_to_tensor(images)
  num_noise_bits = min(15, _precision(dtype) - 1 - num_bits)
  event_shape = tf.shape(images)[1:]
  # The same numbers on every device, and under XLA, which would choose a different generator.
  fold_in = functools.partial(tf.random.experimental.stateless_fold_in, alg="philox")
  full_range = lambda salt: tf.random.stateless_uniform(
      event_shape, fold_in(seed, salt), minval=None, maxval=None, dtype=tf.int64, alg="philox")
  # A random linear hash of each image, then a bijective scramble (the finaliser of SplitMix64) of hash and position.
  axes = list(range(1, images.shape.rank))
  hashes = tf.reduce_sum(tf.cast(images, tf.int64) * tf.bitwise.bitwise_or(full_range(0), 1), axes, keepdims=True)
  bits = tf.bitwise.bitwise_xor(full_range(1), hashes)
  for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
    bits = tf.bitwise.bitwise_xor(bits, _shift_right(bits, shift)) * factor
  # No value may be rounded up into the next bin.
  return (tf.cast(_shift_right(bits, 64 - num_noise_bits), dtype) + 0.5) / 2.**num_noise_bits


def _shift_right(bits, count):
  """The logical shift to the right; TensorFlow's own keeps the sign."""
  shifted = tf.bitwise.right_shift(bits, tf.constant(count, tf.int64))
  return tf.bitwise.bitwise_and(shifted, 2**(64 - count) - 1)


def discrete_log_prob(log_prob: tf.Tensor | np.ndarray, num_dims: int, num_bits: int | None) -> tf.Tensor | np.ndarray:
  """From the log-density of a dequantized image to a log-probability of the image.

  With noise uniform in the bin, the mean of the result is a lower bound of `log P(image)` (Theis et al., "A note on the
  evaluation of generative models", 2015, section 3.1).

  Args:
    log_prob: Tensor, nats.
    num_dims: Number of values in an image.
    num_bits: Python `int`, 1 .. 16, or `None` for continuous data, which keeps its log-density.

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
    log_prob: Tensor, nats: for images, the result of `discrete_log_prob`.
    num_dims: Number of values in an image.

  Returns:
    Tensor of the shape of `log_prob`.
  """
  return -log_prob / (num_dims * math.log(2.))

"""TensorFloat-32 on a CPU: products and convolutions of float32 numbers as NVIDIA's cards since 2020 compute them."""

import contextlib
from unittest import mock

import numpy as np
import tensorflow as tf


@contextlib.contextmanager
def emulated(always=False):
  """Has products and convolutions keep 10 bits of mantissa of their float32 operands, ours and those of Keras' layers.

  Gradients pass through as they are. The operator `@` and all other operations compute in full float32.

  Args:
    always: Python `bool`. `False`: TensorFlow's switch, `tf.config.experimental.enable_tensor_float_32_execution`, is
      asked whenever an operation runs, as a card asks it. XLA cannot compile that: `True` rounds without asking.
  """
  def of_rounded(function):
    return lambda a, b, *args, **kwargs: function(rounded(a, always), rounded(b, always), *args, **kwargs)

  with contextlib.ExitStack() as stack:
    for module, name in ((tf, "matmul"), (tf.linalg, "matmul"), (tf.nn, "conv2d"), (tf.nn, "conv2d_transpose"),
                         (tf.nn, "convolution")):
      stack.enter_context(mock.patch.object(module, name, of_rounded(getattr(module, name))))
    yield


def rounded(x, always=False):
  """float32 tensors to the nearest numbers with 10 bits of mantissa, others as they are."""
  x = tf.convert_to_tensor(x)
  if x.dtype != tf.float32:
    return x

  @tf.custom_gradient
  def round_to_nearest(x):
    bits = tf.bitcast(x, tf.uint32) + tf.constant(0x1000, tf.uint32)
    bits = tf.bitwise.bitwise_and(bits, tf.constant(0xFFFFE000, tf.uint32))
    return tf.where(_is_switched_on(always) & tf.math.is_finite(x), tf.bitcast(bits, tf.float32), x), lambda d: d

  return round_to_nearest(x)


def _is_switched_on(always):
  if always:
    return tf.constant(True)
  switch = tf.config.experimental.tensor_float_32_execution_enabled
  return tf.ensure_shape(tf.numpy_function(lambda: np.bool_(switch()), [], tf.bool), [])

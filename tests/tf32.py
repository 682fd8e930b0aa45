"""TensorFloat-32 on a CPU: products and convolutions of float32 numbers as NVIDIA's cards since 2020 compute them."""

import contextlib
import inspect
from unittest import mock

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import gen_math_ops, gen_nn_ops

# The functions with which TensorFlow makes such operations, also those of gradients, and their operands.
_OPERATIONS = {
    (gen_math_ops, "mat_mul"): ("a", "b"), (gen_math_ops, "batch_mat_mul_v2"): ("x", "y"),
    (gen_math_ops, "batch_mat_mul_v3"): ("x", "y"), (gen_nn_ops, "conv2d"): ("input", "filter"),
    (gen_nn_ops, "conv2d_backprop_input"): ("filter", "out_backprop"),
    (gen_nn_ops, "conv2d_backprop_filter"): ("input", "out_backprop"),
    (tf.raw_ops, "Conv2DBackpropFilter"): ("input", "out_backprop")}


@contextlib.contextmanager
def emulated(always=False):
  """Makes products and convolutions keep 10 bits of mantissa of their float32 operands: ours, those of Keras' layers,
  and those in gradients of any order.

  Args:
    always: Python `bool`. `False`: TensorFlow's switch, `tf.config.experimental.enable_tensor_float_32_execution`, is
      read whenever an operation runs, as a card does. XLA cannot compile that: `True` always rounds.
  """
  with contextlib.ExitStack() as stack:
    for (module, name), operands in _OPERATIONS.items():
      stack.enter_context(mock.patch.object(module, name, _of_rounded(getattr(module, name), operands, always)))
    yield


def _of_rounded(function, operands, always):
  """The same function of rounded operands."""
  signature = inspect.signature(function)

  def evaluate(*args, **kwargs):
    arguments = signature.bind(*args, **kwargs).arguments
    return function(**arguments | {name: rounded(arguments[name], always) for name in operands})

  return evaluate


def rounded(x, always=False):
  """Rounds float32 tensors to the nearest numbers with 10 bits of mantissa; leaves others as they are."""
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

"""Products over channels, and convolutions, as exact as their evaluation must be.

Some devices compute float32 products from operands with 10 bits of mantissa (see `precision`). They get each operand
in two parts, the bits that they keep and the rest:

```none
a = a_high + a_low,    b = b_high + b_low
a b = a_low b_high + a_high b_low + a_high b_high    (+ a_low b_low, below the last bit of float32)
```

The results are products of full float32, whatever the switch says and whoever compiles them: XLA, or a server that
loads a SavedModel. The sums are the device's own. Long sums of an H100 lose more than float32's: relative errors are
1e-7 for sums of a dozen products, 1e-5 for sums of 4,608.
"""

import tensorflow as tf

from tfp_glow._core import precision
from tfp_glow._core.gradients import custom_gradient

# Sign, exponent and the upper 10 bits of a float32's mantissa; and half of the last of these bits.
_KEPT_BITS = 0xFFFFE000
_HALF_OF_THE_LAST = 0x1000


def rows(x):
  """From `[..., C]` to `[N, C]`."""
  return tf.reshape(x, [-1, x.shape[-1]])


def with_rows(product, like):
  """From `[N, D]` to `[..., D]`, with the leading dimensions of the tensor `like`, `[..., C]`."""
  sizes = [tf.shape(like)[i] if size is None else size for i, size in enumerate(like.shape[:-1])]
  return tf.reshape(product, [-1, *sizes[1:], product.shape[-1]])


def flow_dtype(dtype):
  """The dtype of the flow's own products: float64, which no device rounds; TensorFlow Lite has no float64 products."""
  return dtype if precision.is_lite() else tf.float64


def flow_matmul(a, b, transpose_a=False, transpose_b=False, dtype=None):
  """`tf.matmul` of the flow's own matrices, which are small: exact in float32, also in training.

  It is computed in `flow_dtype`. Matrices that are used often are best kept in that dtype.

  Args:
    a: Floating matrix.
    b: Floating matrix.
    transpose_a: Python `bool`.
    transpose_b: Python `bool`.
    dtype: Dtype of the product; `None`: that of `a`.
  """
  wide = flow_dtype(a.dtype)
  product = tf.matmul(tf.cast(a, wide), tf.cast(b, wide), transpose_a, transpose_b)
  return tf.cast(product, dtype or a.dtype)


def channel_product(inputs, matrix, product=flow_matmul):
  """`inputs @ matrix` over the last dimension, as one matrix product: a 1x1 convolution.

  Args:
    inputs: Tensor `[N, ..., C]`.
    matrix: Tensor `[C, D]`.
    product: `flow_matmul`, or `matmul` in a network.

  Returns:
    Tensor `[N, ..., D]`.
  """
  return with_rows(product(rows(inputs), matrix), inputs)


def matmul(a, b, transpose_a=False, transpose_b=False):
  """`tf.matmul` of two matrices in a network."""
  if not _needs_parts(a):
    return tf.matmul(a, b, transpose_a, transpose_b)

  def gradients(a, b, d):
    d_a = matmul(b, d, transpose_b, True) if transpose_a else matmul(d, b, False, not transpose_b)
    d_b = matmul(d, a, True, transpose_a) if transpose_b else matmul(a, d, not transpose_a, False)
    return d_a, d_b

  return _by_parts(lambda a, b: tf.matmul(a, b, transpose_a, transpose_b), gradients, a, b)


def conv2d(inputs, kernel):
  """A network's convolution of `[N, H, W, C]` with a kernel `[h, w, C, D]`, padded to the size of the inputs."""
  if not _needs_parts(inputs):
    return tf.nn.conv2d(inputs, kernel, strides=1, padding="SAME")

  def gradients(inputs, kernel, d):
    return conv2d_back(d, kernel, tf.shape(inputs)), conv2d_to_kernel(inputs, d, kernel.shape)

  return _by_parts(lambda inputs, kernel: tf.nn.conv2d(inputs, kernel, strides=1, padding="SAME"), gradients, inputs,
                   kernel)


def conv2d_back(outputs, kernel, input_shape):
  """The transpose of `conv2d`: from a tensor like its outputs to one like its inputs, of shape `input_shape`."""
  convolve = lambda outputs, kernel: tf.nn.conv2d_transpose(outputs, kernel, input_shape, strides=1, padding="SAME")
  if not _needs_parts(outputs):
    return convolve(outputs, kernel)

  def gradients(outputs, kernel, d):
    return conv2d(d, kernel), conv2d_to_kernel(d, outputs, kernel.shape)

  return _by_parts(convolve, gradients, outputs, kernel)


def conv2d_to_kernel(inputs, d_outputs, shape):
  """The gradient of `conv2d` with respect to its kernel, of shape `shape`."""
  convolve = lambda inputs, d_outputs: tf.raw_ops.Conv2DBackpropFilter(
      input=inputs, filter_sizes=shape, out_backprop=d_outputs, strides=[1] * 4, padding="SAME")
  if not _needs_parts(inputs):
    return convolve(inputs, d_outputs)

  def gradients(inputs, d_outputs, d):
    return conv2d_back(d_outputs, d, tf.shape(inputs)), conv2d(inputs, d)

  return _by_parts(convolve, gradients, inputs, d_outputs)


def _needs_parts(operand):
  return operand.dtype == tf.float32 and precision.is_full() and precision.mode().device_rounds


def _by_parts(product, gradients, a, b):
  """`product(a, b)`, which is linear in both, computed from the parts of `a` and `b`.

  Args:
    product: Callable, from two float32 tensors to one.
    gradients: Callable, from `a`, `b` and the gradient of the product to their gradients.
    a: Tensor.
    b: Tensor.
  """

  def evaluate(a, b):
    (a_high, a_low), (b_high, b_low) = parts(a), parts(b)
    # The small ones first: rounding errors of their sum do not matter.
    outputs = (product(a_low, b_high) + product(a_high, b_low)) + product(a_high, b_high)
    return outputs, lambda d: gradients(a, b, d)

  return custom_gradient(evaluate)(a, b)


def parts(x):
  """Splits a float32 tensor into two whose sum it is: numbers with 10 bits of mantissa, and the rest.

  Bit operations do this, because a compiler could simplify `x - (x - high)`. The upper part is rounded to the nearest,
  so the rest has 11 bits and a sign. A device's rounding of the rest lies below the last bit of `x`.
  """
  bits = tf.bitcast(x, tf.uint32) + tf.constant(_HALF_OF_THE_LAST, tf.uint32)
  high = tf.bitcast(tf.bitwise.bitwise_and(bits, tf.constant(_KEPT_BITS, tf.uint32)), tf.float32)
  return high, x - high

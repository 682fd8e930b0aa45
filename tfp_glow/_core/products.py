"""Products over channels, and convolutions, as exact as the evaluation that they are part of must be.

Devices that compute float32 products from operands with 10 bits of mantissa (see `precision`) are given each operand in
two parts, what they keep of it and the rest:

```none
a = a_high + a_low,    b = b_high + b_low
a b = a_low b_high + a_high b_low + a_high b_high    (+ a_low b_low, below the last bit of float32)
```

These are the products of float32 whatever the switch says and whoever compiles them: XLA, a SavedModel on a server. The
sums are the device's own. An H100's lose more than float32's where they are long: relative errors are 1e-7 for sums of
a dozen products, 1e-5 for those of 4,608.
"""

import tensorflow as tf

from tfp_glow._core import precision
from tfp_glow._core.gradients import custom_gradient

# Sign, exponent and the upper 10 bits of the mantissa of a float32; and half of the last of these bits.
_KEPT_BITS = 0xFFFFE000
_HALF_OF_THE_LAST = 0x1000


def rows(x):
  """From `[..., C]` to `[N, C]`."""
  return tf.reshape(x, [-1, x.shape[-1]])


def with_rows(product, like):
  """From `[N, D]` to `[..., D]`, the leading dimensions being those of a tensor `[..., C]`."""
  sizes = [tf.shape(like)[i] if size is None else size for i, size in enumerate(like.shape[:-1])]
  return tf.reshape(product, [-1, *sizes[1:], product.shape[-1]])


def flow_dtype(dtype):
  """That of the flow's own products: float64, which no device rounds; but TensorFlow Lite has no products of it."""
  return dtype if precision.is_lite() else tf.float64


def flow_matmul(a, b, transpose_a=False, transpose_b=False, dtype=None):
  """`tf.matmul` of matrices of the flow itself, which are small: exact in float32, in training, too.

  In `flow_dtype`; those that are used often are best kept in it.

  Args:
    a: Floating matrix.
    b: Floating matrix.
    transpose_a: Python `bool`.
    transpose_b: Python `bool`.
    dtype: Of the product, `None` for that of `a`.
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
  """A convolution in a network, padded to the size of its inputs `[N, H, W, C]`; the kernel is `[h, w, C, D]`."""
  if not _needs_parts(inputs):
    return tf.nn.conv2d(inputs, kernel, strides=1, padding="SAME")

  def gradients(inputs, kernel, d):
    return conv2d_back(d, kernel, tf.shape(inputs)), conv2d_to_kernel(inputs, d, kernel.shape)

  return _by_parts(lambda inputs, kernel: tf.nn.conv2d(inputs, kernel, strides=1, padding="SAME"), gradients, inputs,
                   kernel)


def conv2d_back(outputs, kernel, input_shape):
  """The transpose of `conv2d`: from tensors like its outputs to tensors like its inputs, of this shape."""
  convolve = lambda outputs, kernel: tf.nn.conv2d_transpose(outputs, kernel, input_shape, strides=1, padding="SAME")
  if not _needs_parts(outputs):
    return convolve(outputs, kernel)

  def gradients(outputs, kernel, d):
    return conv2d(d, kernel), conv2d_to_kernel(d, outputs, kernel.shape)

  return _by_parts(convolve, gradients, outputs, kernel)


def conv2d_to_kernel(inputs, d_outputs, shape):
  """The gradient of `conv2d` with respect to its kernel, of this shape."""
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
  """`product(a, b)`, which is linear in both, of the parts of `a` and `b`.

  Args:
    product: Callable, from two float32 tensors to one.
    gradients: Callable, from `a`, `b` and the gradient of the product to their gradients.
    a: Tensor.
    b: Tensor.
  """

  def evaluate(a, b):
    (a_high, a_low), (b_high, b_low) = parts(a), parts(b)
    # The small ones first: their sum is rounded where it does not count.
    outputs = (product(a_low, b_high) + product(a_high, b_low)) + product(a_high, b_high)
    return outputs, lambda d: gradients(a, b, d)

  return custom_gradient(evaluate)(a, b)


def parts(x):
  """Numbers with 10 bits of mantissa, and what is left: two tensors whose sum is a float32 tensor.

  Taken by its bits: compilers may not simplify `x - (x - high)`, but they could. Rounded to the nearest, the upper part
  leaves a rest of 11 bits and a sign: a device rounds that below the last bit of `x`.
  """
  bits = tf.bitcast(x, tf.uint32) + tf.constant(_HALF_OF_THE_LAST, tf.uint32)
  high = tf.bitcast(tf.bitwise.bitwise_and(bits, tf.constant(_KEPT_BITS, tf.uint32)), tf.float32)
  return high, x - high

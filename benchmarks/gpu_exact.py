"""Products and convolutions that are exact in float32 wherever they run.

NVIDIA's cards since 2020 compute float32 products from operands with 10 bits of mantissa, unless TensorFlow is told
otherwise, for the whole process (TensorFloat-32). A flow that must invert itself cannot live with that. So each operand
is taken apart into what such a card keeps of it and the rest:

```none
a = a_high + a_low,    b = b_high + b_low
a b = a_low b_high + a_high b_low + a_high b_high    (+ a_low b_low, below the last bit of float32)
```

These three products are those of float32, to its rounding, whatever the switch says and whoever compiles it: XLA, a
SavedModel on a server.
"""

import tensorflow as tf

from tfp_glow._core.gradients import custom_gradient

# Sign, exponent and the upper 10 bits of the mantissa of a float32; and half of the last of these bits.
_KEPT_BITS = 0xFFFFE000
_HALF_OF_THE_LAST = 0x1000


def split(x):
  """Takes a tensor apart into numbers with 10 bits of mantissa, and what is left.

  Both parts are taken by their bits: compilers may not simplify `x - (x - high)`, but they could. Rounded to the
  nearest, the upper part leaves a rest of 11 bits and a sign: the card rounds that below the last bit of `x`. No
  gradient passes through.

  Args:
    x: float32 tensor, of numbers up to 3.4e38; larger ones are taken for infinite, and infinite ones leave NaN.

  Returns:
    high: float32 tensor.
    low: float32 tensor, `x - high` exactly.
  """
  bits = tf.bitcast(x, tf.uint32) + tf.constant(_HALF_OF_THE_LAST, tf.uint32)
  high = tf.bitcast(tf.bitwise.bitwise_and(bits, tf.constant(_KEPT_BITS, tf.uint32)), tf.float32)
  return high, x - high


def matmul(a, b, transpose_a=False, transpose_b=False):
  """`tf.matmul`, as exact as its operands; so are its gradients, of any order.

  Args:
    a: Floating tensor `[..., M, K]`. Of other dtypes than float32 the product is that of `tf.matmul`.
    b: Tensor `[..., K, N]`, of the same leading dimensions.
    transpose_a: Python `bool`: `a` is `[..., K, M]`.
    transpose_b: Python `bool`: `b` is `[..., N, K]`.

  Returns:
    Tensor `[..., M, N]`.

  Raises:
    ValueError: if the leading dimensions differ.
  """
  a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
  if not a.shape[:-2].is_compatible_with(b.shape[:-2]):
    raise ValueError(f"`a` and `b` must have the same leading dimensions. Received: shapes {a.shape}, {b.shape}")

  def product(a, b):
    return tf.matmul(a, b, transpose_a, transpose_b)

  def gradients(a, b, d):
    d_a = matmul(b, d, transpose_b, True) if transpose_a else matmul(d, b, False, not transpose_b)
    d_b = matmul(d, a, True, transpose_a) if transpose_b else matmul(a, d, not transpose_a, False)
    return d_a, d_b

  return _exact(product, gradients, a, b)


def conv2d(inputs, kernel, strides=1, padding="SAME"):
  """`tf.nn.conv2d`, as exact as its operands; so are its gradients, of any order.

  Args:
    inputs: Floating tensor `[N, H, W, C]`. Of other dtypes than float32 the result is that of `tf.nn.conv2d`.
    kernel: Tensor `[h, w, C, D]`.
    strides: Python `int`.
    padding: `"SAME"` or `"VALID"`.

  Returns:
    Tensor `[N, H', W', D]`.
  """
  inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
  options = {"strides": [1, strides, strides, 1], "padding": padding}

  # Of a convolution, and of what pulls gradients back to its inputs and to its kernel, each has the other two for its
  # gradients.
  def convolve(inputs, kernel):
    return _exact(
        lambda inputs, kernel: tf.nn.conv2d(inputs, kernel, strides, padding),
        lambda inputs, kernel, d: (to_inputs(kernel, d, tf.shape(inputs)), to_kernel(inputs, d, tf.shape(kernel))),
        inputs, kernel)

  def to_inputs(kernel, d, shape):
    return _exact(
        lambda kernel, d: tf.raw_ops.Conv2DBackpropInput(
            input_sizes=shape, filter=kernel, out_backprop=d, **options),
        lambda kernel, d, d_inputs: (to_kernel(d_inputs, d, tf.shape(kernel)), convolve(d_inputs, kernel)), kernel, d)

  def to_kernel(inputs, d, shape):
    return _exact(
        lambda inputs, d: tf.raw_ops.Conv2DBackpropFilter(
            input=inputs, filter_sizes=shape, out_backprop=d, **options),
        lambda inputs, d, d_kernel: (to_inputs(d_kernel, d, tf.shape(inputs)), convolve(inputs, d_kernel)), inputs, d)

  return convolve(inputs, kernel)


def _exact(product, gradients, a, b):
  """`product(a, b)`, which is linear in both, by the parts of `a` and `b`.

  Args:
    product: Callable, from two tensors to one.
    gradients: Callable, from `a`, `b` and the gradient of the product to their gradients.
    a: Tensor.
    b: Tensor.
  """
  if a.dtype != tf.float32:
    return product(a, b)

  def evaluate(a, b):
    (a_high, a_low), (b_high, b_low) = split(a), split(b)
    # The small ones first: their sum is rounded where it does not count.
    outputs = (product(a_low, b_high) + product(a_high, b_low)) + product(a_high, b_high)
    return outputs, lambda d: gradients(a, b, d)

  # The parts have no gradients, and estimates of log-dets are made of those.
  return custom_gradient(evaluate, can_be_left_out=False)(a, b)

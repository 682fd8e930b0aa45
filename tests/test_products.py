"""Products and convolutions from parts, where TensorFloat-32 is emulated."""

import numpy as np
import pytest
import tensorflow as tf
import tf32

from tfp_glow._core import precision, products

RNG = np.random.default_rng(0)
TRANSPOSED = [(False, False), (True, False), (False, True), (True, True)]


def draw(*shape, dtype=np.float32):
  return RNG.normal(size=shape).astype(dtype)


def relative_error(actual, expected):
  return np.abs(actual - expected).max() / np.abs(expected).max()


def compiled(function, jit_compile):
  return tf.function(function, autograph=False, jit_compile=jit_compile)


@pytest.fixture(autouse=True)
def full_precision_on_a_device_that_rounds():
  with precision.entered(precision.Mode(is_training=False, device_rounds=True)):
    # The emulation asks this switch if it does not always round.
    tf.config.experimental.enable_tensor_float_32_execution(True)
    yield


def matmul_case(transpose_a=False, transpose_b=False):
  a, b = draw(*((40, 7) if transpose_a else (7, 40))), draw(*((5, 40) if transpose_b else (40, 5)))
  arguments = {"transpose_a": transpose_a, "transpose_b": transpose_b}
  return (lambda a, b: products.matmul(a, b, **arguments)), (lambda a, b: tf.matmul(a, b, **arguments)), a, b


def conv2d_case():
  return (products.conv2d, lambda x, kernel: tf.nn.conv2d(x, kernel, strides=1, padding="SAME"), draw(2, 6, 6, 3),
          draw(3, 3, 3, 4))


def conv2d_back_case():
  shape = [2, 6, 6, 3]
  return (lambda x, kernel: products.conv2d_back(x, kernel, shape),
          lambda x, kernel: tf.nn.conv2d_transpose(x, kernel, shape, strides=1, padding="SAME"), draw(2, 6, 6, 4),
          draw(3, 3, 3, 4))


CASES = {"matmul": matmul_case(), "conv2d": conv2d_case(), "conv2d_back": conv2d_back_case(),
         **{f"matmul{transposed}": matmul_case(*transposed) for transposed in TRANSPOSED[1:]}}


@pytest.fixture(params=CASES)
def case(request):
  return CASES[request.param]


def in_float64(plain, *arguments):
  return plain(*(tf.constant(x, tf.float64) for x in arguments)).numpy()


def test_parts():
  x = np.concatenate([draw(1000), 1e30 * draw(10), 1e-30 * draw(10), [0., -0., 3.4e38, -3.4e38]]).astype(np.float32)
  high, low = (part.numpy() for part in products.parts(tf.constant(x)))
  np.testing.assert_array_equal(high.astype(np.float64) + low, x)
  assert not np.any(high.view(np.uint32) & 0x1FFF)
  assert np.all(np.abs(low) <= 2.**-11 * np.abs(x))
  assert not np.any(np.isfinite(products.parts(tf.constant([np.nan, np.inf, -np.inf]))[1]))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_values_do_not_depend_on_the_card(case, jit_compile):
  exact, plain, *arguments = case
  expected = in_float64(plain, *arguments)
  with tf32.emulated(always=True):
    assert relative_error(compiled(plain, jit_compile)(*arguments), expected) > 1e-4
    assert relative_error(compiled(exact, jit_compile)(*arguments), expected) < 5e-7
    assert relative_error(exact(*arguments), expected) < 5e-7
  assert relative_error(exact(*arguments), expected) < 5e-7


def test_of_long_sums_are_as_exact_as_float32():
  a, b = np.maximum(draw(64, 4608), 0.), draw(4608, 64)
  expected = in_float64(tf.matmul, a, b)
  error = lambda product: np.sqrt(np.mean(np.square(product - expected)))
  plain = error(tf.matmul(a, b))
  with tf32.emulated():
    assert error(products.matmul(a, b)) < 1.2 * plain


@pytest.mark.parametrize("case, jit_compile", [  # Compiled: one of each kind.
    *((name, False) for name in CASES),
    *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("matmul", "conv2d", "conv2d_back"))],
    indirect=["case"])
def test_gradients_of_both_orders(case, jit_compile):
  exact, plain, *arguments = case

  def first_and_second(function, dtype):

    def evaluate(a, b):
      with tf.GradientTape() as outer:
        outer.watch([a, b])
        with tf.GradientTape() as inner:
          inner.watch([a, b])
          loss = tf.reduce_sum(function(a, b)**3)
        first = inner.gradient(loss, [a, b])
        total = sum(tf.reduce_sum(d**2) for d in first)
      return first + outer.gradient(total, [a, b])

    return [d.numpy() for d in compiled(evaluate, jit_compile)(*(tf.constant(x, dtype) for x in arguments))]

  expected = first_and_second(plain, tf.float64)
  with tf32.emulated(always=True):
    for actual, wanted in zip(first_and_second(exact, tf.float32), expected):
      assert relative_error(actual, wanted) < 2e-6


def test_other_dtypes_are_left_alone(case):
  exact, plain, *arguments = case
  for dtype in (tf.float64, tf.bfloat16):
    x = [tf.cast(argument, dtype) for argument in arguments]
    np.testing.assert_array_equal(exact(*x), plain(*x))


def test_unknown_sizes(case):
  exact, plain, a, b = case
  function = tf.function(lambda a, b: tf.gradients(exact(a, b), [a, b]), autograph=False, input_signature=[
      tf.TensorSpec([None] * a.ndim), tf.TensorSpec(b.shape)])
  with tf.GradientTape() as tape:
    a, b = tf.constant(a), tf.constant(b)
    tape.watch([a, b])
    outputs = plain(a, b)
  for actual, wanted in zip(function(a, b), tape.gradient(outputs, [a, b])):
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_products_of_the_flow_are_exact_in_training_too():
  a, b = draw(50, 12), draw(12, 12)
  with tf32.emulated(always=True), precision.entered(precision.Mode(is_training=True, device_rounds=True)):
    assert relative_error(products.matmul(a, b), a.astype(np.float64) @ b) > 1e-4
    assert relative_error(products.flow_matmul(tf.constant(a), tf.constant(b)), a.astype(np.float64) @ b) < 1e-7


def test_emulation_rounds_what_gradients_multiply(case):
  """Gradients of both orders. Rounding does not change the operands of the value."""
  _, plain, *operands = case
  a, b = (tf32.rounded(x, always=True).numpy() for x in operands)
  d, *d_first = (draw(*x.shape) for x in (plain(a, b), a, b))

  def first_and_second(dtype):
    a_, b_, d_ = (tf.constant(x, dtype) for x in (a, b, d))
    with tf.GradientTape() as outer:
      outer.watch(d_)
      with tf.GradientTape() as inner:
        inner.watch([a_, b_])
        outputs = plain(a_, b_)
      first = inner.gradient(outputs, [a_, b_], d_)
    return [x.numpy() for x in (*first, outer.gradient(first, d_, [tf.constant(x, dtype) for x in d_first]))]

  expected = first_and_second(tf.float64)
  for found, value in zip(first_and_second(tf.float32), expected):
    assert relative_error(found, value) < 1e-6
  with tf32.emulated(always=True):
    for found, value in zip(first_and_second(tf.float32), expected):
      assert relative_error(found, value) > 1e-4


@pytest.mark.slow
def test_emulation_asks_the_switch_when_it_runs():
  a, b = draw(8, 8), draw(8, 8)
  expected = in_float64(tf.matmul, a, b)
  with tf32.emulated():
    product = compiled(lambda: tf.matmul(a, b), False)
    assert relative_error(product(), expected) > 1e-4
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
      assert relative_error(product(), expected) < 1e-6
    finally:
      tf.config.experimental.enable_tensor_float_32_execution(True)

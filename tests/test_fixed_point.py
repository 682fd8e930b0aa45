"""The fixed point: `forward` of residual blocks, and gradients through it."""

import itertools

import bijector_cases
import keras
import numpy as np
import pytest
import residual_reference
import tensorflow as tf

import tfp_glow
from tfp_glow._core import gradients
from tfp_glow.bijectors.fixed_point import solve
from tfp_glow.networks import lipschitz

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
RNG = np.random.default_rng(0)
Y = RNG.standard_normal([5, 3])


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [("float32", 3e-6), ("float64", 1e-11)])
@pytest.mark.parametrize("name", residual_reference.BLOCKS)
def test_forward_undoes_inverse_to_rounding_errors(name, dtype, tolerance):
  block = residual_reference.make_block(name, dtype, log_det="power_series", num_eval_terms=1)
  y = residual_reference.image(residual_reference.numbers(name)["x"]).astype(dtype)
  x = block.inverse(y).numpy()
  found = tf.function(block.forward)(x).numpy()
  scale = 1. + np.abs(y).max()
  np.testing.assert_allclose(found, y, atol=tolerance * scale)
  np.testing.assert_allclose(block.inverse(found), x, atol=tolerance * scale)  # The residual.


def linear_block(slope, **kwargs):
  """A block with an `inverse` that multiplies by `1 + slope`."""
  network = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(slope), dtype="float64")
  return tfp_glow.InvertibleResidualBlock(network, "exact", event_ndims=1, dtype="float64", **kwargs)


@pytest.mark.slow
def test_each_event_takes_its_own_number_of_iterations():
  count = []

  def branch(y, weights):
    del weights
    count.append(y.numpy())
    return 0.5 * y * tf.constant([[1.], [0.]], tf.float64)

  solve(branch, tf.constant([[3.], [2.]], tf.float64), [], 1e-9, 100, "block")
  iterates = np.array(count)[:, :, 0]
  assert len(count) > 25 and (iterates[2:, 1] == 2.).all()
  # Alone it takes the same steps as in a batch.
  alone = linear_block(-0.9)
  together = alone.forward(np.array([[1.], [1e-3], [50.]])).numpy()
  for row, x in zip(together, (1., 1e-3, 50.)):
    np.testing.assert_array_equal(alone.forward(np.array([[x]]))[0], row)


def test_steps_that_are_rounding_errors():
  """Steps that do not become smaller end the iteration near the tolerance, and are an error far from it."""

  def noisy(size):
    signs = itertools.cycle([1., -1.])
    branch = lambda y, weights: 0.5 * y + size * next(signs)
    return solve(branch, tf.constant([[3.], [2.]], tf.float64), [], 1e-6, 200, "block")

  np.testing.assert_allclose(noisy(2e-5), [[2.], [4. / 3.]], atol=1e-4)
  with pytest.raises(tf.errors.InvalidArgumentError, match=r"the fixed point of `block.forward` must be reached"):
    noisy(1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda: linear_block(-0.99, max_iterations=20), lambda: linear_block(1.5), lambda: linear_block(1.)],
    ids=["too few", "expands", "oscillates"])
def test_no_convergence_is_never_silent(make):
  block, x = make(), np.ones([2, 1])
  x[1] = 0.  # Converges at once.
  for run in (block.forward, tf.function(block.forward)):
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be reached in `max_iterations` = .*Received: "):
      run(x)
  found = tf.function(block.forward, jit_compile=True)(x).numpy()
  assert np.isnan(found[0]).all() and (found[1] == 0.).all()


def test_inputs_that_are_not_finite_do_not_converge():
  for bad in (np.nan, np.inf):
    with pytest.raises(tf.errors.InvalidArgumentError, match="inputs must be finite"):
      linear_block(0.5).forward(np.array([[bad]]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fc", "conv"])
def test_gradients_through_the_fixed_point_are_those_of_the_implicit_function(name):
  """`d_x (I + J) = d_y`, solved by brute force."""
  block, _, x = residual_reference.exact_block(name)
  d_y = tf.constant(RNG.standard_normal(x.shape))
  target = x.numpy() + 0.1
  y = block.forward(target)
  found = residual_reference.gradients_of(
      lambda z: d_y * block.forward(z), tf.constant(target), block.network)
  size = x.shape[1:].num_elements()
  copies = tf.repeat(y, size, axis=0)
  outputs, pull_back = gradients.linearized(block._branch, copies, lipschitz.fold(block.network))
  del outputs
  jacobian = tf.reshape(pull_back(tf.reshape(tf.eye(size, batch_shape=[len(x)], dtype=x.dtype), copies.shape)),
                        [-1, size, size])
  by_hand = np.linalg.solve(np.eye(size) + np.transpose(jacobian, [0, 2, 1]), np.reshape(d_y, [-1, size, 1]))
  by_hand = by_hand.reshape(x.shape)
  np.testing.assert_allclose(found[0], by_hand, atol=1e-10)
  expected = residual_reference.gradients_of(
      lambda y: -by_hand * block._branch(y, lipschitz.fold(block.network)), y, block.network)
  for a, b in zip(found[1:], expected[1:], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_gradients_through_the_fixed_point_of_any_size(scale):
  """Each event's gradient is as exact as if it were of size 1."""
  block = bijector_cases.residual_block(3)
  x = tf.constant(RNG.standard_normal([2, 3]), tf.float32)

  def gradients(weights):
    with tf.GradientTape() as tape:
      tape.watch(x)
      loss = tf.reduce_sum(tf.constant(weights, tf.float32)[:, tf.newaxis] * block.forward(x))
    return tape.gradient(loss, x)

  np.testing.assert_allclose(gradients([scale, 1.]) / np.float32([[scale], [1.]]), gradients([1., 1.]), rtol=1e-5)


def test_a_gradient_of_zero_is_zero():
  block, x = bijector_cases.residual_block(3), tf.ones([2, 3])
  with tf.GradientTape() as tape:
    tape.watch(x)
    loss = tf.reduce_sum(tf.constant([[0.], [1.]]) * block.forward(x))
  found = tape.gradient(loss, x).numpy()
  assert (found[0] == 0.).all() and (found[1] != 0.).any()


def test_gradients_of_forward_and_its_log_det_are_those_of_differences():
  block = bijector_cases.residual_block(3, "float64")
  block.build([3])
  x, kernel = tf.constant(Y), block.network.trainable_variables[0]
  direction = RNG.standard_normal(kernel.shape)
  start = kernel.numpy()

  def loss(step):
    kernel.assign(start + step * direction)
    y, log_det = block.forward_and_log_det(x)
    return tf.reduce_sum(tf.sin(y)) + tf.reduce_sum(log_det**2)

  expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
  with tf.GradientTape() as tape:
    total = loss(0.)
  np.testing.assert_allclose(tf.reduce_sum(tape.gradient(total, kernel.value) * direction), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("within, jit_compile", [("scan", False), ("scan", True), ("loop", False), ("branch", False)])
def test_gradients_are_those_of_graphs_with_control_flow(within, jit_compile):
  """Gradients by weights and by the input."""

  def make_block(k):
    network = keras.Sequential([lipschitz.LipSwish(dtype="float64"),
                                lipschitz.LipschitzDense(3, 0.7, seed=k, dtype="float64")])
    return tfp_glow.InvertibleResidualBlock(network, event_ndims=1, tolerance=1e-11, dtype="float64")

  bijector = tfp_glow.Scan(make_block, 2, [3], dtype="float64") if within == "scan" else make_block(0)
  bijector.inverse(Y)  # Builds it.
  run = {
      "scan": bijector.forward,
      "loop": lambda x: tf.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, bijector.forward(x)), (0, x))[1],
      "branch": lambda x: tf.cond(tf.reduce_sum(x) > -1e9, lambda: bijector.forward(x), lambda: x),
  }[within]

  def gradients(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      total = tf.reduce_sum(tf.sin(run(x)))
    return tape.gradient(total, [x, *bijector.trainable_variables])

  x = tf.constant(Y)
  expected = gradients(x)
  assert all(np.abs(gradient).max() > 0. for gradient in expected)
  for a, b in zip(tf.function(gradients, jit_compile=jit_compile)(x), expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.slow
def test_gradients_in_a_branch_may_be_asked_for_twice():
  """Gradients of `x / (1 + slope)`; not under XLA, which compiles no persistent tapes."""
  block, x = linear_block(-0.5), tf.constant([[3.], [-1.]], tf.float64)
  block.inverse(x)  # Builds it.

  @tf.function
  def gradients(x):
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(x)
      y = tf.cond(tf.reduce_sum(x) > 0., lambda: block.forward(x), lambda: x)
    return [tape.gradient(y, [x, block.network.kernel.value]) for _ in range(2)]

  for by_x, by_slope in gradients(x):
    np.testing.assert_allclose(by_x, [[2.]] * 2, rtol=1e-9)
    np.testing.assert_allclose(by_slope, [[-8.]], rtol=1e-9)  # The sum of `-x / (1 + slope) ** 2`.


def test_second_derivatives_are_nan():
  block, x = bijector_cases.residual_block(3, "float64"), tf.constant(Y)
  with tf.GradientTape() as outer:
    outer.watch(x)
    with tf.GradientTape() as inner:
      inner.watch(x)
      total = tf.reduce_sum(tf.sin(block.forward(x)))
    slope = tf.reduce_sum(inner.gradient(total, x)**2)
  assert np.isnan(outer.gradient(slope, x)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_has_none(bad):
  """Nor does it get a number that the iteration did not converge to; the gradients of other events are right."""
  block = tfp_glow.InvertibleResidualBlock(keras.layers.Rescaling(0.5, dtype="float64"), "exact", event_ndims=1,
                                           dtype="float64")
  x = tf.ones([2, 3], tf.float64)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = block.forward(x)
  found = tape.gradient(y, x, tf.constant([[bad, 1., 1.], [1., 2., 3.]], tf.float64))
  assert np.isnan(found[0]).all()
  np.testing.assert_allclose(found[1], np.array([1., 2., 3.]) / 1.5, rtol=1e-9)

"""Custom gradients: their graphs live no longer than they are needed."""

import gc
import weakref

import bijector_cases
import numpy as np
import pytest
import small_models
import tensorflow as tf
from tensorflow.python.framework import ops

import tfp_glow
from tfp_glow._core import gradients
from tfp_glow._core.gradients import custom_gradient

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")


def tripled_backwards(x):
  return custom_gradient(lambda x: (2. * x, lambda d: 3. * d))(x)


@pytest.mark.parametrize("within", ["function", "loop", "branch"])
def test_a_gradient_is_found_as_long_as_its_graph_is_there(within):
  run = {
      "function": tripled_backwards,
      "loop": lambda x: tf.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, tripled_backwards(x)), (0, x))[1],
      "branch": lambda x: tf.cond(x > 0., lambda: tripled_backwards(x), lambda: x),
  }[within]

  @tf.function(autograph=False)
  def value(x):
    return run(x)

  value(tf.constant(1.))
  gc.collect()
  x = tf.constant(1.)
  for wrap in (lambda f: f, tf.function):

    def gradient():
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = value(x)
      return tape.gradient(y, x)

    np.testing.assert_allclose(wrap(gradient)(), 9. if within == "loop" else 3.)


@pytest.mark.slow
@pytest.mark.parametrize("log_det", ["exact", "russian_roulette"])
def test_gradients_by_what_comes_from_outside_of_a_branch(log_det):
  """Also with the tape outside of the function."""
  block = bijector_cases.residual_block(3, "float64", log_det=log_det)
  x = tf.constant(np.random.default_rng(0).standard_normal([5, 3]))
  block.build([3])

  @tf.function(autograph=False)
  def in_a_branch(x, condition):
    return tf.cond(condition, lambda: sum(map(tf.reduce_sum, block.inverse_and_log_det(x))), lambda: tf.reduce_sum(x))

  found = []
  for value in (lambda x: in_a_branch(x, tf.constant(True)), tf.function(lambda x: in_a_branch(x, tf.constant(True))),
                lambda x: sum(map(tf.reduce_sum, block.inverse_and_log_det(x)))):
    with tf.GradientTape() as tape:
      tape.watch(x)
      total = value(x)
    found.append(tape.gradient(total, [x, *block.trainable_variables]))
  for *values, expected in zip(*found, strict=True):
    for value in values:
      np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_gradients_of_a_saved_model(tmp_path):
  """A user's own module, saved with gradients, which is TensorFlow's default."""
  module = tf.Module()
  module.value = tf.function(tripled_backwards, [tf.TensorSpec([], tf.float32)], autograph=False)
  tf.saved_model.save(module, tmp_path, options=tf.saved_model.SaveOptions(experimental_custom_gradients=True))
  del module
  gc.collect()
  x = tf.constant(1.)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = tf.saved_model.load(tmp_path).value(x)
  np.testing.assert_allclose([y, tape.gradient(y, x)], [2., 3.])


def graphs():
  return sum(isinstance(each, tf.Graph) for each in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda: small_models.compiled(tfp_glow.FlowModel(small_models.distribution((2, 2, 1), num_hidden=4))),
    lambda: small_models.residual_model(small_models.residual_flow(num_dense_blocks=1)),
], ids=["glow", "residual flow"])
def test_models_that_nobody_needs_are_freed(make):
  """A search for the best of many models would keep all others in memory."""

  def use():
    model = make()
    data = small_models.points() if model.num_bits is None else small_models.images(8, (2, 2, 1))
    model.fit(data, verbose=0)
    model.sample(2, seed=0)
    bijector = model.distribution.bijector
    tf.function(bijector.forward)(tf.zeros([1, *bijector.inverse_event_shape(data.shape[1:])]))
    return weakref.ref(model), weakref.ref(bijector)

  use()  # Objects that TensorFlow and Keras make once.
  gc.collect()
  num_graphs, registered = graphs(), len(ops.gradient_registry.list())
  used = use()
  gc.collect()
  assert [each() for each in used] == [None, None]
  assert graphs() == num_graphs and len(ops.gradient_registry.list()) == registered


# Evaluated again.


@pytest.fixture
def weights():
  return tf.Variable([1., -2., 0.5])


def _only_if(weights, predicate, x):
  return gradients.only_if(predicate, lambda x: weights * x**2, -tf.ones([3]), x)


def _stacked_if(weights, predicate, x):
  function = lambda number, x: weights**2 * x * tf.cast(number, tf.float32)
  return gradients.stacked_if(predicate, function, -tf.ones([3, 3]), x)


@pytest.mark.parametrize("options", [None, {}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)])
def test_what_is_evaluated_again(weights, options):
  evaluations = []

  def value_and_gradients(function, predicate):
    with tf.GradientTape() as tape:
      tape.watch(x)
      value = tf.cast([1., 2., 3.], tf.float32) * function(weights, predicate, x)
    evaluations.append(function)
    return value, tape.gradient(value, [x, weights], unconnected_gradients=tf.UnconnectedGradients.ZERO)

  x = tf.constant([2., 3., 4.])
  run = value_and_gradients if options is None else tf.function(value_and_gradients, autograph=False, **options)
  cases = {
      (_only_if, True): ([4., -36., 24.], [4., -24., 12.], [4., 18., 48.]),
      (_only_if, False): ([-1., -2., -3.], [0., 0., 0.], [0., 0., 0.]),
      (_stacked_if, True): ([[0., 0., 0.], [2., 24., 3.], [4., 48., 6.]], [3., 24., 2.25], [12., -72., 36.]),
      (_stacked_if, False): ([[-1., -2., -3.]] * 3, [0., 0., 0.], [0., 0., 0.])}
  for (function, predicate), (value, of_x, of_weights) in cases.items():
    found, (d_x, d_weights) = run(function, tf.constant(predicate))
    np.testing.assert_allclose(found, value)
    np.testing.assert_allclose(d_x, of_x)
    np.testing.assert_allclose(d_weights, of_weights)
  assert len(evaluations) == (4 if options is None else 2)  # The graph decides whether the predicate holds.

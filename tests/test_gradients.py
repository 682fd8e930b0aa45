"""Custom gradients: the graphs that have them live no longer than they are needed."""

import gc
import weakref

import numpy as np
import pytest
import small_models
import tensorflow as tf
from tensorflow.python.framework import ops

import tfp_glow
from tfp_glow.gradients import custom_gradient


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


def graphs():
  return sum(isinstance(each, tf.Graph) for each in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda: small_models.compiled(tfp_glow.FlowModel(small_models.distribution())),
    lambda: small_models.compiled(tfp_glow.FlowModel(
        small_models.of_standard_normal(small_models.residual_flow()), num_bits=None)),
], ids=["glow", "residual flow"])
def test_models_that_nobody_needs_are_freed(make):
  """In a search for the best of many models each that is not the best is memory."""

  def use():
    model = make()
    data = small_models.points() if model.num_bits is None else small_models.images()
    model.fit(data, verbose=0)
    model.sample(2, seed=0)
    bijector = model.distribution.bijector
    tf.function(bijector.forward)(tf.zeros([1, *bijector.inverse_event_shape(data.shape[1:])]))
    return weakref.ref(model), weakref.ref(bijector)

  use()  # What TensorFlow and Keras make once and for all.
  gc.collect()
  num_graphs, registered = graphs(), len(ops.gradient_registry.list())
  used = use()
  gc.collect()
  assert [each() for each in used] == [None, None]
  assert graphs() == num_graphs and len(ops.gradient_registry.list()) == registered

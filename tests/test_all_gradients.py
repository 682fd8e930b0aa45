"""No gradient is missing, whatever tapes there are and whatever was evaluated before."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import CASE
from flows_of_two_weights import FLOWS, MODES, Flow, both_modes
from tensorflow.python.eager import record

tfb, tfd = tfp.bijectors, tfp.distributions
pytestmark = pytest.mark.usefixtures("unoptimized_graphs")


def gradients(flow, y, sources, **options):
  """Gradients of `log_prob`, by a tape of its own."""
  with tf.GradientTape(**options) as tape:
    tape.watch(sources)
    log_prob = flow.distribution.log_prob(y)
  return tape.gradient(log_prob, sources)


@pytest.fixture(scope="module")
def right_gradients(shared_flow):
  y = tf.constant(shared_flow.data)
  return [tf.convert_to_tensor(g) for g in gradients(shared_flow, y, [y, *shared_flow.variables])]


def assert_all_close(actual, expected):
  for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
    assert a is not None, f"gradient {index} is None"
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def after_a_pass(flow, y, variables):
  log_prob = flow.distribution.log_prob(y), flow.bijector.inverse(y)
  result = gradients(flow, y, variables)
  del log_prob
  return result


def after_another_tape(flow, y, variables):
  with tf.GradientTape() as tape:
    tape.watch(y)
    log_prob = flow.distribution.log_prob(y), flow.bijector.inverse(y)
  result = gradients(flow, y, variables)
  del log_prob
  return result


def in_an_outer_tape(flow, y, variables):
  with tf.GradientTape() as outer:
    log_prob = flow.distribution.log_prob(y)
    inner = gradients(flow, y, variables)
  return [*inner, *outer.gradient(log_prob, variables)]


def outside_of_an_inner_tape(flow, y, variables):
  with tf.GradientTape() as outer:
    inner = gradients(flow, y, variables)
    log_prob = flow.distribution.log_prob(y)
  return [*inner, *outer.gradient(log_prob, variables)]


def by_a_persistent_tape(flow, y, variables):
  held = flow.bijector.inverse(y)
  with tf.GradientTape(persistent=True) as tape:
    first, second = flow.distribution.log_prob(y), flow.distribution.log_prob(y)
  del held
  return [*tape.gradient(first, variables), *tape.gradient(second, variables)]


def twice_in_one_tape(flow, y, variables):
  with tf.GradientTape() as tape:
    total = 0.5 * flow.distribution.log_prob(y) + 0.5 * flow.distribution.log_prob(y)
  return tape.gradient(total, variables)


ORDERS = [after_a_pass, after_another_tape, in_an_outer_tape, outside_of_an_inner_tape, by_a_persistent_tape,
          twice_in_one_tape]


def _flows_modes_and_orders():
  """Graphs of nested tapes in loops are slow to build, and what they recall does not depend on loops."""
  in_graphs = {"chain": ORDERS, "scan": [in_an_outer_tape], "invert": [by_a_persistent_tape]}
  for name in in_graphs:
    for mode in MODES:
      for order in ORDERS:
        if mode == "eager" or order in in_graphs[name]:
          is_slow = name != "chain" or (mode == "function" and order is not after_another_tape)
          yield pytest.param(name, mode, order, id=f"{name}-{mode}-{order.__name__}",
                             marks=[pytest.mark.slow] * is_slow)


@pytest.mark.slow
@pytest.mark.parametrize("shared_flow, mode, order", list(_flows_modes_and_orders()), indirect=["shared_flow"])
def test_all_gradients_are_there(flow, right_gradients, order, mode):
  y = tf.constant(flow.data)
  result = MODES[mode](lambda y: order(flow, y, flow.variables))(y)
  expected = right_gradients[1:]
  assert_all_close(result, expected * (len(result) // len(expected)))


@pytest.mark.slow
@both_modes
def test_all_gradients_of_glow_are_there(mode):
  """As above: `log_prob(x)` outside and then inside of a tape. There all gradients of `tfb.Glow` are `None`."""
  flow = Flow(FLOWS["glow"])
  y = tf.constant(flow.data)
  expected = gradients(flow, y, flow.variables)
  assert len(expected) >= 15
  assert_all_close(MODES[mode](lambda y: after_a_pass(flow, y, flow.variables))(y), expected)


def of_one_variable(flow, y, sources):
  held = flow.distribution.log_prob(y), flow.bijector.inverse(y)
  result = [gradients(flow, y, [source], watch_accessed_variables=False)[0] for source in (sources[1], sources[-1])]
  del held
  return result


def of_the_input(flow, y, sources):
  del sources
  held = flow.distribution.log_prob(y), flow.bijector.inverse(y)
  result = gradients(flow, y, [y], watch_accessed_variables=False)
  del held
  return result


def watched_one_after_the_other(flow, y, sources):
  """Gradients by one tape, which watches more the second time."""
  first, second = sources[1], sources[-1]
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(first)
    held = flow.distribution.log_prob(y), flow.bijector.inverse(y)
    tape.watch([second, y])
    log_prob = flow.distribution.log_prob(y)
  del held
  return tape.gradient(log_prob, [y, first, second])


@pytest.mark.slow
@pytest.mark.parametrize("shared_flow, mode", [
    ("chain", "eager"), ("scan", "eager"), ("invert", "function")], indirect=["shared_flow"])
def test_a_tape_may_watch_just_one_source(flow, right_gradients, mode):
  y = tf.constant(flow.data)
  sources = [y, *flow.variables]
  run = MODES[mode]
  assert_all_close(run(lambda y: of_one_variable(flow, y, sources))(y), [right_gradients[1], right_gradients[-1]])
  assert_all_close(run(lambda y: of_the_input(flow, y, sources))(y), right_gradients[:1])
  assert_all_close(run(lambda y: watched_one_after_the_other(flow, y, sources))(y),
                   [right_gradients[0], right_gradients[1], right_gradients[-1]])


def test_no_gradient_flows_where_none_was_recorded():
  actnorm = CASE["actnorm_vector"].make()
  y = tf.ones([2, 3])
  with tf.GradientTape() as tape:
    held = actnorm.inverse(y)
    with tape.stop_recording():
      paused = actnorm.inverse(y)
    with record.stop_recording():
      stopped = actnorm.inverse(y)
    del held
  assert tape.gradient([paused, stopped], actnorm.trainable_variables) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("name, mode", [
    ("scan", "eager"), ("chain", "eager"), ("scan", "function"), ("chain", "function")])
def test_gradients_of_the_log_prob_of_a_sample(name, mode):
  """Gradients by the weights, through both directions, and by the sample, drawn in the same tape or before it."""
  flow = Flow(FLOWS[name])
  x = tf.constant(flow.latents)

  def inside(x, again=lambda y: y):
    with tf.GradientTape() as tape:
      y = flow.bijector.forward(x)
      y = again(y)
      loss = flow.distribution.log_prob(y) + tf.reduce_sum(tf.sin(y), -1)
    return tape.gradient(loss, [y, *flow.variables])

  def outside(x, again=lambda y: y):
    y = again(flow.bijector.forward(x))
    return gradients(flow, y, [y, *flow.variables])

  for function in (inside, outside):
    # `identity`: the same values, but no pass can be recalled for them.
    assert_all_close(MODES[mode](function)(x), function(x, again=tf.identity))


@pytest.mark.slow
def test_forward_mode():
  flow = Flow(FLOWS["scan"])
  y, direction = tf.constant(flow.data), tf.ones_like(flow.data)
  held = flow.distribution.log_prob(y), flow.bijector.inverse(y)
  with tf.autodiff.ForwardAccumulator(y, direction) as accumulator:
    log_prob = flow.distribution.log_prob(y)
  del held
  expected = tf.reduce_sum(gradients(flow, y, [y])[0] * direction, axis=-1)
  np.testing.assert_allclose(accumulator.jvp(log_prob), expected)

"""Invertible residual blocks: estimated log-dets and their gradients, the fixed point, and the authors' own numbers."""

import functools

import bijector_cases
import keras
import numpy as np
import pytest
import residual_reference
import tensorflow as tf

import tfp_glow
from tfp_glow import lipschitz
from tfp_glow.bijectors import log_det as log_dets
from tfp_glow.bijectors.fixed_point import solve

BLOCKS = residual_reference.BLOCKS
RNG = np.random.default_rng(0)


@functools.cache
def reference_block(name, **kwargs):
  """A block that no test changes, its numbers, and the inputs."""
  reference = residual_reference.numbers(name)
  return (residual_reference.make_block(name, **kwargs), reference,
          tf.constant(residual_reference.image(reference["x"])))


def gradients_of(function, x, network):
  """Of the sum of what `function(x)` returns: by input, by kernels, by all other weights in their order."""
  with tf.GradientTape() as tape:
    tape.watch(x)
    total = tf.reduce_sum(function(x))
  sources = [x] + [variable.value for variable in network.trainable_variables]
  return tape.gradient(total, sources, unconnected_gradients="zero")


# Numbers of the authors' code. Its float32 parameters are good to 1e-7.


@pytest.mark.parametrize("name", BLOCKS)
def test_values_log_dets_and_gradients_of_the_reference(name):
  block, reference, x = reference_block(name, log_det="exact")
  y, log_det = block.inverse_and_log_det(x)
  np.testing.assert_allclose(y, residual_reference.image(reference["y"]), atol=3e-7)
  np.testing.assert_allclose(y - x, residual_reference.image(reference["g"]), atol=3e-7)
  np.testing.assert_allclose(log_det, reference["logdet_exact"], rtol=1e-7)
  d_x, *found = gradients_of(lambda x: block.inverse_log_det_jacobian(x), x, block.network)
  np.testing.assert_allclose(d_x, residual_reference.image(reference["grad_exact/x"]), atol=1e-7)
  for index in range(6):
    if f"grad_exact/{index}.beta" in reference:
      np.testing.assert_allclose(found.pop(0), reference[f"grad_exact/{index}.beta"][0], rtol=1e-6)
      continue
    np.testing.assert_allclose(residual_reference.weight(found.pop(0).numpy()),
                               reference[f"grad_exact/{index}.weight"], atol=1e-6)
    np.testing.assert_allclose(found.pop(0), reference[f"grad_exact/{index}.bias"], atol=1e-6)
  assert not found


@pytest.mark.parametrize("num_terms", [5, 10, 20])
@pytest.mark.parametrize("name", BLOCKS)
def test_estimates_and_neumann_gradients_of_the_reference(name, num_terms):
  block, reference, x = reference_block(name, log_det="exact")
  probe = tf.constant(residual_reference.image(reference["probe"]))
  estimator = log_dets.SeriesEstimator(num_terms, None, "gaussian")
  estimate = lambda x: estimator.evaluate(block._branch, x, lipschitz.fold(block.network), probe, num_terms)[1]
  np.testing.assert_allclose(estimate(x), reference[f"basic_fixedprobe_n{num_terms}"], rtol=1e-7)
  found = gradients_of(estimate, x, block.network)
  key = f"neumann_fixedprobe_n{num_terms}_"
  np.testing.assert_allclose(found[0], residual_reference.image(reference[f"{key}grad_x"]), atol=1e-7)
  for index, gradient in zip(residual_reference.LAYERS, found[2::3]):
    np.testing.assert_allclose(residual_reference.weight(gradient.numpy()), reference[f"{key}grad_w{index}"], atol=1e-6)


@pytest.mark.parametrize("name, bounds", [
    ("fc", {5: 3e-4, 10: 2e-6, 20: 1e-9}), ("conv", {5: 4e-2, 10: 2e-4, 20: 1e-8})])
def test_the_power_series_converges_to_the_exact_log_det(name, bounds):
  """With traces in place of their estimates, from a probe along each dimension."""
  block, reference, x = reference_block(name, log_det="exact")
  size, weights = x.shape[1:].num_elements(), lipschitz.fold(block.network)
  probes = tf.reshape(tf.eye(size, dtype=x.dtype), [size, *x.shape[1:]])
  copies, exact = tf.repeat(x[:1], size, axis=0), block.inverse_log_det_jacobian(x[0])
  for num_terms, bound in bounds.items():
    estimator = log_dets.SeriesEstimator(num_terms, None, "gaussian")
    found = tf.reduce_sum(estimator.evaluate(block._branch, copies, weights, probes, num_terms)[1])
    np.testing.assert_allclose(found, reference["logdet_trunc_exact_trace_1to40"][num_terms - 1, 0], rtol=1e-6)
    assert abs(found - exact) < bound


@pytest.mark.parametrize("roulette, key", [("geometric", "geometric_p0.5"), ("poisson", "poisson_2")])
def test_tail_probabilities_of_the_reference(roulette, key):
  expected = residual_reference.NUMBERS[f"rcdf/{key}_offset2_k1to40"]
  found = np.concatenate([[1., 1.], log_dets.tail_probabilities(roulette)])[:40]
  np.testing.assert_allclose(found, expected[:len(found)], atol=1e-12)
  assert np.all(expected[len(found):] < 2.**-32)


# Unbiased estimates: statistics of many draws.

NUM_DRAWS, NUM_COPIES = 200, 64
X = np.random.default_rng(3).standard_normal([3, 2])
EVENT_WEIGHTS = np.array([1., -2., 0.5])  # The log-det of each event counts differently.


@functools.cache
def steep_block():
  """A block whose Jacobian has eigenvalues of -0.4 to -0.7: many terms count, and all of them alike."""
  first, second = (lipschitz.LipschitzDense(units, 0.85, dtype="float64") for units in (4, 2))
  network = keras.Sequential([first, lipschitz.LipSwish(dtype="float64"), second])
  block = tfp_glow.InvertibleResidualBlock(network, "exact", event_ndims=1, dtype="float64")
  block.build([2])
  kernel = np.random.default_rng(4).standard_normal([2, 4])
  for variable, value in ((first.kernel, kernel), (second.kernel, -kernel.T), (first.bias, np.full([4], 1.))):
    variable.assign(value)
  block.after_update()
  return block


def statistics(estimate, copies):
  """Log-dets `[3]`, and eight random projections of the gradient of their weighted sum by inputs and weights."""
  x, weights = tf.repeat(X, copies, axis=0), lipschitz.fold(steep_block().network)
  sources = [x, *tf.nest.flatten(weights)]
  with tf.GradientTape() as tape:
    tape.watch(sources)
    log_det = estimate(steep_block()._branch, x, weights)[1]
    total = tf.reduce_sum(tf.repeat(EVENT_WEIGHTS, copies) * log_det) / copies
  gradients = tape.gradient(total, sources, unconnected_gradients="zero")
  gradients[0] = tf.reduce_sum(tf.reshape(gradients[0], [3, copies, 2]), 1)
  rng = np.random.default_rng(1)
  projections = sum(rng.standard_normal([8, g.shape.num_elements()]) @ tf.reshape(g, [-1, 1]) for g in gradients)
  return tf.concat([tf.reduce_mean(tf.reshape(log_det, [3, copies]), 1), projections[:, 0]], axis=0)


def standard_errors_from_exact(estimator):
  """How many standard errors the means of many draws lie from the exact values."""
  exact = statistics(log_dets.exact, 1)
  draw = tf.function(lambda seed: statistics(lambda *args: estimator(*args, seed), NUM_COPIES))
  draws = np.stack([draw(tf.constant([7, i])) for i in range(NUM_DRAWS)])
  return (draws.mean(0) - exact) / (draws.std(0, ddof=1) / np.sqrt(NUM_DRAWS))


@pytest.mark.parametrize("roulette, probe", [("poisson", "gaussian"), ("geometric", "rademacher")])
def test_the_roulette_is_unbiased_in_value_and_gradient(roulette, probe):
  deviations = standard_errors_from_exact(log_dets.SeriesEstimator(1, roulette, probe))
  assert len(deviations) == 3 + 8 and np.abs(deviations).max() < 4.


class _Unweighted(log_dets.SeriesEstimator):
  """As many terms, not divided by their probabilities."""

  def __init__(self, *args):
    super().__init__(*args)
    self._coefficients = np.ones_like(self._coefficients)


class _OneWeightForAll(log_dets.SeriesEstimator):
  """The gradient of the authors' memory-efficient backward pass: that of the first log-det counts for all."""

  def evaluate(self, *args):
    outputs, log_det = super().evaluate(*args)
    equal = tf.custom_gradient(lambda x: (tf.identity(x), lambda d: tf.fill(tf.shape(d), d[0])))
    return outputs, equal(log_det)


@pytest.mark.parametrize("broken, in_value", [
    (_Unweighted(1, "poisson", "gaussian"), True), (log_dets.SeriesEstimator(2, None, "gaussian"), True),
    (_OneWeightForAll(1, "poisson", "gaussian"), False),
], ids=["unweighted", "truncated", "one weight for all events"])
def test_the_statistics_tell_a_broken_estimator(broken, in_value):
  deviations = np.abs(standard_errors_from_exact(broken))
  assert deviations[3:].max() > 6.
  assert deviations[:3].max() > 6. if in_value else deviations[:3].max() < 4.


@pytest.mark.parametrize("roulette", log_dets.ROULETTES)
def test_the_mean_over_all_numbers_of_terms_is_the_whole_series(roulette):
  """With traces in place of their estimates nothing is left to chance."""
  probes = np.sqrt(2.) * tf.tile(tf.eye(2, dtype=tf.float64), [3, 1])  # Copy by copy along another dimension.
  evaluate = lambda estimator, count: statistics(lambda *args: estimator.evaluate(*args, probes, count), 2)
  tail = log_dets.tail_probabilities(roulette)
  probabilities = -np.diff(np.concatenate([[1.], tail, [0.]]))
  estimator = log_dets.SeriesEstimator(1, roulette, "gaussian")
  mean = sum(p * evaluate(estimator, 1 + extra) for extra, p in enumerate(probabilities) if p)
  most = 1 + len(tail)
  whole = evaluate(log_dets.SeriesEstimator(most, None, "gaussian"), most)
  np.testing.assert_allclose(mean, whole, rtol=1e-9)
  # What is beyond it has the size of the Jacobian's power.
  np.testing.assert_allclose(whole, statistics(log_dets.exact, 1), atol=5. * 0.72**most)


@pytest.mark.parametrize("roulette", log_dets.ROULETTES)
def test_spread_of_a_draw_is_that_of_the_reference(roulette):
  block, reference, x = reference_block("fc", log_det="exact")
  estimator, weights = log_dets.SeriesEstimator(2, roulette, "gaussian"), lipschitz.fold(block.network)
  draw = tf.function(lambda seed: estimator(block._branch, tf.tile(x, [64, 1]), weights, seed)[1])
  draws = np.concatenate([np.reshape(draw(tf.constant([5, i])), [64, 6]) for i in range(60)])
  np.testing.assert_allclose(draws.std(0), reference[f"rr_{roulette}_single_draw_std"], rtol=0.1)
  np.testing.assert_allclose(draws.mean(0), reference[f"rr_{roulette}_train_mean"], atol=4. * draws.std(0).max() / 62.)


def test_the_number_of_terms_is_distributed_as_said():
  for roulette, mean, least in (("poisson", 2., 0), ("geometric", 2., 1)):
    estimator = log_dets.SeriesEstimator(3, roulette, "gaussian")
    draw = tf.function(lambda i, e=estimator: e._draw_num_terms(tf.stack([1, i])))
    extra = np.array([draw(tf.constant(i)) for i in range(1000)]) - 3
    assert extra.min() == least and abs(extra.mean() - mean) < 4. * np.sqrt(2. / 1000.)
    for k, probability in enumerate(log_dets.tail_probabilities(roulette)[:4], 1):
      assert abs((extra >= k).mean() - probability) < 4. * np.sqrt(0.25 / 1000.)


# Draws.


def block_of(**kwargs):
  """A stochastic block for vectors of 3."""
  block = bijector_cases.residual_block(3, "float64", log_det="russian_roulette", **kwargs)
  block.build([3])
  return block


Y = RNG.standard_normal([5, 3])


def test_estimates_change_with_seed_and_update_alone():
  block = block_of()
  first = block.inverse_and_log_det(Y)[1].numpy()
  np.testing.assert_array_equal(block.inverse_and_log_det(Y.copy())[1], first)
  np.testing.assert_array_equal(block_of().inverse_and_log_det(Y)[1], first)
  other = bijector_cases.residual_block(3, "float64", log_det="russian_roulette")
  other._noise_seed.assign([1, 0])
  assert np.abs(other.inverse_and_log_det(Y)[1] - first).max() > 1e-6
  block.after_update()
  second = block.inverse_and_log_det(Y)[1].numpy()
  assert np.abs(second - first).max() > 1e-6
  block._noise_seed.assign(block_of()._noise_seed.value)
  np.testing.assert_allclose(block.inverse_and_log_det(Y)[1], first, rtol=1e-3)  # The norms moved on, a little.


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("probe", log_dets.PROBES)
def test_probes_are_finite_whatever_is_drawn(dtype, probe, monkeypatch):
  """The smallest bits come once in so many million draws: once in hundreds of steps on images."""
  bits = tf.constant([-2**31, -2**31 + 1, -2**31 + 64, -1, 0, 2**31 - 1], tf.int32)
  monkeypatch.setattr(tf.random, "stateless_uniform", lambda shape, *_, **__: tf.broadcast_to(bits, shape))
  drawn = log_dets._draw_probe(probe, [0, 0], tf.zeros([3, 6], dtype))
  assert np.isfinite(drawn).all() and np.abs(drawn).max() < 7.
  found = log_dets._uniform([6], [0, 0], dtype)
  assert (found > 0.).numpy().all() and (found <= 1.).numpy().all()


def test_events_have_probes_of_their_own():
  log_det = block_of().inverse_and_log_det(np.tile(Y[:1], [5, 1]))[1]
  assert len(set(log_det.numpy())) == 5


def test_estimates_are_those_of_graphs_and_of_xla():
  block = block_of()
  expected = block.inverse_and_log_det(Y, training=True)
  for jit_compile in (False, True):
    found = tf.function(lambda y: block.inverse_and_log_det(y, training=True), jit_compile=jit_compile)(Y)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9)


def test_without_training_there_are_more_terms():
  exact, errors = steep_block().inverse_log_det_jacobian(X[0]), {}
  block = tfp_glow.InvertibleResidualBlock(steep_block().network, "power_series", num_terms=1, num_eval_terms=40,
                                           event_ndims=1, dtype="float64")
  copies = np.tile(X[:1], [1000, 1])
  for kwargs in ({}, {"training": False}, {"training": True}):
    found = block.inverse_and_log_det(copies, **kwargs)[1].numpy()
    errors[str(kwargs)] = abs(found.mean() - exact) * np.sqrt(1000) / found.std()
  default, evaluation, training = errors.values()
  assert default == evaluation < 4. and training > 8.  # The bias of a single term.


def test_training_is_a_choice_of_the_graph():
  with pytest.raises(ValueError, match="`training` must be a Python `bool`. Received: "):
    block_of().inverse_and_log_det(Y, training=tf.ones([5]))


def test_log_dets_of_both_directions_have_the_same_noise():
  block = block_of()
  x, log_det = block.inverse_and_log_det(Y)
  y, log_det_back = block.forward_and_log_det(x.numpy())
  np.testing.assert_allclose(y, Y, atol=1e-11)
  np.testing.assert_allclose(log_det_back, -log_det, atol=1e-9)


def test_one_evaluation_and_one_more_for_the_gradient():
  calls = []

  class Counted(keras.layers.Layer):

    def call(self, inputs):
      calls.append(inputs)
      return 0.1 * tf.sin(inputs)

  for log_det, expected in (("exact", 1), ("russian_roulette", 2)):
    block = tfp_glow.InvertibleResidualBlock(Counted(dtype="float64"), log_det, event_ndims=1, dtype="float64")
    block.build([3])
    y = tf.constant(Y)
    calls.clear()
    with tf.GradientTape() as tape:
      tape.watch(y)
      total = tf.reduce_sum(block.inverse(y)) + tf.reduce_sum(block.inverse_log_det_jacobian(y))
    assert len(calls) == 1
    tape.gradient(total, y)
    assert len(calls) == expected


# Gradients.


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_for_unequal_weights_are_those_of_the_events_one_by_one(name):
  block, reference, x = reference_block(name, log_det="exact")
  probe = tf.constant(residual_reference.image(reference["probe"]))
  estimator = log_dets.SeriesEstimator(8, None, "gaussian")
  weights = RNG.standard_normal([len(x)])

  def estimate(x, rows=slice(None)):
    return estimator.evaluate(block._branch, x, lipschitz.fold(block.network), probe[rows], 8)[1]

  found = gradients_of(lambda x: weights * estimate(x), x, block.network)
  by_event = [gradients_of(lambda x, i=i: estimate(x, slice(i, i + 1)), x[i:i + 1], block.network)
              for i in range(len(x))]
  expected = [sum(w * g for w, g in zip(weights, of_one)) for of_one in zip(*[g[1:] for g in by_event])]
  np.testing.assert_allclose(found[0], np.concatenate([w * g[0] for w, g in zip(weights, by_event)]), atol=1e-9)
  for a, b in zip(found[1:], expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-9)


def test_gradients_flow_through_value_and_log_det_together():
  """With a probe for each dimension, and enough terms, they are those of the exact log-det."""
  block, _, x = reference_block("fc", log_det="exact")
  probes = np.sqrt(2.) * tf.tile(tf.eye(2, dtype=tf.float64), [6, 1])
  estimator = log_dets.SeriesEstimator(60, None, "gaussian")

  def loss(evaluate, copies):

    def of_x(x):
      y, log_det = evaluate(block._branch, tf.repeat(x, copies, axis=0), lipschitz.fold(block.network))
      return (tf.reduce_sum(tf.sin(y), -1) + tf.repeat(tf.range(6, dtype=x.dtype), copies) * log_det) / copies

    return gradients_of(of_x, x, block.network)

  found, expected = loss(lambda *args: estimator.evaluate(*args, probes, 60), 2), loss(log_dets.exact, 1)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-10)


def test_second_derivatives_are_nan_where_they_cannot_be_had():
  y, found = tf.constant(Y), {}
  for log_det in ("exact", "russian_roulette"):
    block = bijector_cases.residual_block(3, "float64", log_det=log_det)
    block.build([3])
    kernel = block.network.trainable_variables[0].value
    with tf.GradientTape(persistent=True) as outer:
      outer.watch(y)
      with tf.GradientTape() as inner:
        inner.watch(y)
        total = tf.reduce_sum(block.inverse_and_log_det(y)[1])
      slope = tf.reduce_sum(inner.gradient(total, y)**2)
    found[log_det] = [outer.gradient(slope, source).numpy() for source in (y, kernel)]
    np.testing.assert_array_equal(np.isnan(outer.gradient(total, kernel)), False)
  assert all(np.isfinite(bend).all() and np.abs(bend).max() > 0. for bend in found["exact"])
  assert all(np.isnan(bend).all() for bend in found["russian_roulette"])


def test_a_function_under_a_persistent_tape_has_gradients():
  block = block_of()
  function = tf.function(lambda y: block.inverse_and_log_det(y)[1])
  y = tf.constant(Y)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(y)
    total = tf.reduce_sum(function(y))
  with tf.GradientTape() as once:
    once.watch(y)
    again = tf.reduce_sum(block.inverse_and_log_det(y)[1])
  np.testing.assert_allclose(tape.gradient(total, y), once.gradient(again, y), rtol=1e-9)


def test_a_training_step_keeps_no_activations_of_the_networks():
  """Of what the forward pass computes of each event, the gradients read tensors of the size of the event alone."""
  layer = functools.partial(lipschitz.LipschitzDense, tolerance=0.1)
  make_network = lambda: keras.Sequential([layer(64), lipschitz.LipSwish(), layer(3)])

  def kept(log_det, count=7):
    scan = tfp_glow.Scan(lambda k: tfp_glow.InvertibleResidualBlock(make_network(), log_det, event_ndims=1), 5, [3])

    @tf.function
    def compute(y):
      with tf.GradientTape() as tape:
        log_det = scan.inverse_and_log_det(y)[1]
      return tape.gradient(log_det, scan.trainable_variables)

    graph = compute.get_concrete_function(tf.TensorSpec([count, 3], tf.float32)).graph
    operations = sum([function.graph.get_operations() for function in graph._functions.values()], [])
    shapes = [op.inputs[1].shape for op in operations if op.type == "TensorListPushBack"]
    return {tuple(shape) for shape in shapes if shape.rank and shape[0] in (count, 3 * count)}

  assert kept("russian_roulette") == {(7, 3)}
  assert (7, 64) in kept("exact")


@pytest.mark.parametrize("num_dims", [3, log_dets._FEW + 1])
def test_xla_compiles_gradients_of_exact_log_dets_in_a_scan(num_dims):
  """Of a number of events that the graph does not know."""
  make_step = lambda k: bijector_cases.residual_block(num_dims, "float64", seed=k)
  scan = tfp_glow.Scan(make_step, 2, [num_dims], dtype="float64")

  def gradients(y):
    with tf.GradientTape() as tape:
      log_det = scan.inverse_and_log_det(y)[1]
    return tape.gradient(log_det, scan.trainable_variables)

  y, signature = RNG.standard_normal([5, num_dims]), [tf.TensorSpec([None, num_dims], tf.float64)]
  for found, expected in zip(tf.function(gradients, signature, jit_compile=True)(y), gradients(y), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("event_shape", [[2], [2, 2, 1]])
def test_the_jacobian_row_by_row_is_that_at_once(event_shape):
  y, matrix = tf.constant(RNG.standard_normal([5, *event_shape])), tf.constant(RNG.standard_normal([4, 4]))

  def branch(y, weights):
    size = y.shape[1:].num_elements()
    return tf.reshape(tf.tanh(tf.reshape(y, [-1, size]) @ weights[:size, :size]), tf.shape(y))

  ways = log_dets._jacobian_at_once, log_dets._jacobian_by_rows
  found, expected = (jacobian(branch, y, matrix) for jacobian in ways)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-14)


def test_forward_alone_makes_no_jacobian(monkeypatch):
  block = bijector_cases.residual_block(3, "float64")
  block.build([3])
  x = block.inverse(Y)
  calls, exact = [], log_dets.exact
  monkeypatch.setattr(log_dets, "exact", lambda *args: (calls.append(1), exact(*args))[1])
  again = tf.identity(x)
  np.testing.assert_allclose(block.forward(again), Y, atol=1e-5)
  assert not calls
  block.forward_log_det_jacobian(tf.identity(x))
  assert len(calls) == 1


def test_forward_alone_estimates_no_log_det(monkeypatch):
  scan = tfp_glow.Scan(lambda k: block_of(), 2, Y.shape[1:], dtype="float64")
  x = scan.inverse(Y)

  def fail(*_):
    raise AssertionError("estimated")

  monkeypatch.setattr(log_dets.SeriesEstimator, "__call__", fail)
  np.testing.assert_allclose(scan.forward(tf.identity(x)), Y, atol=1e-5)
  with pytest.raises(AssertionError, match="estimated"):
    scan.forward_log_det_jacobian(tf.identity(x))


# The fixed point.


@pytest.mark.parametrize("dtype, tolerance", [("float32", 3e-6), ("float64", 1e-11)])
@pytest.mark.parametrize("name", BLOCKS)
def test_forward_undoes_inverse_to_rounding_errors(name, dtype, tolerance):
  block = residual_reference.make_block(name, dtype, log_det="power_series", num_eval_terms=1)
  y = residual_reference.image(residual_reference.numbers(name)["x"]).astype(dtype)
  x = block.inverse(y).numpy()
  found = tf.function(block.forward)(x).numpy()
  scale = 1. + np.abs(y).max()
  np.testing.assert_allclose(found, y, atol=tolerance * scale)
  np.testing.assert_allclose(block.inverse(found), x, atol=tolerance * scale)  # The residual.


def linear_block(slope, **kwargs):
  """`inverse` multiplies by `1 + slope`."""
  network = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(slope), dtype="float64")
  return tfp_glow.InvertibleResidualBlock(network, "exact", event_ndims=1, dtype="float64", **kwargs)


def test_each_event_takes_its_own_number_of_iterations():
  count = []

  def branch(y, weights):
    del weights
    count.append(y.numpy())
    return 0.5 * y * tf.constant([[1.], [0.]], tf.float64)

  solve(branch, tf.constant([[3.], [2.]], tf.float64), [], 1e-9, 100, "block")
  iterates = np.array(count)[:, :, 0]
  assert len(count) > 25 and (iterates[2:, 1] == 2.).all()
  # Alone it takes the same steps as in company.
  alone = linear_block(-0.9)
  together = alone.forward(np.array([[1.], [1e-3], [50.]])).numpy()
  for row, x in zip(together, (1., 1e-3, 50.)):
    np.testing.assert_array_equal(alone.forward(np.array([[x]]))[0], row)


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
    with pytest.raises(tf.errors.InvalidArgumentError, match="inputs be finite"):
      linear_block(0.5).forward(np.array([[bad]]))


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_through_the_fixed_point_are_those_of_the_implicit_function(name):
  """`d_x (I + J) = d_y`, solved by brute force."""
  block, _, x = reference_block(name, log_det="exact")
  d_y = tf.constant(RNG.standard_normal(x.shape))
  target = x.numpy() + 0.1
  y = block.forward(target)
  found = gradients_of(lambda z: d_y * block.forward(z), tf.constant(target), block.network)
  size = x.shape[1:].num_elements()
  copies = tf.repeat(y, size, axis=0)
  outputs, pull_back = log_dets.linearized(block._branch, copies, lipschitz.fold(block.network))
  del outputs
  jacobian = tf.reshape(pull_back(tf.reshape(tf.eye(size, batch_shape=[len(x)], dtype=x.dtype), copies.shape)),
                        [-1, size, size])
  by_hand = np.linalg.solve(np.eye(size) + np.transpose(jacobian, [0, 2, 1]), np.reshape(d_y, [-1, size, 1]))
  by_hand = by_hand.reshape(x.shape)
  np.testing.assert_allclose(found[0], by_hand, atol=1e-10)
  expected = gradients_of(lambda y: -by_hand * block._branch(y, lipschitz.fold(block.network)), y, block.network)
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


# In `Scan`.


@pytest.mark.parametrize("gradient", ["autodiff", "reversible"])
def test_a_scan_of_blocks_equals_the_blocks_one_by_one(gradient):
  make = lambda k: bijector_cases.residual_block(3, "float64", seed=k, log_det="russian_roulette")
  blocks = [make(k) for k in range(3)]
  scan = tfp_glow.Scan(make, 3, [3], gradient, dtype="float64")
  results = []
  for parts, owner in (([scan], scan), (blocks, None)):
    y = tf.constant(Y)
    with tf.GradientTape() as tape:
      tape.watch(y)
      x, total = y, 0.
      for part in parts:
        x, log_det = part.inverse_and_log_det(x, training=True)
        total += log_det
      loss = tf.reduce_sum(tf.sin(x)) + tf.reduce_sum(total * np.arange(1., 6.))
    sources = [v.value for v in (owner or blocks[0])._keras_variables() if v.trainable]
    gradients = tape.gradient(loss, [y] + sources)
    results.append([x, total, gradients[0]] + [g if owner is None else g[0] for g in gradients[1:]])
  for a, b in zip(*results, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-9)
  back = scan.forward(results[0][0].numpy())
  np.testing.assert_allclose(back, Y, atol=1e-10)


def test_the_update_of_a_scan_is_that_of_its_blocks():
  make = lambda k: bijector_cases.residual_block(3, "float64", seed=k, log_det="russian_roulette")
  blocks, scan = [make(k) for k in range(3)], tfp_glow.Scan(make, 3, [3], dtype="float64")
  for block in blocks:
    block.build([3])
  for k, block in enumerate(blocks):
    for stack, variable in zip(scan._stacks, block._keras_variables(), strict=True):
      if variable.trainable:
        variable.assign(3. * variable.value)
        stack.value[k].assign(variable.value)
    block.after_update()
  for wrap in (lambda f: f, lambda f: tf.function(f, jit_compile=True)):
    wrap(scan.after_update)()
    for stack, *values in zip(scan._stacks, *[block._keras_variables() for block in blocks], strict=True):
      np.testing.assert_allclose(stack, np.stack(values), atol=1e-2)  # Vectors, to the tolerance.
    seeds = np.stack([block._noise_seed for block in blocks])
    np.testing.assert_array_equal(scan.stacked(scan.template._noise_seed), seeds)
    for block in blocks:
      block.after_update()


# Construction.


def test_a_block_of_any_network_that_contracts():
  block = tfp_glow.InvertibleResidualBlock(keras.layers.Rescaling(0.5, dtype="float64"), "exact", event_ndims=1,
                                           dtype="float64")
  np.testing.assert_allclose(block.inverse_log_det_jacobian(Y), 3. * np.log(1.5))
  np.testing.assert_allclose(block.forward(1.5 * Y), Y, atol=1e-11)


@pytest.mark.parametrize("arguments, match", [
    (dict(log_det="magic"), "`log_det` must be one of .*Received: 'magic'"),
    (dict(roulette="russian"), "`roulette`.*Received: 'russian'"),
    (dict(probe="normal"), "`probe`.*Received: 'normal'"),
    (dict(num_terms=0), "`num_terms`.*Received: 0"),
    (dict(num_eval_terms=1.5), "`num_eval_terms`.*Received: 1.5"),
    (dict(max_iterations=True), "`max_iterations`.*Received: True"),
    (dict(tolerance=1.), "`tolerance`.*Received: 1.0"),
    (dict(event_ndims=2), "`event_ndims`.*Received: 2"),
])
def test_bad_arguments(arguments, match):
  with pytest.raises(ValueError, match=match):
    tfp_glow.InvertibleResidualBlock(keras.layers.Dense(3), **arguments)


def test_bad_networks():
  make = functools.partial(tfp_glow.InvertibleResidualBlock, event_ndims=1)
  with pytest.raises(ValueError, match=r"must not be 'exact' for events of more than 256 .*Received: \(257,\)"):
    make(keras.layers.Rescaling(0.5), "exact").build([257])
  with pytest.raises(TypeError, match="`network` must be a layer.*Received: 3"):
    make(3)
  for network, match in ((keras.layers.Dense(2), r"`network` must map the shape \[1, 3\] to \[1, 3\]"),
                         (keras.layers.BatchNormalization(), "`network`.*changes"),
                         (keras.layers.Dense(3, dtype="bfloat16"), "`network` must compute in.*Received: bfloat16")):
    with pytest.raises(ValueError, match=match):
      make(network).build([3])
  block = make(keras.layers.Dense(3))
  with pytest.raises(ValueError, match=r"must have a shape that is known.*Received: \(None,\)"):
    block.build([None])
  block.build([3])
  with pytest.raises(ValueError, match=r"never changes.*Received: \(4,\), before it \(3,\)"):
    block.inverse(np.zeros([2, 4], np.float32))

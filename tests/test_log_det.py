"""Log-determinants of residual blocks, exact and estimated, and their gradients."""

import functools

import bijector_cases
import keras
import numpy as np
import pytest
import residual_reference
import tensorflow as tf

import tfp_glow
from tfp_glow.bijectors import log_det as log_dets
from tfp_glow.networks import lipschitz

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
RNG = np.random.default_rng(0)


# Numbers of the authors' code. Its parameters are float32, exact to 1e-7.


@pytest.mark.parametrize("num_terms", [5, 10, 20])
@pytest.mark.parametrize("name", residual_reference.BLOCKS)
def test_estimates_and_neumann_gradients_of_the_reference(name, num_terms):
  block, reference, x = residual_reference.exact_block(name)
  probe = tf.constant(residual_reference.image(reference["probe"]))
  estimator = log_dets.SeriesEstimator(num_terms, None, "gaussian")
  estimate = lambda x: estimator.evaluate(block._branch, x, lipschitz.fold(block.network), probe, num_terms)[1]
  np.testing.assert_allclose(estimate(x), reference[f"basic_fixedprobe_n{num_terms}"], rtol=1e-7)
  found = residual_reference.gradients_of(estimate, x, block.network)
  key = f"neumann_fixedprobe_n{num_terms}_"
  np.testing.assert_allclose(found[0], residual_reference.image(reference[f"{key}grad_x"]), atol=1e-7)
  for index, gradient in zip(residual_reference.LAYERS, found[2::3]):
    np.testing.assert_allclose(residual_reference.weight(gradient.numpy()), reference[f"{key}grad_w{index}"], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name, bounds", [
    ("fc", {5: 3e-4, 10: 2e-6, 20: 1e-9}), ("conv", {5: 4e-2, 10: 2e-4, 20: 1e-8})])
def test_the_power_series_converges_to_the_exact_log_det(name, bounds):
  """With exact traces in place of estimates, from a probe along each dimension."""
  block, reference, x = residual_reference.exact_block(name)
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


@pytest.mark.slow
@pytest.mark.parametrize("roulette", ["poisson", "geometric"])
def test_spread_of_a_draw_is_that_of_the_reference(roulette):
  block, reference, x = residual_reference.exact_block("fc")
  estimator, weights = log_dets.SeriesEstimator(2, roulette, "gaussian"), lipschitz.fold(block.network)
  draw = tf.function(lambda seed: estimator(block._branch, tf.tile(x, [64, 1]), weights, seed)[1])
  draws = np.concatenate([np.reshape(draw(tf.constant([5, i])), [64, 6]) for i in range(60)])
  np.testing.assert_allclose(draws.std(0), reference[f"rr_{roulette}_single_draw_std"], rtol=0.1)
  np.testing.assert_allclose(draws.mean(0), reference[f"rr_{roulette}_train_mean"], atol=4. * draws.std(0).max() / 62.)


# Unbiased estimates: statistics of many draws.

NUM_DRAWS, NUM_COPIES = 200, 64


X = np.random.default_rng(3).standard_normal([3, 2])


EVENT_WEIGHTS = np.array([1., -2., 0.5])  # The log-det of each event counts differently.


@functools.cache
def steep_block():
  """A block whose Jacobian has eigenvalues of -0.4 to -0.7: many terms count, all with the same sign."""
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


@pytest.mark.slow
@pytest.mark.parametrize("roulette, probe", [("poisson", "gaussian"), ("geometric", "rademacher")])
def test_the_roulette_is_unbiased_in_value_and_gradient(roulette, probe):
  deviations = standard_errors_from_exact(log_dets.SeriesEstimator(1, roulette, probe))
  assert len(deviations) == 3 + 8 and np.abs(deviations).max() < 4.


class _Unweighted(log_dets.SeriesEstimator):
  """A broken estimator: as many terms, not divided by their probabilities."""

  def __init__(self, *args):
    super().__init__(*args)
    self._coefficients = np.ones_like(self._coefficients)


class _OneWeightForAll(log_dets.SeriesEstimator):
  """The gradient of the authors' memory-efficient backward pass: the weight of the first log-det counts for all."""

  def evaluate(self, *args):
    outputs, log_det = super().evaluate(*args)
    equal = tf.custom_gradient(lambda x: (tf.identity(x), lambda d: tf.fill(tf.shape(d), d[0])))
    return outputs, equal(log_det)


@pytest.mark.slow
@pytest.mark.parametrize("broken, in_value", [
    (_Unweighted(1, "poisson", "gaussian"), True), (log_dets.SeriesEstimator(2, None, "gaussian"), True),
    (_OneWeightForAll(1, "poisson", "gaussian"), False),
], ids=["unweighted", "truncated", "one weight for all events"])
def test_the_statistics_tell_a_broken_estimator(broken, in_value):
  deviations = np.abs(standard_errors_from_exact(broken))
  assert deviations[3:].max() > 6.
  assert deviations[:3].max() > 6. if in_value else deviations[:3].max() < 4.


@pytest.mark.slow
@pytest.mark.parametrize("roulette", ["poisson", "geometric"])
def test_the_mean_over_all_numbers_of_terms_is_the_whole_series(roulette):
  """With exact traces in place of estimates nothing is random."""
  probes = np.sqrt(2.) * tf.tile(tf.eye(2, dtype=tf.float64), [3, 1])  # Each copy has a probe along another dimension.
  evaluate = lambda estimator, count: statistics(lambda *args: estimator.evaluate(*args, probes, count), 2)
  tail = log_dets.tail_probabilities(roulette)
  probabilities = -np.diff(np.concatenate([[1.], tail, [0.]]))
  estimator = log_dets.SeriesEstimator(1, roulette, "gaussian")
  mean = sum(p * evaluate(estimator, 1 + extra) for extra, p in enumerate(probabilities) if p)
  most = 1 + len(tail)
  whole = evaluate(log_dets.SeriesEstimator(most, None, "gaussian"), most)
  np.testing.assert_allclose(mean, whole, rtol=1e-9)
  # The rest of the series has the size of the Jacobian's power.
  np.testing.assert_allclose(whole, statistics(log_dets.exact, 1), atol=5. * 0.72**most)


@pytest.mark.slow
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


# Draws.


# Networks that do not contract.


def test_vectors_may_grow_where_the_order_of_the_norm_is_not_2():
  """They grow almost as much as possible, under a map of norm 0.99 from infinity to infinity."""
  matrix = np.zeros([64, 64])
  matrix[:, 0] = 0.99
  estimator = log_dets.SeriesEstimator(20, None, "gaussian")
  branch = lambda y, weights: tf.matmul(y, weights, transpose_b=True)
  probe = tf.one_hot([0], 64, dtype=tf.float64)
  for direction, vector in ((matrix, tf.ones([1, 64], tf.float64)), (matrix.T, probe)):
    found = estimator.evaluate(branch, tf.ones([1, 64], tf.float64), tf.constant(direction), vector, 20)[1]
    assert np.isfinite(found).all()


def test_exact_log_dets_of_a_map_that_contracts_in_another_norm_only():
  """Eigenvalues of size 0.46, a determinant of 0.81, a first minor of -0.2."""
  matrix = tf.constant([[-1.2, -1.3], [0.9, 0.8]], tf.float64)
  found = log_dets.exact(lambda y, weights: y @ weights, tf.ones([1, 2], tf.float64), matrix)[1]
  np.testing.assert_allclose(found, [np.log(0.81)], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("log_det", ["exact", "power_series", "russian_roulette"])
def test_log_dets_of_networks_that_do_not_contract_are_nan(log_det):
  """A divergent series would give numbers for value and gradient, too."""
  make = lambda slope: tfp_glow.InvertibleResidualBlock(
      keras.layers.Rescaling(slope, dtype="float64"), log_det, event_ndims=1, seed=0, dtype="float64")
  make_sine = lambda slope: tfp_glow.InvertibleResidualBlock(
      keras.layers.Lambda(lambda y: slope * (y + 0.1 * tf.sin(y)), dtype="float64"), log_det, event_ndims=1, seed=0,
      dtype="float64")
  y = RNG.standard_normal([5, 3])
  for training in ({}, {"training": True}) if log_det != "exact" else ({},):
    assert np.isfinite(make(-0.99).inverse_and_log_det(y, **training)[1]).all()
    for wrap in (lambda f: f, tf.function):
      found = wrap(functools.partial(make(-9.).inverse_and_log_det, **training))(y)
      assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()
    with tf.GradientTape() as tape:
      tape.watch(x := tf.constant(y))
      found = make_sine(-9.).inverse_and_log_det(x, **training)[1]
    assert np.isnan(tape.gradient(found, x)).all()


@pytest.mark.slow
def test_the_number_of_terms_is_distributed_as_said():
  for roulette, mean, least in (("poisson", 2., 0), ("geometric", 2., 1)):
    estimator = log_dets.SeriesEstimator(3, roulette, "gaussian")
    draw = tf.function(lambda i, e=estimator: e._draw_num_terms(tf.stack([1, i])))
    extra = np.array([draw(tf.constant(i)) for i in range(1000)]) - 3
    assert extra.min() == least and abs(extra.mean() - mean) < 4. * np.sqrt(2. / 1000.)
    for k, probability in enumerate(log_dets.tail_probabilities(roulette)[:4], 1):
      assert abs((extra >= k).mean() - probability) < 4. * np.sqrt(0.25 / 1000.)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("probe", log_dets.PROBES)
def test_probes_are_finite_whatever_is_drawn(dtype, probe, monkeypatch):
  """The smallest values come once in millions of draws, which is once in hundreds of steps on images."""
  bits = tf.constant([-2**31, -2**31 + 1, -2**31 + 64, -1, 0, 2**31 - 1], tf.int32)
  monkeypatch.setattr(tf.random, "stateless_uniform", lambda shape, *_, **__: tf.broadcast_to(bits, shape))
  drawn = log_dets._draw_probe(probe, [0, 0], tf.zeros([3, 6], dtype))
  assert np.isfinite(drawn).all() and np.abs(drawn).max() < 7.
  found = log_dets._uniform([6], [0, 0], dtype)
  assert (found > 0.).numpy().all() and (found <= 1.).numpy().all()


# Gradients.


@pytest.mark.parametrize("name", residual_reference.BLOCKS)
def test_gradients_for_unequal_weights_are_those_of_the_events_one_by_one(name):
  block, reference, x = residual_reference.exact_block(name)
  probe = tf.constant(residual_reference.image(reference["probe"]))
  estimator = log_dets.SeriesEstimator(8, None, "gaussian")
  weights = RNG.standard_normal([len(x)])

  def estimate(x, rows=slice(None)):
    return estimator.evaluate(block._branch, x, lipschitz.fold(block.network), probe[rows], 8)[1]

  found = residual_reference.gradients_of(lambda x: weights * estimate(x), x, block.network)
  by_event = [residual_reference.gradients_of(lambda x, i=i: estimate(x, slice(i, i + 1)), x[i:i + 1], block.network)
              for i in range(len(x))]
  expected = [sum(w * g for w, g in zip(weights, of_one)) for of_one in zip(*[g[1:] for g in by_event])]
  np.testing.assert_allclose(found[0], np.concatenate([w * g[0] for w, g in zip(weights, by_event)]), atol=1e-9)
  for a, b in zip(found[1:], expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-9)


def test_gradients_flow_through_value_and_log_det_together():
  """With a probe for each dimension, and enough terms, they are those of the exact log-det."""
  block, _, x = residual_reference.exact_block("fc")
  probes = np.sqrt(2.) * tf.tile(tf.eye(2, dtype=tf.float64), [6, 1])
  estimator = log_dets.SeriesEstimator(60, None, "gaussian")

  def loss(evaluate, copies):

    def of_x(x):
      y, log_det = evaluate(block._branch, tf.repeat(x, copies, axis=0), lipschitz.fold(block.network))
      return (tf.reduce_sum(tf.sin(y), -1) + tf.repeat(tf.range(6, dtype=x.dtype), copies) * log_det) / copies

    return residual_reference.gradients_of(of_x, x, block.network)

  found, expected = loss(lambda *args: estimator.evaluate(*args, probes, 60), 2), loss(log_dets.exact, 1)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.slow
def test_a_training_step_keeps_no_activations_of_the_networks():
  """The gradients read only tensors of the forward pass that have the size of the events."""
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


@pytest.mark.slow
@pytest.mark.parametrize("few", [2, 1], ids=["by rows", "at once"])
def test_xla_compiles_gradients_of_exact_log_dets_in_a_scan(few, monkeypatch):
  """With a batch size that the graph does not know."""
  monkeypatch.setattr(log_dets, "_FEW", few)
  make_step = lambda k: bijector_cases.residual_block(2, "float64", seed=k)
  scan = tfp_glow.Scan(make_step, 2, [2], dtype="float64")

  def gradients(y):
    with tf.GradientTape() as tape:
      log_det = scan.inverse_and_log_det(y)[1]
    return tape.gradient(log_det, scan.trainable_variables)

  y, signature = RNG.standard_normal([5, 2]), [tf.TensorSpec([None, 2], tf.float64)]
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

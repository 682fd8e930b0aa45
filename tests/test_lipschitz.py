"""Layers of bounded Lipschitz constant, against exact norms and against numbers of the authors' own code."""

import math

import keras
import numpy as np
import pytest
import residual_reference
import tensorflow as tf

from tfp_glow.networks import lipschitz
from tfp_glow.networks.lip_swish import LipSwish, lip_swish
from tfp_glow.networks.lipschitz import LipschitzConv2D, LipschitzDense
from tfp_glow.networks.norms import LearnedOrder

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
REFERENCE = residual_reference.NUMBERS
INF = math.inf

# Name, layer, shape of an input; images smaller than the kernel, too.
LAYERS = {
    "dense": (lambda **kwargs: LipschitzDense(5, **kwargs), (7,)),
    "conv": (lambda **kwargs: LipschitzConv2D(4, 3, **kwargs), (6, 5, 2)),
    "conv 1x1": (lambda **kwargs: LipschitzConv2D(4, 1, **kwargs), (3, 2, 6)),
    "conv 5x5 on 2x1": (lambda **kwargs: LipschitzConv2D(3, 5, **kwargs), (2, 1, 4)),
}


def make(name, **kwargs):
  """A layer in float64, its kernel so large that it must be bounded; also the shape of an input."""
  construct, shape = LAYERS[name]
  layer = construct(**{"seed": 0, "dtype": "float64", **kwargs})
  layer.build((None, *shape))
  layer.kernel.assign(10. * layer.kernel.value)
  return layer, shape


def update(layer):
  """Many steps of the power iteration, in a graph, where they are faster."""
  layer.max_iterations = 10000
  tf.function(layer.update_spectral_norm)()


def matrix_of(function, shape):
  """The Jacobian of a function of one event, or the matrix of a linear one, `[outputs, inputs]`."""
  size = int(np.prod(shape))
  rows = function(tf.reshape(tf.eye(size, dtype=tf.float64), [size, *shape]))
  return np.reshape(rows, [size, -1]).T


def true_norm(layer, shape, kernel):
  """By the layer's exact matrix, for the pairs of orders for which the norm has a formula."""
  matrix = matrix_of(lambda x: layer.linear_map(x, kernel), shape)
  if layer.domain == layer.codomain == 2.:
    return np.linalg.norm(matrix, 2)
  if layer.domain == 1.:
    return np.linalg.norm(matrix, layer.codomain, axis=0).max()
  assert layer.codomain == INF
  return np.linalg.norm(matrix, 1. if layer.domain == INF else layer.domain / (layer.domain - 1.), axis=1).max()


# The power iteration.


@pytest.mark.parametrize("name", residual_reference.BLOCKS)
def test_norms_and_kernels_are_those_of_the_reference(name):
  network, reference = residual_reference.make_network(name), residual_reference.numbers(name)
  for index in residual_reference.LAYERS:
    layer = network.layers[index]
    np.testing.assert_allclose(layer.norm(), reference[f"layer{index}/sigma"], rtol=1e-12)
    expected = residual_reference.kernel(reference[f"layer{index}/weight_eff"])
    np.testing.assert_allclose(layer.normalized_kernel(), expected, rtol=1e-7)  # The coefficient was a float32.


@pytest.mark.slow
@pytest.mark.parametrize("name", residual_reference.BLOCKS)
def test_the_power_iteration_finds_the_true_norms_of_the_reference(name):
  network, reference = residual_reference.make_network(name), residual_reference.numbers(name)
  for index in residual_reference.LAYERS:
    layer, expected = network.layers[index], reference[f"layer{index}/sigma_true"]
    layer.tolerance = 1e-5
    update(layer)
    np.testing.assert_allclose(layer.norm(), expected, rtol=1e-5)
    assert layer.norm() <= expected * (1. + 1e-9)  # From below.


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_the_lipschitz_constant_keeps_its_bound(name):
  layer, shape = make(name, tolerance=1e-4)
  update(layer)
  first = true_norm(layer, shape, layer.normalized_kernel())
  layer.kernel.assign(np.random.default_rng(1).standard_normal(layer.kernel.shape))
  assert true_norm(layer, shape, layer.normalized_kernel()) > 1.1 * layer.coefficient  # Vectors of another kernel.
  update(layer)
  for found in (first, true_norm(layer, shape, layer.normalized_kernel())):
    assert 0.999 * layer.coefficient < found < (1. + layer.tolerance) * layer.coefficient


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("orders", [(1., 1.), (1., 2.), (1., 3.), (1., INF), (2., INF), (1.5, INF), (INF, INF)])
def test_exact_norms_from_1_and_to_infinity(name, orders):
  layer, shape = make(name, domain=orders[0], codomain=orders[1])
  np.testing.assert_allclose(layer.norm(), true_norm(layer, shape, layer.kernel.value), rtol=1e-12)
  np.testing.assert_allclose(true_norm(layer, shape, layer.normalized_kernel()), layer.coefficient, rtol=1e-12)
  assert not layer.vectors


@pytest.mark.slow
def test_small_kernels_are_left_alone():
  for name in LAYERS:
    layer, _ = make(name)
    layer.kernel.assign(1e-3 * layer.kernel.value)
    layer.update_spectral_norm()
    np.testing.assert_array_equal(layer.normalized_kernel(), layer.kernel.value)


def test_the_norm_of_a_convolution_is_not_that_of_its_kernel_as_a_matrix():
  layer, shape = make("conv", tolerance=1e-6)
  layer.kernel.assign(np.ones(layer.kernel.shape))
  update(layer)
  as_matrix = np.linalg.norm(np.ones([3 * 3 * 2, 4]), 2)
  np.testing.assert_allclose(layer.norm(), true_norm(layer, shape, layer.kernel.value), rtol=1e-6)
  assert layer.norm() > 1.5 * as_matrix


@pytest.mark.parametrize("orders", [(2., 2.), (1., 1.), (1., 2.), (1., INF), (2., INF), (INF, INF), (1.8, 1.8),
                                    (2.5, 2.5), (2.2, 3.)])
def test_induced_norms_of_the_reference(orders):
  name = "induced/d{}_c{}".format(*orders)
  layer = LipschitzDense(8, 0.9, *orders, tolerance=1e-9, seed=0, dtype="float64")
  layer.build((None, 6))
  matrix, bounded = REFERENCE["induced/W"], REFERENCE[f"{name}_weff"]
  layer.kernel.assign(matrix.T)
  update(layer)
  if orders == (1., INF):
    # There the largest absolute value counts; the authors' code takes the largest positive entry.
    np.testing.assert_allclose(layer.norm(), np.abs(matrix).max(), rtol=1e-12)
    sound = matrix.max(0) > -matrix.min(0)
    assert 0 < sound.sum() < 6
    np.testing.assert_allclose(layer.normalized_kernel().numpy()[sound], bounded.T[sound], atol=1e-7)
    return
  np.testing.assert_allclose(layer.norm(), REFERENCE[f"{name}_scale"], rtol=1e-8)
  np.testing.assert_allclose(layer.normalized_kernel(), bounded.T, atol=1e-7)


def test_a_kernel_of_zeros_does_not_spoil_the_vectors():
  for orders in ((2., 2.), (3., 1.5), (1., 2.), (2., INF)):
    layer, _ = make("dense", domain=orders[0], codomain=orders[1], tolerance=1e-6)
    kernel, expected = layer.kernel.numpy(), layer.norm()
    layer.kernel.assign(np.zeros_like(kernel))
    layer.update_spectral_norm()
    with tf.GradientTape() as tape:
      bounded = layer.normalized_kernel()
    np.testing.assert_array_equal(bounded, 0.)
    assert np.all(np.isfinite(tape.gradient(bounded, layer.kernel.value)))
    layer.kernel.assign(kernel)
    layer.update_spectral_norm()
    np.testing.assert_allclose(layer.norm(), expected, rtol=1e-5)


@pytest.mark.parametrize("name, orders", [("dense", (2., 2.)), ("conv", (2., 2.)), ("dense", (3., 1.5))])
def test_a_kernel_that_is_not_a_number_does_not_spoil_the_vectors(name, orders):
  layer, _ = make(name, domain=orders[0], codomain=orders[1])
  before = [vector.numpy() for vector in layer.vectors]
  layer.kernel.assign(np.full(layer.kernel.shape, np.nan))
  layer.update_spectral_norm()
  for vector, value in zip(layer.vectors, before):
    np.testing.assert_allclose(vector, value)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_update_in_a_graph_equals_the_eager_one(jit_compile):
  found = []
  for wrap in (lambda f: f, lambda f: tf.function(f, jit_compile=jit_compile)):
    layer, _ = make("conv")
    layer.kernel.assign(np.random.default_rng(1).standard_normal(layer.kernel.shape))
    wrap(layer.update_spectral_norm)()
    found.append([vector.numpy() for vector in layer.vectors])
  np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-10)
  np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-10)


def test_calls_leave_the_vectors_alone_and_checkpoints_hold_them(tmp_path):
  layer, shape = make("conv")
  before = [vector.numpy() for vector in layer.vectors]
  layer(np.ones([2, *shape]), training=True)
  other, _ = make("conv", seed=1)
  assert {id(vector) for vector in other.vectors} == {id(v) for v in other.non_trainable_variables}
  tf.train.Checkpoint(layer=other).read(tf.train.Checkpoint(layer=layer).write(str(tmp_path / "checkpoint")))
  for vector, value in zip(other.vectors, before):
    np.testing.assert_array_equal(vector, value)
  np.testing.assert_array_equal(other.normalized_kernel(), layer.normalized_kernel())


# Gradients through the norm.


@pytest.mark.parametrize("orders", [(2., 2.), (3., 1.5), (1., 2.), (2., INF)])
def test_gradient_of_the_bounded_kernel_is_that_of_the_true_norm(orders):
  """Against differences of norms, measured anew for each kernel."""
  layer, _ = make("dense", domain=orders[0], codomain=orders[1], tolerance=1e-12)
  kernel, rng = layer.kernel.numpy(), np.random.default_rng(2)
  direction, weights = rng.standard_normal([2, *kernel.shape])

  def value(step):
    layer.kernel.assign(kernel + step * direction)
    update(layer)
    return tf.reduce_sum(weights * layer.normalized_kernel())

  expected = (value(1e-5) - value(-1e-5)) / 2e-5
  with tf.GradientTape() as tape:
    total = value(0.)
  np.testing.assert_allclose(tf.reduce_sum(tape.gradient(total, layer.kernel.value) * direction), expected, rtol=1e-6)


@pytest.mark.slow
def test_gradient_with_respect_to_learned_orders():
  orders = LearnedOrder(dtype="float64"), LearnedOrder(dtype="float64")
  np.testing.assert_allclose([order.order() for order in orders], 2., rtol=1e-6)
  layer, _ = make("dense", domain=orders[0], codomain=orders[1], tolerance=1e-12)

  def norm(steps):
    for order, step, start in zip(orders, steps, (-1.3, -0.6)):
      order.logit.assign(start + step)
    update(layer)
    return layer.norm()

  expected = [(norm([1e-5, 0.]) - norm([-1e-5, 0.])) / 2e-5, (norm([0., 1e-5]) - norm([0., -1e-5])) / 2e-5]
  with tf.GradientTape() as tape:
    total = norm([0., 0.])
  found = tape.gradient(total, [order.logit.value for order in orders])
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert all(abs(slope) > 0.1 for slope in found)


def test_a_norm_of_learned_orders_is_the_product_of_its_vectors_to_the_last_bit():
  orders = LearnedOrder(), LearnedOrder()
  layer, _ = make("dense", domain=orders[0], codomain=orders[1], dtype="float32")
  for logit in np.linspace(-2., 0.5, 8):
    orders[0].logit.assign(logit)
    layer.update_spectral_norm()
    np.testing.assert_array_equal(layer.norm(), tf.reduce_sum(layer.u.value * (layer.v.value @ layer.kernel.value)))


@pytest.mark.parametrize("orders", [{"domain": 1.}, {"codomain": INF}])
def test_learned_orders_in_a_graph_where_the_norm_has_a_formula(orders):
  orders = {"domain": LearnedOrder(dtype="float64"), "codomain": LearnedOrder(dtype="float64"), **orders}
  layer, _ = make("dense", **orders)
  np.testing.assert_allclose(tf.function(layer.norm)(), layer.norm(), rtol=1e-12)
  fixed, _ = make("dense", **{name: order if isinstance(order, float) else 2. for name, order in orders.items()})
  np.testing.assert_allclose(layer.norm(), fixed.norm(), rtol=1e-6)


def test_an_order_that_two_layers_share_is_one_parameter():
  order = LearnedOrder()
  network = keras.Sequential([LipschitzDense(4, codomain=order), LipSwish(), LipschitzDense(3, domain=order)])
  network.build((None, 3))
  assert len(network.trainable_variables) == 2 * 2 + 1 + 1
  # The order changes before the vectors are updated, and the norm is still one of that order.
  order.logit.assign(1.)
  first = network.layers[0]
  ratio = tf.norm(first.v @ first.kernel, ord=float(order.order())) / tf.norm(first.v.value, ord=2.)
  assert first.norm() <= ratio * 1.0001


# Networks.


@pytest.mark.slow
@pytest.mark.parametrize("name", residual_reference.BLOCKS)
def test_a_network_contracts_wherever_it_is(name):
  network, reference = residual_reference.make_network(name), residual_reference.numbers(name)
  for layer in lipschitz.constrained_layers(network):
    update(layer)
  x = 3. * np.random.default_rng(0).standard_normal(residual_reference.image(reference["x"]).shape[1:])
  bound = (1.001 * network.layers[1].coefficient)**3
  for scale in (0., 1., 10.):
    copies = tf.repeat(scale * x[np.newaxis], x.size, axis=0)
    with tf.GradientTape() as tape:
      tape.watch(copies)
      outputs = network(copies)
    rows = tape.gradient(outputs, copies, tf.reshape(tf.eye(x.size, dtype=tf.float64), copies.shape))
    assert np.linalg.norm(np.reshape(rows, [x.size, -1]), 2) <= bound


def _sequential(*layers):
  """In float64: without it, Keras casts the inputs to float32."""
  network = keras.Sequential(layers)
  network.dtype_policy = "float64"
  return network


class _Nested(keras.layers.Layer):

  def __init__(self):
    super().__init__(dtype="float64")
    self.inner = _sequential(LipschitzDense(4, seed=0, dtype="float64"), LipSwish(dtype="float64"))
    self.outer = LipschitzDense(3, seed=1, dtype="float64")

  def call(self, inputs):
    return self.outer(self.inner(inputs))


@pytest.mark.parametrize("make_network", [
    _Nested,
    lambda: _sequential(LipSwish(dtype="float64"), LipschitzDense(4, seed=0, dtype="float64"),
                        _sequential(keras.layers.Dense(3, dtype="float64"))),
    lambda: LipschitzDense(3, seed=0, dtype="float64"),
], ids=["nested", "sequential", "layer"])
def test_a_folded_network_is_the_network(make_network):
  network, x = make_network(), np.random.default_rng(0).standard_normal([2, 3])
  expected = network(x)
  folded = lipschitz.fold(network)
  np.testing.assert_allclose(lipschitz.run(network, x, folded), expected, rtol=1e-12)
  assert len(lipschitz.constrained_layers(network)) == {_Nested: 2}.get(type(network), 1)


# LipSwish.


def test_lip_swish_of_the_reference():
  x, layer = tf.constant(REFERENCE["lipswish/x"]), LipSwish(dtype="float64")
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = layer(x)
  slope = tape.gradient(y, x)
  np.testing.assert_allclose(y, REFERENCE["lipswish/y"], atol=1e-12)
  np.testing.assert_allclose(slope, REFERENCE["lipswish/slope"], atol=1e-12)
  assert layer.beta.numpy() == REFERENCE["lipswish/beta_raw_init"] == 0.5
  assert np.abs(slope).max() <= 1.


def test_lip_swish_is_nowhere_steeper_than_1_whatever_beta():
  x = tf.constant(np.linspace(-40., 40., 20001))
  for beta in (1e-3, 1., 30.):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = lip_swish(x, tf.constant(beta, tf.float64))
    assert np.abs(tape.gradient(y, x)).max() <= 1.


def test_derivatives_of_lip_swish_are_those_of_its_formula():
  results = []
  for function in (lip_swish, lambda x, beta: x * tf.sigmoid(beta * x) / 1.1):
    x, beta = tf.constant(np.linspace(-3., 3., 7)), tf.constant(0.7, tf.float64)
    with tf.GradientTape() as third:
      third.watch([x, beta])
      with tf.GradientTape() as second:
        second.watch([x, beta])
        with tf.GradientTape() as first:
          first.watch([x, beta])
          y = function(x, beta)
        slopes = first.gradient(y, [x, beta], output_gradients=tf.sin(x))
        total = tf.reduce_sum(tf.cos(x) * slopes[0]) + slopes[1]**2
      bends = second.gradient(total, [x, beta])
      total = tf.reduce_sum(tf.exp(x) * bends[0]) + bends[1]**2
    results.append(np.concatenate([np.ravel(r) for r in [y, *slopes, *bends, *third.gradient(total, [x, beta])]]))
  np.testing.assert_allclose(results[0], results[1], rtol=1e-10, atol=1e-14)


# Construction.


def test_same_seed_same_values():
  kernels = [make("conv", seed=seed)[0].kernel.numpy() for seed in (1, 1, 2)]
  np.testing.assert_array_equal(kernels[0], kernels[1])
  assert np.abs(kernels[0] - kernels[2]).max() > 0.1


@pytest.mark.parametrize("layer", [
    LipschitzConv2D(4, 3, 0.5, tolerance=1e-2, max_iterations=7, seed=3), LipSwish(),
    LipschitzDense(3, domain=LearnedOrder(), codomain=INF)])
def test_configuration_makes_the_same_layer_again(layer):
  again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
  assert {key: value for key, value in again.get_config().items() if key != "domain"} == {
      key: value for key, value in layer.get_config().items() if key != "domain"}
  assert type(getattr(again, "domain", None)) is type(getattr(layer, "domain", None))


@pytest.mark.parametrize("construct, match", [
    (lambda: LipschitzDense(0), "`units` must be a positive `int`. Received: 0"),
    (lambda: LipschitzConv2D(True, 3), "`filters`.*Received: True"),
    (lambda: LipschitzConv2D(4, 2), "`kernel_size` must be odd. Received: 2"),
    (lambda: LipschitzConv2D(4, 1, per_position=1), "`per_position` must be a `bool`. Received: 1"),
    (lambda: LipschitzConv2D(4, 3, per_position=True), "`per_position` must be False.*Received: 3"),
    (lambda: LipschitzDense(3, coefficient=1.), "`coefficient`.*below 1. Received: 1.0"),
    (lambda: LipschitzDense(3, tolerance=0.), "`tolerance`.*Received: 0.0"),
    (lambda: LipschitzDense(3, max_iterations=0), "`max_iterations`.*Received: 0"),
    (lambda: LipschitzDense(3, domain=True), "`domain`.*Received: True"),
    (lambda: LipschitzDense(3, domain=0.5), "`domain`.*Received: 0.5"),
    (lambda: LipschitzDense(3, domain=math.nan), "`domain`.*Received: nan"),
    (lambda: LipschitzConv2D(4, 3, seed=0.5), "`seed`.*Received: 0.5"),
    (lambda: LipschitzDense(3, codomain="2"), "`codomain`.*Received: '2'"),
    (lambda: LipschitzDense(3, codomain=1.), "`codomain` may be 1 only.*Received: domain=2.0, codomain=1.0"),
    (lambda: LipschitzDense(3, domain=INF), "`domain` infinite only.*Received: domain=inf, codomain=2.0"),
    (lambda: LipschitzDense(3, domain=INF, codomain=1.), "Received: domain=inf, codomain=1.0"),
    (lambda: LipschitzConv2D(4, 3)(np.zeros([5, 4], np.float32)), r"must be given images.*Received: \(5, 4\)"),
    (lambda: LipschitzConv2D(4, 1)(np.zeros([5, 4], np.float32)), r"must be given images.*Received: \(5, 4\)"),
])
def test_bad_arguments(construct, match):
  with pytest.raises(ValueError, match=match):
    construct()


@pytest.mark.slow
def test_sizes_of_images_must_be_known_and_stay():
  with pytest.raises(ValueError, match="must know the height and width.*Received: \\(None, None, 4, 2\\)"):
    LipschitzConv2D(4, 3).build((None, None, 4, 2))
  layer, _ = make("conv")
  with pytest.raises(ValueError, match="was built for images of size \\(6, 5\\).*Received: \\(1, 6, 4, 2\\)"):
    layer(np.zeros([1, 6, 4, 2]))
  layer, _ = make("conv 1x1")
  assert layer(np.zeros([1, 7, 9, 6])).shape == (1, 7, 9, 4)


def test_a_norm_to_a_lower_order_grows_with_the_image():
  layer = LipschitzConv2D(2, 1, domain=3., codomain=2.)
  layer.build((None, 4, 4, 2))
  layer.kernel.assign(np.eye(2)[np.newaxis, np.newaxis])
  layer.update_spectral_norm()
  np.testing.assert_allclose(layer.norm(), 32.**(1. / 2. - 1. / 3.), rtol=1e-3)
  with pytest.raises(ValueError, match="was built for images of size"):
    layer(np.zeros([1, 8, 8, 2], np.float32))


def test_the_norm_at_one_position_is_that_of_the_matrix_whatever_the_orders():
  order = LearnedOrder(dtype="float64")
  order.logit.assign(0.)
  kwargs = {"domain": order, "codomain": 1.5, "tolerance": 1e-9, "seed": 0, "dtype": "float64"}
  dense, layer = LipschitzDense(3, **kwargs), LipschitzConv2D(3, 1, per_position=True, **kwargs)
  dense.build((None, 2))
  layer.build((None, None, None, 2))
  np.testing.assert_allclose(layer.norm(), dense.norm(), rtol=1e-8)
  np.testing.assert_allclose(layer.normalized_kernel()[0, 0], dense.normalized_kernel(), rtol=1e-8)
  assert [vector.shape for vector in layer.vectors] == [(1, 1, 1, 3), (1, 1, 1, 2)]
  assert layer(np.ones([1, 4, 5, 2])).shape == (1, 4, 5, 3)
  assert LipschitzConv2D.from_config(layer.get_config()).per_position


def test_norms_of_high_order_neither_overflow_nor_vanish():
  for size in (30., 0.03):
    layer = LipschitzDense(4, domain=1., codomain=100.)
    layer.build((None, 2))
    layer.kernel.assign(tf.fill([2, 4], size))
    np.testing.assert_allclose(layer.norm(), size * 4.**0.01, rtol=1e-5)


@pytest.mark.slow
def test_an_order_of_another_dtype():
  layer = LipschitzDense(4, domain=LearnedOrder(dtype="float32"), dtype="float64")
  assert layer(np.ones([1, 2])).dtype == tf.float64

"""Conditional densities: against a known posterior, their integrals, and what log-dets leave out."""

import functools

import keras
import numpy as np
import pytest
import simulators
import tensorflow as tf
from bijector_cases import perturb

import tfp_glow
from tfp_glow import lipschitz, networks

CONTEXTS = 2. * np.random.default_rng(0).standard_normal([3, 3])


def _network(num_outputs, dtype):
  """A network of one number and a context `[3]`."""
  dense = functools.partial(keras.layers.Dense, dtype=dtype)
  inputs, context = keras.Input([1], dtype=dtype), keras.Input([3], dtype=dtype)
  hidden = dense(16, activation="tanh")(keras.layers.Concatenate(dtype=dtype)([inputs, context]))
  return keras.Model([inputs, context], networks.ZeroDense(num_outputs, dtype=dtype)(hidden))


def _couplings(num_steps=3, dtype="float64"):

  def make_step(_):
    coupling = tfp_glow.AffineCoupling(_network(2, dtype), event_ndims=1, dtype=dtype, context_shape=(3,))
    return tfp_glow.GlowStep(tfp_glow.ActNorm(2, event_ndims=1, dtype=dtype),
                             tfp_glow.ChannelPermutation([1, 0], event_ndims=1, dtype=dtype), coupling)

  return tfp_glow.Scan(make_step, num_steps, [2], dtype=dtype)


def _residual(num_blocks=3, dtype="float64", num_values=2, context_shape=(3,), **kwargs):
  return tfp_glow.ResidualFlowBijector(
      (num_values,), num_scales=0, num_dense_blocks=num_blocks, num_dense_hidden=16, logit_alpha=None, log_det="exact",
      seed=0, dtype=dtype, context_shape=context_shape, **kwargs)


def _with_a_network():
  """A flow with a context network."""
  dense = functools.partial(keras.layers.Dense, activation="tanh", dtype="float64")
  return _residual(context_network=keras.Sequential([dense(8), dense(5)]))


def _vectors(num_steps=3, dtype="float64"):
  return tfp_glow.VectorFlowBijector(2, num_steps, 16, seed=0, dtype=dtype, context_shape=(3,))


FLOWS = {"couplings": _couplings, "vector flow": _vectors, "residual flow": _residual,
         "context network": _with_a_network}


@functools.cache
def _perturbed(name):
  keras.utils.set_random_seed(0)  # Of layers of Keras.
  flow = FLOWS[name]()
  perturb(flow, scale=0.25)
  return flow


each_flow = pytest.mark.parametrize("name", FLOWS)


# A posterior that is known.


@pytest.mark.slow
@pytest.mark.parametrize("make, num_batches, most_nats, most_difference", [
    (_couplings, 1500, 0.006, 0.2), (_vectors, 1500, 0.006, 0.2), (_residual, 1000, 0.002, 0.1)],
                         ids=["couplings", "vector flow", "residual flow"])
def test_posterior_of_a_linear_gaussian_simulator(make, num_batches, most_nats, most_difference):
  """Bounds are about twice what was measured.

  Measured with couplings and residual flow: divergences of 0.0031 and 0.0009 nats; nine in ten differences of the
  log-density below 0.095 and 0.043; means and covariances off by at most 0.041 and 0.034 deviations or variances.
  """
  keras.utils.set_random_seed(0)
  simulator = simulators.SIMULATORS["linear_gaussian"]
  model = tfp_glow.FlowModel(make(dtype="float32"), num_bits=None)
  schedule = keras.optimizers.schedules.CosineDecay(1e-2, num_batches)
  model.compile(keras.optimizers.Adam(schedule, global_clipnorm=10.), jit_compile=True)
  theta, x = simulators.draw(simulator, 512 * num_batches, 0)
  model.fit(tf.data.Dataset.from_tensor_slices((theta, {"context": x})).batch(512), epochs=1, verbose=0)
  theta, x = simulators.draw(simulator, 20_000, 1)
  difference = simulator.log_posterior(theta, x) - model.log_prob(theta, context=x)
  assert 0. < np.mean(difference) < most_nats  # The Kullback-Leibler divergence.
  assert np.quantile(np.abs(difference), 0.9) < most_difference
  deviation = np.sqrt(simulator.COVARIANCE[0, 0])
  for n in range(3):
    samples = model.sample(20_000, seed=n, context=x[n])
    np.testing.assert_allclose(samples.mean(0), simulator.GAIN @ x[n], atol=0.08 * deviation)
    np.testing.assert_allclose(np.cov(samples.T), simulator.COVARIANCE, atol=0.08 * deviation**2)


# The density integrates to one for each context.


@pytest.mark.slow
@pytest.mark.parametrize("name, side", [
    ("couplings", 30.), ("vector flow", 45.), ("residual flow", 6.), ("context network", 8.)])
def test_integral_over_the_plane(name, side):
  """Sums over a grid have hardly any error for functions that are so smooth and vanish at the border."""
  flow, line = _perturbed(name), np.linspace(-side, side, 301)
  points = np.stack(np.meshgrid(line, line), axis=-1).reshape([-1, 2])
  densities = []
  for context in CONTEXTS:
    z, log_det = flow.inverse_and_log_det(points, context=np.broadcast_to(context, [len(points), 3]))
    densities.append(np.exp(log_det - 0.5 * np.sum(np.square(z), axis=1)) / (2. * np.pi))
    np.testing.assert_allclose(densities[-1].sum() * (line[1] - line[0])**2, 1., atol=1e-8)
  assert np.abs(densities[0] - densities[1]).max() > 0.01 * densities[0].max()


# What the log-det does not contain.


def _jacobian(function, values):
  """`[N, ..., ...]` of the outputs of a function of a batch with respect to its inputs."""
  values = tf.constant(values)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(values)
    outputs = function(values)
  return tape.batch_jacobian(outputs, values, experimental_use_pfor=False).numpy()


@each_flow
def test_contexts_that_depend_on_the_inputs(name):
  """The log-det holds the context fixed, although gradients flow through it."""
  flow, points = _perturbed(name), np.random.default_rng(1).standard_normal([5, 2])
  mixing = np.random.default_rng(2).standard_normal([2, 3])
  context = lambda y: tf.sin(y @ mixing)
  _, log_det = flow.inverse_and_log_det(points, context=context(points))
  partial = _jacobian(lambda y: flow.inverse(y, context=tf.stop_gradient(context(y))), points)
  np.testing.assert_allclose(log_det, np.linalg.slogdet(partial)[1], atol=1e-10)
  total = _jacobian(lambda y: flow.inverse(y, context=context(y)), points)
  assert np.abs(np.linalg.slogdet(total)[1] - log_det).max() > 0.03


def test_autoregressive():
  """The data of one flow are the context of another: the log-det of both is the sum."""
  first, second = _residual(num_values=3, context_shape=None), _perturbed("couplings")
  perturb(first, scale=0.4)
  points = np.random.default_rng(1).standard_normal([5, 5])

  def inverse(y):
    z1, log_det1 = first.inverse_and_log_det(y[:, :3])
    z2, log_det2 = second.inverse_and_log_det(y[:, 3:], context=y[:, :3])
    return tf.concat([z1, z2], axis=1), log_det1 + log_det2

  jacobian = _jacobian(lambda y: inverse(y)[0], points)
  np.testing.assert_allclose(inverse(points)[1], np.linalg.slogdet(jacobian)[1], atol=1e-10)
  assert np.abs(jacobian[:, 3:, :3]).max() > 0.1


# Residual blocks: what depends on the context need not contract, the rest must.


def _norm(jacobian, num_outputs):
  """The largest singular value, of any event."""
  return np.linalg.norm(jacobian.reshape([len(jacobian), num_outputs, -1]), 2, axis=(1, 2)).max()


def _dense_block(dtype):
  dense = functools.partial(lipschitz.LipschitzDense, dtype=dtype)
  network = keras.Sequential([dense(16, seed=0), lipschitz.LipSwish(dtype=dtype), dense(2, seed=1)])
  return (2,), (3,), tfp_glow.InvertibleResidualBlock(network, log_det="exact", event_ndims=1, dtype=dtype,
                                                      context_shape=(3,))


def _convolutional_block(dtype):
  conv = functools.partial(lipschitz.LipschitzConv2D, kernel_size=3, dtype=dtype)
  network = keras.Sequential([conv(8, seed=0), lipschitz.LipSwish(dtype=dtype), conv(2, seed=1)])
  return (4, 4, 2), (4, 4, 3), tfp_glow.InvertibleResidualBlock(network, log_det="exact", dtype=dtype,
                                                                context_shape=(4, 4, 3))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-10)])
@pytest.mark.parametrize("make", [_dense_block, pytest.param(_convolutional_block, marks=pytest.mark.slow)],
                         ids=["dense", "convolutional"])
def test_lipschitz_constants(make, dtype, tolerance):
  """Kernels are far above their bound, and the second undoes what the first does to directions."""
  event_shape, context_shape, block = make(dtype)
  rng, size = np.random.default_rng(0), int(np.prod(event_shape))
  block.build(event_shape)
  draw = lambda shape, scale: (scale * rng.standard_normal(shape)).astype(dtype)
  first, second = lipschitz_layers = block.network.layers[::2]
  first.kernel.assign(draw(first.kernel.shape, 3.))
  second.kernel.assign(np.flip(first.kernel.numpy(), range(first.kernel.ndim - 2)).swapaxes(-1, -2))
  for layer in lipschitz_layers:
    layer.update_spectral_norm()
  kernel = draw(block.context_map.kernel.shape, 10.)
  kernel[..., 0, :] = np.abs(kernel[..., 0, :])
  block.context_map.kernel.assign(kernel)
  y, context = draw([20, *event_shape], 1.), draw([20, *context_shape], 1.)
  context[0] = np.where(np.arange(3) == 0, 6., 0.)  # There all activations are at their steepest.
  of_inputs = _jacobian(lambda y: block.inverse(y, context=context) - y, y)
  of_context = _jacobian(lambda context: block.inverse(y, context=context), context)
  assert 0.8 < _norm(of_inputs, size) <= 0.98 + 1e-3
  assert _norm(of_context, size) > 10.
  z, log_det = block.inverse_and_log_det(y, context=context)
  np.testing.assert_allclose(block.forward(z.numpy(), context=context), y, atol=tolerance * np.abs(z).max())
  jacobians = np.eye(size) + np.float64(of_inputs.reshape([-1, size, size]))
  np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobians)[1], atol=20. * tolerance)

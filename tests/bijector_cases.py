"""One table of bijectors, for all tests that any bijector must pass."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

tfb = tfp.bijectors

NEGATIVE_DETERMINANT = [[0.3, -1.1, 0.4], [0.9, 0.2, -0.7], [-0.5, 0.8, 1.2]]


class Case(NamedTuple):
  """A bijector of the table.

  Attributes:
    name: Of the test.
    construct: Callable, from a dtype's name to the bijector.
    data_shape: Event shape given to `inverse`.
    latent_shape: Event shape given to `forward`; `None`: the same.
    num_classes: Of a bijector that takes `labels`.
  """
  name: str
  construct: Callable
  data_shape: list
  latent_shape: list | None = None
  num_classes: int | None = None

  def make(self, dtype="float32"):
    """The bijector, built, with weights that are neither zero nor one."""
    bijector = self.construct(dtype)
    # Networks are built on first use.
    bijector.inverse(tf.zeros([1] + self.data_shape, dtype), **self.labels([1]))
    perturb(bijector)
    return bijector

  def shape(self, inverse):
    """The event shape given to `inverse` or to `forward`."""
    return self.data_shape if inverse or self.latent_shape is None else self.latent_shape

  def draw(self, batch_shape, inverse, dtype="float32", seed=0):
    """Values to give to `inverse` or `forward`, a NumPy array, so that no pass can be recalled for it."""
    rng = np.random.default_rng([seed, inverse])
    return rng.standard_normal([*batch_shape, *self.shape(inverse)]).astype(dtype)

  def labels(self, batch_shape):
    """Keyword arguments of each call."""
    if self.num_classes is None:
      return {}
    return {"labels": (np.arange(np.prod(batch_shape, dtype=int)) % self.num_classes).reshape(batch_shape)}


def perturb(bijector, seed=0, scale=0.05):
  """Adds noise to all weights, and updates the state that follows them."""
  rng = np.random.default_rng(seed)
  for variable in bijector.trainable_variables:
    variable.assign_add(tf.constant(scale * rng.standard_normal(variable.shape), variable.dtype))
  if isinstance(bijector, tfp_glow.OnePassBijector):
    bijector.after_update()


def run(bijector, inputs, inverse, **kwargs):
  """Value and log-det of one direction, also of TFP's compositions of our bijectors."""
  if isinstance(bijector, tfp_glow.OnePassBijector):
    return (bijector.inverse_and_log_det if inverse else bijector.forward_and_log_det)(inputs, **kwargs)
  inputs = tf.convert_to_tensor(inputs)
  if inverse:
    return bijector.inverse(inputs, **kwargs), bijector.inverse_log_det_jacobian(inputs, **kwargs)
  return bijector.forward(inputs, **kwargs), bijector.forward_log_det_jacobian(inputs, **kwargs)


def dense(units, dtype):
  # Zeros, to which `perturb` adds: the same weights each time.
  layer = functools.partial(keras.layers.Dense, dtype=dtype, kernel_initializer="zeros")
  return keras.Sequential([layer(6, activation="tanh"), layer(units)])


def convolutions(units, dtype="float32"):
  layer = functools.partial(keras.layers.Conv2D, padding="same", dtype=dtype, kernel_initializer="zeros")
  return keras.Sequential([layer(4, 3, activation="gelu"), layer(units, 3)])


def coupling_network(units, dtype="float32", seed=0):
  return tfp_glow.networks.CouplingNetwork(units, num_hidden=4, seed=seed, dtype=dtype)


def glow_step(num_channels, dtype="float32", seed=0, network=coupling_network):
  return tfp_glow.GlowStep(
      tfp_glow.ActNorm(num_channels, dtype=dtype), tfp_glow.InvertibleConv1x1(num_channels, seed, dtype=dtype),
      tfp_glow.AffineCoupling(network(2 * (num_channels - num_channels // 2), dtype), dtype=dtype))


def _affine(num_channels, network, event_ndims=3):
  units = 2 * (num_channels - num_channels // 2)
  return lambda dtype: tfp_glow.AffineCoupling(network(units, dtype), event_ndims, dtype)


def _additive(num_channels, network, event_ndims=3):
  units = num_channels - num_channels // 2
  return lambda dtype: tfp_glow.AdditiveCoupling(network(units, dtype), event_ndims, dtype)


def _vector_step(dtype):
  return tfp_glow.GlowStep(
      tfp_glow.ActNorm(3, event_ndims=1, dtype=dtype), tfp_glow.ChannelPermutation([2, 0, 1], 1, dtype=dtype),
      _affine(3, dense, event_ndims=1)(dtype))


def _scan_of_couplings(dtype):
  return tfp_glow.Scan(lambda k: _affine(3, dense, event_ndims=1)(dtype), 2, [3], dtype=dtype)


class _Caller(tfp_glow.OnePassBijector):
  """A user's step, which calls its part by the public methods."""

  def __init__(self, dtype):
    super().__init__(forward_event_shape=[3], inverse_event_shape=[3], dtype=dtype, name="caller")
    self.inner = self._add_child(tfp_glow.ActNorm(3, event_ndims=1, dtype=dtype))

  def _forward_and_log_det(self, x):
    return self.inner.forward_and_log_det(x)

  def _inverse_and_log_det(self, y):
    return self.inner.inverse_and_log_det(y)


def _scan_of_chains(dtype):
  """The vectors of an image are events of one part."""
  part = lambda event_ndims: tfp_glow.ActNorm(2, event_ndims, dtype=dtype)
  return tfp_glow.Scan(lambda k: tfp_glow.Chain([part(3), part(1)]), 2, [2, 2, 2], dtype=dtype)


def contraction(units, dtype="float32", seed=0):
  layer = functools.partial(tfp_glow.lipschitz.LipschitzDense, coefficient=0.7, dtype=dtype)
  return keras.Sequential([layer(6, seed=seed), tfp_glow.lipschitz.LipSwish(dtype=dtype), layer(units, seed=seed + 1)])


def _contracting_convolutions(units, dtype):
  layer = functools.partial(tfp_glow.lipschitz.LipschitzConv2D, dtype=dtype, tolerance=0.1)
  return keras.Sequential([tfp_glow.lipschitz.LipSwish(dtype=dtype), layer(4, 3, seed=0),
                           tfp_glow.lipschitz.LipSwish(dtype=dtype), layer(units, 1, seed=1)])


def residual_block(num_channels, dtype="float32", seed=0, log_det="exact", **kwargs):
  """A block for vectors."""
  return tfp_glow.InvertibleResidualBlock(contraction(num_channels, dtype, seed), log_det, event_ndims=1, seed=seed,
                                          dtype=dtype, **kwargs)


def _scan_of_blocks(dtype):
  return tfp_glow.Scan(lambda k: residual_block(3, dtype, seed=k), 2, [3], dtype=dtype)


def _standardization(dtype):
  bijector = tfp_glow.Standardization(3, dtype=dtype)
  bijector.initialize(np.random.default_rng(0).normal([1., -20., 3.], [0.3, 2., 1.], [20, 3]).astype(dtype))
  return bijector


def _whitening(dtype):
  bijector = tfp_glow.Whitening(3, dtype=dtype)
  mixing = np.array([[1., 0.5, -1.], [0., 0.3, 2.], [0., 0., 1.]])
  bijector.initialize((np.random.default_rng(0).standard_normal([20, 3]) @ mixing).astype(dtype))
  return bijector


def _vector_flow(num_dims, **kwargs):
  """A flow that is initialised only in the standardisation of its columns."""
  def construct(dtype):
    flow = tfp_glow.VectorFlowBijector(num_dims, 2, 4, seed=0, dtype=dtype, **kwargs)
    flow.parts[0].mean.assign(np.linspace(-1., 2., num_dims))
    flow.parts[0].deviation.assign(np.linspace(0.5, 2., num_dims))
    return flow

  return construct


def _chain(dtype):
  return tfb.Chain([
      tfp_glow.ActNorm(3, dtype=dtype), tfp_glow.InvertibleConv1x1(3, seed=1, dtype=dtype),
      tfb.Chain([_affine(3, coupling_network)(dtype), tfb.Shift(np.array(0.5, dtype))])])


def _own_chain(dtype):
  return tfp_glow.Chain([
      tfp_glow.ActNorm(3, dtype=dtype), tfb.Chain([tfb.Invert(_affine(3, coupling_network)(dtype)),
                                                   tfb.Scale(np.array([0.5, 2., -1.5], dtype))])])


def _own_chain_of_classes(dtype):
  glow = tfp_glow.GlowBijector((2, 2, 2), 1, 1, num_hidden=4, seed=0, num_classes=3, dtype=dtype)
  return tfp_glow.Chain([tfb.Shift(np.array(0.5, dtype)), tfp_glow.ActNorm(2, event_ndims=1, dtype=dtype), glow])


def _chain_of_inverted(dtype):
  return tfb.Chain([tfb.Invert(_affine(3, coupling_network)(dtype)), tfp_glow.ActNorm(3, dtype=dtype)])


def _glow_in_chain(dtype):
  glow = tfp_glow.GlowBijector((2, 2, 2), 1, 1, num_hidden=4, seed=0, dtype=dtype)
  return tfb.Chain([tfb.Scale(np.array(2., dtype)), glow, tfb.Shift(np.array(0.5, dtype))])


def _glow(name, output_shape, num_blocks, num_steps=1, num_classes=None, **kwargs):
  def construct(dtype):
    arguments = dict(kwargs)
    if "network_fn" in arguments:
      arguments["network_fn"] = functools.partial(kwargs["network_fn"], dtype=dtype)
    return tfp_glow.GlowBijector(output_shape, num_blocks, num_steps, num_hidden=4, seed=3, dtype=dtype,
                                 num_classes=num_classes, **arguments)

  return Case(f"glow_{name}", construct, list(output_shape), [int(np.prod(output_shape))], num_classes)


GLOW_CASES = [  # Loops over several steps are slow to trace.
    _glow("affine_conv1x1_3_blocks", (8, 8, 1), 3),
    _glow("affine_reverse_non_square", (2, 4, 3), 1, permutation="reverse"),
    _glow("affine_shuffle", (2, 2, 3), 1, num_steps=2, permutation="shuffle"),
    _glow("additive_conv1x1", (2, 2, 2), 1, num_steps=2, coupling="additive"),
    _glow("additive_reverse_2_blocks", (4, 4, 1), 2, coupling="additive", permutation="reverse"),
    _glow("additive_shuffle_1_channel", (4, 2, 1), 1, coupling="additive", permutation="shuffle"),
    _glow("fixed_top", (2, 2, 1), 1, learn_top=False),
    _glow("classes", (4, 2, 1), 1, num_classes=3),
    _glow("classes_fixed_top", (2, 2, 1), 1, num_classes=3, learn_top=False),
    _glow("network_fn", (2, 2, 1), 1, num_steps=2, network_fn=convolutions),
]

CASES = [
    Case("actnorm", lambda dtype: tfp_glow.ActNorm(3, dtype=dtype), [2, 3, 3]),
    Case("actnorm_vector", lambda dtype: tfp_glow.ActNorm(3, event_ndims=1, dtype=dtype), [3]),
    Case("conv1x1", lambda dtype: tfp_glow.InvertibleConv1x1(3, seed=0, dtype=dtype), [2, 3, 3]),
    Case("conv1x1_vector", lambda dtype: tfp_glow.InvertibleConv1x1(4, seed=0, event_ndims=1, dtype=dtype), [4]),
    Case("conv1x1_negative_determinant",
         lambda dtype: tfp_glow.InvertibleConv1x1(3, matrix=NEGATIVE_DETERMINANT, dtype=dtype), [2, 3, 3]),
    Case("permutation", lambda dtype: tfp_glow.ChannelPermutation([2, 0, 3, 1], dtype=dtype), [2, 3, 4]),
    Case("squeeze", lambda dtype: tfp_glow.Squeeze(dtype=dtype), [4, 6, 2], [2, 3, 8]),
    Case("squeeze_by_3", lambda dtype: tfp_glow.Squeeze(3, dtype=dtype), [3, 6, 1], [1, 2, 9]),
    Case("affine_coupling", _affine(4, coupling_network), [2, 3, 4]),
    Case("affine_coupling_odd", _affine(3, coupling_network), [3, 2, 3]),
    Case("affine_coupling_sequential", _affine(4, convolutions), [2, 3, 4]),
    Case("affine_coupling_vector", _affine(5, dense, event_ndims=1), [5]),
    Case("additive_coupling", _additive(4, coupling_network), [2, 3, 4]),
    Case("additive_coupling_odd", _additive(3, convolutions), [3, 2, 3]),
    Case("additive_coupling_vector", _additive(5, dense, event_ndims=1), [5]),
    Case("factor_out", lambda dtype: tfp_glow.FactorOut([2, 3, 4], dtype), [2, 3, 4]),
    Case("top_prior", lambda dtype: tfp_glow.TopPrior([2, 3, 4], dtype=dtype), [2, 3, 4]),
    Case("top_prior_classes", lambda dtype: tfp_glow.TopPrior([2, 3, 4], num_classes=3, dtype=dtype), [2, 3, 4],
         num_classes=3),
    Case("glow_step", lambda dtype: glow_step(4, dtype), [2, 3, 4]),
    Case("glow_step_vector", _vector_step, [3]),
    Case("scan", lambda dtype: tfp_glow.Scan(lambda k: glow_step(4, dtype, seed=k), 3, [2, 2, 4], dtype=dtype),
         [2, 2, 4]),
    Case("scan_vector", _scan_of_couplings, [3]),
    Case("scan_steps_vector", lambda dtype: tfp_glow.Scan(lambda k: _vector_step(dtype), 2, [3], dtype=dtype), [3]),
    Case("scan_of_callers", lambda dtype: tfp_glow.Scan(lambda k: _Caller(dtype), 2, [3], dtype=dtype), [3]),
    Case("scan_of_chains", _scan_of_chains, [2, 2, 2]),
    Case("residual", lambda dtype: tfp_glow.InvertibleResidualBlock(
        _contracting_convolutions(2, dtype), "exact", dtype=dtype), [2, 3, 2]),
    Case("residual_vector", lambda dtype: residual_block(3, dtype), [3]),
    Case("scan_residual", _scan_of_blocks, [3]),
    Case("logit", lambda dtype: tfp_glow.Logit(0.45, dtype=dtype), [2, 3, 2]),
    Case("residual_flow", lambda dtype: tfp_glow.ResidualFlowBijector(
        (2, 2, 1), 2, 1, 4, num_dense_blocks=0, logit_alpha=0.45, log_det="exact", seed=0, dtype=dtype),
         [2, 2, 1], [4]),
    Case("residual_flow_vector", lambda dtype: tfp_glow.ResidualFlowBijector(
        3, 0, num_dense_blocks=2, num_dense_hidden=4, logit_alpha=None, log_det="exact", seed=0, dtype=dtype), [3]),
    Case("residual_flow_factored", lambda dtype: tfp_glow.ResidualFlowBijector(
        (4, 4, 1), 2, [2, 1], 4, num_dense_blocks=1, num_dense_hidden=3, log_det="exact", seed=0, dtype=dtype,
        mean_and_deviation=([0.4], [0.3]), factor_out=True, squeeze_first=True, activation="elu"), [4, 4, 1], [16]),
    Case("residual_flow_orders", lambda dtype: tfp_glow.ResidualFlowBijector(
        (2, 2, 1), 1, 1, 3, num_dense_blocks=0, logit_alpha=None, log_det="exact", seed=0, dtype=dtype,
        coefficient=0.3, learn_orders=True), [2, 2, 1], [4]),
    Case("normalization", lambda dtype: tfp_glow.Normalization([0.5, -1.], [2., 0.1], dtype=dtype), [2, 3, 2]),
    Case("standardization", _standardization, [3]),
    Case("whitening", _whitening, [3]),
    Case("vector_flow", _vector_flow(3), [3]),
    Case("vector_flow_reversible", _vector_flow(4, gradient="reversible"), [4]),
    Case("own_chain", _own_chain, [2, 2, 3]),
    Case("own_chain_classes", _own_chain_of_classes, [2, 2, 2], [8], num_classes=3),
    Case("own_invert", lambda dtype: tfp_glow.Invert(glow_step(4, dtype)), [2, 2, 4]),
    Case("chain", _chain, [2, 2, 3]),
    Case("chain_of_inverted", _chain_of_inverted, [2, 2, 3]),
    Case("chain_of_glow", _glow_in_chain, [2, 2, 2], [8]),
    Case("invert_step", lambda dtype: tfb.Invert(glow_step(4, dtype)), [2, 2, 4]),
    Case("invert_glow", lambda dtype: tfb.Invert(
        tfp_glow.GlowBijector((2, 2, 2), 1, 1, num_hidden=4, seed=0, dtype=dtype)), [8], [2, 2, 2]),
    *GLOW_CASES,
]

NAMES = [case.name for case in CASES]
CASE = dict(zip(NAMES, CASES))

"""Layers keep their bounds in hard cases: training at the sizes of the paper, and singular values that cross.

True norms come from ARPACK, or from whole matrices, in float64.
"""

import keras
import numpy as np
import pytest
import scipy.sparse.linalg
import tensorflow as tf
from sklearn import datasets

import tfp_glow
from tfp_glow.networks import lipschitz
from tfp_glow.networks.lipschitz import LipschitzConv2D, LipschitzDense

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
SLACK = 1e-3


def true_norm(layer, kernel):
  """The norm of the map with a kernel."""
  kernel, small = tf.cast(kernel, tf.float64), min(layer._one_input, layer._one_output, key=np.prod)
  there, back = (lambda x: layer.linear_map(x, kernel)), (lambda y: layer.transposed_map(y, kernel))
  if small == layer._one_output:
    there, back = back, there
  square = tf.function(lambda x: back(there(tf.reshape(x, small))), autograph=False)
  size = int(np.prod(small))
  operator = scipy.sparse.linalg.LinearOperator(
      (size, size), lambda x: np.ravel(square(tf.constant(np.ravel(x)))), dtype=np.float64)
  start = np.random.default_rng(1).standard_normal(size)
  return np.sqrt(scipy.sparse.linalg.eigsh(operator, 1, ncv=min(60, size), v0=start, tol=1e-5)[0][0])


def layers_of(flow):
  """Each layer of bounded norm, and its own kernel, `u` and `v`, of flows of one block a scale."""
  for part in flow.parts:
    step = part.template if isinstance(part, tfp_glow.Scan) else part
    for layer in lipschitz.constrained_layers(step.block.network) if hasattr(step, "block") else []:
      variables = layer.kernel, layer.u, layer.v
      if step is not part:
        variables = [part.stacked(variable)[0] for variable in variables]
      yield layer, [tf.convert_to_tensor(variable) for variable in variables]


def check(flow):
  """The true norm of every layer, with the kernel that it computes with."""
  norms = []
  for layer, (kernel, u, v) in layers_of(flow):
    bound = tf.maximum(tf.reduce_sum(u * layer.linear_map(v, kernel)) / layer.coefficient, 1.)
    norms.append(true_norm(layer, kernel / bound))
  assert len(norms) == 3 * 4
  assert max(norms) <= layer.coefficient + SLACK, norms
  assert sum(norm > layer.coefficient - SLACK for norm in norms) > 6  # They are bounded, but not more than needed.


def photographs(count, shape):
  """Pieces of a photograph, uint8."""
  photograph, rng = datasets.load_sample_image("flower.jpg"), np.random.default_rng(0)
  corners = rng.integers(0, np.subtract(photograph.shape[:2], shape[:2]), [count, 2])
  pieces = np.stack([photograph[i:i + shape[0], j:j + shape[1]] for i, j in corners])
  return pieces if shape[-1] == 3 else pieces.mean(-1, keepdims=True).astype(np.uint8)


@pytest.mark.slow
def test_true_norms_after_training_at_the_sizes_of_the_paper():
  """A block of each shape of the flow for MNIST, at a rate at which singular values change places."""
  shape = 28, 28, 1
  flow = tfp_glow.ResidualFlowBijector(shape, num_blocks_per_scale=1, num_hidden=512, num_dense_blocks=1, seed=0,
                                       log_det="power_series", num_terms=1)
  model = tfp_glow.FlowModel(flow, num_bits=8)
  model.compile(keras.optimizers.Adam(1e-2))
  for num_steps in (3, 4):
    model.fit(photographs(4 * num_steps, shape), batch_size=4, verbose=0)
    check(flow)


def of_singular_values(values, rng, shape):
  """A matrix with these singular values, the others 0; its singular vectors `[inputs, values]`, `[outputs, values]`."""
  inputs, outputs = (np.linalg.qr(rng.standard_normal([size, len(values)]))[0] for size in shape)
  return inputs * values @ outputs.T, inputs, outputs


@pytest.mark.parametrize("shape", [(300, 100), (100, 300)])
def test_a_singular_value_hardly_larger_is_found_from_the_vectors_of_another(shape):
  """The values are close, as in layers during training. The old vectors are exactly those of the second value."""
  values = np.linspace(1., 0., 100)**2 * 10.
  values[0] = 1.03 * values[1]
  layer = LipschitzDense(shape[1], dtype="float64")
  layer.build((None, shape[0]))
  kernel, inputs, outputs = of_singular_values(values, np.random.default_rng(0), shape)
  for vector, value in ((layer.kernel, kernel), (layer.v, inputs[:, 1:2].T), (layer.u, outputs[:, 1:2].T)):
    vector.assign(value)
  np.testing.assert_allclose(layer.norm(), values[1])
  layer.update_spectral_norm()
  np.testing.assert_allclose(layer.norm(), values[0], rtol=SLACK)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_singular_values_that_change_places_in_a_scan(jit_compile):
  """Between two updates, in all steps of flow at once, in float32."""

  def make_step(k):
    network = keras.Sequential([LipschitzDense(40, seed=k), LipschitzDense(60, seed=k)])
    return tfp_glow.InvertibleResidualBlock(network, "power_series", event_ndims=1, seed=k)

  scan, rng = tfp_glow.Scan(make_step, 2, [60]), np.random.default_rng(0)
  layers = lipschitz.constrained_layers(scan.template.network)
  vectors = [[of_singular_values(np.ones(40), rng, layer.kernel.shape)[1:] for layer in layers] for _ in range(2)]
  after_update = tf.function(scan.after_update, jit_compile=jit_compile, autograph=False)
  for change in (-0.1, -0.02, 0.02, 0.1):
    values = np.linspace(2., 1., 40)
    values[:2] = 2.5 * (1. - change), 2.5 * (1. + change)
    for i, layer in enumerate(layers):
      scan.stacked(layer.kernel).assign([of_step[i][0] * values @ of_step[i][1].T for of_step in vectors])
    after_update()
    for layer in layers:
      kernel, u, v = (scan.stacked(variable).numpy() for variable in (layer.kernel, layer.u, layer.v))
      np.testing.assert_allclose(np.sum(u * (v @ kernel), (1, 2)), values.max(), rtol=SLACK)


@pytest.mark.slow
def test_one_update_finds_the_norm_after_other_weights_were_assigned():
  """A convolution amplifies long waves most, and later short ones, which the old vectors do not contain."""
  layer = LipschitzConv2D(8, 3)
  layer.build((None, 20, 20, 1))
  sizes, checks = np.random.default_rng(0).uniform(0.5, 1., [3, 3, 1, 8]), (-1.)**np.indices([3, 3, 1, 8])[:2].sum(0)
  for gain in (1.2, 0.9):
    layer.kernel.assign(sizes * np.where(np.arange(8) < 4, gain, checks))
    layer.update_spectral_norm()
    np.testing.assert_allclose(layer.norm(), true_norm(layer, layer.kernel.value), rtol=SLACK)

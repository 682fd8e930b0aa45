"""What is particular to each bijector; `test_conformance.py` has what all share."""

import bijector_cases
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

tfd = tfp.distributions
RNG = np.random.default_rng(0)


# 1x1 convolution.


def test_rotation_is_orthogonal_and_follows_its_seed():
  matrices = [tfp_glow.InvertibleConv1x1(6, seed=seed).matrix()[0].numpy() for seed in (1, 1, 2)]
  np.testing.assert_allclose(matrices[0] @ matrices[0].T, np.eye(6), atol=1e-6)
  np.testing.assert_array_equal(matrices[0], matrices[1])
  assert np.abs(matrices[0] - matrices[2]).max() > 0.1


def test_without_a_seed_rotations_differ_unless_keras_is_seeded():
  def draw():
    return tfp_glow.InvertibleConv1x1(4).matrix()[0].numpy()
  assert np.abs(draw() - draw()).max() > 0.01
  keras.utils.set_random_seed(3)
  first = draw()
  keras.utils.set_random_seed(3)
  np.testing.assert_array_equal(draw(), first)


@pytest.mark.parametrize("sign", [1, -1])
def test_any_invertible_matrix_can_be_loaded(sign):
  matrix = RNG.standard_normal([5, 5])
  matrix[0] *= sign * np.sign(np.linalg.det(matrix))
  assert np.sign(np.linalg.det(matrix)) == sign
  convolution = tfp_glow.InvertibleConv1x1(5, seed=0, dtype="float64")
  convolution.set_matrix(matrix)
  loaded, log_det = convolution.matrix()
  np.testing.assert_allclose(loaded, matrix, atol=1e-12)
  np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1])
  np.testing.assert_allclose(convolution.matrix(inverse=False)[0], np.linalg.inv(matrix), atol=1e-10)
  y = RNG.standard_normal([2, 3, 3, 5])
  np.testing.assert_allclose(convolution.inverse(y), y @ matrix, atol=1e-12)


def test_the_matrix_stays_invertible_whatever_training_does():
  convolution = tfp_glow.InvertibleConv1x1(4, seed=0, dtype="float64")
  bijector_cases.perturb(convolution, scale=3.)
  matrix, log_det = convolution.matrix()
  assert np.isfinite(log_det) and np.linalg.matrix_rank(matrix.numpy(), tol=1e-12) == 4
  np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1], rtol=1e-6)


@pytest.mark.parametrize("matrix, match", [
    (np.zeros([3, 3]), "invertible"), (np.ones([3, 3]), "invertible"), (np.eye(4), r"\(3, 3\)"),
    (np.full([3, 3], np.nan), "NaN"),
])
def test_matrices_that_cannot_be(matrix, match):
  with pytest.raises(ValueError, match=f"`matrix`.*{match}.*"):
    tfp_glow.InvertibleConv1x1(3, matrix=matrix)


# Actnorm.


def test_actnorm_normalises_the_batch_it_was_initialised_from():
  y = RNG.normal([1., -5., 30.], [0.1, 2., 10.], [16, 4, 4, 3]).astype(np.float32)
  actnorm = tfp_glow.ActNorm(3)
  actnorm.initialize(y)
  x = actnorm.inverse(y).numpy()
  np.testing.assert_allclose(x.mean((0, 1, 2)), 0., atol=1e-4)
  np.testing.assert_allclose(x.std((0, 1, 2)), 1., atol=1e-4)
  np.testing.assert_allclose(x, (y + actnorm.shift.numpy()) * np.exp(3. * actnorm.log_scale.numpy()), rtol=1e-4)


@pytest.mark.parametrize("y, match", [
    (np.zeros([0, 4, 4, 3], np.float32), "at least one event"),
    (np.full([2, 4, 4, 3], np.nan, np.float32), "NaN"),
    (np.zeros([2, 4, 4, 2], np.float32), r"must have shape \[\.\.\., \?, \?, 3\]"),
])
def test_actnorm_refuses_bad_batches(y, match):
  with pytest.raises(ValueError, match=f"`y`.*{match}"):
    tfp_glow.ActNorm(3).initialize(y)


def test_initialising_in_a_graph_is_an_error():
  actnorm = tfp_glow.ActNorm(3)
  with pytest.raises(RuntimeError, match="`actnorm.initialize`.*Received"):
    tf.function(actnorm.initialize)(tf.ones([2, 4, 4, 3]))


# Couplings, against NumPy.


class _Known(keras.layers.Layer):
  """A network whose outputs are known: positions and channels scaled by the mean of the input."""

  def __init__(self, units):
    super().__init__()
    self.units = units

  def call(self, inputs):
    return tf.reduce_mean(inputs, -1, keepdims=True) * tf.range(1., self.units + 1.) * 0.3


def test_affine_coupling_interleaves_shift_and_scale():
  y = RNG.standard_normal([2, 3, 3, 5]).astype(np.float32)
  h = y[..., :2].mean(-1, keepdims=True) * np.arange(1., 7.) * 0.3
  shift, scale = h[..., 0::2], 1. / (1. + np.exp(-h[..., 1::2] - 2.))
  x, log_det = tfp_glow.AffineCoupling(_Known(6)).inverse_and_log_det(y)
  np.testing.assert_array_equal(x[..., :2], y[..., :2])
  np.testing.assert_allclose(x[..., 2:], (y[..., 2:] + shift) * scale, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(log_det, np.log(scale).sum((1, 2, 3)), rtol=1e-5)


def test_additive_coupling_adds():
  y = RNG.standard_normal([2, 3, 3, 4]).astype(np.float32)
  h = y[..., :2].mean(-1, keepdims=True) * np.arange(1., 3.) * 0.3
  x, log_det = tfp_glow.AdditiveCoupling(_Known(2)).inverse_and_log_det(y)
  np.testing.assert_allclose(x[..., 2:], y[..., 2:] + h, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(log_det, [0., 0.])


@pytest.mark.parametrize("network, error, match", [
    (_Known(5), ValueError, r"`network` must map.*Received.*\[1, 4, 4, 5\]"),
    (lambda x: x, TypeError, "`network` must be a layer.*Received"),
])
def test_networks_that_do_not_fit(network, error, match):
  with pytest.raises(error, match=match):
    tfp_glow.AffineCoupling(network).inverse(tf.zeros([1, 4, 4, 4]))


def test_one_channel_cannot_be_split():
  with pytest.raises(ValueError, match="at least two channels.*Received"):
    tfp_glow.AffineCoupling(_Known(2)).inverse(tf.zeros([1, 4, 4, 1]))


# Squeeze.


def test_squeeze_orders_channels_before_positions():
  y = np.arange(2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
  x = tfp_glow.Squeeze().inverse(y).numpy()
  for c in range(3):
    for row in range(2):
      for column in range(2):
        np.testing.assert_array_equal(x[..., 4 * c + 2 * row + column], y[:, row::2, column::2, c])
  assert (x != tf.nn.space_to_depth(y, 2).numpy()).any()


def test_squeeze_refuses_odd_sizes():
  with pytest.raises(ValueError, match="height.*divisible by 2.*Received"):
    tfp_glow.Squeeze().inverse(tf.zeros([1, 3, 4, 1]))


# Glow.


@pytest.mark.parametrize("arguments, match", [
    (dict(output_shape=(8, 8)), "`output_shape`"), (dict(output_shape=(8, 8, 0)), "`output_shape`"),
    (dict(output_shape=(6, 8, 1)), r"divisible by 2 \*\* `num_glow_blocks` = 4"),
    (dict(num_glow_blocks=0), "`num_glow_blocks`"), (dict(num_steps_per_block=-1), "`num_steps_per_block`"),
    (dict(num_hidden=2.5), "`num_hidden`"), (dict(coupling="quadratic"), "`coupling`"),
    (dict(permutation="none"), "`permutation`"), (dict(num_classes=0), "`num_classes`"),
    (dict(gradient="none"), "`gradient`"), (dict(dtype="int32"), "`dtype`"),
])
def test_glow_refuses_bad_arguments(arguments, match):
  arguments = {"output_shape": (8, 8, 1), "num_glow_blocks": 2, "num_steps_per_block": 1, "num_hidden": 4, **arguments}
  with pytest.raises(ValueError, match=f"{match}.*Received: "):
    tfp_glow.GlowBijector(**arguments)


@pytest.mark.parametrize("permutation", ["conv1x1", "shuffle"])
def test_glow_follows_its_seed(permutation):
  make = lambda seed: tfp_glow.GlowBijector((4, 4, 2), 1, 2, 4, permutation=permutation, seed=seed)
  first, second, other = ([v.numpy() for v in make(seed).variables] for seed in (5, 5, 6))
  for a, b in zip(first, second):
    np.testing.assert_array_equal(a, b)
  assert any((a != b).any() for a, b in zip(first, other))
  # Each step has values of its own.
  kernels = [v.numpy() for v in make(5).variables if "first_kernel" in v.name or "indices" in v.name]
  assert kernels and all((v[0] != v[1]).any() for v in kernels)


def test_split_latent_and_join_latent():
  glow = tfp_glow.GlowBijector((8, 12, 3), 2, 1, 4, seed=0)
  z = RNG.standard_normal([2, 3, 8 * 12 * 3]).astype(np.float32)
  parts = glow.split_latent(z)
  assert [part.shape.as_list() for part in parts] == [[2, 3, 4, 6, 6], [2, 3, 2, 3, 24]]
  np.testing.assert_array_equal(np.ravel(parts[0][1, 2]), z[1, 2, :144])
  np.testing.assert_array_equal(glow.join_latent(parts), z)
  with pytest.raises(ValueError, match="`parts`.*Received"):
    glow.join_latent(parts[::-1])
  with pytest.raises(ValueError, match="`z`.*Received"):
    glow.split_latent(z[..., 1:])


def test_parameters_are_complete_through_a_transformed_distribution():
  glow = tfp_glow.GlowBijector((8, 8, 1), 2, 2, 4, seed=0)
  distribution = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [64]), glow)
  bijector_cases.perturb(glow)
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(distribution.log_prob(RNG.standard_normal([3, 8, 8, 1]).astype(np.float32)))
  variables = distribution.trainable_variables
  for variable, gradient in zip(variables, tape.gradient(loss, variables)):
    assert gradient is not None and np.abs(gradient).max() > 0., variable.name
  # Of a step: actnorm 2, convolution 3, network 4 + 3 + 4; a split 4, the top 3.
  assert len(variables) == 2 * (2 + 3 + 11) + 4 + 3


def test_labels_are_checked():
  glow = tfp_glow.GlowBijector((4, 4, 2), 1, 1, 4, num_classes=3)
  y = np.zeros([2, 4, 4, 2], np.float32)
  with pytest.raises(ValueError, match="`labels`.*Received"):
    glow.inverse(y)
  with pytest.raises(ValueError, match=r"`labels`.*0 \.\. 2.*Received"):
    glow.inverse(y, labels=[0, 3])
  with pytest.raises(TypeError, match="`labels`.*integers.*Received"):
    glow.inverse(y, labels=[0., 1.])
  with pytest.raises(ValueError, match="`labels`.*Received"):
    tfp_glow.GlowBijector((4, 4, 2), 1, 1, 4).inverse(y, labels=[0, 1])


@pytest.mark.slow
def test_default_arguments():
  """What crashes in `tfb.Glow`."""
  glow = tfp_glow.GlowBijector()
  z = np.random.default_rng(0).standard_normal([1, 32 * 32 * 3]).astype(np.float32)
  x = glow.forward(z).numpy()
  assert x.shape == (1, 32, 32, 3)
  np.testing.assert_allclose(glow.inverse(x), z, atol=1e-3)
  # The paper's architecture: 44.2 million parameters in 96 steps of flow.
  assert 44_000_000 < sum(v.shape.num_elements() for v in glow.trainable_variables) < 45_000_000

"""What is special in each bijector; `test_conformance.py` tests what all share."""

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
def test_bad_matrices(matrix, match):
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


def _actnorm_step(actnorm):
  return tfp_glow.GlowStep(actnorm, tfp_glow.InvertibleConv1x1(3, seed=0, dtype="float64"),
                           tfp_glow.AffineCoupling(bijector_cases.coupling_network(4, "float64"), dtype="float64"))


@pytest.mark.parametrize("wrap", [
    lambda actnorm: actnorm, _actnorm_step,
    lambda actnorm: tfp_glow.Scan(lambda k: _actnorm_step(actnorm), 1, [4, 4, 3], dtype="float64"),
], ids=["alone", "step", "scan"])
def test_the_factor_of_log_scales_is_one_of_parameters_alone(wrap):
  y = RNG.normal([1., -5., 30.], [0.1, 2., 10.], [16, 4, 4, 3])
  found, variables = [], []
  for factor in (1., 3.):
    flow = wrap(tfp_glow.ActNorm(3, dtype="float64", log_scale_factor=factor))
    flow.initialize(y)
    x, log_det = tf.function(flow.inverse_and_log_det)(y)
    found.append((x, log_det, flow.forward(tf.identity(x) + 1.)))
    variables.append([v.numpy() for v in flow.variables if "actnorm_log_scale" in v.name])
  log_scale, a_third = map(np.squeeze, variables)
  assert log_scale.shape == (3,)
  np.testing.assert_allclose(log_scale, 3. * a_third, rtol=1e-12)
  for a, b in zip(*found):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


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
  """A network with known outputs: positions and channels scaled by the mean of the input."""

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


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("coupling", [tfp_glow.AffineCoupling, tfp_glow.AdditiveCoupling])
def test_gradients_by_hand_are_those_of_a_tape(coupling, inverse):
  """Both kinds of `gradient` use them, so a comparison of the two would not show an error."""
  bijector = coupling(bijector_cases.coupling_network(2, "float64"), dtype="float64")
  draw = lambda: tf.constant(RNG.standard_normal([3, 4, 4, 2]))
  arguments = [draw() for _ in range(1 + len(bijector.offsets))]
  d_outputs, d_log_det = draw(), tf.constant([1., -2., 3.], tf.float64)
  with tf.GradientTape() as tape:
    tape.watch(arguments)
    outputs, log_det = bijector.transform(arguments[0], arguments[1:], inverse)
    log_det = tf.broadcast_to(log_det, [3])
  expected = tape.gradient([outputs, log_det], arguments, [d_outputs, d_log_det])
  inputs, d_inputs, d_parameters = bijector.undo(outputs, arguments[1:], d_outputs, d_log_det, inverse)
  np.testing.assert_allclose(inputs, arguments[0], atol=1e-12)
  for found, gradient in zip([d_inputs, *d_parameters], expected, strict=True):
    np.testing.assert_allclose(found, gradient, rtol=1e-10, atol=1e-12)


# Glow.


@pytest.mark.parametrize("arguments, match", [
    (dict(output_shape=(8, 8)), "`output_shape`"), (dict(output_shape=(8, 8, 0)), "`output_shape`"),
    (dict(output_shape=(6, 8, 1)), r"divisible by 2 \*\* `num_glow_blocks` = 4"),
    (dict(num_glow_blocks=0), "`num_glow_blocks`"), (dict(num_steps_per_block=-1), "`num_steps_per_block`"),
    (dict(num_hidden=2.5), "`num_hidden`"), (dict(coupling="quadratic"), "`coupling`"),
    (dict(permutation="none"), "`permutation`"), (dict(num_classes=0), "`num_classes`"),
    (dict(gradient="none"), "`gradient`"), (dict(dtype="int32"), "`dtype`"), (dict(dtype="float16"), "`dtype`"),
    (dict(output_shape=8), "`output_shape`"), (dict(seed=-1), "`seed`"), (dict(seed=1.5), "`seed`"),
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
  # A step has actnorm 2, convolution 3, network 3 + 3 + 4; a split has 4, the top 3.
  assert len(variables) == 2 * (2 + 3 + 10) + 4 + 3


def test_labels_are_checked():
  glow = tfp_glow.GlowBijector((4, 4, 2), 1, 1, 4, num_classes=3)
  y = np.zeros([2, 4, 4, 2], np.float32)
  with pytest.raises(ValueError, match="`labels`.*Received"):
    glow.inverse(y)
  with pytest.raises(ValueError, match=r"`labels`.*0 \.\. 2.*Received"):
    glow.inverse(y, labels=[0, 3])
  np.testing.assert_array_equal(glow.inverse(y, labels=np.array([0, 2], np.uint8)), glow.inverse(y, labels=[0, 2]))
  with pytest.raises(TypeError, match="`labels`.*integers.*Received"):
    glow.inverse(y, labels=[0., 1.])
  with pytest.raises(ValueError, match="`labels`.*Received"):
    tfp_glow.GlowBijector((4, 4, 2), 1, 1, 4).inverse(y, labels=[0, 1])


@pytest.mark.slow
def test_default_arguments():
  """They crash in `tfb.Glow`."""
  glow = tfp_glow.GlowBijector()
  z = np.random.default_rng(0).standard_normal([1, 32 * 32 * 3]).astype(np.float32)
  x = glow.forward(z).numpy()
  assert x.shape == (1, 32, 32, 3)
  np.testing.assert_allclose(glow.inverse(x), z, atol=1e-3)
  # The paper's architecture: 44.2 million parameters in 96 steps of flow.
  assert 44_000_000 < sum(v.shape.num_elements() for v in glow.trainable_variables) < 45_000_000


@pytest.mark.parametrize("labels", [[0, 1, 2], [[0, 1]]])
def test_labels_of_another_shape_than_the_batch(labels):
  glow = tfp_glow.GlowBijector((2, 2, 1), 1, 1, 4, num_classes=3)
  with pytest.raises(ValueError, match=r"`labels` must have the shape of the batch, \(2,\).*Received"):
    glow.inverse(np.zeros([2, 2, 2, 1], np.float32), labels=labels)


def test_one_label_for_all_and_none_where_there_are_no_classes():
  y = np.ones([2, 2, 2, 1], np.float32)
  glow = tfp_glow.GlowBijector((2, 2, 1), 1, 1, 4, num_classes=3)
  bijector_cases.perturb(glow)
  np.testing.assert_array_equal(glow.inverse(y, labels=2), glow.inverse(y, labels=[2, 2]))
  glow = tfp_glow.GlowBijector((2, 2, 1), 1, 1, 4)
  np.testing.assert_array_equal(glow.inverse(y, labels=None), glow.inverse(y))


def test_labels_out_of_range_in_a_graph():
  top = tfp_glow.TopPrior([2, 2, 1], num_classes=3)
  function = tf.function(top.inverse)
  with pytest.raises(tf.errors.InvalidArgumentError):
    function(tf.zeros([2, 2, 2, 1]), labels=tf.constant([0, 3]))
  # On a CPU, the gather fails as well; on a GPU it would return zeros.
  graph = function.get_concrete_function(tf.zeros([2, 2, 2, 1]), labels=tf.constant([0, 3])).graph
  assert any(op.type == "Assert" for op in graph.get_operations())


@pytest.mark.parametrize("permutation", ["conv1x1", "shuffle"])
def test_glow_without_a_seed_follows_that_of_keras(permutation):
  def draw(seed=None):
    if seed is not None:
      keras.utils.set_random_seed(seed)
    glow = tfp_glow.GlowBijector((4, 4, 2), 1, 2, 4, permutation=permutation)
    return np.concatenate([np.ravel(v.numpy()) for v in glow.variables])
  first = draw(3)
  assert (first != draw()).any()
  np.testing.assert_array_equal(draw(3), first)


def test_defaults_but_for_their_size():
  glow = tfp_glow.GlowBijector(num_steps_per_block=np.int64(1), num_hidden=2)
  x, log_det = glow.inverse_and_log_det(np.zeros([1, 32, 32, 3], np.float32))
  assert x.shape == [1, 32 * 32 * 3] and np.isfinite(log_det)
  assert [part.shape.as_list() for part in glow.split_latent(x)] == [[1, 16, 16, 6], [1, 8, 8, 12], [1, 4, 4, 48]]


def test_sizes_may_be_those_of_numpy():
  glow = tfp_glow.GlowBijector(np.array([4, 4, 2]), np.int64(1), np.int32(1), np.int64(2))
  assert glow.inverse_event_shape([4, 4, 2]) == [32]


@pytest.mark.slow
def test_initialisation_is_remembered_and_repeatable():
  y = RNG.normal(2., 3., [8, 4, 4, 2]).astype(np.float32)
  glow = tfp_glow.GlowBijector((4, 4, 2), 1, 2, 4, num_classes=3, seed=0)
  assert not glow.initialized
  glow.initialize(y)
  assert glow.initialized
  values = [v.numpy() for v in glow.variables]
  glow.initialize(y.reshape([2, 4, 4, 4, 2]))
  for before, variable in zip(values, glow.variables):
    np.testing.assert_allclose(variable, before, atol=1e-5, err_msg=variable.name)


# What couplings, splits and permutations refuse.


def test_a_coupling_keeps_its_number_of_channels():
  """A convolution accepts a multiple of its number of channels, as groups."""
  coupling = tfp_glow.AffineCoupling(bijector_cases.coupling_network(4))
  coupling.inverse(np.zeros([1, 2, 2, 3], np.float32))
  with pytest.raises(ValueError, match="`affine_coupling` was built for 3 channels. Received"):
    coupling.inverse(np.zeros([1, 2, 2, 4], np.float32))


@pytest.mark.parametrize("coupling", [tfp_glow.AffineCoupling, tfp_glow.AdditiveCoupling])
def test_a_network_of_lower_precision_does_not_lower_that_of_the_flow(coupling):
  network = bijector_cases.coupling_network(4 if coupling is tfp_glow.AffineCoupling else 2, "float32")
  bijector = coupling(network, dtype="float64")
  y = RNG.standard_normal([2, 3, 3, 4])
  bijector.inverse(y)
  bijector_cases.perturb(bijector)
  x = bijector.inverse(y).numpy()
  assert x.dtype == np.float64 and np.abs(x - y).max() > 1e-3
  np.testing.assert_allclose(bijector.forward(x), y, rtol=0., atol=1e-14)


@pytest.mark.parametrize("construct, match", [
    (lambda: tfp_glow.ActNorm(0), "`num_channels`"), (lambda: tfp_glow.InvertibleConv1x1(2.5), "`num_channels`"),
    (lambda: tfp_glow.ActNorm(2, event_ndims=0), "`event_ndims`"),
    (lambda: tfp_glow.ActNorm(2, dtype="int32"), "`dtype`"),
    (lambda: tfp_glow.ActNorm(2, log_scale_factor=0.), "`log_scale_factor`"),
    (lambda: tfp_glow.ResidualFlowBijector(2, 0, log_scale_factor="3"), "`log_scale_factor`"),
    (lambda: tfp_glow.ChannelPermutation([0, 0]), "`indices`"),
    (lambda: tfp_glow.ChannelPermutation([1, 2]), "`indices`"),
    (lambda: tfp_glow.Squeeze(0), "`block_size`"), (lambda: tfp_glow.Squeeze(2.), "`block_size`"),
    (lambda: tfp_glow.Squeeze(True), "`block_size`"), (lambda: tfp_glow.ActNorm(2, True), "`event_ndims`"),
    (lambda: tfp_glow.AffineCoupling(bijector_cases.dense(4, "float32"), 0), "`event_ndims`"),
    (lambda: tfp_glow.AdditiveCoupling(bijector_cases.dense(4, "float32"), "3"), "`event_ndims`"),
    (lambda: tfp_glow.AdditiveCoupling(bijector_cases.dense(4, "float32"), True), "`event_ndims`"),
    (lambda: tfp_glow.TopPrior([2, 2, 2], num_classes=0), "`num_classes`"),
    (lambda: tfp_glow.TopPrior([2, 2, 2], num_classes=True), "`num_classes`"),
    (lambda: tfp_glow.TopPrior([2, 2, 2], learn_top="no"), "`learn_top`"),
    (lambda: tfp_glow.GlowBijector((2, 2, 1), 1, 1, 2, learn_top="no"), "`learn_top`"),
    (lambda: tfp_glow.Scan(lambda k: tfp_glow.ActNorm(2), 2, [2, 2, 2]).stacked(tfp_glow.ActNorm(2).shift),
     "`variable` must be.*`template` of `scan`"),
    (lambda: tfp_glow.FactorOut([2, 2, 3]), "`event_shape`"), (lambda: tfp_glow.FactorOut([2, 2]), "`event_shape`"),
    (lambda: tfp_glow.GlowStep(tfp_glow.ActNorm(3, 1), tfp_glow.ChannelPermutation([2, 0, 1]), tfp_glow.AffineCoupling(
        bijector_cases.dense(4, "float32"), 1)), "the same `event_ndims`"),
    (lambda: tfp_glow.ResidualStep(bijector_cases.residual_block(3), tfp_glow.ActNorm(3)), "the same `event_ndims`"),
    (lambda: tfp_glow.TopPrior([2, 2]), "`event_shape`"), (lambda: tfp_glow.TopPrior([None, 2, 4]), "`event_shape`"),
])
def test_bad_arguments(construct, match):
  with pytest.raises(ValueError, match=f"{match}.*Received: "):
    construct()


@pytest.mark.parametrize("event_ndims", [2, 4])
def test_couplings_of_other_events(event_ndims):
  coupling = tfp_glow.AffineCoupling(keras.layers.Dense(4), event_ndims)
  y = RNG.standard_normal([5] + [3] * (event_ndims - 1) + [4]).astype(np.float32)
  np.testing.assert_allclose(coupling.forward(coupling.inverse(y).numpy()), y, rtol=1e-5, atol=1e-6)


def test_block_size_may_be_that_of_numpy():
  y = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(tfp_glow.Squeeze(np.int64(2)).inverse(y), tfp_glow.Squeeze(2).inverse(y))


def test_channels_are_permuted():
  y = RNG.standard_normal([2, 3, 3, 4]).astype(np.float32)
  permutation = tfp_glow.ChannelPermutation([2, 0, 3, 1])
  np.testing.assert_array_equal(permutation.inverse(y), y[..., [2, 0, 3, 1]])
  np.testing.assert_array_equal(permutation.forward(y).numpy()[..., [2, 0, 3, 1]], y)


def test_squeeze_by_3():
  y = np.arange(6 * 3 * 2, dtype=np.float32).reshape(1, 6, 3, 2)
  x = tfp_glow.Squeeze(3).inverse(y).numpy()
  for c in range(2):
    np.testing.assert_array_equal(x[0, 1, 0, 9 * c:9 * (c + 1)].reshape(3, 3), y[0, 3:, :, c])


def test_a_constant_channel_can_be_normalised():
  actnorm = tfp_glow.ActNorm(2)
  actnorm.initialize(np.full([4, 2, 2, 2], 3., np.float32))
  assert np.isfinite(actnorm.log_scale.numpy()).all()
  np.testing.assert_allclose(actnorm.inverse(np.full([1, 2, 2, 2], 3., np.float32)), 0., atol=1e-5)


def test_validate_args_finds_values_that_are_not_finite():
  y = np.array([1., np.nan], np.float32)
  with pytest.raises(tf.errors.InvalidArgumentError, match="`y` of `actnorm` must be finite"):
    tfp_glow.ActNorm(2, event_ndims=1, validate_args=True).inverse(y)
  assert np.isnan(tfp_glow.ActNorm(2, event_ndims=1).inverse(y)[1])


@pytest.mark.parametrize("event_ndims", [2, 5])
def test_event_ndims_that_do_not_fit(event_ndims):
  with pytest.raises(ValueError, match=f"`event_ndims` must lie between 3 and .* 4. Received: {event_ndims}"):
    tfp_glow.ActNorm(2).inverse_log_det_jacobian(np.zeros([3, 2, 2, 2], np.float32), event_ndims=event_ndims)


def test_copies_would_lose_the_weights():
  with pytest.raises(NotImplementedError, match="`actnorm.copy`.*Received"):
    tfp_glow.ActNorm(2).copy(name="other")


# Logit.


def test_values_near_black_and_white_lose_no_digits():
  ends = 0.5 - np.arange(1, 100) / 2.**25
  y = np.concatenate([-ends, ends])[:, np.newaxis]  # Float32 represents these numbers exactly.
  found, expected = (tfp_glow.Logit(1e-6, 1, dtype).inverse_and_log_det(y.astype(dtype)) for dtype in (
      "float32", "float64"))
  for of_float32, of_float64 in zip(found, expected):
    np.testing.assert_allclose(of_float32, of_float64, rtol=1e-6)


def test_logit_is_that_of_its_formula_and_nan_beyond():
  y = np.linspace(-0.5, 0.5, 11)
  u = 0.05 + 0.9 * (y + 0.5)
  found = tfp_glow.Logit(0.05, 1, "float64").inverse(y)
  np.testing.assert_allclose(found, np.log(u / (1. - u)), rtol=1e-12, atol=1e-14)
  assert np.isnan(tfp_glow.Logit(0.05, 1, "float64").inverse([0.6])).all()


@pytest.mark.parametrize("arguments, match", [
    (dict(alpha=0.5), "`alpha` must be.*below 0.5. Received: 0.5"), (dict(alpha=0.), "`alpha`.*Received: 0.0"),
    (dict(alpha=1e-8), "`alpha` must be at least 1e-06 in float32. Received: 1e-08"),
    (dict(event_ndims=2), "`event_ndims`.*Received: 2")])
def test_bad_arguments_of_logit(arguments, match):
  with pytest.raises(ValueError, match=match):
    tfp_glow.Logit(**arguments)

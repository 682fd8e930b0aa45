"""Numerical health: scales that cannot reach 0, training that stops with its weights and a reason, exact inversion."""

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow._core import numerics
from tfp_glow.bijectors import coupling
from tfp_glow.training import divergence

tfb = tfp.bijectors
tfd = tfp.distributions
pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
IMAGES = small_models.images()
RNG = np.random.default_rng(0)


# Scales.


class _Constant(keras.layers.Layer):
  """A network that returns a variable for every input: shift, raw scale, shift, raw scale ..."""

  def __init__(self, shift, raw):
    super().__init__()
    self.outputs = self.add_weight(shape=[4], initializer=lambda shape, dtype: tf.constant(2 * [shift, raw], dtype))

  def call(self, inputs):
    return tf.zeros_like(inputs[..., :1]) + self.outputs


def _value_log_det_gradients(bijector, x, inverse):
  run = bijector.inverse_and_log_det if inverse else bijector.forward_and_log_det
  with tf.GradientTape() as tape:
    tape.watch(x)
    value, log_det = run(x)
    loss = tf.reduce_sum(tf.square(value)) - tf.reduce_sum(log_det)
  return value, log_det, tape.gradient(loss, [x, *bijector.trainable_variables])


def _check_is_healthy(bijector, x, tolerance=1e-5):
  """Both directions are finite, with finite gradients, and inverse to each other."""
  for inverse in (True, False):
    value, log_det, gradients = _value_log_det_gradients(bijector, x, inverse)
    for found in (value, log_det, *gradients):
      assert np.isfinite(found).all()
    back = bijector.forward_and_log_det if inverse else bijector.inverse_and_log_det
    again, log_det_back = back(tf.constant(value.numpy()))
    np.testing.assert_allclose(again, x, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-5, atol=1e-5)


def _normal(*shape):
  return tf.constant(RNG.standard_normal(shape), tf.float32)


@pytest.mark.parametrize("raw", [-1e30, -100., -20.])
def test_the_scale_of_a_coupling_does_not_reach_zero(raw):
  affine = tfp_glow.AffineCoupling(_Constant(0.5, raw))
  x = _normal(2, 3, 3, 4)
  _check_is_healthy(affine, x, tolerance=1e-3)
  # Gradient descent leads back: the log-det makes the scale larger.
  gradients = _value_log_det_gradients(affine, x, inverse=True)[2]
  assert (gradients[1].numpy()[1::2] < 0.).all()


def test_scales_of_couplings_are_those_of_the_original_where_those_are_healthy():
  raw = tf.linspace(-6.9, 20., 1001)
  np.testing.assert_array_equal(coupling._scale(raw), tf.sigmoid(raw))


def _actnorm(value):
  actnorm = tfp_glow.ActNorm(4)
  actnorm.log_scale.assign([value, -value, 0., 0.1])
  return actnorm


def _convolution(value):
  convolution = tfp_glow.InvertibleConv1x1(4, matrix=np.eye(4))
  convolution.log_scale.assign([value, -value, 0., 0.1])
  return convolution


def _split(value):
  split = tfp_glow.FactorOut([3, 3, 8])
  split.network.bias.assign(np.repeat([0.1, value], 4))
  return split


def _split_gain(value):
  split = tfp_glow.FactorOut([3, 3, 8])
  split.network.bias.assign(np.repeat([1e-20, 1e-20], 4))
  split.network.log_scale.assign(np.full(8, value))
  return split


def _top(value):
  top = tfp_glow.TopPrior([3, 3, 4])
  top.bias.assign(np.repeat([0.1, value], 4))
  return top


@pytest.mark.parametrize("value", [1e4, -1e4])
@pytest.mark.parametrize("make, channels", [
    (_actnorm, 4), (_convolution, 4), (_split, 8), (_split_gain, 8), (_top, 4)])
def test_learned_scales_stay_in_range(make, channels, value):
  bijector = make(value)
  x = _normal(2, 3, 3, channels)
  for inverse in (True, False):
    value, log_det, gradients = _value_log_det_gradients(bijector, x, inverse)
    for found in (value, log_det, *gradients):
      assert np.isfinite(found).all()
    again = (bijector.forward if inverse else bijector.inverse)(tf.constant(value.numpy()))
    np.testing.assert_allclose(again, x, rtol=1e-4, atol=1e-2)


def test_bounds_lead_back():
  with tf.GradientTape() as tape:
    x = tf.constant([-1e30, -3., 3., 1e30])
    tape.watch(x)
    y = numerics.bounded(x, 4.)
  np.testing.assert_array_equal(y, [-4., -3., 3., 4.])
  np.testing.assert_array_equal(tape.gradient(y, x), np.ones(4))


def test_inputs_of_networks_have_the_gradients_of_a_clip():
  x = tf.constant([-2000., -1000., 0., 1000., 2000.])
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(x)
    found, expected = numerics.within_reach(x), tf.clip_by_value(x, -1000., 1000.)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(tape.gradient(found, x), tape.gradient(expected, x))


def test_matrices_beyond_the_range_of_scales():
  with pytest.raises(ValueError, match="`matrix` must have pivots between.*Received"):
    tfp_glow.InvertibleConv1x1(2, matrix=1e-20 * np.eye(2))


@pytest.mark.slow
def test_one_image_reduced_to_one_position_does_not_overflow():
  """Its deviation is 0. Scaling by the inverse of that scales other images by 1e6 in each step."""
  glow = tfp_glow.GlowBijector((4, 4, 1), 2, 8, 8, seed=0)
  glow.initialize(_normal(1, 4, 4, 1))
  base = tfd.Sample(tfd.Normal(0., 1.), [16])
  assert tfd.TransformedDistribution(base, glow).log_prob(_normal(1, 4, 4, 1)) > -1e9


# Walking through the parts.


@pytest.mark.slow
def test_parts_make_the_whole():
  glow = tfp_glow.GlowBijector((4, 4, 1), 2, 3, 8, num_classes=3, seed=0)
  y = _normal(2, 4, 4, 1)
  glow.initialize(y)
  labels = tf.constant([0, 2])
  parts = list(glow.walk(y, labels=labels))
  x, log_det = glow.inverse_and_log_det(y, labels=labels)
  np.testing.assert_allclose(sum(part[2] for part in parts), log_det, rtol=1e-5)
  values = {name: value for name, value, _ in parts}
  for name, latent in zip(("split0", "top"), glow.split_latent(x)):
    np.testing.assert_allclose(values[name], latent, atol=1e-3)
  assert "block1, step of flow 2, affine_coupling" in values and len(parts) == 2 * 3 * 3 + 2


def _assign(variable, index, value):
  array = variable.numpy()
  array[index] = value
  variable.assign(array)


def _variable(model, name):
  return next(v for v in model.distribution.trainable_variables if v.name.startswith(name))


# Gradients that are too long.


def test_gradients_that_are_clipped_keep_their_direction():
  gradients = [tf.constant([1e25, -3e25]), None, tf.constant([2e20])]
  present = [gradient for gradient in gradients if gradient is not None]
  largest = divergence.largest_entries(present)
  np.testing.assert_allclose(largest, [3e25, 2e20])
  first, none, last = divergence.shortened(gradients, tf.reduce_max(largest))
  assert none is None
  np.testing.assert_allclose(tf.concat([first, last], 0), np.array([1e25, -3e25, 2e20]) / 3e13, rtol=1e-6)
  short = [tf.constant([1e10, 0.]), tf.constant([-3.])]
  for before, after in zip(short, divergence.shortened(short, tf.reduce_max(divergence.largest_entries(short)))):
    np.testing.assert_array_equal(before, after)


def test_squares_that_overflow_only_in_sum_count():
  """As in Keras' `global_clipnorm`, which made NaN of them."""
  assert (divergence.largest_entries([tf.fill([2], 1e19)] * 4).numpy() > 0.).all()


def test_gradients_of_unknown_rank_are_checked():
  """A custom gradient of the user's, by `tf.py_function` for example, may have no static shape."""
  largest = tf.function(lambda gradient: divergence.largest_entries([gradient]), autograph=False,
                        input_signature=[tf.TensorSpec(None, tf.float32)])
  assert largest(tf.constant([[1e20, -3e20]])).numpy() == np.float32(3e20)
  assert largest(tf.constant(2.)).numpy() == 0.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_found(value):
  found = divergence.largest_entries([tf.constant([1., 2.]), tf.constant([1., value, 3.])])
  np.testing.assert_array_equal(np.isfinite(found), [True, False])


@pytest.mark.slow
def test_training_survives_gradients_that_are_too_long():
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), keras.optimizers.Adam(
      1e-2, global_clipnorm=1.))
  _assign(_variable(model, "log_scale"), ..., -42.)
  model.fit(IMAGES, batch_size=24, epochs=1, verbose=0)
  moved = np.concatenate([_variable(model, "shift"), _variable(model, "log_scale") + 42.])
  assert np.isfinite(moved).all() and (np.abs(moved) > 0.).any()


# A training that stops.


def _state(model):
  return [v.numpy() for v in (*model.distribution.variables, *model.optimizer.variables)]


def _stop(model, data, **kwargs):
  """Trains until the error, checks that the failing step has changed nothing, and returns the message."""
  class Keep(keras.callbacks.Callback):

    def on_train_batch_end(self, batch, logs=None):
      self.state = _state(model)

  keep = Keep()
  if not model.optimizer.built:
    model.optimizer.build(model.trainable_variables)
  keep.state = _state(model)
  with pytest.raises(FloatingPointError) as error:
    model.fit(data, batch_size=8, epochs=1, shuffle=False, verbose=0, callbacks=[keep], **kwargs)
  for before, after in zip(keep.state, _state(model), strict=True):
    np.testing.assert_array_equal(before, after)
  return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"run_eagerly": True}, {"steps_per_execution": 2}], ids=str)
def test_an_overflow_is_named_by_layer_and_step(options):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.distribution()), **options)
  model.fit(IMAGES[:16], batch_size=8, epochs=1, verbose=0)
  block = model.distribution.bijector.blocks[0]
  _assign(block.stacked(block.template.coupling.network.last.bias), 1, 1e38)
  _assign(block.stacked(block.template.coupling.network.last.log_scale), 1, 3.)
  message = _stop(model, IMAGES)
  assert "stopped at step 3: the value after block0, step of flow 1, affine_coupling is not finite" in message
  assert "lower learning rate" in message and "clip" in message and "Received: shape (8, 2, 2, 8)" in message


@pytest.mark.slow
def test_a_parameter_is_named():
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
  _assign(_variable(model, "shift"), 2, np.nan)
  message = _stop(model, IMAGES)
  assert "step 1: the parameter `shift" in message and "8 of 32 NaN or infinite, the first nan at [2, 0, 0]" in message


@pytest.mark.slow
@pytest.mark.parametrize("has_classes", [False, True])
def test_images_are_named(has_classes):
  classes = lambda: small_models.distribution(num_classes=3, num_steps_per_block=1)
  distribution = classes() if has_classes else small_models.gaussian()
  model = small_models.compiled(tfp_glow.FlowModel(distribution, num_bits=None))
  images = RNG.standard_normal([24, *small_models.SHAPE]).astype(np.float32)
  model.adapt(images)
  images[17, 1, 2, 1] = np.inf
  labels = {"y": np.arange(24) % 3} if has_classes else {}
  message = _stop(model, images, **labels)
  assert "step 3: a value of the images" in message
  assert message.endswith("Received: shape (8, 4, 4, 2), 1 of 256 NaN or infinite, the first inf at [1, 1, 2, 1]")


@pytest.mark.slow
def test_a_gradient_is_named():
  zero = tf.Variable(0., name="zero")
  flow = tfb.Chain([tfb.Shift(tf.Variable(tf.zeros(2), name="sound")), tfb.Shift(
      tfp.util.DeferredTensor(zero, lambda v: tf.where(v > 0., tf.math.log(v), 0.)))])
  model = small_models.compiled(tfp_glow.FlowModel(
      tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [2]), flow), num_bits=None))
  assert "step 1: the gradient of `zero" in _stop(model, np.ones([8, 2], np.float32))


@pytest.mark.slow
def test_an_overflow_of_the_likelihood_is_named():
  """Everything is finite except the squares of the latents."""
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
  model.fit(IMAGES[:8], batch_size=8, epochs=1, verbose=0)
  _assign(_variable(model, "shift"), ..., 1e25)
  assert "step 2: the log-probability of the latents" in _stop(model, IMAGES)


@pytest.mark.slow
def test_the_layer_is_named_under_xla():
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), jit_compile=True)
  model.fit(IMAGES[:16], batch_size=8, epochs=1, verbose=0)
  _assign(_variable(model, "shift"), 2, np.nan)
  assert "step 3: the parameter `shift" in _stop(model, IMAGES)
  assert set(model._xla_functions) == {"_share", "_apply"}  # They were compiled.


@pytest.mark.slow
def test_a_loss_scale_may_overflow():
  """Keras' `LossScaleOptimizer` finds its scale this way."""
  optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.), initial_scale=2.**127)
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), optimizer)
  _assign(_variable(model, "shift"), ..., 1e3)
  model.fit(IMAGES, batch_size=8, epochs=1, verbose=0)
  assert optimizer.dynamic_scale.numpy() < 2.**127


@pytest.mark.slow
def test_other_errors_are_not_taken_for_this_one():
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
  data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(8)
  broken = data.map(lambda x: x + tf.cast(tf.debugging.check_numerics(tf.constant(np.inf), "x"), tf.uint8))
  with pytest.raises(tf.errors.InvalidArgumentError):
    model.fit(broken, epochs=1, verbose=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_adapt_refuses_values_that_are_not_finite(value):
  model = tfp_glow.FlowModel(small_models.distribution(), num_bits=None)
  images = RNG.standard_normal([4, *small_models.SHAPE]).astype(np.float32)
  images[2, 0, 1, 1] = value
  before = [v.numpy() for v in model.distribution.variables]
  with pytest.raises(ValueError, match=r"`data` must be finite. Received: .*1 of 128 NaN or infinite.*\[2, 0, 1, 1\]"):
    model.adapt(images)
  for a, v in zip(before, model.distribution.variables):
    np.testing.assert_array_equal(a, v)


def test_what_is_described():
  assert divergence.describe(tf.constant([1., -2.5])) == "shape (2,), between -2.5 and 1"
  assert divergence.describe(tf.zeros([0])) == "nothing"


# Inversion.


@pytest.mark.slow
def test_a_trained_flow_is_still_exactly_invertible():
  shape = (8, 8, 1)
  model = tfp_glow.FlowModel(small_models.distribution(shape, num_steps_per_block=16))
  model.compile(keras.optimizers.Adam(1e-3, global_clipnorm=100.))
  model.fit(small_models.images(128, shape), batch_size=16, epochs=4, verbose=0)
  glow = model.distribution.bijector
  for images in (small_models.images(32, shape, seed=1), *(np.full([2, *shape], v, np.uint8) for v in (0, 127, 255))):
    x = tfp_glow.dequantize.dequantize(tf.constant(images), 8, 0.5)
    # As arrays, because the pass of a tensor would be recalled.
    assert np.abs(x - glow.forward(glow.inverse(x).numpy())).max() < 1e-3
    np.testing.assert_array_equal(model.decode(model.encode(images)), images)

"""Problems that users of flow libraries have reported: copies, slices, misleading errors."""

import copy
import pickle

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

tfb, tfd = tfp.bijectors, tfp.distributions
SHAPE = (4, 4, 1)
VALUES = np.random.default_rng(0).standard_normal([2, *SHAPE]).astype(np.float32)


def _glow(**kwargs):
  return tfp_glow.GlowBijector(SHAPE, 2, 1, 2, seed=0, **kwargs)


COPIED = {
    "glow": _glow, "actnorm": lambda: tfp_glow.ActNorm(3),
    "coupling": lambda: tfp_glow.AffineCoupling(tfp_glow.networks.CouplingNetwork(2, 4)),
    "residual flow": lambda: tfp_glow.ResidualFlowBijector((2,), 0, num_dense_blocks=1, num_dense_hidden=3),
    "vector flow": lambda: tfp_glow.VectorFlowBijector(2, 1, 3), "in a chain": lambda: tfp_glow.Chain([_glow()])}


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("make", COPIED.values(), ids=COPIED)
def test_no_copy_is_cut_off_from_its_network(make, copied):
  with pytest.raises(NotImplementedError, match="cannot be .*, because its networks would lose their variables. Make"):
    copied(make())


def test_models_can_be_pickled():
  model = tfp_glow.FlowModel(_glow(), num_bits=None)
  model.adapt(VALUES)
  found = pickle.loads(pickle.dumps(model))
  np.testing.assert_array_equal(found.log_prob(VALUES), model.log_prob(VALUES))


@pytest.mark.slow
def test_frozen_parts_stay_frozen_in_a_file(tmp_path):
  images = small_models.images(8, SHAPE)
  model = tfp_glow.FlowModel(_glow())
  model.adapt(images)
  for variable in model.trainable_variables:
    variable.trainable = "block0" not in variable.path
  model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
  model.fit(images, verbose=0)
  model.save(tmp_path / "model.keras")
  found = keras.models.load_model(tmp_path / "model.keras")
  assert [v.trainable for v in found.variables] == [v.trainable for v in model.variables]
  assert len(found.optimizer.variables) == len(model.optimizer.variables) and found.optimizer.iterations == 1
  before = [v.numpy() for v in found.variables]
  found.fit(images, verbose=0)
  has_moved = [bool(np.any(v.numpy() != value)) for v, value in zip(found.variables, before)]
  assert any(has_moved) and not any(moved for moved, v in zip(has_moved, found.variables) if "block0" in v.path)


WITH = {"glow": lambda glow: glow, "chain of TFP": lambda glow: tfb.Chain([tfb.Shift(0.5), glow]),
        "chain": lambda glow: tfp_glow.Chain([tfb.Shift(0.5), glow]),
        "inverted": lambda glow: tfb.Invert(tfb.Invert(glow))}


@pytest.mark.parametrize("make", WITH.values(), ids=WITH)
def test_slices_of_a_batch(make):
  base = tfd.Sample(tfd.Normal([0., 1., 2.], 1.), [16])
  batch = tfd.TransformedDistribution(base, make(_glow()))
  expected = batch.log_prob(VALUES[:, np.newaxis]).numpy()  # [2, 3]
  for index in range(3):
    np.testing.assert_allclose(batch[index].log_prob(VALUES), expected[:, index], rtol=1e-5)
  assert batch[1:].batch_shape == [2] and batch[..., tf.newaxis].batch_shape == [3, 1]
  assert len(batch[0].trainable_variables) == len(batch.trainable_variables)


@pytest.mark.parametrize("shape", [[2], [2, 3]])
def test_arguments_that_nothing_takes_are_named(shape):
  distribution = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [16]), _glow())
  with pytest.raises(TypeError, match="`glow` must be given arguments .*takes: labels, training. Received: foo"):
    distribution.log_prob(VALUES, bijector_kwargs={"foo": np.zeros(shape)})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_wrong_labels_are_told_first(method):
  model = small_models.compiled(tfp_glow.FlowModel(_glow(num_classes=3)), run_eagerly=False)
  data = tf.data.Dataset.from_tensors((small_models.images(4, SHAPE), [0, 1, -2, 1]))
  with pytest.raises(tf.errors.InvalidArgumentError) as caught:
    getattr(model, method)(data, verbose=0)
  assert str(caught.value).startswith("`labels` must lie in 0 .. 2. Received: 0 1 -2")


def test_where_temperatures_of_levels_have_no_levels():
  assert tfp_glow.FlowModel(tfb.Chain([tfb.Shift(0.5), _glow()])).sample(2, [0.5, 1.]).shape == (2, *SHAPE)
  with pytest.raises(ValueError, match="must be the last, next to the latents"):
    tfp_glow.FlowModel(tfb.Chain([_glow(), tfb.Scale(2.)])).sample(2, [0.5, 1.])


@pytest.mark.slow
def test_samples_of_a_flow_of_two_valued_pixels_are_finite():
  """Where data have no spread, scales would go to 0, and sampling divides by them."""
  images = 255 * (np.random.default_rng(0).random([256, 4, 4, 1]) < 0.5).astype(np.uint8)
  model = tfp_glow.FlowModel(tfp_glow.GlowBijector((4, 4, 1), 1, 2, 8, seed=0), num_bits=8)
  model.compile(keras.optimizers.Adam(3e-2))
  model.fit(images, batch_size=64, epochs=10, verbose=0)
  latents = 1.5 * np.random.default_rng(1).standard_normal([256, 16]).astype(np.float32)
  assert np.isfinite(model.distribution.bijector.forward(latents)).all()


def test_a_far_row_is_improbable_and_finite():
  table = np.random.default_rng(0).standard_normal([100, 3]).astype(np.float32)
  flow = tfp_glow.VectorFlowBijector(3, num_steps=2, num_hidden=8, seed=0)
  model = tfp_glow.FlowModel(flow, num_bits=None)
  model.adapt(table)
  far = model.log_prob(1e4 * table[:2])
  assert np.isfinite(far).all() and (far < -1e6).all()


def test_weights_within_a_batch_are_refused():
  """An unknown key would be ignored, and nothing would be weighted."""
  images = np.zeros([4, 4, 4, 1], np.uint8)
  model = tfp_glow.FlowModel(tfp_glow.GlowBijector((4, 4, 1), 1, 1, 8), num_bits=8)
  model.compile(keras.optimizers.Adam(1e-3))
  with pytest.raises(ValueError, match="`sample_weight` must be None: .*in proportion.*Received: a batch with weights"):
    model.fit(images, {"sample_weight": np.ones(4)}, verbose=0)
  with pytest.raises(ValueError, match=r"Received: sample_weight of shape \(4,\)$"):
    model.fit(images, sample_weight=np.ones(4), verbose=0)


def test_gradients_reach_the_network_of_a_base_distribution():
  """Against finite differences."""
  flow = tfp_glow.VectorFlowBijector(3, num_steps=2, num_hidden=8, seed=0, dtype="float64")
  x = tf.random.stateless_normal([5, 3], [0, 0], dtype=tf.float64)
  flow.initialize(x)
  loc = tf.Variable(tf.zeros([3], tf.float64))
  loss = lambda: tf.reduce_sum(tfd.TransformedDistribution(
      tfd.MultivariateNormalDiag(loc * tf.range(1, 6, dtype=tf.float64)[:, None]), flow).log_prob(x))
  with tf.GradientTape() as tape:
    value = loss()
  gradient = tape.gradient(value, loc)
  loc.assign([1e-6, 0., 0.])
  np.testing.assert_allclose((loss() - value) / 1e-6, gradient[0], rtol=1e-4)

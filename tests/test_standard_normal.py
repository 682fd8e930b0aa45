"""Models of a bijector alone, whose latents are standard normal."""

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow.likelihood.standard_normal import with_standard_normal

tfb = tfp.bijectors
tfd = tfp.distributions
IMAGES = small_models.images()


def _glow(**kwargs):
  return tfp_glow.GlowBijector(small_models.SHAPE, 1, 1, 8, seed=1, **kwargs)


def _points_flow(**kwargs):
  return small_models.residual_flow(num_dense_blocks=1, **kwargs)


@pytest.mark.parametrize("make, latent_shape", [
    (_glow, [32]),
    (lambda: _glow(dtype="float64"), [32]),
    (_points_flow, [2]),
    (lambda: tfb.Chain([tfb.Tanh(), _glow(dtype="float64")]), [32]),  # It has no dtype of its own.
    (lambda: tfb.Chain([tfb.Sigmoid(), _glow(), tfb.Reshape([32], [4, 8])]), [4, 8]),
    (lambda: tfb.Chain([tfb.Shift([1., 2.]), tfb.Chain([tfb.Tanh(), _points_flow()]), tfb.Exp()]), [2]),
    (lambda: tfp_glow.Chain([tfb.Tanh(), tfp_glow.Invert(tfp_glow.Invert(_glow()))]), [32]),
    (lambda: tfb.Invert(_glow()), [4, 4, 2]),
])
def test_latents_have_the_shape_and_the_dtype_of_the_bijector(make, latent_shape):
  bijector = make()
  distribution = with_standard_normal(bijector)
  assert distribution.bijector is bijector
  base, dtype = distribution.distribution, next(v.dtype for v in bijector.variables if v.dtype.is_floating)
  assert base.event_shape == latent_shape and base.batch_shape == [] and base.dtype == distribution.dtype == dtype
  z = np.random.default_rng(0).standard_normal([3, *latent_shape]).astype(dtype.as_numpy_dtype)
  expected = np.sum(-0.5 * z.astype(np.float64)**2 - 0.5 * np.log(2. * np.pi), axis=tuple(range(1, z.ndim)))
  np.testing.assert_allclose(base.log_prob(z), expected, rtol=1e-5)


@pytest.mark.parametrize("make", [
    lambda: tfp_glow.ActNorm(2), lambda: tfb.Shift([1., 2.]), lambda: tfb.Shift(tf.Variable(0.)),
    lambda: tfb.ScaleMatvecTriL(tf.Variable(tf.eye(3))), lambda: tfb.Chain([tfb.Tanh(), tfp_glow.Squeeze()])])
def test_bijectors_of_unknown_shape(make):
  with pytest.raises(ValueError, match="`distribution` must be a bijector that knows.*Sample.*Received: <"):
    tfp_glow.FlowModel(make())


@pytest.mark.slow
def test_a_model_of_a_bijector_is_that_of_its_distribution(tmp_path):
  short, long = _glow(), _glow()
  base = tfd.Sample(tfd.Normal(0., 1.), [32])
  models = [small_models.compiled(tfp_glow.FlowModel(part), run_eagerly=True)
            for part in (short, tfd.TransformedDistribution(base, long))]
  found, expected = (model.fit(IMAGES, batch_size=24, verbose=0).history for model in models)
  assert found == expected
  model = models[0]
  assert model.distribution.bijector is short
  for again in (tfp_glow.FlowModel.from_config(model.get_config()), _loaded(model, tmp_path)):
    assert again.get_config().keys() == model.get_config().keys()
    assert isinstance(again.distribution.distribution, tfd.Sample)
  np.testing.assert_array_equal(again.evaluate(IMAGES, verbose=0), model.evaluate(IMAGES, verbose=0))


def _loaded(model, tmp_path):
  model.save(tmp_path / "model.keras")
  return keras.models.load_model(tmp_path / "model.keras")


@pytest.mark.slow
def test_a_bijector_is_exported(tmp_path):
  flow = _points_flow(log_det="exact")
  tfp_glow.export.export_distribution(flow, tmp_path / "saved", num_bits=None)
  served = tf.saved_model.load(tmp_path / "saved").signatures["log_prob"](images=tf.constant(small_models.points(5)))
  expected = small_models.of_standard_normal(flow).log_prob(small_models.points(5))
  np.testing.assert_allclose(served["log_prob"], expected, rtol=1e-5)

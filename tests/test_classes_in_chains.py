"""A class-conditional Glow as a part of a `tfb.Chain` in a `FlowModel`: labels reach it wherever they are given."""

import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import perturb
from counted_networks import Count, CountedNetwork
from PIL import Image

import tfp_glow
from tfp_glow import callbacks, pictures

tfb, tfd = tfp.bijectors, tfp.distributions
SHAPE = (4, 4, 1)
IMAGES, LABELS = small_models.images(6, SHAPE), np.arange(6) % 3


def _glow(**kwargs):
  glow = tfp_glow.GlowBijector(SHAPE, 1, 1, 4, num_classes=3, seed=0, **kwargs)
  perturb(glow)  # All classes are equal until they are trained.
  return glow


def _model_of(bijector):
  return small_models.compiled(tfp_glow.FlowModel(bijector, num_bits=8), run_eagerly=True)


@pytest.fixture(scope="module")
def model():
  return _model_of(tfb.Chain([tfb.Shift(0.125), _glow()]))


def _log_prob(model, noise):
  """The log-probability, by the flow itself."""
  glow, = (part for part in model.distribution.bijector.bijectors if isinstance(part, tfp_glow.GlowBijector))
  z, log_det = glow.inverse_and_log_det((IMAGES + noise) / 256. - 0.5 - 0.125, labels=LABELS)
  return tfd.Sample(tfd.Normal(0., 1.), [16]).log_prob(z) + log_det - 16 * 8 * np.log(2.)


@pytest.fixture(scope="module")
def log_prob(model):
  """At the midpoints of the bins."""
  return _log_prob(model, np.float32(0.5))


def test_number_of_classes(model):
  assert model.num_classes == 3
  assert tfp_glow.FlowModel(small_models.gaussian(SHAPE)).num_classes is None


def test_values(model, log_prob):
  np.testing.assert_allclose(model.log_prob(IMAGES, LABELS), log_prob, rtol=1e-5)
  assert not np.allclose(model.log_prob(IMAGES, (LABELS + 1) % 3), log_prob)


@pytest.mark.slow
def test_evaluation(model):
  found = tfp_glow.evaluation.bits_per_dim(model, IMAGES, LABELS, verbose=0)
  noise = tfp_glow.dequantize.image_noise(tf.constant(IMAGES), (0, -1))
  per_image = -_log_prob(model, noise).numpy() / (16 * np.log(2.))
  np.testing.assert_allclose(found.per_image, per_image, rtol=1e-5)
  np.testing.assert_allclose(model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)["bits_per_dim"],
                             per_image.mean(), rtol=1e-5)


@pytest.mark.slow
def test_saved_model(model, log_prob, tmp_path):
  model.export(tmp_path / "export")
  signatures = tf.saved_model.load(tmp_path / "export").signatures
  labels = tf.constant(LABELS, tf.int32)
  np.testing.assert_allclose(signatures["log_prob"](images=IMAGES, labels=labels)["log_prob"], log_prob, rtol=1e-5)
  latent = signatures["encode"](images=IMAGES, labels=labels)["latent"]
  np.testing.assert_array_equal(signatures["decode"](latent=latent, labels=labels)["images"], IMAGES)


@pytest.mark.slow
def test_one_pass():
  count = Count()
  model = _model_of(tfb.Chain([tfb.Shift(0.125), _glow(network_fn=lambda n: CountedNetwork(n, count))]))
  for evaluate in (model.log_prob, model.encode, model.test_on_batch):
    evaluate(IMAGES, LABELS)
    count.runs = 0
    evaluate(IMAGES, LABELS)
    assert count.runs == 1, evaluate


@pytest.mark.slow
def test_samples_of_each_class_are_seen(tmp_path):
  model = _model_of(tfb.Chain([tfb.Shift(0.125), _glow()]))
  model.fit(IMAGES, LABELS, batch_size=6, verbose=0, callbacks=[callbacks.SampleGrid(tmp_path, [1.], num_columns=2)])
  rows = [model.sample(2, 1., label, seed=0) for label in range(3)]
  with Image.open(tmp_path / "samples_0001.png") as image:
    np.testing.assert_array_equal(np.asarray(image)[..., np.newaxis], pictures.tile(rows))

"""Images of more than 8 bits: exact values, exact probabilities, and all that a model does with them."""

import subprocess
import sys

import distributed_runs
import keras
import numpy as np
import pytest
import scipy.stats
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from PIL import Image

import tfp_glow
from tfp_glow import callbacks, dequantize, evaluation, pictures

tfb, tfd = tfp.bijectors, tfp.distributions
SHAPE = (4, 4, 3)
ALL_VALUES = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256, 1)


def deep(count=6, shape=SHAPE, num_bits=16, seed=0):
  """As `small_models.images`, with more bits, of which the lowest are noise."""
  images = small_models.images(count, shape, seed).astype(int) << (num_bits - 8)
  return (images + np.random.default_rng(seed).integers(0, 2**(num_bits - 8), images.shape)).astype(np.uint16)


def model_of(num_bits=16, shape=SHAPE, **kwargs):
  kwargs = {"num_glow_blocks": 1, "num_steps_per_block": 2, "num_hidden": 8, "seed": 1, **kwargs}
  return tfp_glow.FlowModel(tfp_glow.GlowBijector(shape, **kwargs), num_bits)


def gaussian(num_bits=16, shape=SHAPE):
  """A model without a network, which is traced fast."""
  return small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(shape), num_bits), run_eagerly=True)


def of_uniform(num_bits):
  """A model under which all values have the same, known probability."""
  bounds = [tf.Variable(np.full([2, 2, 1], bound, np.float32)) for bound in (-0.5, 0.5)]
  return tfp_glow.FlowModel(tfd.Independent(tfd.Uniform(*bounds), 3), num_bits)


# Values.


@pytest.mark.parametrize("num_bits", range(9, 17))
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_every_value_comes_back_from_anywhere_in_its_bin(num_bits, dtype):
  images = ALL_VALUES[ALL_VALUES < 2**num_bits].reshape(1, -1, 1, 1)
  smallest = 2.**-(24 - num_bits)
  for noise in (0., smallest, 0.5, 1. - smallest, 1. - 2.**-16, np.nextafter(np.float32(1.), np.float32(0.))):
    values = dequantize.dequantize(images, num_bits, noise, dtype)
    found = dequantize.quantize(values, num_bits)
    assert found.dtype == tf.uint16
    np.testing.assert_array_equal(found, images)


def test_values_are_not_rounded():
  """Float32 gives the same numbers as float64, whatever the noise."""
  noise = dequantize.image_noise(ALL_VALUES, (0, 0), num_bits=16)
  exact = (ALL_VALUES + noise.numpy().astype(np.float64)) / 65536. - 0.5
  np.testing.assert_array_equal(dequantize.dequantize(ALL_VALUES, 16, noise).numpy().astype(np.float64), exact)
  finer = dequantize.image_noise(ALL_VALUES, (0, 0))  # As with 8 bits.
  moved = ALL_VALUES.astype(np.float32) + finer.numpy() != ALL_VALUES.astype(np.float64) + finer.numpy()
  assert moved.mean() > 0.5  # Float32 has too few numbers between two levels.
  assert (np.float32(65535) + np.float32(1. - 2.**-16)) == 65536.  # It is rounded to the next bin.


@pytest.mark.parametrize("num_bits, dtype, num_places", [
    (8, tf.float32, 2**15), (9, tf.float32, 2**14), (16, tf.float32, 2**7), (16, tf.float64, 2**15)])
def test_places_of_the_noise(num_bits, dtype, num_places):
  images = np.random.default_rng(0).integers(0, 2**num_bits, [100, 32, 32, 3])
  images = images.astype(np.uint8 if num_bits == 8 else np.uint16)
  noise = dequantize.image_noise(images, (0, 1), dtype, num_bits).numpy()
  places = noise.astype(np.float64) * num_places - 0.5
  np.testing.assert_array_equal(places, np.round(places))
  assert places.min() >= 0 and places.max() < num_places
  counts, _ = np.histogram(places, bins=64, range=(-0.5, num_places - 0.5))
  # Chi-squared with 63 degrees of freedom: mean 63, standard deviation 11.
  assert abs(((counts - counts.mean())**2 / counts.mean()).sum() - 63) < 6 * 11


def test_noise_of_8_bits_is_what_it_was():
  """Equal to the last bit to numbers of version 0.1.0."""
  images = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
  noise = dequantize.image_noise(images, (3, 4)).numpy().ravel()
  np.testing.assert_array_equal(noise * 2.**16, [
      27883, 25579, 33061, 47629, 32847, 24103, 32263, 32177, 22223, 53737, 58391, 22835])
  np.testing.assert_array_equal(dequantize.image_noise(images, (3, 4), num_bits=1).numpy().ravel(), noise)


def test_values_of_too_many_bits():
  values = dequantize.dequantize(np.uint16([4095, 4096, 65535]), 12)
  np.testing.assert_array_equal(np.isnan(values), [False, True, True])


def test_values_beyond_the_bins_become_the_darkest_and_the_brightest():
  values = tf.constant([-9., -0.5, 0.5 - 2.**-13, 0.5, 9.])
  np.testing.assert_array_equal(dequantize.quantize(values, 12), [0, 0, 4095, 4095, 4095])


# Probabilities.


@pytest.mark.parametrize("num_bits", [8, 9, 12, 16])
def test_uniform_values_take_all_bits(num_bits):
  dtype = np.uint8 if num_bits == 8 else np.uint16
  images = np.random.default_rng(0).integers(0, 2**num_bits, [10, 2, 2, 1]).astype(dtype)
  model = of_uniform(num_bits)
  np.testing.assert_allclose(model.predict(images, verbose=0), num_bits, rtol=1e-6)
  np.testing.assert_allclose(evaluation.bits_per_dim(model, images, verbose=0).mean, num_bits, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_of_a_gaussian_as_narrow_as_a_few_bins(dtype):
  """Averages over the noise are the integrals over the bins, and add up to 1."""
  loc, scale = 0.1234, 2.**-16
  values = np.arange(-8, 9) + int((loc + 0.5) * 2**16)
  low = values / 2.**16 - 0.5
  normal = scipy.stats.norm(np.float64(dtype(loc)), scale)
  exact = normal.cdf(low + 2.**-16) - normal.cdf(low)
  distribution = tfd.Independent(tfd.Normal(tf.Variable(np.full([1, 1, 1], loc, dtype)), dtype(scale)), 3)
  images = values.astype(np.uint16).reshape(-1, 1, 1, 1)
  model = tfp_glow.FlowModel(distribution, 16)
  num_draws = 2000
  found = evaluation.bits_per_dim(model, images, num_noise_samples=num_draws, importance_weighted=True, verbose=0)
  # Within 3.5 bins of the mean, 2,000 draws give the mean of the density to about 2 %.
  is_near = np.abs(values - values[8]) < 4
  np.testing.assert_allclose(2.**-found.per_image[is_near], exact[is_near], rtol=0.1)
  places = np.tile((np.arange(128) + 0.5) / 128, len(images)).reshape(-1, 1, 1, 1)
  densities = distribution.prob(dequantize.dequantize(np.repeat(images, 128, 0), 16, places, tf.as_dtype(dtype)))
  by_places = densities.numpy().astype(np.float64).reshape(17, 128).mean(axis=1) / 2.**16
  np.testing.assert_allclose(by_places, exact, rtol=2e-4, atol=1e-12)
  np.testing.assert_allclose(by_places.sum(), 1., rtol=1e-5)


def test_bits_of_a_wide_gaussian():
  """Its density is constant in a bin, so one draw of the noise is enough."""
  scale = 0.05
  images = np.clip(np.random.default_rng(0).normal(0.5, scale, [50, 2, 2, 1]) * 65536., 0, 65535).astype(np.uint16)
  low = images / 65536. - 0.5
  normal = scipy.stats.norm(0., scale)
  exact = -np.log2(normal.cdf(low + 2.**-16) - normal.cdf(low)).mean(axis=(1, 2, 3))
  distribution = tfd.Independent(tfd.Normal(tf.Variable(tf.zeros([2, 2, 1])), scale), 3)
  model = tfp_glow.FlowModel(distribution, 16)
  model.compile(run_eagerly=True)
  np.testing.assert_allclose(model.predict(images, verbose=0), exact, atol=2e-4)
  found = model.evaluate(images, return_dict=True, verbose=0)["bits_per_dim"]
  np.testing.assert_allclose(found, exact.mean(), atol=1e-4)


# Models.


@pytest.mark.parametrize("num_bits, shape", [(16, SHAPE), (16, (4, 4, 13)), (12, SHAPE)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_come_back(num_bits, shape, dtype):
  images = deep(shape=shape, num_bits=num_bits)
  images[0] = np.random.default_rng(1).integers(0, 2**num_bits, shape)
  images[1], images[2] = 0, 2**num_bits - 1
  model = model_of(num_bits, shape, dtype=dtype)
  model.adapt(images)
  found = model.decode(model.encode(images))
  assert found.dtype == np.uint16
  np.testing.assert_array_equal(found, images)
  samples = model.sample(3, seed=0)
  assert samples.dtype == np.uint16 and samples.shape == (3, *shape) and samples.max() < 2**num_bits


@pytest.mark.slow
def test_training_and_evaluation():
  images = deep(32)
  data = tf.data.Dataset.from_tensor_slices(images).batch(16)
  model = small_models.compiled(model_of(num_steps_per_block=1), run_eagerly=False)
  history = model.fit(data, epochs=8, verbose=0).history["bits_per_dim"]
  assert history[-1] < history[0] - 0.2
  bits = model.evaluate(data, return_dict=True, verbose=0)["bits_per_dim"]
  np.testing.assert_allclose(evaluation.bits_per_dim(model, images, verbose=0).mean, bits, rtol=1e-5)
  np.testing.assert_allclose(np.mean(model.predict(data, verbose=0)), bits, rtol=1e-5)
  # The lowest 8 bits are noise and cost 8 bits; for the upper bits alone the density costs 8 fewer.
  of_bytes = tfp_glow.FlowModel(model.distribution, 8)
  fewer = evaluation.bits_per_dim(of_bytes, (images >> 8).astype(np.uint8), verbose=0).mean
  np.testing.assert_allclose(bits, fewer + 8., atol=0.01)


@pytest.mark.slow
def test_files(tmp_path):
  images = deep()
  model = small_models.compiled(model_of(), run_eagerly=True)
  model.fit(images, verbose=0)
  model.save(tmp_path / "model.keras")
  found = keras.models.load_model(tmp_path / "model.keras")
  assert found.num_bits == 16
  np.testing.assert_array_equal(found.log_prob(images), model.log_prob(images))
  np.testing.assert_array_equal(found.sample(3, seed=0), model.sample(3, seed=0))


_ELSEWHERE = """
import json, sys
import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
images = tf.constant(np.load(sys.argv[2]))
answer = loaded.signatures["log_prob"](images=images)
latent = loaded.signatures["encode"](images=images)["latent"]
decoded = loaded.signatures["decode"](latent=latent)["images"]
between = loaded.signatures["interpolate"](first=images, second=images[::-1], num_steps=tf.constant(3))["images"]
samples = loaded.signatures["sample"](
    num_samples=tf.constant(2), temperature=tf.constant(0.7), seed=tf.constant([1, 2]))["images"]
assert "tfp_glow" not in sys.modules
np.savez(sys.argv[3], **{name: value.numpy() for name, value in dict(
    answer, decoded=decoded, between=between, samples=samples).items()})
"""


@pytest.mark.slow
def test_saved_models(tmp_path):
  images = deep()
  model = model_of()
  model.adapt(images)
  model.export(tmp_path / "saved_model")
  np.save(tmp_path / "images.npy", images)
  subprocess.run([sys.executable, "-c", _ELSEWHERE, *(str(tmp_path / name) for name in (
      "saved_model", "images.npy", "answers.npz"))], check=True)
  found = np.load(tmp_path / "answers.npz")
  np.testing.assert_allclose(found["log_prob"], model.log_prob(images), rtol=1e-5)
  np.testing.assert_allclose(found["bits_per_dim"], model.log_prob(images) / (-48. * np.log(2.)), rtol=1e-5)
  np.testing.assert_array_equal(found["decoded"], images)
  np.testing.assert_array_equal(found["between"][:, 0], images)
  np.testing.assert_array_equal(found["between"][:, -1], images[::-1])
  np.testing.assert_array_equal(found["samples"], model.sample(2, 0.7, seed=(1, 2)))
  assert all(found[name].dtype == np.uint16 for name in ("decoded", "between", "samples"))


@pytest.mark.slow
def test_two_replicas_are_one_device():
  images = deep(8)

  def losses(strategy):
    with strategy.scope():
      model = small_models.compiled(model_of(), keras.optimizers.SGD(1e-4))
    data = tf.data.Dataset.from_tensor_slices(images).batch(8)
    model.adapt(strategy.experimental_distribute_dataset(data) if strategy.num_replicas_in_sync > 1 else data)
    return model.fit(data, epochs=3, verbose=0).history["loss"]

  two = losses(distributed_runs.mirrored(2))
  np.testing.assert_allclose(two, losses(tf.distribute.get_strategy()), rtol=1e-5)


# Pictures.


@pytest.mark.parametrize("num_bits", [12, 16])
def test_pictures_have_the_upper_8_bits(tmp_path, num_bits):
  images = deep(num_bits=num_bits)
  model = gaussian(num_bits)
  samples = model.sample(2, 1., seed=0)
  chosen = [callbacks.SampleGrid(tmp_path, [1.], num_columns=2), callbacks.LatentInterpolation(tmp_path, images[:2],
                                                                                             num_steps=2)]
  model.fit(images, verbose=0, callbacks=chosen)
  for name, row in (("samples_0000.png", samples), ("interpolations_0000.png", images[:2])):
    with Image.open(tmp_path / name) as picture:
      expected = pictures.tile([(row >> (num_bits - 8)).astype(np.uint8)])
      np.testing.assert_array_equal(np.asarray(picture), expected)


def test_tiles_are_of_bytes():
  with pytest.raises(TypeError, match=r"`rows` must be uint8 \(of `n` bits: .*\). Received: \['uint16'\]"):
    pictures.tile([deep()])


# What is refused.


@pytest.mark.parametrize("num_bits, images, match", [
    (8, deep(), r"`images` must be uint8, .* make the model with `num_bits` in 9 \.\. 16, .*Received: uint16"),
    (16, deep().astype(np.uint8), r"`images` must be uint16, values 0 \.\. 65535, .*for uint8 .* in 1 \.\. 8\)"),
    (12, deep().astype(np.int32), r"`images` must be uint16, values 0 \.\. 4095, .*Received: int32"),
    (16, deep().astype(np.float32), "`images` must be uint16.*Received: float32"),
    (None, deep(), "`images` must be floating.*Received: uint16")])
def test_other_dtypes(num_bits, images, match):
  model = gaussian(num_bits)
  for call in (model.log_prob, model.encode, lambda x: model.fit(x, verbose=0), lambda x: model.evaluate(x, verbose=0),
               lambda x: model.fit(tf.data.Dataset.from_tensors(x), verbose=0), model.adapt):
    with pytest.raises(TypeError, match=match):
      call(images)


_TOO_MANY = r"`images` must have 12 bits, values 0 .. 4095, .*`images >> 4` drops the lowest.*Received: values up to"


def test_too_many_bits():
  model, images = gaussian(12), deep(num_bits=13)
  for call in (model.log_prob, model.encode, lambda x: model.fit(x, verbose=0), lambda x: model.evaluate(x, verbose=0),
               lambda x: model.fit(tf.data.Dataset.from_tensors(x), verbose=0), model.adapt,
               lambda x: evaluation.bits_per_dim(model, x, verbose=0)):
    with pytest.raises(ValueError, match=f"{_TOO_MANY} {images.max()}"):
      call(images)
  model.log_prob(images // 2)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_too_many_bits_in_a_graph(jit_compile):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(SHAPE), 12), jit_compile=jit_compile)
  model.adapt(deep(num_bits=12))
  before = small_models.weights_of(model)
  data = tf.data.Dataset.from_tensors(deep(num_bits=13))
  # XLA leaves assertions out; the loss is not finite then, and the guard looks for the reason.
  with pytest.raises(tf.errors.InvalidArgumentError, match=_TOO_MANY):
    model.fit(data, verbose=0)
  for a, b in zip(before, small_models.weights_of(model), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("call", [lambda model, x: model.encode(x), lambda model, x: model.log_prob(x)])
def test_the_other_order_of_bytes(call):
  """Files of satellites and telescopes have it: it is read correctly or refused."""
  images, model = deep(), gaussian()
  model.adapt(images)
  np.testing.assert_array_equal(call(model, images.astype(">u2")), call(model, images))

import numpy as np
import pytest
import tensorflow as tf

from tfp_glow.likelihood import dequantize

ALL_VALUES = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


@pytest.mark.parametrize("num_bits", range(1, 9))
@pytest.mark.parametrize("noise", [0., 2.**-16, 0.5, 1. - 2.**-16])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_quantize_inverts_dequantize_for_every_value(num_bits, noise, dtype):
  values = dequantize.dequantize(ALL_VALUES, num_bits, noise, dtype)
  kept = ALL_VALUES // 2**(8 - num_bits) * 2**(8 - num_bits)
  np.testing.assert_array_equal(dequantize.quantize(values, num_bits), kept)


@pytest.mark.parametrize("num_bits", [1, 5, 8])
def test_bins_have_unit_width_together(num_bits):
  low = dequantize.dequantize(ALL_VALUES, num_bits, 0.).numpy()
  assert low.min() == -0.5 and low.max() == 0.5 - 2.**-num_bits
  np.testing.assert_allclose(np.diff(np.unique(low)), 2.**-num_bits)


def test_values_beyond_the_bins_are_clipped():
  """As in the original, whose reference `b` decodes such values, to 255, whatever the number of bits."""
  values = tf.constant([-9., -0.5, 0.4999, 0.5, 9.])
  np.testing.assert_array_equal(dequantize.quantize(values, 5), [0, 0, 248, 255, 255])


def test_bits_per_dim_of_the_uniform_distribution_is_the_number_of_bits():
  log_prob = dequantize.discrete_log_prob(tf.zeros([1], tf.float64), 12, 5)
  np.testing.assert_allclose(dequantize.bits_per_dim(log_prob, 12), [5.])


@pytest.mark.parametrize("num_bits", [0, 17, 8., True, "8"])
@pytest.mark.parametrize("function", [
    dequantize.check_num_bits, lambda num_bits: dequantize.dequantize(ALL_VALUES, num_bits),
    lambda num_bits: dequantize.quantize(tf.zeros([1]), num_bits),
    lambda num_bits: dequantize.discrete_log_prob(tf.zeros([1]), 12, num_bits)])
def test_num_bits_is_checked(function, num_bits):
  with pytest.raises(ValueError, match=f"`num_bits` must be an `int` in 1 .. 16. Received: {num_bits!r}$"):
    function(num_bits)


def _noise(images, seed=(0, 0)):
  return dequantize.image_noise(tf.constant(images), tf.constant(seed)).numpy()


def test_noise_is_uniform_and_independent():
  rng = np.random.default_rng(0)
  noise = _noise(rng.integers(0, 256, [500, 8, 8, 3]).astype(np.uint8)).reshape(500, -1)
  assert 2.**-16 <= noise.min() and noise.max() <= 1. - 2.**-16
  counts, _ = np.histogram(noise, bins=64, range=(0., 1.))
  # Chi-squared with 63 degrees of freedom: mean 63, standard deviation 11.
  expected = noise.size / 64
  assert abs(((counts - expected)**2 / expected).sum() - 63) < 6 * 11
  for by_image in (noise, noise.T):
    correlations = np.corrcoef(by_image[:150])
    off_diagonal = correlations[~np.eye(len(correlations), dtype=bool)]
    assert np.abs(off_diagonal.std() * np.sqrt(by_image.shape[1]) - 1.) < 0.1
    assert np.abs(off_diagonal).max() * np.sqrt(by_image.shape[1]) < 6.


def test_noise_of_similar_images_is_independent():
  images = np.zeros([256, 4, 4, 1], np.uint8)
  images[:, 0, 0, 0] = np.arange(256)
  correlations = np.corrcoef(_noise(images).reshape(256, -1))
  # Each image has 16 values; this is the largest of 32,640 correlations.
  assert np.sort(np.abs(correlations).ravel())[-257] < 0.97
  assert abs(correlations[~np.eye(256, dtype=bool)].mean()) < 0.01


def test_noise_depends_on_seed_and_image_only():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, [10, 4, 4, 3]).astype(np.uint8)
  np.testing.assert_array_equal(_noise(images)[::-1], _noise(images[::-1]))
  np.testing.assert_array_equal(_noise(images)[3:5], _noise(images[3:5]))
  assert np.abs(_noise(images) - _noise(images, (0, 1))).min() > 0.
  assert np.abs(_noise(images) - _noise(images, (1, 0))).min() > 0.

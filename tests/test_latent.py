"""Tests of `tfp_glow.latent`."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_glow import latent


def normal(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 5, 12), (0, 12)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_line_is_straight_and_even(shape, dtype):
  z0, z1 = normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
  line = latent.interpolate(z0, z1, 5)
  assert line.dtype == dtype and line.shape == (5, *shape)
  for step, share in enumerate((0., .25, .5, .75, 1.)):
    np.testing.assert_allclose(line[step], (1. - share) * z0 + share * z1, rtol=1e-5, atol=1e-6)


def test_ends_are_exact():
  z0, z1 = normal(3, 12), 1e4 * normal(3, 12, seed=1)
  line = latent.interpolate(z0, z1, 7)
  np.testing.assert_array_equal(line[0], z0)
  np.testing.assert_array_equal(line[-1], z1)
  np.testing.assert_array_equal(latent.interpolate(z0, z1, 2), [z0, z1])


def test_takes_eager_tensors():
  z0, z1 = normal(12), normal(12, seed=1)
  line = latent.interpolate(tf.constant(z0), tf.constant(z1), np.int64(4))
  np.testing.assert_array_equal(line, latent.interpolate(z0, z1, 4))


@pytest.mark.parametrize("num_steps", [1, 0, -3, 2., "3", True, None])
def test_num_steps_must_be_two_or_more(num_steps):
  with pytest.raises(ValueError, match=r"`num_steps`.*Received: num_steps="):
    latent.interpolate(normal(12), normal(12), num_steps)


@pytest.mark.parametrize("other", [normal(11), normal(1, 12), normal(12, dtype=np.float64)])
def test_ends_must_be_alike(other):
  with pytest.raises(ValueError, match="`z0` and `z1`.*Received"):
    latent.interpolate(normal(12), other, 3)


def test_images_are_no_latents():
  with pytest.raises(TypeError, match="`z1` must be floating.*uint8"):
    latent.interpolate(normal(12), np.zeros(12, np.uint8), 3)

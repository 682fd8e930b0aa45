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


@pytest.mark.parametrize("values", [[np.nan, 0.], [0., -np.inf]])
def test_arcs_are_of_finite_latents(values):
  z = np.array(values)
  with pytest.raises(ValueError, match="`z1` must be finite. Received: 1 of 2 values"):
    latent.interpolate(np.ones(2), z, 3, spherical=True)


# Arcs.


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_arc_is_that_of_shoemake(dtype, tolerance):
  z0, z1 = normal(5, 100, dtype=dtype), 3. * normal(5, 100, seed=1, dtype=dtype).astype(dtype)
  z1 = z1.astype(dtype)
  arc = latent.interpolate(z0, z1, 9, spherical=True)
  assert arc.dtype == dtype and arc.shape == (9, 5, 100)
  for row in range(5):
    norm0, norm1 = np.linalg.norm(z0[row].astype(float)), np.linalg.norm(z1[row].astype(float))
    angle = np.arccos(z0[row].astype(float) @ z1[row] / (norm0 * norm1))
    for t, found in zip(np.linspace(0., 1., 9), arc[:, row]):
      direction = np.sin((1. - t) * angle) * z0[row] / norm0 + np.sin(t * angle) * z1[row] / norm1
      expected = ((1. - t) * norm0 + t * norm1) * direction / np.sin(angle)
      np.testing.assert_allclose(found, expected, atol=tolerance * norm1)


def test_arc_keeps_the_norm_that_the_line_loses():
  z0, z1 = normal(200, 1000), normal(200, 1000, seed=1)
  norms = lambda spherical: np.linalg.norm(latent.interpolate(z0, z1, 3, spherical=spherical)[1], axis=-1) / 1000**0.5
  assert norms(True).mean() == pytest.approx(1., abs=0.01)
  assert norms(False).mean() == pytest.approx(0.5**0.5, abs=0.01)


def test_ends_of_arcs_are_exact():
  z0, z1 = normal(3, 12, dtype=np.float64), 1e4 * normal(3, 12, seed=1, dtype=np.float64)
  arc = latent.interpolate(z0, z1, 7, spherical=True)
  np.testing.assert_array_equal(arc[[0, -1]], [z0, z1])


@pytest.mark.parametrize("angle", [0., 1e-150, 1e-12, 1e-7, 1e-3, 1., 3., 3.1415926])
def test_steps_are_even_at_all_angles(angle):
  z0, z1 = np.array([2., 0., 0.]), 2. * np.array([np.cos(angle), 0., np.sin(angle)])
  arc = latent.interpolate(z0, z1, 5, spherical=True)
  np.testing.assert_allclose(np.arctan2(arc[:, 2], arc[:, 0]), np.linspace(0., angle, 5), rtol=1e-9)
  np.testing.assert_allclose(np.linalg.norm(arc, axis=-1), 2.)


def test_arcs_of_parallel_and_zero_vectors_are_lines():
  z0, zero = normal(4, 12), np.zeros([4, 12], np.float32)
  for ends in ((z0, 3. * z0), (zero, z0), (z0, zero), (zero, zero), (z0, z0)):
    np.testing.assert_allclose(latent.interpolate(*ends, 5, spherical=True), latent.interpolate(*ends, 5), atol=1e-6)


def test_every_latent_of_a_batch_has_an_arc_of_its_own():
  z0, z1 = normal(2, 3, 12), normal(2, 3, 12, seed=1)
  arcs = latent.interpolate(z0, z1, 4, spherical=True)
  np.testing.assert_allclose(arcs[:, 1, 2], latent.interpolate(z0[1, 2], z1[1, 2], 4, spherical=True), rtol=1e-6)
  assert latent.interpolate(z0[:0], z1[:0], 4, spherical=True).shape == (4, 0, 3, 12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_opposite_latents_have_no_arc(dtype):
  z0 = normal(3, 1000, dtype=dtype)
  z1 = np.concatenate([normal(2, 1000, seed=1, dtype=dtype), (-z0[2:] * 1.7).astype(dtype)])
  with pytest.raises(ValueError, match="`z0` and `z1` must not be opposite.*Received: 1 opposite pairs of 3"):
    latent.interpolate(z0, z1, 3, spherical=True)


def test_scalars_have_no_arc():
  with pytest.raises(ValueError, match="`z0` and `z1` must be vectors.*Received: scalars of float64"):
    latent.interpolate(np.float64(1.), np.float64(2.), 3, spherical=True)


# Directions.


@pytest.mark.parametrize("convert", [np.asarray, tf.constant])
def test_direction_leads_from_the_mean_without_to_the_mean_with(convert):
  z, has_attribute = normal(50, 6), np.arange(50) % 3 == 0
  direction = latent.attribute_direction(convert(z), convert(has_attribute))
  assert direction.dtype == np.float32 and direction.shape == (6,)
  expected = [np.mean([row[j] for row, has in zip(z, has_attribute) if has]) -
              np.mean([row[j] for row, has in zip(z, has_attribute) if not has]) for j in range(6)]
  np.testing.assert_allclose(direction, expected, rtol=1e-5)
  np.testing.assert_array_equal(latent.attribute_direction(z, ~has_attribute), -direction)


def test_direction_of_many_latents_is_exact():
  z = np.full([200_001, 2], 0.1, np.float32)  # Added up in float32 the mean would be off by 1e-3.
  z[-1] = 1.
  direction = latent.attribute_direction(z, z[:, 0] > 0.5)
  np.testing.assert_allclose(direction, [1. - np.float64(np.float32(0.1))] * 2, rtol=1e-7)


_HALF = np.arange(4) < 2


@pytest.mark.parametrize("z, has_attribute, error, match", [
    (np.zeros([4, 3], int), _HALF, TypeError, "`z` must be floating.*Received: z of dtype int64"),
    (np.zeros([4, 3]), _HALF.astype(int), TypeError, "`has_attribute` must be boolean. Received: .*int64"),
    (np.zeros([4, 3]), _HALF[:3], ValueError, r"`has_attribute` shape \[N\]. Received: .*has_attribute \[3\]"),
    (np.zeros([4, 3]), _HALF[:, None], ValueError, r"has_attribute \[4, 1\]"),
    (np.zeros([4, 3, 3]), _HALF, ValueError, r"`z` must have shape \[N, D\].*Received: z \[4, 3, 3\]"),
    (np.zeros([4]), _HALF, ValueError, r"Received: z \[4\]"),
    (np.zeros([4, 3]), _HALF | True, ValueError, "`has_attribute` must be True for some.*Received: 4 of 4 True"),
    (np.zeros([4, 3]), _HALF & False, ValueError, "Received: 0 of 4 True"),
    (np.zeros([0, 3]), _HALF[:0], ValueError, "Received: 0 of 0 True"),
    (np.full([4, 3], np.nan), _HALF, ValueError, "`z` must be finite. Received: 12 of 12"),
])
def test_bad_directions(z, has_attribute, error, match):
  with pytest.raises(error, match=match):
    latent.attribute_direction(z, has_attribute)


def test_spherical_is_a_bool():
  with pytest.raises(ValueError, match="`spherical` must be a `bool`. Received: 'no'"):
    latent.interpolate(np.ones([2]), np.zeros([2]), 3, spherical="no")

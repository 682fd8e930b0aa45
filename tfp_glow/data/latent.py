"""Paths through the latent space of a flow."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import check_bools, is_int


def interpolate(z0: np.ndarray | tf.Tensor, z1: np.ndarray | tf.Tensor, num_steps: int,
                spherical: bool = False) -> np.ndarray:
  """Latents between `z0` and `z1` at equal distances, along straight lines or arcs.

  Gaussian latents of many dimensions all have about the same norm. Half-way along the straight line between two
  independent latents it is smaller by a factor `sqrt(2)`, as at a temperature of 0.7. Along the arc it is unchanged.

  ```none
  line:  z = (1 - t) z0 + t z1
  arc:   z = ((1 - t) |z0| + t |z1|) (sin((1 - t) angle) z0 / |z0| + sin(t angle) z1 / |z1|) / sin(angle)
  ```

  If `z0` and `z1` are parallel, or one of them is zero, the arc is the line.

  #### Example

  ```python
  import numpy as np
  from tfp_glow import latent

  latent.interpolate(np.zeros([4]), np.ones([4]), num_steps=3)  # [3, 4]: zeros, halves, ones
  latent.interpolate(np.array([1., 0.]), np.array([0., 1.]), num_steps=3, spherical=True)  # on the unit circle
  ```

  Args:
    z0: Floating array or eager tensor, a latent or a batch of latents.
    z1: As `z0`, of the same shape.
    num_steps: Python `int`, at least 2: the number of latents, including `z0` and `z1`.
    spherical: Python `bool`: whether to follow arcs (great circles if the norms are equal). The last axis is then that
      of a latent vector.

  Returns:
    NumPy array `[num_steps] + z0.shape`, of the dtype of `z0` and `z1`; its first entry is `z0`, its last `z1`.

  Raises:
    TypeError: if `z0` and `z1` are not floating.
    ValueError: if their shapes or dtypes differ, `num_steps` or `spherical` is not as above, or there is no single
      arc: latents are scalars, opposite, or not finite.

  References:
    Shoemake, "Animating rotation with quaternion curves" (1985).
    White, "Sampling generative networks" (2016), on latents.
  """
  z0, z1 = _floating("z0", z0), _floating("z1", z1)
  if z0.shape != z1.shape or z0.dtype != z1.dtype:
    raise ValueError("`z0` and `z1` must have the same shape and dtype. "
                     f"Received: z0 {z0.dtype} {list(z0.shape)}, z1 {z1.dtype} {list(z1.shape)}")
  if not is_int(num_steps, 2):
    raise ValueError(f"`num_steps` must be an `int` of at least 2. Received: num_steps={num_steps!r}")
  check_bools(spherical=spherical)
  return (_arcs if spherical else np.linspace)(z0, z1, num_steps, dtype=z0.dtype)


def attribute_direction(z: np.ndarray | tf.Tensor, has_attribute: np.ndarray | tf.Tensor) -> np.ndarray:
  """The direction from latents without an attribute to latents with it: the difference of their means.

  Adding a multiple of it to an image's latent adds the attribute to the image; subtracting removes it.

  #### Example

  ```python
  import numpy as np
  from tfp_glow import latent

  z = np.array([[0., 0.], [0., 2.], [4., 1.]])
  latent.attribute_direction(z, np.array([False, False, True]))  # [4., 0.]
  ```

  Args:
    z: Floating array or eager tensor `[N, D]`, latents.
    has_attribute: Boolean array or eager tensor `[N]`.

  Returns:
    NumPy array `[D]`, of the dtype of `z`.

  Raises:
    TypeError: if `z` is not floating, or `has_attribute` is not boolean.
    ValueError: if the shapes are not as above, `z` is not finite, or all or none of the images have the attribute.

  References:
    Kingma and Dhariwal, "Glow" (2018), section 5.3.
  """
  z, has_attribute = _floating("z", z), np.asarray(has_attribute)
  if has_attribute.dtype != bool:
    raise TypeError(f"`has_attribute` must be boolean. Received: has_attribute of dtype {has_attribute.dtype}")
  if z.ndim != 2 or has_attribute.shape != z.shape[:1]:
    raise ValueError("`z` must have shape [N, D] and `has_attribute` shape [N]. "
                     f"Received: z {list(z.shape)}, has_attribute {list(has_attribute.shape)}")
  if has_attribute.all() or not has_attribute.any():
    raise ValueError("`has_attribute` must be True for some latents and False for others. "
                     f"Received: {np.count_nonzero(has_attribute)} of {len(has_attribute)} True")
  _check_finite("z", z)
  with_attribute, without = (z[chosen].mean(axis=0, dtype=np.float64) for chosen in (has_attribute, ~has_attribute))
  return (with_attribute - without).astype(z.dtype)


def _arcs(z0, z1, num_steps, dtype):
  """As `np.linspace`, along arcs in the plane of each pair of vectors."""
  if z0.ndim == 0:
    raise ValueError(f"`z0` and `z1` must be vectors if `spherical` is True. Received: scalars of {dtype}")
  for name, z in (("z0", z0), ("z1", z1)):
    _check_finite(name, z)
  (norm0, unit0), (norm1, unit1) = _norm_and_direction(z0), _norm_and_direction(z1)
  unit0, unit1 = np.where(norm0 > 0., unit0, unit1), np.where(norm1 > 0., unit1, unit0)
  # Both halves of the arc start in its middle. This is exact for angles of any size; a ratio of sines is not.
  length_of_sum, middle = _norm_and_direction(unit0 + unit1)
  length_of_difference, across = _norm_and_direction(unit1 - unit0)
  are_opposite = (length_of_sum < 4. * np.finfo(dtype).eps) & (norm0 > 0.) & (norm1 > 0.)
  if are_opposite.any():
    raise ValueError("`z0` and `z1` must not be opposite if `spherical` is True, because arcs in all directions "
                     f"connect them. Received: {np.count_nonzero(are_opposite)} opposite pairs of {are_opposite.size}")
  angle = 2. * np.arctan2(length_of_difference, length_of_sum)
  share = np.linspace(0., 1., num_steps).reshape([-1] + [1] * z0.ndim)
  from_middle = (share - 0.5) * angle
  arcs = ((1. - share) * norm0 + share * norm1) * (np.cos(from_middle) * middle + np.sin(from_middle) * across)
  arcs = arcs.astype(dtype)
  arcs[0], arcs[-1] = z0, z1  # Without rounding.
  return arcs


def _norm_and_direction(z):
  """Norm and direction in float64; the direction of a zero vector is zero."""
  z = z.astype(np.float64)
  norm = np.linalg.norm(z, axis=-1, keepdims=True)
  return norm, np.divide(z, norm, out=np.zeros_like(z), where=norm > 0.)


def _floating(name, z):
  z = np.asarray(z)
  if not np.issubdtype(z.dtype, np.floating):  # NumPy does not support bfloat16 well enough.
    raise TypeError(f"`{name}` must be floating, float16 to float64. Received: {name} of dtype {z.dtype}")
  return z


def _check_finite(name, z):
  num_bad = np.count_nonzero(~np.isfinite(z))
  if num_bad:
    raise ValueError(f"`{name}` must be finite. Received: {num_bad} of {z.size} values NaN or infinite")

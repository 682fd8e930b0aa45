"""Ways through the latent space of a flow."""

import numbers

import numpy as np


def interpolate(z0, z1, num_steps):
  """Latents on the straight lines from `z0` to `z1`, at equal distances.

  #### Example

  ```python
  import numpy as np
  from tfp_glow import latent

  latent.interpolate(np.zeros([4]), np.ones([4]), num_steps=3)  # [3, 4]: zeros, halves, ones
  ```

  Args:
    z0: Floating array or eager tensor, a latent or a batch of them.
    z1: As `z0`, of the same shape.
    num_steps: Python `int`, at least 2: how many latents, `z0` and `z1` included.

  Returns:
    NumPy array `[num_steps] + z0.shape`, of the dtype of `z0` and `z1`.

  Raises:
    TypeError: if `z0` and `z1` are not floating.
    ValueError: if their shapes or dtypes differ, or `num_steps` is not as above.
  """
  z0, z1 = np.asarray(z0), np.asarray(z1)
  for name, z in (("z0", z0), ("z1", z1)):
    if not np.issubdtype(z.dtype, np.floating):
      raise TypeError(f"`{name}` must be floating, as latents are. Received: {name} of dtype {z.dtype}")
  if z0.shape != z1.shape or z0.dtype != z1.dtype:
    raise ValueError("`z0` and `z1` must have the same shape and dtype. "
                     f"Received: z0 {z0.dtype} {list(z0.shape)}, z1 {z1.dtype} {list(z1.shape)}")
  if isinstance(num_steps, bool) or not isinstance(num_steps, numbers.Integral) or num_steps < 2:
    raise ValueError(f"`num_steps` must be an `int` of at least 2. Received: num_steps={num_steps!r}")
  return np.linspace(z0, z1, num_steps, dtype=z0.dtype)

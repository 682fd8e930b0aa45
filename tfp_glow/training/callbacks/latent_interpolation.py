"""Interpolations of a model during training."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import is_int
from tfp_glow.data import latent
from tfp_glow.training.callbacks.picture import Picture


class LatentInterpolation(Picture):
  """Draws paths from image to image through latent space after each epoch.

  Each pair of neighbours has a row: from the first image to the second, from the second to the third, and so on. The
  ends of a row are the images themselves, as far as `num_bits` keeps them. `interpolations_0000.png` shows the flow
  before training, `interpolations_0012.png` after 12 epochs. A resumed run (`initial_epoch`) continues the numbering.

  With several workers (`tf.distribute`) only the chief draws, while the others wait at the next step.

  Five images take 2% of the CPU time of an epoch of 23 steps of the digits (2 levels of 8 steps, 64 wide). Building the
  graphs takes one or two seconds once, before training.

  #### Example

  ```python
  import tempfile
  import tfp_glow

  glow = tfp_glow.GlowBijector(output_shape=(8, 8, 1), num_glow_blocks=1, num_steps_per_block=2, num_hidden=8)
  model = tfp_glow.FlowModel(glow, num_bits=4)
  model.compile("adam")
  test_images = next(iter(tfp_glow.data.load_images("digits", "test", batch_size=5)))
  ways = tfp_glow.callbacks.LatentInterpolation(tempfile.mkdtemp(), test_images)
  model.fit(tfp_glow.data.load_images("digits", "train", batch_size=256), epochs=2, callbacks=[ways])
  ```
  """

  def __init__(self, folder: str | os.PathLike, images: tf.Tensor | np.ndarray,
               labels: tf.Tensor | np.ndarray | None = None, num_steps: int = 8, every: int = 1,
               log_dir: str | os.PathLike | None = None, *,
               context: tf.Tensor | np.ndarray | dict[str, Any] | None = None):
    """Creates the callback; it should come before a `TrainingState`.

    Args:
      folder: Where the PNG files go; created if missing.
      images: Array or eager tensor `[N, H, W, C]`, uint8 or uint16 as the model takes them, two images or more.
      labels: For class-conditional models, integers `[N]`. On a path from one class to another, the first half of the
        row has the label of its start, the rest that of its end.
      num_steps: Python `int`, at least 2: images in a row, including its ends.
      every: Python `int`: epochs from one picture to the next.
      log_dir: Folder of TensorBoard's event files; `None`: without TensorBoard.
      context: For conditional models, the contexts of the images: a floating tensor `[N] + context_shape`, or a dict of
        them. They change half-way, like labels.

    Raises:
      ValueError: if an argument is not as above, or, before training, the model cannot take it.
      TypeError: before training, if `images` are not of the model's dtype, or `context` is not floating.
      ImportError: if there is a `log_dir`, but no TensorBoard.
    """
    super().__init__("interpolations", folder, every, log_dir)
    self._images = np.asarray(images)
    if self._images.ndim != 4 or len(self._images) < 2:
      raise ValueError(f"`images` must be two images or more, [N, H, W, C]. Received: shape {self._images.shape}")
    if not is_int(num_steps, 2):
      raise ValueError(f"`num_steps` must be an `int` of at least 2. Received: num_steps={num_steps!r}")
    self._condition = {} if labels is None else {"labels": np.asarray(labels)}
    if labels is not None and self._condition["labels"].shape != self._images.shape[:1]:
      raise ValueError(f"`labels` must be {len(self._images)} integers, one for each image. Received: {labels!r}")
    if context is not None:
      is_dict = isinstance(context, dict)
      context = {key: np.asarray(part) for key, part in context.items()} if is_dict else np.asarray(context)
      self._condition["context"] = context
    if any(part.shape[:1] != self._images.shape[:1] for part in tf.nest.flatten(self._condition.get("context", []))):
      raise ValueError(f"`context` must be {len(self._images)} contexts, one for each image. Received: {context!r}")
    self._num_steps = num_steps

  def _rows(self):
    z = self.model.encode(self._images, **self._condition)
    lines = latent.interpolate(z[:-1], z[1:], self._num_steps)  # [num_steps, N - 1, ...]
    condition = tf.nest.map_structure(self._of_lines, self._condition)
    decoded = self.model.decode(lines.reshape([-1, *z.shape[1:]]), **condition)
    return list(decoded.reshape([*lines.shape[:2], *self._images.shape[1:]]).swapaxes(0, 1))

  def _of_lines(self, values):
    """From values of the images (such as labels) to values of the paths, one step of all paths after the other."""
    steps = [values[:-1] if step < self._num_steps / 2 else values[1:] for step in range(self._num_steps)]
    return np.concatenate(steps)

"""Samples of a model during training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import check_counts
from tfp_glow.training.callbacks.picture import Picture

# The default number of classes: with a thousand rows a picture would be higher than PNG files may be.
_MAX_CLASSES = 10


class SampleGrid(Picture):
  """Draws samples from the same noise after each epoch, so that one sees the same images improve.

  Each temperature has a row; in a class-conditional model each pair of temperature and class. A column has the same
  noise in all rows, and the same context if the model takes one. `samples_0000.png` shows the flow before training,
  `samples_0012.png` after 12 epochs. A resumed run (`initial_epoch`) continues the numbering. The callback does not
  change the weights that training leads to.

  With several workers (`tf.distribute`) only the chief draws, while the others wait at the next step.

  The default takes 2% of the CPU time of an epoch of 23 steps of the digits (2 levels of 8 steps, 64 wide). Building
  the graph takes about a second once, before training.

  #### Example

  ```python
  import tempfile
  import tfp_glow

  glow = tfp_glow.GlowBijector(output_shape=(8, 8, 1), num_glow_blocks=1, num_steps_per_block=2, num_hidden=8)
  model = tfp_glow.FlowModel(glow, num_bits=4)
  model.compile("adam")
  grid = tfp_glow.callbacks.SampleGrid(tempfile.mkdtemp(), temperatures=(0.5, 0.7, 1.))
  model.fit(tfp_glow.data.load_images("digits", "train", batch_size=256), epochs=2, callbacks=[grid])
  ```
  """

  def __init__(self, folder: str | os.PathLike, temperatures: Sequence[float | Sequence[float]] = (0.7, 1.),
               num_columns: int = 8, labels: Sequence[int] | None = None, seed: int | tuple[int, int] | None = 0,
               every: int = 1, log_dir: str | os.PathLike | None = None, *,
               context: tf.Tensor | np.ndarray | dict[str, Any] | None = None):
    """Creates the callback; it should come before a `TrainingState`.

    Args:
      folder: Where the PNG files go; created if missing.
      temperatures: List of values for `temperature` of `FlowModel.sample`.
      num_columns: Python `int`: samples in a row.
      labels: List of the classes to show; `None`: the first ten, if the model has any.
      seed: Python `int` or a pair of them, of the noise.
      every: Python `int`: epochs from one picture to the next.
      log_dir: Folder of TensorBoard's event files; `None`: without TensorBoard.
      context: For conditional models, one for each column, a floating tensor `[num_columns] + context_shape`, or a dict
        of them. One without the first dimension is used for all columns.

    Raises:
      ValueError: if an argument is not as above, or, before training, the model cannot take it.
      TypeError: before training, if `context` is not floating.
      ImportError: if there is a `log_dir`, but no TensorBoard.
    """
    super().__init__("samples", folder, every, log_dir)
    if isinstance(temperatures, str) or not np.iterable(temperatures) or not len(temperatures):
      raise ValueError(f"`temperatures` must be a list of at least one number. Received: {temperatures!r}")
    check_counts(num_columns=num_columns)
    if labels is not None and (not np.ndim(labels) or not np.size(labels)
                               or not np.issubdtype(np.asarray(labels).dtype, np.integer)):
      raise ValueError(f"`labels` must be a list of at least one class, or None. Received: {labels!r}")
    if seed is None:
      raise ValueError("`seed` must not be None: each picture would have other noise. Received: None")
    self._temperatures = temperatures
    self._num_columns = num_columns
    self._labels = labels
    self._seed = seed
    self._context = context

  def _rows(self):
    return [self.model.sample(self._num_columns, temperature, labels=label, seed=self._seed,
                              context=self._context)
            for temperature in self._temperatures for label in self._classes()]

  def _classes(self):
    if self._labels is not None:
      return self._labels
    num_classes = self.model.num_classes
    return [None] if num_classes is None else range(min(num_classes, _MAX_CLASSES))

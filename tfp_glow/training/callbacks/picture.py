"""Pictures of images that a model makes during training."""

import importlib.util

import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import is_int
from tfp_glow.data import pictures
from tfp_glow.training.callbacks.folder_writer import FolderWriter


class Picture(FolderWriter):
  """Rows of images as a PNG file and for TensorBoard: before training, and after every `every` epochs.

  Files are numbered by epochs. A resumed run (`initial_epoch`) continues the numbering.
  """

  def __init__(self, name, folder, every, log_dir):
    """Creates the callback.

    Args:
      name: Python `str`, of the files and in TensorBoard.
      folder: Where the files go.
      every: Python `int`: epochs from one picture to the next.
      log_dir: Folder of TensorBoard's event files, or `None`.

    Raises:
      ValueError: if `every` is not positive.
      ImportError: if there is a `log_dir`, but no TensorBoard.
    """
    super().__init__(folder)
    if not is_int(every):
      raise ValueError(f"`every` must be a positive `int`. Received: every={every!r}")
    if log_dir is not None and importlib.util.find_spec("tensorboard") is None:
      raise ImportError("`log_dir` needs TensorBoard, which is not installed: pip install tensorboard. "
                        f"Received: log_dir={str(log_dir)!r}")
    self._name = name
    self._every = every
    self._log_dir = log_dir
    self._writer = None

  def _rows(self):
    """The images: a list of arrays `[n, H, W, C]`, one for each row, in the model's dtype."""
    raise NotImplementedError

  def on_train_begin(self, logs=None):
    super().on_train_begin(logs)
    num_channels = self.model.distribution.event_shape[-1]
    if self.model.num_bits is None or num_channels not in (1, 3):
      raise ValueError("`model` must be of uint8 or uint16 images with 1 or 3 channels, to be drawn. "
                       f"Received: num_bits={self.model.num_bits}, {num_channels} channels")

  def on_train_end(self, logs=None):
    self._close()

  def _close(self):
    writer, self._writer = self._writer, None
    if writer is not None:
      with self._failure_is_a_warning("at the end of training"):
        writer.close()

  def _begin(self, num_epochs):
    self._close()  # After a training that ended by an error, it is still open.
    if self._log_dir is not None:
      try:
        self._writer = tf.summary.create_file_writer(str(self._log_dir))
      except tf.errors.OpError as error:
        raise ValueError(f"`log_dir` must be a folder that files can be written to, but: {error.message}. "
                         f"Received: {self._log_dir}") from error
    self._draw(num_epochs)  # Drawing and writing errors show before training.

  def _write(self, num_epochs, logs):
    if num_epochs % self._every == 0:
      self._draw(num_epochs)

  def _draw(self, num_epochs):
    picture = pictures.tile([self._as_bytes(row) for row in self._rows()])
    path = self._folder / f"{self._name}_{num_epochs:04}.png"
    path.write_bytes(tf.io.encode_png(picture).numpy())
    if self._writer is not None:
      with self._writer.as_default(step=num_epochs):
        tf.summary.image(self._name, picture[np.newaxis])
      self._writer.flush()

  def _as_bytes(self, images):
    """The upper 8 bits of images with more."""
    return (images >> max(self.model.num_bits - 8, 0)).astype(np.uint8)

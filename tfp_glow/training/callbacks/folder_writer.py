"""The common part of callbacks that leave pictures in a folder."""

import contextlib
import pathlib
import warnings

import keras
import tensorflow as tf

from tfp_glow._core import files
from tfp_glow.training import replicas
from tfp_glow.training.model import FlowModel


class FolderWriter(keras.callbacks.Callback):
  """Writes to a folder before training and after each epoch, on the chief alone.

  The other workers of a `tf.distribute` strategy do nothing here, and this callback waits for nobody. A failure before
  training is an error. A file that cannot be written later is only a warning, so a missing picture ends no training.
  """

  def __init__(self, folder):
    super().__init__()
    self._folder = pathlib.Path(files.checked_path("folder", folder))
    self._has_begun = False

  def _begin(self, num_epochs):
    """Called before the first epoch of `fit`, after `num_epochs` epochs of earlier runs."""
    raise NotImplementedError

  def _write(self, num_epochs, logs):
    """Called after each epoch; `num_epochs` are finished now."""
    raise NotImplementedError

  def on_train_begin(self, logs=None):
    if not isinstance(self.model, FlowModel):
      raise TypeError(f"`model` must be a `FlowModel`. Received: {self.model!r}")
    self._has_begun = False

  def on_epoch_begin(self, epoch, logs=None):
    if self._has_begun or not self._is_chief():
      return
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._begin(epoch)
    except OSError as error:
      raise OSError(f"`folder` must be one that files can be written to, but: {error}. "
                    f"Received: {self._folder}") from error
    self._has_begun = True

  def on_epoch_end(self, epoch, logs=None):
    if not self._is_chief():
      return
    with self._failure_is_a_warning(f"after epoch {epoch + 1}"):
      self._write(epoch + 1, logs or {})

  @contextlib.contextmanager
  def _failure_is_a_warning(self, when):
    try:
      yield
    except (OSError, tf.errors.OpError) as error:
      warnings.warn(f"What {type(self).__name__} writes {when} is missing in {self._folder}: {error}. "
                    "Training goes on.", RuntimeWarning, stacklevel=3)

  def _is_chief(self):
    return replicas.is_chief(self.model.distribute_strategy)

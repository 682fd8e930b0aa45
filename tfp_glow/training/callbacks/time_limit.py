"""Ends training when its time is up."""

from __future__ import annotations

import time

import keras

from tfp_glow._core.validation import is_number


class TimeLimit(keras.callbacks.Callback):
  """Ends training when its time is up, even within an epoch, which is then validated as if it were complete."""

  def __init__(self, seconds: float):
    """Creates the callback.

    Args:
      seconds: Python number: time from the start of training.

    Raises:
      ValueError: if `seconds` is not positive.
    """
    super().__init__()
    if not is_number(seconds) or not seconds > 0:
      raise ValueError(f"`seconds` must be positive. Received: seconds={seconds!r}")
    self.seconds = seconds

  def on_train_begin(self, logs=None):
    self._end = time.monotonic() + self.seconds

  def on_train_batch_end(self, batch, logs=None):
    if time.monotonic() >= self._end:
      self.model.stop_training = True

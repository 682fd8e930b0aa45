"""Ends training at Ctrl-C."""

import signal

import keras

from tfp_glow.training.callbacks.signals import FirstSignal


class StopOnInterrupt(keras.callbacks.Callback):
  """Ends training after the current batch at Ctrl-C; that epoch is then validated as if it were complete.

  Without it, `KeyboardInterrupt` is raised wherever the program is, and can crash TensorFlow's runtime. A second
  Ctrl-C acts as if there were no callback, as does one before or after training.

  Attributes:
    interrupted: Python `bool`, whether Ctrl-C has been pressed.
  """

  def __init__(self):
    super().__init__()
    self.interrupted = False
    self._signal = FirstSignal(signal.SIGINT, self._interrupt)

  def on_train_begin(self, logs=None):
    self.interrupted = False
    self._signal.begin()

  def on_train_end(self, logs=None):
    self._signal.end()

  def _interrupt(self):
    self.interrupted = True
    self.model.stop_training = True
    print("\nInterrupted: training ends with this batch (Ctrl-C again ends at once).", flush=True)

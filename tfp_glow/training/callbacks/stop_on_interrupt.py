"""Ends training at Ctrl-C."""

import signal

import keras

from tfp_glow.training.callbacks.signals import FirstSignal


class StopOnInterrupt(keras.callbacks.Callback):
  """Ctrl-C ends training after the batch at hand; that epoch is then validated as if it were whole.

  `KeyboardInterrupt` in its place, raised wherever the program happens to be, can crash TensorFlow's runtime. A second
  Ctrl-C does what the first would have done without the callback, as does one before or after training.

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

"""Ends training at Ctrl-C."""

import signal
import threading

import keras


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
    self._previous = None

  def on_train_begin(self, logs=None):
    self.interrupted = False
    # Signals reach the main thread only; where they are ignored (a background job of a shell) they stay so.
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
      self._previous = signal.signal(signal.SIGINT, self._interrupt)

  def on_train_end(self, logs=None):
    self._restore()

  def _interrupt(self, *_):
    self._restore()
    self.interrupted = True
    self.model.stop_training = True
    print("\nInterrupted: training ends with this batch (Ctrl-C again ends at once).", flush=True)

  def _restore(self):
    if self._previous is not None:
      signal.signal(signal.SIGINT, self._previous)
      self._previous = None

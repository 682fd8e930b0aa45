"""What signals of the operating system do while a model trains."""

import signal
import threading


class FirstSignal:
  """Has a function called at the first signal of a kind; the second does what the first would have done without."""

  def __init__(self, number, function):
    """Creates it.

    Args:
      number: Of the `signal` module.
      function: Callable without arguments.
    """
    self._number = number
    self._function = function
    self._previous = None

  def begin(self):
    """From now on. Signals reach the main thread only; where they are ignored (a background job) they stay so."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(self._number) != signal.SIG_IGN:
      self._previous = signal.signal(self._number, self._receive)

  def end(self):
    """As it was before."""
    if self._previous is not None:
      signal.signal(self._number, self._previous)
      self._previous = None

  def _receive(self, *_):
    self.end()
    self._function()

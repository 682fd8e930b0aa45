"""Handlers of operating-system signals during training."""

import signal
import threading


class FirstSignal:
  """Calls a function at the first signal of a kind; the second signal acts as if there were no handler."""

  def __init__(self, number, function):
    """Creates the handler.

    Args:
      number: Signal number, from the `signal` module.
      function: Callable without arguments.
    """
    self._number = number
    self._function = function
    self._previous = None

  def begin(self):
    """Installs the handler. Signals reach only the main thread. Ignored signals (background jobs) stay ignored."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(self._number) != signal.SIG_IGN:
      self._previous = signal.signal(self._number, self._receive)

  def end(self):
    """Restores the previous handler."""
    if self._previous is not None:
      signal.signal(self._number, self._previous)
      self._previous = None

  def _receive(self, *_):
    self.end()
    self._function()

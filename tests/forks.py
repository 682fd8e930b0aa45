"""New processes, forked from one that has imported TensorFlow but not started it, because the import takes seconds."""

import multiprocessing
import os
import signal
import sys
import time

TIMEOUT = 180  # seconds, far more than needed

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tfp_glow", "sklearn.datasets"])


class Fork:
  """A process that calls a function; it does not outlive the `with` block."""

  def __init__(self, folder, function, *args, name=""):
    """What the process prints goes to files of this name in the folder."""
    self._paths = [folder / f"{stream}{name}" for stream in ("stdout", "stderr")]
    self._process = _CONTEXT.Process(target=_begin, args=(self._paths, function, *args), daemon=True)

  def __enter__(self):
    self._process.start()
    return self

  def __exit__(self, *_):
    self._process.kill()
    self._process.join()

  def output(self):
    """What it has printed to standard output, and to standard error."""
    return tuple(path.read_text() if path.exists() else "" for path in self._paths)

  def send(self, number):
    """Sends a signal."""
    os.kill(self._process.pid, number)

  def send_at(self, text, number):
    """Sends a signal when a text is printed."""
    self.wait_until(lambda: any(text in output for output in self.output()), text)
    self.send(number)

  def wait_until(self, condition, name, seconds=0.02):
    """Checks a condition every so many `seconds`, as long as the process lives."""
    end = time.monotonic() + TIMEOUT
    while not condition():
      assert self._process.is_alive(), f"ended before {name}:\n{self.output()}"
      assert time.monotonic() < end, f"no {name}:\n{self.output()}"
      time.sleep(seconds)

  def exit_code(self):
    """Waits for the end of the process; if a signal ended it, the exit code is minus its number."""
    self._process.join(TIMEOUT)
    assert self._process.exitcode is not None, f"hangs:\n{self.output()}"
    return self._process.exitcode


def run(folder, function, *args):
  """Calls a function in a new process, checks that its exit code is 0, and returns its output."""
  with Fork(folder, function, *args) as fork:
    assert fork.exit_code() == 0, fork.output()
    return fork.output()


def execute(folder, code):
  """Runs a program that is given as text."""
  os.chdir(folder)
  exec(compile(code, "program", "exec"), {"__name__": "__main__"})


def _begin(paths, function, *args):
  signal.alarm(4 * TIMEOUT)  # Ends the process if its parent can no longer kill it.
  signal.signal(signal.SIGINT, signal.default_int_handler)  # Background jobs of a shell ignore Ctrl-C.
  for number, path in enumerate(paths, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
  sys.stdout.reconfigure(write_through=True)
  function(*args)

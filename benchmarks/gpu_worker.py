"""One part of `gpu.py`, in this process: prints a line of JSON before and after each entry.

  python benchmarks/gpu_worker.py exactness '{"tiny": true, "seconds": 60}'
"""

import importlib
import json
import os
import pathlib
import sys
import time
import traceback

# From a part to the module and the function that makes its entries: pairs of a name and a function without arguments,
# which returns the rows of a table, a dict for each.
PARTS = {
    "products": ("gpu_products", "products"),
    "checks": ("gpu_checks", "checks"),
    "exactness": ("gpu_checks", "exactness"),
    "finite": ("gpu_checks", "finite"),
    "speed_paper": ("gpu_speed", "speed_paper"),
    "speed_small": ("gpu_speed", "speed_small"),
    "start": ("gpu_speed", "start"),
    "memory": ("gpu_speed", "memory"),
    "scaling": ("gpu_speed", "scaling"),
    "tfb": ("gpu_speed", "tfb"),
    "torch_paper": ("gpu_torch", "torch_paper"),
    "torch_small": ("gpu_torch", "torch_small"),
}


class Session:
  """The settings of this process, and how much time is left."""

  def __init__(self, options):
    self.tiny = options.get("tiny", False)
    self.reference = options.get("reference")
    self.data = options.get("data")
    self.done = options.get("done", [])
    self._end = time.monotonic() + options.get("seconds", 600.)
    self.notes = []

  def left(self):
    """Seconds."""
    return self._end - time.monotonic()


def main():
  part, options = sys.argv[1], json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
  module, function = PARTS[part]
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
  session = Session(options)
  module = importlib.import_module(module)
  say(machine=module.machine())
  for name, entry in getattr(module, function)(session):
    if name in session.done:
      continue
    if session.left() < 0:
      say(end=name, notes=["left out, for lack of time"])
      continue
    say(begin=name)
    start = time.monotonic()
    try:
      rows, notes = entry(), []
    except Exception as error:  # pylint: disable=broad-except
      # Whatever it is: the other entries are measured all the same.
      traceback.print_exc()
      rows, notes = {}, [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
    say(end=name, rows=rows or {}, notes=notes + session.notes, seconds=time.monotonic() - start)
    session.notes = []
  sys.stdout.flush()
  sys.stderr.flush()
  # Libraries of GPUs have been seen to hang when they are taken down.
  os._exit(0)


def say(**message):
  """Prints a line of JSON."""
  print(json.dumps(message), flush=True)


if __name__ == "__main__":
  main()

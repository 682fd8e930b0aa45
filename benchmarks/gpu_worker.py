"""Parts of `gpu.py`, in this process: prints a line of JSON before and after each entry.

  python benchmarks/gpu_worker.py '{"tiny": true, "parts": {"checks": 60, "memory": 120}}'

The numbers are seconds from the start to the end of each part.
"""

import importlib
import json
import os
import pathlib
import sys
import time
import traceback

# Numbers of cards, a process for each, because TensorFlow confuses the collective operations of two strategies.
NUMBERS_OF_CARDS = (1, 2, 4, 8, 16)

# From a part to the module and the function that makes its entries, and the arguments of that function. An entry is a
# name, a function without arguments that returns the rows of a table (a dict for each), and, if it takes many, the
# seconds that it takes.
PARTS = {
    "products": ("gpu_products", "products"),
    "checks": ("gpu_checks", "checks"),
    "exactness_trips": ("gpu_checks", "exactness_trips"),
    "exactness_unusual": ("gpu_checks", "exactness_unusual"),
    "exactness_gradients": ("gpu_checks", "exactness_gradients"),
    "finite": ("gpu_checks", "finite"),
    "speed_paper": ("gpu_speed", "speed_paper"),
    "speed_small": ("gpu_speed", "speed_small"),
    "start": ("gpu_speed", "start"),
    "memory": ("gpu_speed", "memory"),
    **{f"scaling_{count}": ("gpu_speed", "scaling", count) for count in NUMBERS_OF_CARDS},
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
    self.folder = pathlib.Path(options["folder"]) if "folder" in options else None  # What processes leave for others.
    self.notes = []  # Notes of the current entry.
    self.end = 0.

  def left(self):
    """Seconds."""
    return self.end - time.monotonic()


def main():
  start = time.monotonic()
  options = json.loads(sys.argv[1])
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
  session = Session(options)
  for part, seconds in options["parts"].items():
    session.end = start + seconds
    name, function, *args = PARTS[part]
    module = importlib.import_module(name)
    say(part=part, machine=module.machine())
    _run(getattr(module, function)(session, *args), session, options.get("done", {}).get(part, []))
  sys.stderr.flush()
  # Libraries of GPUs have hung at the end of a process.
  os._exit(0)


def _run(entries, session, done):
  for name, entry, *seconds in entries:
    if name in done:
      continue
    if session.left() < 0:
      say(notes=[f"from {name} on left out, for lack of time"])
      return
    if seconds and session.left() < seconds[0]:
      say(notes=[f"{name} left out: it takes about {seconds[0]:.0f} s; use a larger `--budget`"])
      continue
    session.notes = []
    say(begin=name)
    try:
      rows, notes = entry(), []
    except Exception as error:
      # Any error: the other entries are still measured.
      traceback.print_exc()
      rows, notes = {}, [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
    say(end=name, rows=rows, notes=notes + session.notes)


def say(**message):
  """Prints a line of JSON."""
  print(json.dumps(message), flush=True)


if __name__ == "__main__":
  main()

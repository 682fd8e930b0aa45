"""Checks and measures this package on a GPU: one command, five minutes; needs no network and no data.

  python benchmarks/gpu.py --json gpu.json --markdown gpu.md
  python benchmarks/gpu.py --only exactness --only speed --data mnist.npz
  python benchmarks/gpu.py --tiny                      at a tiny size, on a CPU: does the program work?

  products    how exact products and convolutions are, by TensorFlow's switch, and what exact ones cost
  checks      the numbers of the original code, in each precision
  exactness   of images, encoded and decoded: changed values, by precision and by how TensorFlow runs it
  finite      short trainings in each precision
  speed       a training step beside the bare convolutions, with and without XLA, and beside other libraries
  start       seconds to the end of the first training step
  memory      at most, by depth
  scaling     over all GPUs

Times are taken first, one process at a time; `checks`, `exactness`, `finite` and `memory` then run side by side.
What hangs, crashes or fails costs itself alone: all of it runs in other processes. What there is no time left for is
left out and named. The file of JSON is written anew after each entry: a run that is ended keeps what it has found.
"""

import argparse
import contextlib
import json
import math
import pathlib
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time

_WORKER = pathlib.Path(__file__).parent / "gpu_worker.py"
_REFERENCE = pathlib.Path(__file__).parent.parent / "tests" / "reference"

# Stages, one after the other. In each, processes side by side; in each of these, parts: section, name, and the seconds
# that it may take of the default budget. What a part leaves of its time is for those after it. What takes time is alone
# on the card; what only asks whether numbers are right, or how much memory is taken, is not.
_STAGES = (
    ((("products", "products", 12.), ("speed", "speed_paper", 145.), ("speed", "speed_small", 12.),
      ("speed", "tfb", 3.), ("scaling", "scaling", 3.)),),
    ((("start", "start", 10.),),),
    ((("speed", "torch_paper", 9.), ("speed", "torch_small", 6.)),),
    ((("checks", "checks", 15.), ("exactness", "exactness_unusual", 75.)),
     (("exactness", "exactness_trips", 90.),),
     (("exactness", "exactness_gradients", 90.),),
     (("finite", "finite", 90.),),
     (("memory", "memory", 90.),)),
)
_SECTIONS = tuple(dict.fromkeys(section for stage in _STAGES for process in stage for section, *_ in process))
_BUDGET = 290.
# An entry may end so many seconds after the time of its part.
_GRACE = 20.
_NO_ENTRY = "between entries"


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=_SECTIONS, action="append", help="of these sections (all)")
  parser.add_argument("--json", type=pathlib.Path, help="file of all numbers")
  parser.add_argument("--markdown", type=pathlib.Path, help="file of the tables, which are printed as well")
  parser.add_argument("--tiny", action="store_true", help="everything at a tiny size")
  parser.add_argument("--budget", type=float, default=_BUDGET, help="seconds in all (%(default)s)")
  parser.add_argument("--limit", type=float, default=75., help="seconds of one entry (%(default)s)")
  parser.add_argument("--reference", type=pathlib.Path, default=_REFERENCE,
                      help="folder of the original code's numbers, a.npz, b.npz and d.npz (%(default)s)")
  parser.add_argument("--data", type=pathlib.Path, help="images to train on, an .npz file as Keras' (drawn at random)")
  args = parser.parse_args()
  found = {"machine": _machine(), "settings": {"tiny": args.tiny, "budget": args.budget}, "sections": {}}
  stages = [[[part for part in process if not args.only or part[0] in args.only] for process in stage]
            for stage in _STAGES]
  longest = [max(sum(seconds for *_, seconds in process) for process in stage) for stage in stages]
  run = _Run(found, args)
  scale = args.budget / sum(longest)
  for i, stage in enumerate(stages):
    begin = run.start + scale * sum(longest[:i])
    threads = [threading.Thread(target=run.parts, args=(process, begin, scale)) for process in stage if process]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  found["seconds"] = round(time.monotonic() - run.start, 1)
  run.flush()
  print(markdown(found))


class _Run:
  """What was found, and the time that is left."""

  def __init__(self, found, args):
    self.start = time.monotonic()
    self._found = found
    self._args = args
    self._lock = threading.RLock()

  def parts(self, parts, begin, scale):
    """Runs parts in one process; in another, without the entry that broke the first, where that happens.

    Args:
      parts: List of section, name of the part, seconds.
      begin: Time from which the seconds count: what stages before have left of theirs is for these parts.
      scale: From these seconds to those of the budget.
    """
    deadlines, done = {}, {}
    with self._lock:
      for section, part, seconds in parts:
        begin += scale * seconds
        deadlines[part] = begin
        done[part] = []
        self._found["sections"].setdefault(section, {"rows": {}, "notes": []})
    sections = {part: section for section, part, _ in parts}
    while time.monotonic() < begin - 3.:
      broken = self._process(sections, deadlines, done)
      if broken is None:
        break
    self.flush()

  def _process(self, sections, deadlines, done):
    """Runs parts in a process; returns the part that broke it, or `None`, where another process is of no use."""
    args = self._args
    options = {"tiny": args.tiny, "reference": str(args.reference), "data": args.data and str(args.data), "done": done,
               "parts": {part: deadline - time.monotonic() for part, deadline in deadlines.items()}}
    with tempfile.TemporaryFile("w+", errors="replace") as log, subprocess.Popen(
        [sys.executable, str(_WORKER), json.dumps(options)], stdout=subprocess.PIPE, stderr=log, text=True,
        errors="replace") as process:
      lines = queue.Queue()
      threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
      part, entry, problem = next(iter(sections)), _NO_ENTRY, None
      while True:
        left = min(args.limit, max(deadlines[part], time.monotonic()) + _GRACE - time.monotonic(),
                   self.start + args.budget + 5. - time.monotonic())
        try:
          line = lines.get(timeout=max(left, 1.))
        except queue.Empty:
          problem = f"ended after {left:.0f} s"
          break
        if line is None:
          break
        message = json.loads(line)
        part = message.get("part", part)
        entry = message.get("begin", _NO_ENTRY)
        self._take(part, self._found["sections"][sections[part]], message, done)
      if problem is None:  # It has closed its output, and is about to end.
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(10.)
      process.kill()
      code = process.wait()
      if problem is None and code == 0:
        return None
      log.seek(0)
      tail = " / ".join(line for line in log.read().splitlines()[-3:])[-400:]
      note = f"{part}, {entry}: {problem or f'ended with {code}: {tail}'}"
      with self._lock:
        self._found["sections"][sections[part]]["notes"].append(note)
      print(f"  {note}", file=sys.stderr, flush=True)
      done[part].append(entry)
      return None if entry == _NO_ENTRY else part

  def _take(self, part, table, message, done):
    """Takes in what a process has said."""
    with self._lock:
      if "machine" in message:
        self._found["machine"].update(message["machine"])
      if "begin" in message:
        print(f"  {time.monotonic() - self.start:5.0f} s  {part}, {message['begin']}", file=sys.stderr, flush=True)
      if "end" in message:
        for row, columns in message["rows"].items():
          table["rows"].setdefault(row, {}).update(columns)
        done[part].append(message["end"])
      for note in message.get("notes", []):
        table["notes"].append(f"{part}, {message['end']}: {note}" if "end" in message else f"{part}: {note}")
        print(f"      {note}", file=sys.stderr, flush=True)
      self.flush()

  def flush(self):
    """Writes the files."""
    with self._lock:
      for path, text in ((self._args.json, json.dumps(_without_nan(self._found), indent=1)),
                         (self._args.markdown, markdown(self._found))):
        if path is not None:
          new = path.with_suffix(".new")
          new.write_text(text + "\n")
          new.replace(path)


def _read(stream, lines):
  for line in stream:
    if line.startswith("{"):
      lines.put(line)
  lines.put(None)


def _machine():
  """What is known of it without TensorFlow."""
  machine = {"python": platform.python_version()}
  try:
    answer = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
                            capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    name, driver, memory = answer[0].split(", ")
    machine.update({"card": name, "driver": driver, "memory": memory, "num_cards": len(answer)})
  except (OSError, subprocess.SubprocessError, ValueError, IndexError):
    machine["card"] = "none"
  return machine


def _without_nan(value):
  """JSON knows no NaN."""
  if isinstance(value, dict):
    return {key: _without_nan(entry) for key, entry in value.items()}
  if isinstance(value, list):
    return [_without_nan(entry) for entry in value]
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def markdown(found):
  """All that was found, as tables."""
  machine = found["machine"]
  lines = ["# " + ", ".join(f"{key} {value}" for key, value in machine.items()), ""]
  if found.get("seconds"):
    lines += [f"{found['seconds']:.0f} s in all.", ""]
  for name, section in found["sections"].items():
    lines += [f"## {name}", ""]
    # Rows of the same columns make a table.
    tables = {}
    for row, columns in section["rows"].items():
      tables.setdefault(tuple(columns), []).append([row, *map(_cell, columns.values())])
    for columns, rows in tables.items():
      lines += [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
      lines += [f"| {' | '.join(cells)} |" for cells in rows] + [""]
    lines += [f"- {note}" for note in section["notes"]] + [""] * bool(section["notes"])
  return "\n".join(lines)


def _cell(value):
  if isinstance(value, bool) or not isinstance(value, float):
    return str(value)
  return f"{value:,.0f}" if 1000. <= abs(value) < 1e7 else f"{value:.3g}"


if __name__ == "__main__":
  main()

"""Checks and measures this package on a GPU: one command, five minutes; needs no network and no data.

  python benchmarks/gpu.py --json gpu.json --markdown gpu.md
  python benchmarks/gpu.py --only exactness --only speed --data mnist.npz
  python benchmarks/gpu.py --tiny                          all of it at a tiny size, on a CPU: does the program work?

  products    how exact products and convolutions are, by TensorFlow's switch for TensorFloat-32, and what exact ones cost
  checks      the numbers of the original code, in each precision
  exactness   of images that were encoded and decoded: changed values, by precision and by how TensorFlow runs it
  finite      short trainings in each precision
  speed       a training step beside the bare convolutions, with and without XLA, and beside other libraries
  start       seconds to the end of the first training step
  memory      at most, by depth
  scaling     over all GPUs

Every part has a process of its own. What hangs, crashes or fails costs itself alone, and what there is no time left for
is left out and named. The file of JSON is written anew after each entry: a run that is ended keeps what it has found.
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

# The parts of each section, each a process; and the seconds that a part may take of the default budget. What a part
# leaves of its time is for those after it.
_SECTIONS = {
    "products": {"products": 35},
    "checks": {"checks": 20},
    "exactness": {"exactness": 55},
    "finite": {"finite": 20},
    "speed": {"speed_paper": 80, "speed_small": 35, "torch_paper": 15, "torch_small": 15},
    "start": {"start": 20},
    "memory": {"memory": 30},
    "scaling": {"scaling": 15},
    "other": {"tfb": 10},
}
_BUDGET = 290.
_NO_ENTRY = "(at the start)", "(between entries)"


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=tuple(_SECTIONS), action="append", help="of these sections (all)")
  parser.add_argument("--json", type=pathlib.Path, help="file of all numbers")
  parser.add_argument("--markdown", type=pathlib.Path, help="file of the tables, which are printed as well")
  parser.add_argument("--tiny", action="store_true", help="everything at a tiny size")
  parser.add_argument("--budget", type=float, default=_BUDGET, help="seconds in all (%(default)s)")
  parser.add_argument("--limit", type=float, default=75., help="seconds of one entry (%(default)s)")
  parser.add_argument("--reference", type=pathlib.Path, default=_REFERENCE,
                      help="folder of the original code's numbers, a.npz, b.npz and d.npz (%(default)s)")
  parser.add_argument("--data", type=pathlib.Path, help="images to train on, an .npz file as Keras' (drawn at random)")
  args = parser.parse_args()
  names = args.only or list(_SECTIONS)
  found = {"machine": _machine(), "settings": {"tiny": args.tiny, "budget": args.budget}, "sections": {}}
  run = _Run(found, args, sum(seconds for name in names for seconds in _SECTIONS[name].values()))
  for name in names:
    for part, seconds in _SECTIONS[name].items():
      run.part(name, part, seconds)
  found["seconds"] = round(time.monotonic() - run.start, 1)
  run.flush()
  print(markdown(found))


class _Run:
  """The sections, one after the other, and the time that is left."""

  def __init__(self, found, args, all_seconds):
    self.start = time.monotonic()
    self._found = found
    self._args = args
    self._all_seconds = all_seconds
    self._seconds = 0.

  def part(self, section, part, seconds):
    """Runs one part; again, without the entry that broke it, where it breaks."""
    self._seconds += seconds
    deadline = self.start + self._args.budget * self._seconds / self._all_seconds
    table = self._found["sections"].setdefault(section, {"rows": {}, "notes": []})
    done = []
    while True:
      if time.monotonic() > deadline - 3.:
        table["notes"].append(f"{part}: the rest was left out, for lack of time")
        break
      broken = self._process(part, done, deadline, table)
      if broken is None:
        break
      done.append(broken)
    self.flush()

  def _process(self, part, done, deadline, table):
    """Runs a part in a process; returns the entry that broke it, or `None`."""
    args = self._args
    options = {"tiny": args.tiny, "reference": str(args.reference), "data": args.data and str(args.data), "done": done,
               "seconds": deadline - time.monotonic()}
    with tempfile.TemporaryFile("w+", errors="replace") as log, subprocess.Popen(
        [sys.executable, str(_WORKER), part, json.dumps(options)], stdout=subprocess.PIPE, stderr=log, text=True,
        errors="replace") as process:
      lines = queue.Queue()
      threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
      entry, problem = _NO_ENTRY[0], None
      while True:
        # A little more than it may take: it looks at the clock itself, between entries.
        left = min(args.limit, max(deadline + 10. - time.monotonic(), 1.))
        try:
          line = lines.get(timeout=left)
        except queue.Empty:
          problem = f"ended after {left:.0f} s"
          break
        if line is None:
          break
        entry = self._take(part, entry, json.loads(line), table, done)
      if problem is None:  # It has closed its output, and is about to end.
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(10.)
      process.kill()
      code = process.wait()
      if problem is None and code == 0:
        return None
      log.seek(0)
      tail = " / ".join(line for line in log.read().splitlines()[-3:])[-400:]
      table["notes"].append(f"{part}, {entry}: {problem or f'ended with {code}: {tail}'}")
      print(f"  {table['notes'][-1]}", file=sys.stderr, flush=True)
      return None if entry in _NO_ENTRY else entry

  def _take(self, part, entry, message, table, done):
    """Takes in what a process has said; returns the entry it is at."""
    if "machine" in message:
      self._found["machine"].update(message["machine"])
    elif "begin" in message:
      print(f"  {time.monotonic() - self.start:5.0f} s  {part}, {message['begin']}", file=sys.stderr, flush=True)
      return message["begin"]
    else:
      for row, columns in message.get("rows", {}).items():
        table["rows"].setdefault(row, {}).update(columns)
      table["notes"] += [f"{part}, {message['end']}: {note}" for note in message.get("notes", [])]
      for note in message.get("notes", []):
        print(f"      {note}", file=sys.stderr, flush=True)
      done.append(message["end"])
      self.flush()
      return _NO_ENTRY[1]
    return entry

  def flush(self):
    """Writes the files."""
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

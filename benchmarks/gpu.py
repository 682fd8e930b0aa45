"""Checks and measures this package on a GPU: one command, ten minutes; needs no network and no data.

  python benchmarks/gpu.py --json gpu.json --markdown gpu.md
  python benchmarks/gpu.py --only exactness --only speed --data mnist.npz
  python benchmarks/gpu.py --save                      for docs/gpu.md and docs/health.md
  python benchmarks/gpu.py --tiny                      at a tiny size, on a CPU: does the program work?

  products    how exact products and convolutions are, by TensorFlow's switch, and what exact ones cost
  checks      the numbers of the original code, in each precision
  exactness   of images, encoded and decoded: changed values, by precision and by how TensorFlow runs it
  finite      short trainings in each precision
  speed       a training step beside the bare convolutions, with and without XLA, and beside other libraries
  start       seconds to the end of the first training step
  memory      at most, by depth
  scaling     over 1, 2, 4 ... GPUs, as many as there are

Times are taken first, one process at a time; `checks`, `exactness`, `finite` and `memory` then run side by side.
What hangs, crashes or fails costs itself alone: all of it runs in other processes. What there is no time left for is
left out and named. The file of JSON is written anew after each entry: a run that is ended keeps what it has found.
"""

import argparse
import json
import math
import pathlib
import platform
import subprocess
import tempfile
import time

import gpu_processes
import gpu_worker
import results

_REFERENCE = pathlib.Path(__file__).parent.parent / "tests" / "reference"

# Stages, one after the other. In each, processes side by side; in each of these, parts: section, name, and the seconds
# that it may take of the default budget. What a part leaves of its time is for those after it. What takes times has the
# card alone; what asks whether numbers are right, or how much memory is taken, has not.
_STAGES = (
    ((("products", "products", 12.), ("speed", "speed_paper", 145.), ("speed", "speed_small", 15.),
      ("speed", "tfb", 3.)),),
    *(((("scaling", f"scaling_{count}", 16. + 4. * count),),) for count in gpu_worker.NUMBERS_OF_CARDS),
    ((("start", "start", 10.),),),
    ((("speed", "torch_paper", 9.), ("speed", "torch_small", 6.)),),
    ((("checks", "checks", 15.), ("exactness", "exactness_unusual", 75.)),
     (("exactness", "exactness_trips", 90.),),
     (("exactness", "exactness_gradients", 90.),),
     (("finite", "finite", 90.),),
     (("memory", "memory", 90.),)),
)
_SECTIONS = tuple(dict.fromkeys(section for stage in _STAGES for process in stage for section, *_ in process))
_BUDGET = 600.


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
  results.add_save(parser)
  args = parser.parse_args()
  if args.save and args.tiny:
    parser.error("--save must not be given with --tiny, whose numbers say nothing. Received: both")
  machine = _machine()
  found = {"machine": machine, "settings": {"tiny": args.tiny, "budget": args.budget}, "sections": {}}
  # Where there is no card, parts of the CPU are as good to try the program.
  stages = _chosen(args.only, machine.get("num_cards", 4 if args.tiny else 1), found["sections"])
  lengths = [max(sum(seconds for *_, seconds in process) for process in stage) for stage in stages]
  scale = args.budget / max(sum(lengths), 1.)
  with tempfile.TemporaryDirectory() as folder:
    options = {"tiny": args.tiny, "reference": str(args.reference), "data": args.data and str(args.data),
               "folder": folder}
    run = gpu_processes.Run(found, options, args.budget, args.limit, lambda: _write(found, args.json, args.markdown))
    for i, stage in enumerate(stages):
      run.stage(stage, scale * lengths[i], scale * sum(lengths[:i + 1]))
  found["seconds"] = round(time.monotonic() - run.start, 1)
  _write(found, args.json, args.markdown)
  print(markdown(found))
  _save(found["sections"], args)


def _save(sections, args):
  """Keeps the tables of the pages."""
  if args.save:
    import gpu_tables  # With TensorFlow, which this process needs only now that the others have ended.
    for name, table in gpu_tables.tables(sections).items():
      results.save(args, name, *table)


def _chosen(sections, num_cards, found):
  """The stages of these sections; `None`: of all."""
  chosen = set(sections or _SECTIONS)
  if num_cards < 2 and "scaling" in chosen:
    chosen.remove("scaling")
    found["scaling"] = {"rows": {}, "notes": ["left out: it needs several GPUs, and there are fewer than two"]}
  too_many = {f"scaling_{count}" for count in gpu_worker.NUMBERS_OF_CARDS if count > num_cards}
  stages = [[[part for part in process if part[0] in chosen and part[1] not in too_many] for process in stage]
            for stage in _STAGES]
  return [stage for stage in ([process for process in stage if process] for stage in stages) if stage]


def _write(found, json_path, markdown_path):
  """Writes the files."""
  _compare(found["sections"].get("scaling", {"rows": {}})["rows"])
  for path, text in ((json_path, json.dumps(_without_nan(found), indent=1)), (markdown_path, markdown(found))):
    if path is not None:
      new = path.with_suffix(".new")
      new.write_text(text + "\n")
      new.replace(path)


def _compare(rows):
  """Adds to what several cards do how much more that is than one does, if that is known: each had its own process."""
  one = rows.get("1 cards")
  for row, columns in rows.items() if one else ():
    times = columns["images/s"] / one["images/s"]
    columns |= {"of one card's, times": times, "efficiency, %": 100. * times / int(row.split()[0])}


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

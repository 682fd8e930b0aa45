"""Checks and measures this package on a GPU, in ten minutes, without network and data.

  python benchmarks/gpu.py --json gpu.json --markdown gpu.md
  python benchmarks/gpu.py --only exactness --only speed --data mnist.npz
  python benchmarks/gpu.py --save                      for docs/gpu.md and docs/health.md
  python benchmarks/gpu.py --tiny                      at a tiny size, on a CPU, to test the program

  products    errors of products and convolutions with TensorFlow's switch on and off, and the cost of exact ones
  checks      comparison with numbers of the original code, in each precision
  exactness   changed values of encoded and decoded images, by precision and by how TensorFlow runs the model
  finite      short trainings in each precision
  speed       a training step compared with bare convolutions and other libraries, with and without XLA
  start       seconds to the end of the first training step
  memory      peak memory by depth
  scaling     speed on 1, 2, 4 ... GPUs

Times are taken first, one process at a time; `checks`, `exactness`, `finite` and `memory` then run side by side.
All entries run in other processes, so one that hangs, crashes or fails does not affect the rest. Entries without enough
time are omitted and named. The JSON file is rewritten after each entry, so a run that is ended keeps its results.
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

# Stages run one after the other. Each has processes that run side by side, and each process has parts: section, name,
# and the seconds that it may take of the default budget. Later parts get the time that earlier ones leave. Parts that
# measure times have the card alone; those that check numbers or measure memory share it.
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
  parser.add_argument("--only", choices=_SECTIONS, action="append", help="only these sections (all)")
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
  # Without a card, parts of the CPU are good enough to try the program.
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
  """The stages of these sections; `None`: all stages."""
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
  """Adds the speed-up of several cards over one card, if that was measured (each number of cards has its process)."""
  one = rows.get("1 cards")
  for row, columns in rows.items() if one else ():
    times = columns["images/s"] / one["images/s"]
    columns |= {"of one card's, times": times, "efficiency, %": 100. * times / int(row.split()[0])}


def _machine():
  """The machine, as far as it is known without TensorFlow."""
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
  """Replaces NaN, which JSON does not have."""
  if isinstance(value, dict):
    return {key: _without_nan(entry) for key, entry in value.items()}
  if isinstance(value, list):
    return [_without_nan(entry) for entry in value]
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def markdown(found):
  """All results as tables."""
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

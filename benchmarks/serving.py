"""The exported SavedModel against the live `FlowModel`; prints tables of docs/serving.md.

  python benchmarks/serving.py                   load time and latency
  python benchmarks/serving.py --only latency --rounds 9 --num_hidden=512

One model is written in both forms, by `save` and by `export`. Every measurement runs in a separate process. In each
round both take turns, and ratios are taken within the round. Tables have the median and the range over all rounds.
Options of the architecture are those of `measure.py`.
"""

import argparse
import tempfile

import results
import run

_BATCH_SIZES = (1, 16)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=tuple(SECTIONS), action="append", help="only these tables (all)")
  parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (%(default)s)")
  results.add_save(parser)
  args, architecture = parser.parse_known_args()
  with tempfile.TemporaryDirectory() as folder:
    measure = lambda system, measurement, *options: run.measure(
        system, measurement, f"--folder={folder}", *architecture, *options)
    sizes = measure("tfp_glow", "export")
    print(f"File of `save`: {sizes['FlowModel']:.1f} MiB, folder of `export`: {sizes['SavedModel']:.1f} MiB",
          flush=True)
    for name in args.only or SECTIONS:
      print(f"\n### {name}\n", flush=True)
      SECTIONS[name](measure, args)


def _load(measure, args):
  """Seconds from the file to the first result."""
  rounds = _rounds(measure, args.rounds, "load", "--batch_size=1")
  table = results.Table("", "`FlowModel`, seconds", "SavedModel, seconds", "ratio")
  table.add("load, and first `log_prob`", *_cells(rounds, "load"))
  table.save(args, "serving_load")


def _latency(measure, args):
  """Milliseconds of a call. The page shows the ratios."""
  columns, ratios = ["times that of `FlowModel`"], {}
  for batch_size in _BATCH_SIZES:
    rounds = _rounds(measure, args.rounds, "latency", f"--batch_size={batch_size}")
    columns.append(f"batch of {batch_size}")
    table = results.Table(columns[-1], "`FlowModel`, ms", "SavedModel, ms", "ratio")
    for name in rounds[0]["FlowModel"]:
      table.add(f"`{name}`", *_cells(rounds, name))
      ratios.setdefault(f"`{name}`", []).append(table.rows[-1][-1])
    print(flush=True)
  results.save(args, "serving_latency", columns, [[name, *cells] for name, cells in ratios.items()])


def _rounds(measure, num_rounds, *options):
  # They take turns in going first.
  orders = (("FlowModel", "SavedModel"), ("SavedModel", "FlowModel"))
  return [{system: measure(system, *options) for system in orders[index % 2]} for index in run.progress(num_rounds)]


def _cells(rounds, key):
  columns = [[r[system][key] for r in rounds] for system in ("FlowModel", "SavedModel")]
  ratios = [served / live for live, served in zip(*columns)]
  return [run.spread(values) for values in (*columns, ratios)]


SECTIONS = {"load": _load, "latency": _latency}

if __name__ == "__main__":
  main()

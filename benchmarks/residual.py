"""Measures the residual flow against that of normflows (PyTorch); prints the tables of docs/residual_flows.md.

  python benchmarks/residual.py                        all of it: half an hour on two cores
  python benchmarks/residual.py --only speed --rounds 3

Measurements are made as in `run.py`; `residual_systems.py` says what both systems have in common. normflows has three
gradients: its default, computed in the forward pass to save memory (and right only if all images have the same weight);
that of the Neumann series alone; and plain backpropagation through the estimate.
"""

import statistics
import sys

import results
import run

OPTIONS = ("--num_levels=1", "--num_hidden=64")
_NUM_BLOCKS = (3, 6, 12)
_CONTESTANTS = {
    "`tfp_glow`": ("tfp_glow.residual", ()),
    "normflows, memory-efficient gradient": ("normflows.residual", ("--gradient=memory_efficient",)),
    "normflows, Neumann series": ("normflows.residual", ("--gradient=neumann",)),
    "normflows, plain": ("normflows.residual", ("--gradient=plain",)),
}


def main():
  run.run_sections(__doc__, SECTIONS, _add_arguments)


def _add_arguments(parser):
  parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (%(default)s)")


def _speed(args):
  rounds = [_measure_all("speed", _NUM_BLOCKS[0]) for _ in run.progress(args.rounds)]
  keys = list(rounds[0][next(iter(_CONTESTANTS))])
  table = results.Table(f"{_NUM_BLOCKS[0]} blocks, 64 wide, batch 16 of 32x32x3: times of `tfp_glow`'s", *keys)
  first = next(iter(_CONTESTANTS))
  for name in _CONTESTANTS:
    ratios = [run.spread([r[name][key] / r[first][key] for r in rounds]) for key in keys]
    milliseconds = [statistics.median(r[name][key] for r in rounds) for key in keys]
    table.add(name, *(f"{ratio}, {time:.0f} ms" for ratio, time in zip(ratios, milliseconds)))
  table.save(args, "residual_speed")


def _blocks(args):
  """Growth of the time and memory of training with the number of blocks."""
  table = results.Table("training", *(f"{count} blocks" for count in _NUM_BLOCKS))
  num_rounds = min(args.rounds, 3)
  rounds = {count: [{measurement: _measure_all(measurement, count) for measurement in ("speed", "working_memory")}
                    for _ in run.progress(num_rounds)] for count in _NUM_BLOCKS}
  for name in _CONTESTANTS:
    median = lambda count, measurement, key: statistics.median(r[measurement][name][key] for r in rounds[count])  # noqa: B023
    table.add(name, *(f"{median(count, 'speed', 'step'):.0f} ms, {median(count, 'working_memory', 'all'):.0f} MiB"
                      for count in _NUM_BLOCKS))
  table.save(args, "residual_blocks")


def _measure_all(measurement, num_blocks):
  """The results of each contestant's measurement, made one after the other."""
  if "normflows" not in run.peers():
    sys.exit('This benchmark needs normflows: pip install -e ".[benchmarks]"')
  return {name: run.measure(system, measurement, *OPTIONS, f"--num_steps={num_blocks}", *options)
          for name, (system, options) in _CONTESTANTS.items()}


SECTIONS = {"speed": _speed, "blocks": _blocks}

if __name__ == "__main__":
  main()

"""Compares this package with its peers; prints the tables of docs/speed.md.

  python benchmarks/run.py                          all of it: about an hour and a half on two cores
  python benchmarks/run.py --only speed --rounds 3

Every measurement runs in a separate process. In each round all systems take turns, and ratios are taken within the
round, because a program that slows the machine down then slows both sides. Tables have the median and the range over
all rounds. The peers are an extra, `pip install -e ".[benchmarks]"`; peers that are not installed are left out.
"""

import argparse
import importlib.util
import json
import math
import pathlib
import statistics
import subprocess
import sys

import results

_MEASURE = pathlib.Path(__file__).parent / "measure.py"
_DEPTHS = (4, 16, 32, 64)
_OURS = {"autodiff": ("--gradient=autodiff",), "reversible": ("--gradient=reversible",)}
_LEARNING_RATES = (5e-4, 1e-3, 2e-3)
_OTHER_SEEDS = (1, 2)


def main():
  run_sections(__doc__, SECTIONS, _add_arguments)


def _add_arguments(parser):
  parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (%(default)s)")
  parser.add_argument("--seconds", type=float, default=120., help="training time for `quality` (%(default)s)")


def run_sections(description, sections, add_arguments):
  """Parses the command line of a benchmark, and prints all its tables or the selected ones.

  Args:
    description: Python `str`, for `--help`.
    sections: Dict from names to functions of the parsed arguments.
    add_arguments: Function that adds arguments to a parser.
  """
  parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=tuple(sections), action="append", help="only these tables (all)")
  add_arguments(parser)
  results.add_save(parser)
  args = parser.parse_args()
  for name in args.only or sections:
    print(f"\n### {name}\n", flush=True)
    sections[name](args)


def _speed(args):
  """Ratios to the bare convolutions."""
  contestants = {"bare convolutions": ("convolutions", ()),
                 **_ours_by_gradient(),
                 "`tfp_glow`, autodiff, bfloat16 networks": ("tfp_glow", ("--policy=mixed_bfloat16",)),
                 **_peers_by_label()}
  rounds = [{name: measure(system, "speed", *options) for name, (system, options) in contestants.items()}
            for _ in progress(args.rounds)]
  table = results.Table("2 levels of 4 steps, 128 wide, batch 16 of 32x32x3", "training step", "log_prob", "sample")
  for name in contestants:
    table.add(name, *(spread([r[name][key] / r["bare convolutions"][key] for r in rounds]) for key in rounds[0][name]))
  table.save(args, "speed")


def _fit(args):
  ratios = [result["fit"] / result["bare"] for result in (
      measure("tfp_glow", "fit") for _ in progress(min(args.rounds, 3)))]
  print(f"A step in `FlowModel.fit` takes {spread(ratios)} times what the bare training step takes.")


def _bfloat16(args):
  """At the paper's width."""
  options = ("--num_hidden=512", "--calls=5")
  ratios = [measure("tfp_glow", "speed", *options)["step"] / measure(
      "tfp_glow", "speed", *options, "--policy=mixed_bfloat16")["step"] for _ in progress(min(args.rounds, 3))]
  print(f"At width 512, bfloat16 networks make a training step {spread(ratios)} times faster.")


def _start(args):
  """Seconds to the end of the first training step at the paper's depth, and their growth with depth."""
  contestants = {**_ours_by_gradient(), "`FlowModel`, reversible": ("FlowModel", _OURS["reversible"]),
                 **_peers_by_label()}
  num_rounds = min(args.rounds, 3)
  rounds = [{name: measure(system, "start", "--num_levels=3", "--num_steps=32", *options)["first_step"]
             for name, (system, options) in contestants.items()} for _ in progress(num_rounds)]
  table = results.Table("3 levels of 32 steps", "seconds from construction to the end of the first training step",
                        "ratio to `tfp_glow`, reversible")
  for name in contestants:
    ratios = [r[name] / r["`tfp_glow`, reversible"] for r in rounds]
    table.add(name, spread([r[name] for r in rounds]), spread(ratios))
  table.save(args, "start")
  print()
  depths = results.Table("`tfp_glow`, reversible, 2 levels, steps a level", "seconds to the first step's end",
                         "without that step's own time")
  for depth in _DEPTHS:
    found = [measure("tfp_glow", "start", f"--num_steps={depth}", *_OURS["reversible"]) for _ in progress(num_rounds)]
    depths.add(depth, spread([f["first_step"] for f in found]),
               spread([f["first_step"] - f["later_step"] for f in found]))


def _memory(args):
  """Peak memory of the process, and its growth from the least depth, without four copies of the parameters."""
  table = results.Table("2 levels, peak MiB (of it parameters, gradients, Adam)",
                        *(f"{depth} steps" for depth in _DEPTHS), "growth of the rest")
  for name, (system, options) in (_ours_by_gradient() | _peers_by_label()).items():
    columns = []
    for depth in _DEPTHS:
      found = [measure(system, "memory", f"--num_steps={depth}", *options) for _ in progress(min(args.rounds, 3))]
      columns.append((statistics.median(f["peak"] for f in found), found[0]["parameters"]))
    first, last = (peak - parameters for peak, parameters in (columns[0], columns[-1]))
    cells = [f"{peak:.0f} ({parameters:.0f})" for peak, parameters in columns]
    table.add(name, *cells, f"{100. * (last / first - 1.):.1f} %")
  table.save(args, "memory")


def _operations(args):
  """Numbers that do not depend on the machine."""
  one, three = (measure("tfp_glow", "operations", f"--num_levels={levels}", "--num_hidden=32") for levels in (1, 3))
  table = results.Table("operations that run", "1 level", "3 levels")
  for name, count in one.items():
    table.add(name, f"{count:,.0f}", f"{three[name]:,.0f}")
  table.save(args, "operations")


def _quality(args):
  """Test bits per dimension of Fashion-MNIST after the same time: three seeds at the best of the learning rates."""
  table = results.Table(f"Fashion-MNIST padded to 32x32, 8 bits, {args.seconds:.0f} s from construction",
                        "bits per dim, three seeds", "steps", "learning rate")
  contestants = {"`tfp_glow`": ("tfp_glow", ()),
                 "`tfp_glow`, bfloat16 networks": ("tfp_glow", ("--policy=mixed_bfloat16",)),
                 **_peers_by_label()}
  for name, (system, options) in contestants.items():
    found = {rate: _trained(args, system, options, rate) for rate in _LEARNING_RATES}
    finite = {rate: result for rate, result in found.items() if math.isfinite(result["bits_per_dim"])}
    rate = min(finite or found, key=lambda rate: found[rate]["bits_per_dim"])
    trained = [found[rate], *(_trained(args, system, options, rate, seed) for seed in _OTHER_SEEDS)]
    bits = [result["bits_per_dim"] for result in trained]
    table.add(name, spread(bits), statistics.median(result["steps"] for result in trained), f"{rate:g}")
  table.save(args, "quality")


def _trained(args, system, options, rate, seed=0):
  return measure(system, "quality", f"--learning_rate={rate}", f"--seconds={args.seconds}", f"--seed={seed}", *options)


def _ours_by_gradient():
  return {f"`tfp_glow`, {name}": ("tfp_glow", options) for name, options in _OURS.items()}


def _peers_by_label():
  """Numbers of operations in the form of the tables."""
  return {f"`{name}`" if "." in name else name: (name, ()) for name in peers()}


def peers():
  """Names of the other systems that are installed."""
  return ["tfb.Glow"] + ["normflows"] * (importlib.util.find_spec("normflows") is not None)


def measure(system, measurement, *options):
  """The output of `measure.py` with these arguments, in a separate process; ends the program if it fails."""
  command = [sys.executable, _MEASURE, system, measurement, *options]
  process = subprocess.run(command, capture_output=True, text=True, check=False)
  if process.returncode:
    sys.exit(f"{' '.join(map(str, command))} failed:\n{process.stderr[-2000:]}")
  return json.loads(process.stdout.splitlines()[-1])


def progress(count):
  """Yields the numbers of the rounds, and prints each."""
  for index in range(count):
    print(f"  round {index + 1} of {count}", file=sys.stderr, flush=True)
    yield index


def spread(values):
  """Median and range, for a table."""
  return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


SECTIONS = {"speed": _speed, "fit": _fit, "bfloat16": _bfloat16, "start": _start, "memory": _memory,
             "operations": _operations, "quality": _quality}

if __name__ == "__main__":
  main()

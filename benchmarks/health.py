"""Numerical health under stress, and invertibility after training; prints the tables of docs/health.md.

  python benchmarks/health.py                            all of it
  python benchmarks/health.py --only stress --seeds 1    a third of the trainings
  python benchmarks/health.py --only invertibility

Stress: short trainings of a small Glow (2 levels of 4 steps, 32 wide, 8x8) with every combination of learning rate,
batch size, bits and kind of images. All systems use Adam with the warm-up, the cosine and the clipping of
`examples/train_glow.py`. The tables count trainings whose losses, and then 1,000 samples at temperature 1, are finite.
Real images are Fashion-MNIST's, which Debian's package `dataset-fashion-mnist` installs.
"""

import concurrent.futures
import os
import sys

import results
import run

_BATCH_SIZES = (1, 64)
RATES = (1e-4, 1e-3, 1e-2, 3e-2)
_BITS = (1, 8)
_ARCHITECTURE = ("--num_levels=2", "--num_steps=4", "--num_hidden=32")


def main():
  run.run_sections(__doc__, SECTIONS, _add_arguments)


def _add_arguments(parser):
  parser.add_argument("--seeds", type=int, default=3, help="trainings of each combination (%(default)s)")
  parser.add_argument("--steps", type=int, default=100, help="steps of each training of the stress test (%(default)s)")
  parser.add_argument("--training-steps", type=int, default=300, help="before invertibility is measured (%(default)s)")


def _stress(args):
  contestants = {"`tfp_glow` in `FlowModel`": "FlowModel", "`tfp_glow` in a bare training step": "tfp_glow",
                 **{f"`{name}`": name for name in run.peers()}}
  # A process with one thread for each core: so small a model gains nothing from more threads.
  os.environ.update(OMP_NUM_THREADS="1", TF_NUM_INTRAOP_THREADS="1")
  measure = lambda system, batch_size: run.measure(
      system, "health", *_ARCHITECTURE, f"--batch_size={batch_size}", f"--calls={args.steps}", f"--seeds={args.seeds}",
      "--bits", *map(str, _BITS), "--rates", *map(str, RATES))
  found = {batch_size: {} for batch_size in _BATCH_SIZES}
  with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    rows = [(label, batch_size, pool.submit(measure, system, batch_size))
            for label, system in contestants.items() for batch_size in _BATCH_SIZES]
    for label, batch_size, row in rows:
      found[batch_size][label] = row.result()
      print(f"  {label}, batch size {batch_size}: done", file=sys.stderr, flush=True)
  table = results.Table(f"trainings of {args.steps} steps that stay finite", "all", "and their samples",
                        *(f"rate {rate:g}" for rate in RATES))
  for label in contestants:
    all_sizes = [f for batch_size in _BATCH_SIZES for f in found[batch_size][label]]
    table.add(label, _share(all_sizes, "trained"), _share(all_sizes, "sampled"),
              *(_share([f for f in all_sizes if f["learning_rate"] == rate], "sampled") for rate in RATES))
  print()
  table = results.Table(f"trainings of {args.steps} steps", *(
      f"{what}, batches of {size}" for size in _BATCH_SIZES for what in ("losses finite", "samples finite, too")))
  for label in contestants:
    table.add(label, *(_share(found[size][label], key) for size in _BATCH_SIZES for key in ("trained", "sampled")))
  table.save(args, "stress")


def _share(found, key):
  return f"{sum(f[key] for f in found)} of {len(found)}"


def _invertibility(args):
  found = run.measure("tfp_glow", "invertibility", "--num_levels=3", "--num_steps=32", "--num_hidden=32",
                      "--learning_rate=1e-3", f"--calls={args.training_steps}")
  table = results.Table(f"3 levels of 32 steps, float32, after {args.training_steps} training steps",
                        "largest error, of the range of pixels", "changed pixels")
  for name, numbers in found["images"].items():
    table.add(name, f"{numbers['error']:.1e}", numbers["changed"])
  table.save(args, "invertibility")


SECTIONS = {"stress": _stress, "invertibility": _invertibility}

if __name__ == "__main__":
  main()

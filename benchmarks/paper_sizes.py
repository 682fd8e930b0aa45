"""Measures a training step of the papers' models at their full sizes; prints the table of docs/experiments.md.

  python benchmarks/paper_sizes.py                                  all of them
  python benchmarks/paper_sizes.py --only glow --preset celeba_hq256

Glow's are the presets of `examples/presets.py`, with their gradient, `reversible`. The residual flow is that of
`examples/train_residual_flow.py`, with the sizes of its paper for CIFAR-10. Each model has a separate process, the
optimizer of the example, and batches of one image of noise. The first step has the rate 0 of the warm-up. Weights that
no step changes are named below the table. The peak is that of the resident memory of the process, including its
libraries.
"""

import concurrent.futures
import importlib
import math
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time
import zlib
from concurrent.futures import process

import results
import run

sys.path.append(str(pathlib.Path(__file__).parent.parent / "examples"))
from presets import PRESETS

# Options of the residual flow for CIFAR-10; the example's defaults are for small images.
RESIDUAL_FLOW = ("--data=cifar10", "--image-size=32", "--num-scales=3", "--num-blocks=16", "--num-hidden=512",
                 "--num-dense-blocks=4", "--num-dense-hidden=128")

GREY = ("digits", "fashion_mnist", "mnist")  # Data of one channel; all others have three.


def main():
  run.run_sections(__doc__, {"glow": _glow, "residual_flow": _residual_flow}, _add_arguments)


def _add_arguments(parser):
  parser.add_argument("--preset", choices=tuple(PRESETS), action="append", help="only these Glows (all)")
  parser.add_argument("--steps", type=int, default=3, help="training steps in all, 2 or more (%(default)s)")
  parser.add_argument("--override", action="append", default=[], metavar="OPTION",
                      help="an option of the example scripts, as in --override=--num-steps=2")


def _glow(args):
  names = args.preset or list(PRESETS)
  models = {name: ("train_glow", (f"--preset={name}", *args.override)) for name in names}
  _show_table(models, args).save(args, "paper_sizes_glow")


def _residual_flow(args):
  models = {"CIFAR-10": ("train_residual_flow", (*RESIDUAL_FLOW, *args.override))}
  _show_table(models, args).save(args, "paper_sizes_residual_flow")


def _show_table(models, args):
  table = results.Table("batch 1", "parameters", "first step, its graph included, s", "a further step, s",
                        "peak memory, GiB")
  unchanged = {}
  for index, (name, (script, options)) in enumerate(models.items(), start=1):
    print(f"  {index} of {len(models)}: {name}", file=sys.stderr, flush=True)
    try:
      found = measure(script, options, args.steps)
    except process.BrokenProcessPool:
      table.add(name, "its process was ended: too little memory?", "", "", "")
      continue
    table.add(name, f"{found['parameters']:,}", f"{found['first_step']:.0f}", f"{found['further_step']:.1f}",
              f"{found['peak']:.1f}")
    unchanged[name] = found["unchanged"]
  for name, variables in unchanged.items():
    if variables:
      print(f"\nUnchanged in {name}: {', '.join(variables)}")
  return table


def measure(script, options, num_steps):
  """Runs `train` in a separate process.

  Args:
    script: Python `str`, the module in `examples` that makes the model.
    options: Sequence of Python `str`s, its command line.
    num_steps: Python `int`, steps of training.

  Returns:
    As `train`.

  Raises:
    BrokenProcessPool: if the process was ended, for example for lack of memory.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    return pool.submit(train, script, options, num_steps).result()


def train(script, options, num_steps):
  """Trains a model of an example in this process, by the code of the example.

  Returns:
    A dict: `parameters`; seconds of the `first_step` (from the initialised model on) and of a `further_step` (the
    median); the `peak` of the process in GiB; the `losses`; and names of the trainable variables that are `unchanged`.
  """
  import measure as measurements
  import train_glow
  example = importlib.import_module(script)
  with tempfile.TemporaryDirectory() as unused:  # The examples refuse a folder with the results of an earlier run.
    sys.argv = [f"{script}.py", *options, "--batch-size=1", f"--output={unused}"]
    args = example.parse_args()
  model = example.make_model(args, (args.image_size, args.image_size, 1 if args.data in GREY else 3))
  train_glow.compile_model(model, args, steps_per_epoch=1)
  batches = _batches(args, model)
  model.adapt(batches)
  before = _checksums(model)
  losses, seconds = [], []
  for _ in range(num_steps):
    start = time.perf_counter()
    losses += model.fit(batches, verbose=0).history["loss"]
    seconds.append(time.perf_counter() - start)
  after = _checksums(model)
  return {"parameters": sum(math.prod(v.shape) for v in model.trainable_variables), "first_step": seconds[0],
          "further_step": statistics.median(seconds[1:]), "peak": measurements.peak() / 2**10, "losses": losses,
          "unchanged": [v.path for v, *sums in zip(model.trainable_variables, before, after) if sums[0] == sums[1]]}


def _batches(args, model):
  """A `tf.data.Dataset` of one batch of one image of noise, with a label if the model takes one."""
  import numpy as np
  import tensorflow as tf
  image = np.random.default_rng(0).integers(0, 256, (1, *model.distribution.event_shape), np.uint8)
  return tf.data.Dataset.from_tensors((image, np.zeros([1], np.int32)) if args.conditional else image)


def _checksums(model):
  """Checksums of the trainable variables, because copies would count as memory."""
  return [zlib.crc32(v.numpy()) for v in model.trainable_variables]


if __name__ == "__main__":
  main()

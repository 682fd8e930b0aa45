"""The folder in which an example leaves its results, which never lie beside those of another run."""

import json
import math
import pathlib
import time

import train_glow

RESULTS = train_glow.RESULTS


def add_options(parser, name):
  """Where to leave them.

  Args:
    parser: `argparse.ArgumentParser`.
    name: Python `str`, of the folder, unless another is said.
  """
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(name),
                      help="folder of the results (%(default)s)")
  parser.add_argument("--overwrite", action="store_true",
                      help="whether results of an earlier run in --output may be lost")


def check(parser, args, outputs):
  """Ends the program if there are results of another run in its folder, with these names."""
  if args.output.exists() and not args.output.is_dir():
    parser.error(f"--output must be a folder. Received: {args.output}")
  if any((args.output / name).exists() for name in outputs) and not args.overwrite:
    parser.error("--output must be a folder without the results of an earlier run; --overwrite replaces them. "
                 f"Received: {args.output}")


def prepare(args, outputs):
  """Makes the folder, and clears it of the results of an earlier run."""
  args.output.mkdir(parents=True, exist_ok=True)
  for name in outputs:
    (args.output / name).unlink(missing_ok=True)


def num_parameters(model):
  """That are trained, of a Keras model."""
  return sum(math.prod(v.shape) for v in model.trainable_variables)


def write_results(results, start, args):
  """Writes the numbers, and what they may depend on.

  Args:
    results: Dict of what was measured.
    start: Python `float`, when the program began.
    args: The settings.
  """
  results = {
      **results,
      "settings": {**vars(args), "output": str(args.output)},
      "versions": train_glow.versions(),
      "seconds": round(time.monotonic() - start, 1),
  }
  (args.output / RESULTS).write_text(json.dumps(results, indent=2) + "\n")

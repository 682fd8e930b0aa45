"""The output folder of an example, which never mixes the results of two runs."""

import json
import math
import pathlib
import time

import train_glow

RESULTS = train_glow.RESULTS


def add_options(parser, name):
  """Adds options for the output folder.

  Args:
    parser: `argparse.ArgumentParser`.
    name: Python `str`, default name of the folder.
  """
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(name),
                      help="folder of the results (%(default)s)")
  parser.add_argument("--overwrite", action="store_true",
                      help="whether results of an earlier run in --output may be lost")


def check(parser, args, outputs):
  """Ends the program if the folder has results of another run under these names."""
  if args.output.exists() and not args.output.is_dir():
    parser.error(f"--output must be a folder. Received: {args.output}")
  if any((args.output / name).exists() for name in outputs) and not args.overwrite:
    parser.error("--output must be a folder without the results of an earlier run; --overwrite replaces them. "
                 f"Received: {args.output}")


def prepare(args, outputs):
  """Makes the folder, and removes the results of an earlier run."""
  args.output.mkdir(parents=True, exist_ok=True)
  for name in outputs:
    (args.output / name).unlink(missing_ok=True)


def num_parameters(model):
  """Number of trainable parameters of a Keras model."""
  return sum(math.prod(v.shape) for v in model.trainable_variables)


def write_results(results, start, args):
  """Writes the numbers, and everything that may affect them.

  Args:
    results: Dict of the measurements.
    start: Python `float`, start time of the program.
    args: The settings.
  """
  results = {
      **results,
      "settings": {**vars(args), "output": str(args.output)},
      "versions": train_glow.versions(),
      "seconds": round(time.monotonic() - start, 1),
  }
  (args.output / RESULTS).write_text(json.dumps(results, indent=2) + "\n")

"""The command line of `train_glow.py`, except for the options about its output files.

`train_residual_flow.py` takes the options of data and training from here, too.
"""

import argparse
import math
import pathlib

from presets import PRESETS


def make_parser(description):
  """An `argparse.ArgumentParser` of all options, with the defaults of the digits."""
  parser = empty_parser(description)
  add = parser.add_argument
  add("--preset", choices=PRESETS, help="an experiment of the paper; its settings replace the defaults below")
  add_data_options(parser, "'digits', the name of a TFDS data set, a folder of images, or an .npz file")
  add("--conditional", action=argparse.BooleanOptionalAction, default=False, help="learn the images of each class")
  add("--weight-y", type=non_negative_float, default=0.,
      help="weight of the bits of the label, as told by the latents, in the loss (%(default)s)")
  add("--num-blocks", type=positive_int, default=2, help="scales, each half as high and wide (%(default)s)")
  add("--num-steps", type=positive_int, default=8, help="steps of flow at each scale (%(default)s)")
  add("--num-hidden", type=positive_int, default=64, help="channels inside the coupling networks (%(default)s)")
  add("--coupling", choices=("affine", "additive"), default="affine", help="(%(default)s)")
  add("--permutation", choices=("conv1x1", "reverse", "shuffle"), default="conv1x1", help="(%(default)s)")
  add("--gradient", choices=("autodiff", "reversible"), default="autodiff",
      help="reversible: memory does not grow with --num-steps, but steps take longer (%(default)s)")
  add_training_options(parser)
  return parser


def empty_parser(description):
  """A parser without any options."""
  return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_data_options(parser, data_help):
  """Adds options for the training data."""
  add = parser.add_argument
  add("--data", default="digits", help=f"{data_help} (%(default)s)")
  add("--data-dir", help="where TFDS keeps its data sets (TFDS's default)")
  add("--image-size", type=positive_int, help="height and width of the images (as they are)")
  add("--shorter-side", type=positive_int,
      help="images are reduced to this shorter side, and squares of --image-size are cut out, at random in training "
      "(the largest squares)")
  add("--num-bits", type=int, choices=range(1, 9), help="bits kept of each pixel (4 for the digits, else 8)")
  add("--max-shift", type=non_negative_float,
      help="training images are shifted at random by up to so many pixels, rounded: by up to 0.75, two thirds stay in "
      "their column and two thirds in their row (0.75 for the digits, else 0)")
  add("--shift-fill", choices=("zeros", "nearest"), default="zeros",
      help="what moves in; nearest: the border, repeated (%(default)s)")
  add("--flip", action=argparse.BooleanOptionalAction, default=False, help="training images are mirrored at random")


def add_training_options(parser):
  """Adds options for training, and for where its results go."""
  add = parser.add_argument
  add("--epochs", type=positive_int, default=45, help="(%(default)s)")
  add("--batch-size", type=positive_int, default=64, help="images of a batch, over all devices (%(default)s)")
  add("--accumulation-steps", type=positive_int, default=1,
      help="number of batches for one update by the mean of their gradients (%(default)s)")
  add("--optimizer", choices=("adam", "adamax"), default="adam", help="(%(default)s)")
  add("--beta-2", type=fraction, default=0.999, help="beta_2 of the optimizer (%(default)s)")
  add("--epsilon", type=positive_float, default=1e-7, help="epsilon of the optimizer (%(default)s)")
  add("--learning-rate", type=positive_float, default=4e-3, help="the highest rate, after a warm-up (%(default)s)")
  add("--schedule", choices=("cosine", "constant"), default="cosine",
      help="the learning rate after the warm-up: falling to 0 at the last step, or constant (%(default)s)")
  add("--warm-up-steps", type=non_negative_int, help="batches of the warm-up (a twentieth of all)")
  # To a half-trained flow, a rare batch may be so unlikely that its gradient is 10,000 times as long as others. That
  # gradient would ruin the flow.
  add("--max-gradient-norm", type=positive_float, default=100., help="longer gradients are shortened (%(default)g)")
  add("--ema", type=fraction, metavar="DECAY",
      help="evaluate and save moving averages of the weights, with this decay at each update, instead of the weights")
  add("--time-limit", type=positive_float, help="minutes after which training ends, whatever --epochs is (none)")
  add("--strategy", choices=("none", "mirrored", "multiworker"), default="none",
      help="train on one device, on all GPUs of this machine, or on all machines of TF_CONFIG or of a SLURM step "
      "(%(default)s)")
  add("--seed", type=non_negative_int, default=0, help="the same seed gives the same result (%(default)s)")
  add("--deterministic", action="store_true",
      help="the same result to the last bit, also on GPUs and on machines with more cores; slower")
  add("--output", type=pathlib.Path, default=pathlib.Path("output"), help="folder of the results (%(default)s)")
  add("--overwrite", action="store_true",
      help="whether results of an earlier run in --output may be lost, and an unfinished run starts again")


def parse(parser):
  """The settings of this command line; argparse ends the program with a message if one of them is invalid."""
  args = parser.parse_args()
  if args.preset:
    parser.set_defaults(**PRESETS[args.preset].options())
    args = parser.parse_args()
  check(parser, args, args.num_blocks, "2 ** num_blocks", "every block")
  if args.weight_y and not args.conditional:
    parser.error(f"--weight-y must be 0 without --conditional. Received: {args.weight_y:g}")
  return args


def check(parser, args, num_halvings, formula, what):
  """Fills in defaults that depend on other options; ends the program if options do not go together.

  Args:
    parser: `argparse.ArgumentParser`.
    args: Its settings, including those of `add_data_options` and `add_training_options`.
    num_halvings: Python `int`, how many times the images are halved.
    formula: Python `str`, a formula for 2 to that power, for the message.
    what: Python `str`, what halves the images, for the message.
  """
  if args.num_bits is None:
    args.num_bits = 4 if args.data == "digits" else 8
  if args.max_shift is None:
    args.max_shift = 0.75 if args.data == "digits" else 0.
  if args.image_size and args.image_size % 2**num_halvings:
    parser.error(f"--image-size must be divisible by {formula} = {2**num_halvings}, because {what} halves it. "
                 f"Received: {args.image_size}")
  if args.time_limit and args.strategy == "multiworker":
    parser.error("--time-limit must not be given with --strategy=multiworker, because each worker has its own clock. "
                 f"Received: {args.time_limit:g}")


def positive_int(text):
  """An argparse type."""
  return _number(text, int, lambda value: value > 0, "a positive whole number")


def non_negative_int(text):
  """An argparse type."""
  return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def positive_float(text):
  """An argparse type."""
  return _number(text, float, lambda value: 0. < value < math.inf, "a positive number")


def non_negative_float(text):
  """An argparse type."""
  return _number(text, float, lambda value: 0. <= value < math.inf, "a number of at least 0")


def finite_float(text):
  """An argparse type."""
  return _number(text, float, math.isfinite, "a finite number")


def fraction(text):
  """An argparse type."""
  return _number(text, float, lambda value: 0. < value < 1., "a number between 0 and 1")


def below_half(text):
  """An argparse type."""
  return _number(text, float, lambda value: 0. < value < 0.5, "a number above 0 and below 0.5")


def _number(text, number_type, is_valid, description):
  try:
    value = number_type(text)
  except ValueError:
    value = None
  if value is None or not is_valid(value):
    raise argparse.ArgumentTypeError(f"must be {description}. Received: {text!r}")
  return value

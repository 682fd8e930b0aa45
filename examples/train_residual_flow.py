"""Trains a residual flow on a density in the plane or on images; leaves weights, a SavedModel, pictures and numbers.

A checkerboard, then couplings with as many parameters on the same data, then the 8x8 digits of scikit-learn:

  python examples/train_residual_flow.py --data checkerboard --output residual_flow
  python examples/train_residual_flow.py --data checkerboard --model couplings --output couplings --beside residual_flow
  python examples/train_residual_flow.py --data digits --output digits

The experiments of the paper, whose settings are in residual_presets.py; options given with them take precedence:

  python examples/train_residual_flow.py --preset cifar10

For images the folder then holds what train_glow.py leaves. For a density:

  model.weights.h5      the weights with the best bits per dimension of validation points
  saved_model/          a SavedModel that needs nothing but TensorFlow
  densities.png         the density of the data, that of the model, and those of --beside
  density.npy           the density of the model, for the picture of another run
  training_curve.png    bits per dimension, epoch by epoch
  report.html           all of these pictures, the numbers and the settings on one page, for a browser
  results.json          bits per dimension of test points, their mean log-density in nats, settings, seconds, versions

Ctrl-C, and runs that have not finished, work as with train_glow.py.
"""

import argparse
import functools
import signal
import sys

import densities
import keras
import options
import run_report
import train_glow
import training_data
from residual_presets import PRESETS

import tfp_glow
from tfp_glow import networks

OUTPUTS_OF_DENSITIES = (train_glow.WEIGHTS, train_glow.SAVED_MODEL, *densities.FILES, run_report.REPORT,
                        train_glow.RESULTS)
# Settings that differ between images and densities.
DEFAULTS = {"epochs": (45, 200), "batch_size": (64, 500), "num_dense_blocks": (2, 16), "num_dense_hidden": (64, 128)}
OF_IMAGES = {"num_scales": 2, "num_blocks": [4], "num_hidden": 64, "squeeze_first": False, "factor_out": False,
             "logit_alpha": 0.05, "num_terms": 2}


def main():
  """Parses the command line, trains, saves; returns the exit code."""
  args = parse_args()
  if args.data not in densities.DENSITIES:
    return train_glow.run(args, training_data.load_splits, make_model, train_glow.save_results, train_glow.OUTPUTS)
  make = {"residual_flow": make_model, "couplings": make_couplings}[args.model]
  # XLA speeds up networks as small as these in a `Scan`.
  return train_glow.run(args, densities.load_splits, make, save_results, OUTPUTS_OF_DENSITIES,
                        jit_compile=args.strategy == "none")


def parse_args():
  """The settings; argparse ends the program with a message if one of them is invalid."""
  parser = _make_parser()
  args = parser.parse_args()
  if args.preset:
    parser.set_defaults(**PRESETS[args.preset].options())
    args = parser.parse_args()
  is_density = args.data in densities.DENSITIES
  _set_defaults(parser, args, is_density)
  if not is_density and (args.model != "residual_flow" or args.beside):
    parser.error(f"--model and --beside are for densities: {', '.join(densities.DENSITIES)}. train_glow.py trains "
                 f"couplings on images. Received: --data {args.data}")
  train_glow.check_output(parser, args, OUTPUTS_OF_DENSITIES if is_density else train_glow.OUTPUTS)
  return args


def _make_parser():
  parser = options.empty_parser(__doc__)
  add = parser.add_argument
  add("--preset", choices=PRESETS, help="an experiment of the paper; its settings replace the defaults below")
  options.add_data_options(
      parser, f"one of {', '.join(densities.DENSITIES)}; or 'digits', the name of a TFDS data set, a folder of images")
  add("--model", choices=("residual_flow", "couplings"), default="residual_flow",
      help="model of a density; couplings: as many affine couplings as --num-dense-blocks, so wide that they have as "
      "many parameters as the residual flow (%(default)s)")
  add("--beside", nargs="+", default=[], metavar="FOLDER",
      help="other runs with the same density, to be shown in the same picture")
  add("--num-scales", type=options.positive_int, help="for images: scales; each but the first halves them (2)")
  add("--num-blocks", type=options.positive_int, nargs="+",
      help="for images: residual blocks at each scale, one number for all or one for each (4)")
  add("--num-hidden", type=options.positive_int, help="for images: channels inside the networks of these blocks (64)")
  add("--squeeze-first", action=argparse.BooleanOptionalAction, help="for images: squeeze at the start (no)")
  add("--factor-out", action=argparse.BooleanOptionalAction,
      help="for images: half of the channels leaves after each scale but the last (no)")
  add("--logit-alpha", type=options.below_half, help="for images: how far the logit keeps them from 0 and 1 (0.05)")
  add("--num-terms", type=options.positive_int,
      help="for images: terms of each log-det in training, in addition to those drawn at random (2)")
  add("--num-dense-blocks", type=options.non_negative_int,
      help="fully connected residual blocks; a density has no others (2 for images, else 16)")
  add("--num-dense-hidden", type=options.positive_int, help="width of their networks (64 for images, else 128)")
  add("--activation", choices=("lip_swish", "elu"), default="lip_swish", help="(%(default)s)")
  add("--coefficient", type=options.fraction, default=0.98, help="bound of the norm of each layer (%(default)s)")
  options.add_training_options(parser)
  parser.set_defaults(data="checkerboard", conditional=False, learning_rate=2e-3, beta_2=0.99,
                      **dict.fromkeys(DEFAULTS))
  return parser


def _set_defaults(parser, args, is_density):
  """Fills in defaults that depend on other options; ends the program if options do not go together."""
  for name, value in OF_IMAGES.items():
    if is_density and getattr(args, name) is not None:
      parser.error(f"--{name.replace('_', '-')} must not be given with --data {args.data}: it is for images. "
                   f"Received: {getattr(args, name)}")
    if getattr(args, name) is None:
      setattr(args, name, value)
  for name, values in DEFAULTS.items():
    if getattr(args, name) is None:
      setattr(args, name, values[is_density])
  if len(args.num_blocks) not in (1, args.num_scales):
    parser.error(f"--num-blocks must be one number, or one for each of the {args.num_scales} scales. "
                 f"Received: {' '.join(map(str, args.num_blocks))}")
  if len(args.num_blocks) == 1:
    args.num_blocks = args.num_blocks * args.num_scales
  halvings = ((args.num_scales, "2 ** num_scales", "--squeeze-first, like every scale but the first,")
              if args.squeeze_first else (args.num_scales - 1, "2 ** (num_scales - 1)", "every scale but the first"))
  options.check(parser, args, *halvings)


def make_model(args, event_shape):
  """A `FlowModel` of a residual flow for points or images of this shape."""
  if len(event_shape) == 1:
    # Actnorm centres points, and for two numbers the exact log-det is cheap.
    kwargs = {"num_scales": 0, "logit_alpha": None, "log_det": "exact"}
  else:
    kwargs = {"num_blocks_per_scale": args.num_blocks} | {
        name: getattr(args, name) for name in OF_IMAGES if name != "num_blocks"}
  flow = tfp_glow.ResidualFlowBijector(
      event_shape, num_dense_blocks=args.num_dense_blocks, num_dense_hidden=args.num_dense_hidden,
      activation=args.activation, coefficient=args.coefficient, seed=args.seed, **kwargs)
  return _flow_model(flow, args)


def make_couplings(args, event_shape):
  """A `FlowModel` of Glow's affine couplings, which change the two coordinates in turn."""
  aim = sum(v.shape.num_elements() for v in make_model(args, event_shape).distribution.trainable_variables)
  width = min(range(1, 4 * args.num_dense_hidden), key=lambda width: abs(_num_parameters(args, width) - aim))

  def make_step(_):
    dense = [keras.layers.Dense(width, "relu", kernel_initializer="he_normal") for _ in range(2)]
    coupling = tfp_glow.AffineCoupling(keras.Sequential([*dense, networks.ZeroDense(2)]), event_ndims=1)
    return tfp_glow.GlowStep(
        tfp_glow.ActNorm(2, event_ndims=1), tfp_glow.ChannelPermutation([1, 0], event_ndims=1), coupling)

  return _flow_model(tfp_glow.Scan(make_step, args.num_dense_blocks, event_shape), args)


def _num_parameters(args, width):
  """Parameters of couplings: those of three dense layers, the last with a scale, and of actnorm."""
  return args.num_dense_blocks * (2 * width + width * (width + 1) + 2 * (width + 1) + 2 + 4)


def _flow_model(bijector, args):
  num_bits = None if args.data in densities.DENSITIES else args.num_bits
  return tfp_glow.FlowModel(bijector, num_bits=num_bits, seed=args.seed)


def save_results(model, test_points, history, results, start, args):
  """As `train_glow.save_results`, for a density."""
  results = {**results, **densities.measures(model, args.data, args.seed)}
  save_pictures = functools.partial(densities.save_pictures, args.data, args.beside)
  train_glow.save_results(model, test_points, history, results, start, args, save_pictures, OUTPUTS_OF_DENSITIES)


if __name__ == "__main__":
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, train_glow.end_at_once)
  sys.exit(main())

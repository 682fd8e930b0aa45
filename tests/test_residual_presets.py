"""The presets of `examples/train_residual_flow.py`: what they set, what is built at full size, and that each starts."""

import math
import re
import sys

import architecture_sizes
import numpy as np
import pytest
import tensorflow as tf
import threadpoolctl
import train_glow
import train_residual_flow as script
from residual_presets import PRESETS

from tfp_glow.networks import building, lipschitz

slow = pytest.mark.slow

# Chen et al. (2019): the published commands and the defaults of the authors' train_img.py; bits per dimension of the
# paper. Size of the images; squeeze first and factor out; scales, blocks at each; fully connected blocks at the end;
# activation; exact terms in training; batch size, batches of an update; alpha of the logit; flips; bits of a pixel.
_TABLE = """
mnist        | mnist                      |  28 | no  | 3 | 16 | 4 | lip_swish | 2 | 64 | 1 | 1e-6 | no  | 8 | 0.970
cifar10      | cifar10                    |  32 | no  | 3 | 16 | 4 | lip_swish | 2 | 64 | 1 | 0.05 | yes | 8 | 3.280
imagenet32   | downsampled_imagenet/32x32 |  32 | no  | 3 | 32 | 4 | lip_swish | 2 | 64 | 1 | 0.05 | no  | 8 | 4.010
imagenet64   | downsampled_imagenet/64x64 |  64 | yes | 3 | 32 | 4 | lip_swish | 2 | 64 | 1 | 0.05 | no  | 8 | 3.757
celeba_hq256 | celeb_a_hq/256             | 256 | yes | 6 | 16 | 0 | elu       | 8 |  8 | 5 | 0.05 | yes | 5 | 0.992
"""
_ROWS = [re.split(r" *\| *", line) for line in _TABLE.splitlines() if line]

# Shapes of the latents; the first one leaves first.
_LATENT_SHAPES = {
    "mnist": [[7, 7, 16]],
    "cifar10": [[8, 8, 48]],
    "imagenet32": [[8, 8, 48]],
    "imagenet64": [[16, 16, 24], [8, 8, 48], [8, 8, 48]],
    "celeba_hq256": [[64, 64, 24], [32, 32, 48], [16, 16, 96], [8, 8, 192], [4, 4, 384], [4, 4, 384]],
}


def parse(monkeypatch, *options):
  """The settings of a command line."""
  monkeypatch.setattr(sys, "argv", ["train_residual_flow.py", *map(str, options)])
  return script.parse_args()


def image_shape(args):
  return args.image_size, args.image_size, 1 if args.data == "mnist" else 3


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
  """No earlier results are in the output folder."""
  monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("row", _ROWS, ids=[row[0] for row in _ROWS])
def test_presets_are_the_experiments_of_the_paper(row, monkeypatch):
  (name, data, size, is_halved, scales, blocks, dense_blocks, activation, terms, batch_size, accumulation, alpha, flip,
   bits, bits_per_dim) = row
  args = parse(monkeypatch, "--preset", name)
  assert (args.data, args.image_size, args.flip, args.num_bits) == (data, int(size), flip == "yes", int(bits))
  assert args.squeeze_first == args.factor_out == (is_halved == "yes")
  assert (args.num_scales, args.num_blocks) == (int(scales), [int(blocks)] * int(scales))
  assert (args.num_dense_blocks, args.activation) == (int(dense_blocks), activation)
  assert (args.num_terms, args.logit_alpha) == (int(terms), float(alpha))
  assert (args.batch_size, args.accumulation_steps) == (int(batch_size), int(accumulation))
  assert PRESETS[name].bits_per_dim == float(bits_per_dim)


def test_there_are_no_other_presets():
  assert list(PRESETS) == [row[0] for row in _ROWS]


@pytest.mark.parametrize("name", PRESETS)
def test_what_all_experiments_share(name, monkeypatch):
  args = parse(monkeypatch, "--preset", name)
  assert (args.num_hidden, args.num_dense_hidden, args.coefficient) == (512, 128, 0.98)
  assert (args.learning_rate, args.schedule, args.warm_up_steps, args.epochs) == (1e-3, "constant", 1000, 1000)
  assert (args.max_shift, args.conditional, args.model) == (0., False, "residual_flow")


def test_optimizer_is_that_of_the_presets(monkeypatch):
  args = parse(monkeypatch, "--preset=celeba_hq256", "--num-scales=1", "--num-blocks=1", "--num-hidden=1")
  model = script.make_model(args, (2, 2, 3))
  train_glow.compile_model(model, args, steps_per_epoch=10)
  adam = model.optimizer
  assert (type(adam).__name__, adam.beta_1, adam.beta_2, adam.epsilon) == ("Adam", 0.9, 0.99, 1e-8)
  assert adam.global_clipnorm == 1. and adam.gradient_accumulation_steps == 5
  np.testing.assert_allclose(adam.ema_momentum**5, 0.999, rtol=1e-12)


def test_options_take_precedence_wherever_they_are(monkeypatch):
  for order in (["--preset=celeba_hq256", "--num-scales=2"], ["--num-scales=2", "--preset=celeba_hq256"]):
    args = parse(monkeypatch, *order)
    assert (args.preset, args.num_blocks, args.num_dense_blocks) == ("celeba_hq256", [16, 16], 0)
  args = parse(monkeypatch, "--preset=imagenet64", "--no-squeeze-first", "--no-factor-out", "--num-blocks", 3, 1, 2,
               "--num-dense-blocks=0", "--data=some_images", "--ema=0.9")
  assert not (args.squeeze_first or args.factor_out or args.num_dense_blocks)
  assert (args.num_blocks, args.data, args.ema, args.image_size) == ([3, 1, 2], "some_images", 0.9, 64)


@pytest.mark.parametrize("options, message", [
    (["--preset=svhn"], "--preset: invalid choice: 'svhn'"),
    (["--preset=mnist", "--image-size=30"], "divisible by 2 ** (num_scales - 1) = 4, because every scale but"),
    (["--preset=imagenet64", "--image-size=36"], "divisible by 2 ** num_scales = 8, because --squeeze-first, like"),
    (["--preset=mnist", "--num-blocks", "1", "2"], "one number, or one for each of the 3 scales. Received: 1 2"),
    (["--preset=mnist", "--data=moons"], "--num-scales must not be given with --data moons: it is for images"),
    (["--data=moons", "--no-factor-out"], "--factor-out must not be given with --data moons: it is for images"),
    (["--logit-alpha=0.5"], "--logit-alpha: must be a number above 0 and below 0.5. Received: '0.5'"),
    (["--activation=relu"], "--activation: invalid choice: 'relu'"),
    (["--num-terms=0"], "--num-terms: must be a positive whole number. Received: '0'"),
    (["--ema=1"], "--ema: must be a number between 0 and 1. Received: '1'"),
    (["--accumulation-steps=0"], "--accumulation-steps: must be a positive whole number. Received: '0'"),
    (["--max-gradient-norm=0"], "--max-gradient-norm: must be a positive number. Received: '0'"),
])
def test_bad_options(options, message, monkeypatch, capsys):
  with pytest.raises(SystemExit) as ending:
    parse(monkeypatch, *options)
  assert ending.value.code == 2 and message in capsys.readouterr().err


@slow
def test_data_sets_have_images_of_this_shape(monkeypatch, tmp_path):
  import tensorflow_datasets as tfds
  for name in PRESETS:
    args = parse(monkeypatch, "--preset", name)
    shape = tf.TensorShape(tfds.builder(args.data, data_dir=tmp_path).info.features["image"].shape)
    assert shape.rank == 3 and shape.is_compatible_with(image_shape(args))


# At full size.


def test_formula_by_hand():
  """Two scales of one block, 4 wide, and a fully connected one, 5 wide, of images 4x4x1, squeezed and halved."""
  blocks = [(9 * c * 4 + 4) + (16 + 4) + (9 * 4 * c + c) + 3 + 2 * c for c in (4, 8)]
  dense = (8 * 5 + 5) + (25 + 5) + (5 * 8 + 8) + 3 + 2 * 8
  assert architecture_sizes.residual_flow(
      2, 1, 4, 1, 5, size=4, channels=1, squeeze_first=True, factor_out=True) == 2 * 4 - 1 + sum(blocks) + dense


@pytest.fixture
def no_norms(monkeypatch):
  """Finding the vectors of norms takes minutes, and they do not matter here."""
  for layer in (lipschitz.LipschitzDense, lipschitz.LipschitzConv2D):
    monkeypatch.setattr(layer, "next_vectors", lambda self: [building.value_of(vector) for vector in self.vectors])


def check_size(args):
  with threadpoolctl.threadpool_limits(1):  # On a busy machine the threads of NumPy wait for each other.
    model = script.make_model(args, image_shape(args))
  assert sum(math.prod(v.shape) for v in model.trainable_variables) == architecture_sizes.residual_flow(
      args.num_scales, args.num_blocks[0], 512, args.num_dense_blocks, 128, args.image_size, image_shape(args)[-1],
      int(args.activation == "lip_swish"), args.squeeze_first, args.factor_out)


# The vectors of the norms take more memory than the weights, and only their number depends on the size of the images
# where no fully connected block follows.
_SMALLER = {"celeba_hq256": ["--image-size=64"]}


@slow
@pytest.mark.usefixtures("no_norms")
@pytest.mark.parametrize("name", PRESETS)
def test_full_size(name, monkeypatch):
  check_size(parse(monkeypatch, "--preset", name, *_SMALLER.get(name, [])))


@slow
@pytest.mark.paper_size
@pytest.mark.usefixtures("no_norms")
@pytest.mark.parametrize("name", _SMALLER)
def test_full_size_of_large_images(name, monkeypatch):
  check_size(parse(monkeypatch, "--preset", name))


# One update of each.

_LEARNS_AS = {"imagenet32": "cifar10"}  # It differs in data, in mirror images, and in the number of blocks.


@slow
@pytest.mark.usefixtures("eagerly", "no_norms")
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in _LEARNS_AS])
def test_each_preset_learns(name, monkeypatch):
  """With other data and few narrow blocks, and after the first step of the warm-up, which has rate 0."""
  preset = PRESETS[name]
  num_batches = min(preset.accumulation_steps, 2)
  args = parse(monkeypatch, "--preset", name, "--num-blocks=1", "--num-hidden=4", "--num-dense-hidden=4",
               f"--num-dense-blocks={min(preset.num_dense_blocks, 1)}", "--warm-up-steps=0",
               f"--accumulation-steps={num_batches}")
  model = script.make_model(args, image_shape(args))
  train_glow.compile_model(model, args, steps_per_epoch=1)
  assert model.distribution.event_shape == image_shape(args) and model.num_bits == args.num_bits
  flow = model.distribution.bijector
  assert all(flow.parameters[name] == getattr(args, name) for name in ("num_terms", "logit_alpha", "coefficient"))
  latents = flow.split_latent(np.zeros([1, math.prod(image_shape(args))]))
  assert [part.shape[1:].as_list() for part in latents] == _LATENT_SHAPES[name]
  images = np.random.default_rng(0).integers(0, 256, (1, *image_shape(args)), np.uint8)
  images[:, :3] = 0  # As the border of MNIST's.
  model.adapt(images)
  before = [v.numpy() for v in model.trainable_variables]
  changed = lambda: [(v.numpy() != value).any() for v, value in zip(model.trainable_variables, before)]
  for _ in range(num_batches):
    assert not any(changed())
    assert math.isfinite(model.train_on_batch(images, return_dict=True)["loss"])
  assert all(changed()) and int(model.optimizer.iterations) == 1


@pytest.mark.parametrize("name, other", _LEARNS_AS.items())
def test_presets_that_learn_alike(name, other):
  settings, others = (PRESETS[key].options() for key in (name, other))
  assert {key for key in settings if settings[key] != others[key]} == {"data", "flip", "num_blocks"}

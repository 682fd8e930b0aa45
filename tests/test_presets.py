"""The presets of `examples/train_glow.py`: what they set, what is built of it at full size, and that each starts.

`test_residual_presets.py` has the presets of `train_residual_flow.py`, except for what both share.
"""

import json
import math
import pathlib
import re
import sys

import architecture_sizes
import example_runs
import numpy as np
import pytest
import threadpoolctl
import train_glow
import train_residual_flow
from PIL import Image
from presets import PRESETS
from residual_presets import PRESETS as RESIDUAL_PRESETS

import tfp_glow

slow = pytest.mark.slow

# Kingma and Dhariwal (2018): minibatch, levels, depth and coupling of table 4, bits per dimension of table 2; below the
# line the qualitative experiments, from the published commands.
_TABLE = """
cifar10                | cifar10                    |  32 | 512 | 3 | 32 | affine   | 8 | no  | 3.35
imagenet32             | downsampled_imagenet/32x32 |  32 | 512 | 3 | 48 | affine   | 8 | no  | 4.09
imagenet64             | downsampled_imagenet/64x64 |  64 | 128 | 4 | 48 | affine   | 8 | no  | 3.81
lsun_bedroom           | lsun/bedroom               |  64 | 128 | 4 | 48 | affine   | 8 | no  | 2.38
lsun_tower             | lsun/tower                 |  64 | 128 | 4 | 48 | affine   | 8 | no  | 2.46
lsun_church            | lsun/church_outdoor        |  64 | 128 | 4 | 48 | affine   | 8 | no  | 2.67
---
celeba_hq256           | celeb_a_hq/256             | 256 |  40 | 6 | 32 | additive | 5 | no  | -
cifar10_conditional    | cifar10                    |  32 | 512 | 3 | 32 | additive | 5 | yes | -
imagenet32_conditional | imagenet_resized/32x32     |  32 | 512 | 3 | 48 | additive | 5 | yes | -
"""
_ROWS = [re.split(r" *\| *", line) for line in _TABLE.splitlines() if "|" in line]


def parse(monkeypatch, *options, script=train_glow):
  """The settings of a command line."""
  monkeypatch.setattr(sys, "argv", ["train.py", *map(str, options)])
  return script.parse_args()


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
  """No earlier results are in the output folder."""
  monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("row", _ROWS, ids=[row[0] for row in _ROWS])
def test_presets_are_the_experiments_of_the_paper(row, monkeypatch):
  name, data, size, batch_size, levels, depth, coupling, bits, conditional, bits_per_dim = row
  args = parse(monkeypatch, "--preset", name)
  assert (args.data, args.image_size, args.batch_size) == (data, int(size), int(batch_size))
  assert (args.num_blocks, args.num_steps, args.coupling) == (int(levels), int(depth), coupling)
  assert (args.num_bits, args.conditional) == (int(bits), conditional == "yes")
  assert args.weight_y == (0.01 if args.conditional else 0.)
  assert args.shorter_side == (96 if data.startswith("lsun") else None)
  assert (args.max_shift, args.shift_fill) == (3.2 if data == "cifar10" else 0., "nearest")
  assert PRESETS[name].bits_per_dim == (None if bits_per_dim == "-" else float(bits_per_dim))


def test_there_are_no_other_presets():
  assert list(PRESETS) == [row[0] for row in _ROWS]


@pytest.mark.parametrize("name", PRESETS)
def test_what_all_experiments_share(name, monkeypatch):
  args = parse(monkeypatch, "--preset", name)
  assert (args.num_hidden, args.permutation, args.gradient) == (512, "conv1x1", "reversible")
  assert (args.optimizer, args.learning_rate, args.schedule) == ("adamax", 1e-3, "constant")
  # 64 images of 32x32 on each device, or as many pixels, and 50,000 images in an epoch.
  num_devices = 40 if name == "celeba_hq256" else 8
  assert args.batch_size * args.image_size**2 == 64 * 32**2 * num_devices
  steps = math.ceil(50_000 / (64 * num_devices))
  assert (args.warm_up_steps, args.beta_2) == (10 * steps, 1 - 1 / steps)


def test_options_take_precedence_wherever_they_are(monkeypatch):
  for order in (["--preset=cifar10", "--num-steps=2"], ["--num-steps=2", "--preset=cifar10"]):
    args = parse(monkeypatch, *order)
    assert (args.preset, args.num_steps, args.num_blocks, args.num_hidden) == ("cifar10", 2, 3, 512)
  args = parse(monkeypatch, "--preset=cifar10_conditional", "--no-conditional", "--weight-y=0", "--data=some_images")
  assert (args.conditional, args.weight_y, args.data, args.num_bits) == (False, 0., "some_images", 5)


@pytest.mark.parametrize("permutation", ["reverse", "shuffle", "conv1x1"])
@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_the_ablation_is_a_matter_of_options(permutation, coupling, monkeypatch):
  ablated = vars(parse(monkeypatch, "--preset=cifar10", "--permutation", permutation, "--coupling", coupling))
  original = vars(parse(monkeypatch, "--preset=cifar10"))
  assert ablated == {**original, "permutation": permutation, "coupling": coupling}


of_both_scripts = pytest.mark.parametrize(
    "script, presets", [(train_glow, PRESETS), (train_residual_flow, RESIDUAL_PRESETS)], ids=["Glow", "residual flow"])


@of_both_scripts
def test_presets_set_nothing_but_options(script, presets, monkeypatch):
  known = vars(parse(monkeypatch, script=script))
  for preset in presets.values():
    assert preset.options().keys() <= known.keys()


@of_both_scripts
def test_help_names_the_presets(script, presets, monkeypatch, capsys):
  with pytest.raises(SystemExit) as ending:
    parse(monkeypatch, "--help", script=script)
  assert ending.value.code == 0
  shown = capsys.readouterr().out
  assert all(name in shown for name in presets)


@pytest.mark.parametrize("options, message", [
    (["--preset=cifar"], "--preset: invalid choice: 'cifar'"),
    (["--weight-y=0.1"], "--weight-y must be 0 without --conditional. Received: 0.1"),
    (["--beta-2=1"], "--beta-2: must be a number between 0 and 1. Received: '1'"),
    (["--warm-up-steps=-1"], "--warm-up-steps: must be a whole number of at least 0. Received: '-1'"),
    (["--optimizer=sgd"], "--optimizer: invalid choice: 'sgd'"),
    (["--preset=celeba_hq256", "--image-size=96"], "--image-size must be divisible by 2 ** num_blocks = 64"),
])
def test_bad_options(options, message, monkeypatch, capsys):
  with pytest.raises(SystemExit) as ending:
    parse(monkeypatch, *options)
  assert ending.value.code == 2 and message in capsys.readouterr().err


def test_constant_rate_after_a_warm_up(monkeypatch):
  schedule = train_glow.learning_rate_schedule(parse(monkeypatch, "--preset=cifar10"), steps_per_epoch=98)
  rates = [float(schedule(step)) for step in (0, 98, 490, 980, 981, 10_000, 1_000_000)]
  np.testing.assert_allclose(rates, np.array([0., .1, .5, 1., 1., 1., 1.]) * 1e-3, rtol=1e-5)


def test_optimizer_is_that_of_the_preset(monkeypatch):
  args = parse(monkeypatch, "--preset=cifar10", *example_runs.TINY)
  model = train_glow.make_model(args, (32, 32, 3))
  train_glow.compile_model(model, args, steps_per_epoch=98)
  assert type(model.optimizer).__name__ == "Adamax"
  assert (model.optimizer.beta_1, model.optimizer.beta_2) == (0.9, 1 - 1 / 98)


# At full size.


def test_formula_by_hand():
  """One level of one step, additive: 12 channels, 4 wide."""
  network = (9 * 7 * 4 + 8) + (16 + 8) + (9 * 5 * 6 + 12)
  assert architecture_sizes.glow(1, 1, "additive", 0, width=4) == 24 + (2 * 144 + 12) + network + 11 * 24


_ARCHITECTURES = {}
for _name, _preset in PRESETS.items():
  _ARCHITECTURES.setdefault(
      (_preset.image_size, _preset.num_blocks, _preset.num_steps, _preset.coupling, _preset.data * _preset.conditional),
      []).append(_name)


@slow
@pytest.mark.parametrize("names", _ARCHITECTURES.values(), ids="-".join)
def test_full_size(names, monkeypatch):
  """Except the number of steps, which are stacked: two steps have all parts that 32 steps have."""
  args = parse(monkeypatch, "--preset", names[0], "--num-steps=2")
  num_classes = {"cifar10": 10, "imagenet_resized/32x32": 1000}[args.data] if args.conditional else None
  monkeypatch.setattr(train_glow.data, "num_classes", lambda name, data_dir: num_classes)
  with threadpoolctl.threadpool_limits(1):  # On a busy machine the threads of NumPy wait for each other.
    model = train_glow.make_model(args, (args.image_size, args.image_size, 3))
  glow = model.distribution.bijector
  assert sum(math.prod(v.shape) for v in model.trainable_variables) == architecture_sizes.glow(
      args.num_blocks, args.num_steps, args.coupling, num_classes)
  assert glow.top.learn_top and glow.num_classes == num_classes and model.num_bits == args.num_bits
  size, levels = args.image_size, args.num_blocks
  leaving = [[size // 2**i, size // 2**i, 3 * 2**i] for i in range(1, levels)]
  top = [size // 2**levels, size // 2**levels, 3 * 2**(levels + 1)]
  assert [shape.as_list() for shape in glow._latent_shapes()] == leaving + [top]


# One training step of each.


@pytest.fixture
def mock_data():
  import tensorflow_datasets as tfds
  with tfds.testing.mock_data(num_examples=8, policy=tfds.testing.MockPolicy.USE_CODE):
    yield


_STARTED_BELOW = ("imagenet32", "cifar10_conditional")
_ONLY_OF_ANOTHER_CATEGORY = ("lsun_tower", "lsun_church")
_SMALL = ["--num-blocks=1", "--num-steps=1", "--num-hidden=4", "--batch-size=8", "--epochs=1"]


@slow
@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
@pytest.mark.usefixtures("mock_data", "eagerly")
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in _STARTED_BELOW + _ONLY_OF_ANOTHER_CATEGORY])
def test_each_preset_starts(name, monkeypatch, tmp_path):
  """What the flow is made of, is above."""
  if not PRESETS[name].conditional:
    monkeypatch.setattr(tfp_glow, "GlowBijector", example_runs.flow)
  taken = []
  monkeypatch.setattr(train_glow, "save_results", lambda model, test_images, history, results, *_: taken.append(
      (model, history, results)))
  monkeypatch.setattr(sys, "argv", ["train_glow.py", "--preset", name, *_SMALL, f"--output={tmp_path / 'output'}"])
  assert train_glow.main() == 0
  (model, history, results), = taken
  assert int(model.optimizer.iterations) == results["epochs"] == 1
  assert math.isfinite(history["bits_per_dim"][0]) and math.isfinite(results["validation_bits_per_dim"])
  assert model.distribution.event_shape == [PRESETS[name].image_size] * 2 + [3]


@pytest.mark.parametrize("name", _ONLY_OF_ANOTHER_CATEGORY)
def test_a_preset_of_another_category_differs_in_it_alone(name, monkeypatch, tmp_path):
  import tensorflow_datasets as tfds
  found, other = (vars(parse(monkeypatch, "--preset", preset)) for preset in (name, "lsun_bedroom"))
  assert found.pop("data") != other.pop("data") and found.pop("preset") != other.pop("preset") and found == other
  assert tfds.builder(PRESETS[name].data, data_dir=tmp_path).info.features["image"].shape == (None, None, 3)


@slow
@pytest.mark.usefixtures("mock_data")
def test_preset_with_its_own_epochs_ends_at_the_time_limit(monkeypatch, tmp_path):
  taken = []
  monkeypatch.setattr(train_glow, "save_results", lambda model, test_images, history, results, start, args: (
      taken.append((model, results, args))))
  monkeypatch.setattr(tfp_glow, "GlowBijector", example_runs.flow)
  options = ["--preset=imagenet32", *_SMALL[:-1], "--time-limit=1e-6", f"--output={tmp_path}"]
  monkeypatch.setattr(sys, "argv", ["train_glow.py", *options])
  assert train_glow.main() == 0
  (model, results, args), = taken
  assert args.epochs == 1_000_000 and not model.run_eagerly
  assert int(model.optimizer.iterations) == 1 and math.isfinite(results["validation_bits_per_dim"])


@slow
@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
@pytest.mark.usefixtures("mock_data", "eagerly")
def test_class_conditional_run_leaves_everything(monkeypatch, tmp_path):
  options = ["--preset=cifar10_conditional", *_SMALL]
  monkeypatch.setattr(sys, "argv", ["train_glow.py", *options, f"--output={tmp_path}"])
  assert train_glow.main() == 0
  assert {path.name for path in tmp_path.iterdir()} == set(train_glow.OUTPUTS)
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["settings"]["preset"] == "cifar10_conditional" and results["settings"]["num_blocks"] == 1
  assert 0. <= results["accuracy"] <= 1. and results["bits_y"] > 0.
  # 10 classes; 8 images to interpolate and to reconstruct.
  assert Image.open(tmp_path / "samples.png").size == (100 + 4 + 16 * 68, 4 + 10 * 68)
  assert Image.open(tmp_path / "interpolations.png").size == (4 + 16 * 68, 4 + 8 * 68)
  assert Image.open(tmp_path / "reconstructions.png").size == (100 + 4 + 8 * 68, 4 + 2 * 68)


@pytest.mark.slow
def test_page_has_the_published_numbers():
  page = (pathlib.Path(__file__).parent.parent / "docs" / "experiments.md").read_text()
  rows = re.findall(r"^\|[^|]*\| *([\d.]*) *\|.*train_glow.py --preset (\w+)`", page, re.M)
  assert {name: float(bits) if bits else None for bits, name in rows} == {
      name: preset.bits_per_dim for name, preset in PRESETS.items()}

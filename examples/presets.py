"""The experiments of Kingma and Dhariwal, "Glow" (2018): the settings of `train_glow.py --preset NAME`.

Batch sizes, levels, depths and couplings are those of the paper's table 4, bits per dimension those of its table 2.
The published commands of the original code (https://github.com/openai/glow, README.md) and the defaults of its train.py
give the rest, and the experiments with 5 bits. Where they disagree:

- LSUN has 4 levels in the table and `--n_level 3` in the command. Here 4: the bits per dimension are the paper's.
- The paper's text names Adam, the code's default is Adamax. Here Adamax: the commands do not change the default.

All have a learned top, the default of `GlowBijector`. The ablation is `--preset cifar10` with each `--permutation` and
each `--coupling`, and `--seed 0`, `1` and `2`. The original also keeps an average of its weights, but does not evaluate
it; these settings have none.

These settings differ from the published ones, because `train_glow.py` uses them with any data:

- The best epoch is chosen on a validation split (a twentieth of the training images if there is none). The original
  chooses it on the test split.
- Gradients longer than 100 are clipped, and random shifts are by whole pixels.
- For LSUN the central squares are evaluated; the original evaluates random ones.
- ImageNet with labels was not reduced by the authors.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Preset:
  """One experiment; all names but `bits_per_dim` are those of options of `train_glow.py`."""
  data: str
  image_size: int
  batch_size: int  # Over all devices. The original used 8, and 40 for 256x256.
  num_blocks: int  # The paper's levels, L.
  num_steps: int  # The paper's depth of a level, K.
  coupling: str
  bits_per_dim: float | None = None  # Published, of the test split.
  shorter_side: int | None = None
  max_shift: float = 0.
  shift_fill: str = "nearest"
  conditional: bool = False
  weight_y: float = 0.
  num_bits: int = 8
  permutation: str = "conv1x1"
  num_hidden: int = 512
  optimizer: str = "adamax"
  learning_rate: float = 1e-3
  schedule: str = "constant"
  epochs: int = 1_000_000  # The code's default: until the user ends it (Ctrl-C, --time-limit).
  gradient: str = "reversible"  # Changes no number; the original saves memory as well.

  @property
  def warm_up_steps(self):
    """10 epochs, as the original counts them."""
    return 10 * self._steps_of_an_epoch

  @property
  def beta_2(self):
    """The optimizer remembers one epoch, as the original counts them."""
    return 1. - 1. / self._steps_of_an_epoch

  @property
  def _steps_of_an_epoch(self):
    # 50,000 images of 32x32, or as many pixels, for any data.
    return math.ceil(50_000 * 32**2 / (self.batch_size * self.image_size**2))

  def options(self):
    """A dict from the names of options to their values."""
    options = {**dataclasses.asdict(self), "warm_up_steps": self.warm_up_steps, "beta_2": self.beta_2}
    del options["bits_per_dim"]
    return options


_SHIFTS = {"max_shift": 3.2}  # A tenth of the size; pixels that move in repeat the border.
_BY_CLASS = {"conditional": True, "weight_y": 0.01, "num_bits": 5}

PRESETS = {
    # data, image size, batch size, L, K, coupling, published bits per dimension
    "cifar10": Preset("cifar10", 32, 512, 3, 32, "affine", 3.35, **_SHIFTS),
    "imagenet32": Preset("downsampled_imagenet/32x32", 32, 512, 3, 48, "affine", 4.09),
    "imagenet64": Preset("downsampled_imagenet/64x64", 64, 128, 4, 48, "affine", 3.81),
    "lsun_bedroom": Preset("lsun/bedroom", 64, 128, 4, 48, "affine", 2.38, shorter_side=96),
    "lsun_tower": Preset("lsun/tower", 64, 128, 4, 48, "affine", 2.46, shorter_side=96),
    "lsun_church": Preset("lsun/church_outdoor", 64, 128, 4, 48, "affine", 2.67, shorter_side=96),
    "celeba_hq256": Preset("celeb_a_hq/256", 256, 40, 6, 32, "additive", num_bits=5),
    "cifar10_conditional": Preset("cifar10", 32, 512, 3, 32, "additive", **_SHIFTS, **_BY_CLASS),
    "imagenet32_conditional": Preset("imagenet_resized/32x32", 32, 512, 3, 48, "additive", **_BY_CLASS),
}

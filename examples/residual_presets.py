"""The density estimation of Chen et al., "Residual Flows" (2019), for `train_residual_flow.py --preset NAME`.

The settings are those of the published commands of the authors' code (https://github.com/rtqichen/residual-flows,
README.md) and the defaults of its train_img.py; bits per dimension are the paper's.

The flow differs from the published one:

- Actnorm has a factor 3 in its exponent, as in Glow: its scales learn three times as fast. It starts with deviations of
  exactly 1; the authors' actnorm leaves channels with a variance below 0.2 smaller than that.
- Norms of layers are iterated until they are known to a thousandth. The authors' iteration stops the earlier, the
  longer the vectors are, and some layers and blocks then exceed their bound.
- The 32 levels of 5-bit images are bins of the same width; in the authors' code those of CelebA-HQ overlap by 1/32.

Training and evaluation differ, because `train_residual_flow.py` does this with any data:

- The best epoch is chosen on a validation split (a twentieth of the training images if there is none), whose estimates
  always draw the same noise. The authors choose it by a noisy estimate on the test split.
- In the warm-up, the rate of each batch is that of the authors' previous batch: it starts from 0.
- If several batches make an update, averages follow it gradually until the next one, not at once.
- Data sets are those of TFDS. Its CelebA-HQ has no test split. The last tenth of the images takes its place, and
  differs from the authors' split.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Preset:
  """One experiment; all names but `bits_per_dim` are those of options of `train_residual_flow.py`."""
  data: str
  image_size: int
  num_scales: int
  num_blocks: int  # At each scale.
  bits_per_dim: float  # Published.
  squeeze_first: bool = False
  factor_out: bool = False
  num_dense_blocks: int = 4
  activation: str = "lip_swish"
  num_terms: int = 2
  logit_alpha: float = 0.05
  flip: bool = False
  num_bits: int = 8
  batch_size: int = 64
  accumulation_steps: int = 1
  num_hidden: int = 512
  num_dense_hidden: int = 128
  coefficient: float = 0.98
  epochs: int = 1000
  optimizer: str = "adam"
  learning_rate: float = 1e-3
  beta_2: float = 0.99
  epsilon: float = 1e-8
  schedule: str = "constant"
  warm_up_steps: int = 1000  # Batches, as the authors count them.
  max_gradient_norm: float = 1.
  ema: float = 0.999

  def options(self):
    """A dict from the names of options to their values."""
    options = {**dataclasses.asdict(self), "num_blocks": [self.num_blocks]}
    del options["bits_per_dim"]
    return options


_HALVED = {"squeeze_first": True, "factor_out": True}

PRESETS = {
    # data, image size, scales, blocks at each, published bits per dimension
    "mnist": Preset("mnist", 28, 3, 16, 0.970, logit_alpha=1e-6),
    "cifar10": Preset("cifar10", 32, 3, 16, 3.280, flip=True),
    "imagenet32": Preset("downsampled_imagenet/32x32", 32, 3, 32, 4.010),
    "imagenet64": Preset("downsampled_imagenet/64x64", 64, 3, 32, 3.757, **_HALVED),
    "celeba_hq256": Preset("celeb_a_hq/256", 256, 6, 16, 0.992, **_HALVED, num_dense_blocks=0, activation="elu",
                           num_terms=8, flip=True, num_bits=5, batch_size=8, accumulation_steps=5),
}

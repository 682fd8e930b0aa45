"""Glow: the multi-scale bijector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat, numerics
from tfp_glow._core.validation import check_choice, check_counts, check_seed, checked_event_shape
from tfp_glow.bijectors.actnorm import ActNorm
from tfp_glow.bijectors.conv1x1 import InvertibleConv1x1, lu_factors, random_rotation
from tfp_glow.bijectors.coupling import AdditiveCoupling, AffineCoupling
from tfp_glow.bijectors.factor_out import FactorOut, TopPrior
from tfp_glow.bijectors.glow_step import GlowStep
from tfp_glow.bijectors.permutation import ChannelPermutation
from tfp_glow.bijectors.scan import Scan
from tfp_glow.bijectors.squeeze import Squeeze
from tfp_glow.bijectors.whole_flow import WholeFlow
from tfp_glow.networks.glow import CouplingNetwork

_COUPLINGS = {"affine": AffineCoupling, "additive": AdditiveCoupling}
_PERMUTATIONS = ("conv1x1", "reverse", "shuffle")


class GlowBijector(WholeFlow):
  """Glow, multi-scale, from a latent vector to an image.

  ```none
  inverse: for each block (the paper's level): squeeze, K steps of flow; then, but in the last block, half of the
           channels leave, whitened by a Gaussian whose mean and scale are learned from the other half.
  ```

  All latents are standard normal where the model is right. The vector holds them one after the other, the first to
  leave first and the top last; `split_latent` gives them back as images.

  `log_prob` of a `tfd.TransformedDistribution` is one pass, and within `tfp_glow.Chain`, too. Within `tfb.Chain` it may
  take two, `experimental_sample_and_log_prob` three.

  #### Example

  ```python
  import tensorflow_probability as tfp
  import tfp_glow

  glow = tfp_glow.GlowBijector(output_shape=(8, 8, 1), num_glow_blocks=2, num_steps_per_block=4, num_hidden=32)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [8 * 8 * 1])
  images = tfp.distributions.TransformedDistribution(base, glow)
  x = images.sample(3)      # [3, 8, 8, 1]
  images.log_prob(x)        # [3], in nats
  ```

  References:
    Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018).
  """

  def __init__(self, output_shape: Sequence[int] = (32, 32, 3), num_glow_blocks: int = 3, num_steps_per_block: int = 32,
               num_hidden: int = 512, coupling: str = "affine", permutation: str = "conv1x1",
               network_fn: Callable[[int], keras.Layer] | None = None, num_classes: int | None = None,
               learn_top: bool = True, gradient: str = "autodiff", seed: int | None = None,
               dtype: tf.DType | str | None = None, validate_args: bool = False, name: str = "glow"):
    """Creates the bijector.

    Args:
      output_shape: `(H, W, C)` of an image; `H` and `W` divisible by `2 ** num_glow_blocks`.
      num_glow_blocks: Python `int`, the paper's number of levels.
      num_steps_per_block: Python `int`, steps of flow in a block, the paper's depth `K`.
      num_hidden: Python `int`, channels of the hidden layers of the default network. It computes in the precision of
        Keras' global dtype policy: after `keras.config.set_dtype_policy("mixed_bfloat16")` in bfloat16, while all
        variables, the rest of the flow and its log-dets keep `dtype`.
      coupling: `"affine"` or `"additive"`.
      permutation: `"conv1x1"`, `"reverse"` or `"shuffle"`.
      network_fn: Callable, from `num_output_channels` to a Keras layer from `[N, h, w, c]` to
        `[N, h, w, num_output_channels]`, used in place of `networks.CouplingNetwork`. It is called for every step.
        Have its last layer start at zero: the flow then starts near the identity.
      num_classes: Python `int`: the top prior depends on `labels`, which must be passed as
        `bijector_kwargs={"labels": labels}`. `None`: no classes.
      learn_top: Python `bool`: whether the Gaussian of the top latent is learned.
      gradient: `"autodiff"` is the faster; `"reversible"` needs memory for the activations of one step of each block
        only, whatever `num_steps_per_block`. See `Scan`.
      seed: Python `int`: same seed, same initial values (but for those of your own `network_fn`). `None`: others each
        time (after `keras.utils.set_random_seed`, the same).
      dtype: Floating dtype of parameters, images and latents. Default: Keras' `floatx`.
      validate_args: Python `bool`: a non-finite input is an error, at a cost.
      name: Python `str`.

    Raises:
      ValueError: if an argument is not as above.
    """
    parameters = dict(locals())
    height, width, channels = _checked_output_shape(output_shape, num_glow_blocks)
    check_counts(num_steps_per_block=num_steps_per_block, num_hidden=num_hidden)
    if num_classes is not None:
      check_counts(num_classes=num_classes)
    check_seed(seed)
    check_choice("coupling", coupling, tuple(_COUPLINGS))
    check_choice("permutation", permutation, _PERMUTATIONS)
    super().__init__(forward_event_shape=[height * width * channels], inverse_event_shape=[height, width, channels],
                     dtype=dtype, validate_args=validate_args, parameters=parameters, name=name)
    self._squeeze = self._add_child(Squeeze(dtype=self.dtype))
    self._num_steps_per_block = num_steps_per_block
    self._block_shapes = _compat.untracked(self, _block_shapes((height, width, channels), num_glow_blocks))
    rng = numerics.generator(seed)
    self.blocks = []
    self.splits = []
    for block, event_shape in enumerate(self._block_shapes):
      make_step, redraw = _step_maker(event_shape[-1], _COUPLINGS[coupling], permutation, network_fn, num_hidden, rng,
                                      self.dtype)
      self.blocks.append(self._add_child(
          Scan(make_step, num_steps_per_block, event_shape, gradient, redraw, self.dtype, name=f"block{block}")))
      if block < num_glow_blocks - 1:
        self.splits.append(self._add_child(FactorOut(event_shape, self.dtype, name=f"split{block}")))
    self.top = self._add_child(TopPrior(self._block_shapes[-1], learn_top, num_classes, self.dtype, name="top"))

  @property
  def num_class_features(self) -> int:
    """Number of the `class_features`: the channels of the top latent."""
    return self._block_shapes[-1][-1]

  def class_features(self, z: tf.Tensor | np.ndarray, labels: tf.Tensor | np.ndarray | None = None) -> tf.Tensor:
    """What the original's classifier sees: the mean over all positions of the top latent, before it is whitened.

    It tells of the image alone: the labels only undo what they did to `z`.

    Args:
      z: Tensor `[..., H * W * C]`.
      labels: Integer tensor `[...]`, those that `z` was made with, of a bijector with `num_classes`.

    Returns:
      Tensor `[..., num_class_features]`.

    Raises:
      ValueError: if the shape of `z` does not fit, or labels are missing or too many.
    """
    condition = {} if labels is None else {"labels": labels}
    return tf.reduce_mean(self.top.forward(self.split_latent(z)[-1], **condition), axis=[-3, -2])

  def _latent_shapes(self):
    leaving = [tf.TensorShape([h, w, c // 2]) for h, w, c in self._block_shapes[:-1]]
    return leaving + [tf.TensorShape(self._block_shapes[-1])]

  def _forward_and_log_det(self, x, labels=None):
    return self._decode(x, labels, lambda block, y: block._forward_and_log_det(y))

  def _decode(self, x, labels, run_block):
    *parts, top = self.split_latent(x)
    y, log_det = self.top._forward_and_log_det(top, labels)
    for block, noise in zip(reversed(range(len(self.blocks))), [None] + parts[::-1]):
      if noise is not None:
        y, log_det_split = self.splits[block].merge(y, noise)
        log_det += log_det_split
      y, log_det_steps = run_block(self.blocks[block], y)
      y, _ = self._squeeze._forward_and_log_det(y)
      log_det += log_det_steps
    return y, log_det

  def _inverse_and_log_det(self, y, labels=None):
    return self._encode(y, labels, lambda block, y: block._inverse_and_log_det(y))

  def _initialize(self, y):
    """Block after block; the top prior keeps its values, whatever the labels."""
    return self._encode(y, self.any_condition(y).get("labels"), lambda block, y: (block._initialize(y), 0.))[0]

  def _initialize_back(self, x):
    return self._decode(x, self.any_condition(x).get("labels"), lambda block, y: (block._initialize_back(y), 0.))[0]

  def _walk(self, y, labels=None):
    for index, block in enumerate(self.blocks):
      y, _ = self._squeeze._inverse_and_log_det(y)
      for name, y, log_det in block._walk(y):
        yield name, y, log_det
      if index < len(self.splits):
        y, noise, log_det = self.splits[index].split(y)
        yield self.splits[index].name, noise, log_det
    yield (self.top.name, *self.top._inverse_and_log_det(y, labels))

  def _encode(self, y, labels, run_block):
    parts, log_det = [], 0.
    for index, block in enumerate(self.blocks):
      y, _ = self._squeeze._inverse_and_log_det(y)
      y, log_det_steps = run_block(block, y)
      log_det += log_det_steps
      if index < len(self.splits):
        y, noise, log_det_split = self.splits[index].split(y)
        parts.append(noise)
        log_det += log_det_split
    top, log_det_top = self.top._inverse_and_log_det(y, labels)
    return self.join_latent(parts + [top]), log_det + log_det_top


def _step_maker(num_channels, coupling, permutation, network_fn, num_hidden, rng, dtype):
  """The `make_step` and the `redraw` of a block (see `Scan`)."""
  num_changed = num_channels - num_channels // 2
  num_outputs = 2 * num_changed if coupling is AffineCoupling else num_changed
  draw_seed = lambda: int(rng.integers(2**30))

  def make_network():
    if network_fn is not None:
      return network_fn(num_outputs)
    return CouplingNetwork(num_outputs, num_hidden, num_outputs // num_changed, draw_seed(),
                           dtype=_network_policy(dtype), name="network")

  def draw_indices():
    if permutation == "reverse":
      return np.arange(num_channels)[::-1]
    return numerics.generator(draw_seed()).permutation(num_channels)

  def make_step(k):
    del k
    permute = (InvertibleConv1x1(num_channels, draw_seed(), dtype=dtype) if permutation == "conv1x1" else
               ChannelPermutation(draw_indices(), dtype=dtype))
    return GlowStep(ActNorm(num_channels, dtype=dtype), permute, coupling(make_network(), dtype=dtype))

  def redraw(step):
    values = {"indices": draw_indices()} if permutation != "conv1x1" else lu_factors(
        random_rotation(num_channels, draw_seed()), num_channels)
    drawn = [(getattr(step.permutation, key), value) for key, value in values.items()]
    drawn = {id(variable): value for variable, value in drawn + step.coupling.network.redraw(draw_seed())}
    return [drawn.get(id(variable), np.zeros(variable.shape)) for variable in step._keras_variables()]

  return make_step, redraw if network_fn is None else None


def _network_policy(dtype):
  """Keras' global dtype policy, if it may compute in less than the flow's precision but keeps variables in that."""
  policy = keras.config.dtype_policy()
  return policy if policy.variable_dtype == dtype.name else dtype.name


def _block_shapes(output_shape, num_blocks):
  """Shapes `[h, w, c]` in which the steps of each block work."""
  shapes, (height, width, channels) = [], output_shape
  for _ in range(num_blocks):
    height, width, channels = height // 2, width // 2, channels * 4
    shapes.append((height, width, channels))
    channels //= 2
  return shapes


def _checked_output_shape(output_shape, num_glow_blocks):
  check_counts(num_glow_blocks=num_glow_blocks)
  shape = checked_event_shape("output_shape", output_shape)
  if any(size % 2**num_glow_blocks for size in shape[:2]):
    raise ValueError(f"`output_shape` must have a height and width divisible by 2 ** `num_glow_blocks` = "
                     f"{2**num_glow_blocks}, as every block halves them. Received: {output_shape!r}")
  return shape

"""Glow: the multi-scale bijector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat, numerics
from tfp_glow._core.validation import check_choice, check_counts, check_seed, checked_event_shape
from tfp_glow.bijectors import batching, context_features, contexts
from tfp_glow.bijectors.coupling import AdditiveCoupling, AffineCoupling
from tfp_glow.bijectors.factor_out import FactorOut, TopPrior
from tfp_glow.bijectors.scan import Scan
from tfp_glow.bijectors.squeeze import Squeeze
from tfp_glow.bijectors.step_maker import step_maker
from tfp_glow.bijectors.whole_flow import WholeFlow
from tfp_glow.networks import building
from tfp_glow.networks.glow import CouplingNetwork

_COUPLINGS = {"affine": AffineCoupling, "additive": AdditiveCoupling}
_PERMUTATIONS = ("conv1x1", "reverse", "shuffle")


class GlowBijector(WholeFlow):
  """Glow, multi-scale, from a latent vector to an image.

  ```none
  inverse: for each block (the paper's level): squeeze, K steps of flow; then, except in the last block, half of the
           channels leave, normalised by a Gaussian whose mean and scale are learned from the other half.
  ```

  All latents are standard normal if the model is right. The vector holds them in the order in which they leave, with
  the top latent last. `split_latent` returns them as images.

  Before training, `initialize(images)` sets the actnorms from a batch of images; `FlowModel.fit` does it by itself.

  `log_prob` of a `tfd.TransformedDistribution` takes one pass, also within `tfp_glow.Chain`. Within `tfb.Chain` it may
  take two, and `experimental_sample_and_log_prob` three.

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
               dtype: tf.DType | str | None = None, validate_args: bool = False, name: str = "glow",
               context_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
               context_network: keras.Layer | None = None):
    """Creates the bijector.

    Args:
      output_shape: `(H, W, C)` of an image; `H` and `W` must be divisible by `2 ** num_glow_blocks`.
      num_glow_blocks: Python `int`, the paper's number of levels.
      num_steps_per_block: Python `int`, steps of flow in a block, the paper's depth `K`.
      num_hidden: Python `int`, channels of the hidden layers of the default network. The network computes in the
        precision of Keras' global dtype policy. After `keras.config.set_dtype_policy("mixed_bfloat16")` that is
        bfloat16; all variables, the rest of the flow and its log-dets keep `dtype`.
      coupling: `"affine"` or `"additive"`.
      permutation: `"conv1x1"`, `"reverse"` or `"shuffle"`.
      network_fn: Callable, from `num_output_channels` to a Keras layer from `[N, h, w, c]` to
        `[N, h, w, num_output_channels]`, used instead of `networks.CouplingNetwork`. It is called for every step.
        Start its last layer at zero: the flow then starts near the identity. With a context the layer is called with
        `[inputs, context]`; `context` holds the features of that level, `[N, h, w, F]`.
      num_classes: Python `int`: the top prior depends on `labels`, which must be passed as
        `bijector_kwargs={"labels": labels}`. `None`: no classes.
      learn_top: Python `bool`: whether the Gaussian of the top latent is learned.
      gradient: `"autodiff"` is faster. `"reversible"` needs memory only for the activations of one step of each block,
        whatever `num_steps_per_block`. See `Scan`.
      seed: Python `int`: the same seed gives the same initial values, except in networks of your own `network_fn`.
        `None`: new values each time (the same after `keras.utils.set_random_seed`).
      dtype: Floating dtype of parameters, images and latents. Default: Keras' `floatx`.
      validate_args: Python `bool`: a non-finite input is an error, at a cost.
      name: Python `str`.
      context_shape: Shape of one context, `(D,)` of a vector or `(h, w, c)` of an image, or a dict from names to such
        shapes. All couplings, splits and the top prior depend on `context`, which must be passed as
        `bijector_kwargs={"context": context}`, `[..., *context_shape]` or a dict of such tensors. Vectors are repeated
        at all positions. Images may be larger or smaller than `output_shape` by a power of two. They are squeezed to
        the size of the first block, averaged over squares of pixels for later ones, and repeated where they are
        smaller. Scale your context to about -1 .. 1. `None`: no context.
      context_network: Keras layer, from a batch of contexts (or a dict of them) to vectors or images, or a dict of
        them. Its outputs replace the context. It is evaluated once per pass, and trained with the rest. `None`: the
        context is used unchanged.

    Raises:
      TypeError: if `context_network` is not a Keras layer, or `network_fn` not a function.
      ValueError: if another argument is not as above.
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
    feature_shapes = self._make_context_features(context_shape, context_network)
    rng, policy = numerics.generator(seed), building.policy_of(self.dtype)
    make_network = lambda num_outputs, num_groups, seed: CouplingNetwork(
        num_outputs, num_hidden, num_groups, seed, dtype=policy, name="network")
    self.blocks = []
    self.splits = []
    for block, event_shape in enumerate(self._block_shapes):
      make_step, redraw = step_maker(event_shape[-1], _COUPLINGS[coupling], permutation, network_fn, make_network, rng,
                                     self.dtype, feature_shapes[block])
      self.blocks.append(self._add_child(
          Scan(make_step, num_steps_per_block, event_shape, gradient, redraw, self.dtype, name=f"block{block}")))
      if block < num_glow_blocks - 1:
        self.splits.append(self._add_child(
            FactorOut(event_shape, self.dtype, name=f"split{block}", context_shape=feature_shapes[block])))
    self.top = self._add_child(TopPrior(self._block_shapes[-1], learn_top, num_classes, self.dtype, name="top",
                                        context_shape=feature_shapes[-1]))

  def _make_context_features(self, context_shape, context_network):
    """Returns the shape of the context's features in each block; `None`s if there is no context."""
    sizes = [tuple(shape[:2]) for shape in self._block_shapes]
    shapes = contexts.checked_context_shape(context_shape)
    if shapes is None:
      context_features.check_no_network(context_network)
      return [None] * len(sizes)
    features = context_features.ContextFeatures(shapes, context_network, sizes, self.dtype)
    self._take_context(shapes, features)
    return [features.shape(level) for level in range(len(sizes))]

  @property
  def num_class_features(self) -> int:
    """Number of the `class_features`: the channels of the top latent."""
    return self._block_shapes[-1][-1]

  def class_features(self, z: tf.Tensor | np.ndarray, labels: tf.Tensor | np.ndarray | None = None,
                     context: Any = None) -> tf.Tensor:
    """The inputs of the original code's classifier: the top latent before normalisation, averaged over positions.

    They depend on the image alone: the labels only undo their effect on `z`.

    Args:
      z: Tensor `[..., H * W * C]`.
      labels: Integer tensor `[...]`, the labels that `z` was made with, for a bijector with `num_classes`.
      context: The context that `z` was made with, for a bijector with `context_shape`; `z` is then `[N, H * W * C]`.

    Returns:
      Tensor `[..., num_class_features]`.

    Raises:
      ValueError: if the shape of `z` does not fit, or labels or context are missing or too many.
    """
    z = self._convert(z, "z", inverse=False)
    condition = self._condition_of_top(context, z) | ({} if labels is None else {"labels": labels})
    return tf.reduce_mean(self.top.forward(self.split_latent(z)[-1], **condition), axis=[-3, -2])

  def relabelled(self, z: tf.Tensor, labels: tf.Tensor, new_labels: tf.Tensor,
                 context: Any = None) -> tuple[tf.Tensor, tf.Tensor]:
    """The latents of images under other labels, without another pass: labels act on the top prior alone.

    Args:
      z: Tensor `[N, H * W * C]`, latents.
      labels: Integer tensor `[N]`, the labels that `z` was made with.
      new_labels: Integer tensor `[N, K]`, `K` for each image.
      context: The context that `z` was made with, for a bijector with `context_shape`.

    Returns:
      new_z: Tensor `[N, K, H * W * C]`.
      log_det: Tensor `[N, K]`, nats: the increase of the log-det of `inverse` with each of `new_labels`.

    Raises:
      ValueError: if the shape of `z` does not fit, or labels or context are missing or too many.
    """
    *parts, top = self.split_latent(z)
    condition = self._condition_of_top(context, z)
    values, log_det = self.top.forward_and_log_det(top, labels=labels, **condition)
    count = tf.shape(new_labels)[1]
    repeated = lambda tensor: tf.repeat(tensor, count, axis=0)
    new_top, new_log_det = self.top.inverse_and_log_det(
        repeated(values), labels=tf.reshape(new_labels, [-1]), **tf.nest.map_structure(repeated, condition))
    new_z = self.join_latent([*map(repeated, parts), new_top])
    return (tf.reshape(new_z, [-1, count, z.shape[-1]]),
            log_det[:, tf.newaxis] + tf.reshape(new_log_det, [-1, count]))

  def _latent_shapes(self):
    leaving = [tf.TensorShape([h, w, c // 2]) for h, w, c in self._block_shapes[:-1]]
    return leaving + [tf.TensorShape(self._block_shapes[-1])]

  def _condition_of_top(self, context, z):
    """The top prior's arguments, a dict, for unchecked arguments and latents `z`."""
    shapes = self._own_context_shapes
    if shapes is not None:
      context = contexts.converted(context, shapes, self.dtype, self.name)
      condition, _ = batching.flat_arguments({"context": context}, tf.shape(z)[:-1], z.shape[:-1], shapes)
      return self._conditions(**condition)[-1]
    if context is not None:
      raise ValueError(f"`context` must be None: `{self.name}` was made without `context_shape`. Received: {context!r}")
    return {}

  def _conditions(self, context):
    """Keyword arguments of the parts of each block: a list of dicts."""
    if context is None:
      return [{}] * len(self.blocks)
    features = self._context_features
    return [{"context": of_level} for of_level in features.of_levels(features.parts(context))]

  def _forward_and_log_det(self, x, labels=None, context=None):
    return self._decode(x, labels, context, lambda block, y, condition: block._forward_and_log_det(y, **condition))

  def _decode(self, x, labels, context, run_block):
    *parts, top = self.split_latent(x)
    conditions = self._conditions(context)
    y, log_det = self.top._forward_and_log_det(top, labels, **conditions[-1])
    for block, noise in zip(reversed(range(len(self.blocks))), [None] + parts[::-1]):
      if noise is not None:
        y, log_det_split = self.splits[block].merge(y, noise, **conditions[block])
        log_det += log_det_split
      y, log_det_steps = run_block(self.blocks[block], y, conditions[block])
      y, _ = self._squeeze._forward_and_log_det(y)
      log_det += log_det_steps
    return y, log_det

  def _inverse_and_log_det(self, y, labels=None, context=None):
    return self._encode(y, labels, context, lambda block, y, condition: block._inverse_and_log_det(y, **condition))

  def _encode(self, y, labels, context, run_block):
    parts, log_det, conditions = [], 0., self._conditions(context)
    for index, block in enumerate(self.blocks):
      y, _ = self._squeeze._inverse_and_log_det(y)
      y, log_det_steps = run_block(block, y, conditions[index])
      log_det += log_det_steps
      if index < len(self.splits):
        y, noise, log_det_split = self.splits[index].split(y, **conditions[index])
        parts.append(noise)
        log_det += log_det_split
    top, log_det_top = self.top._inverse_and_log_det(y, labels, **conditions[-1])
    return self.join_latent(parts + [top]), log_det + log_det_top

  def _initialize(self, y, labels=None, context=None):
    """Initialises block after block; the top prior keeps its values, so that any labels do."""
    labels = self.any_condition(y).get("labels") if labels is None else labels
    run_block = lambda block, y, condition: (block._initialize(y, **condition), 0.)
    return self._encode(y, labels, context, run_block)[0]

  def _initialize_back(self, x, labels=None, context=None):
    labels = self.any_condition(x).get("labels") if labels is None else labels
    run_block = lambda block, y, condition: (block._initialize_back(y, **condition), 0.)
    return self._decode(x, labels, context, run_block)[0]

  def _walk(self, y, labels=None, context=None):
    conditions = self._conditions(context)
    for index, block in enumerate(self.blocks):
      y, _ = self._squeeze._inverse_and_log_det(y)
      for name, y, log_det in block._walk(y, **conditions[index]):
        yield name, y, log_det
      if index < len(self.splits):
        y, noise, log_det = self.splits[index].split(y, **conditions[index])
        yield self.splits[index].name, noise, log_det
    yield (self.top.name, *self.top._inverse_and_log_det(y, labels, **conditions[-1]))


def _block_shapes(output_shape, num_blocks):
  """Shapes `[h, w, c]` of the steps in each block."""
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
                     f"{2**num_glow_blocks}, because every block halves them. Received: {output_shape!r}")
  return shape

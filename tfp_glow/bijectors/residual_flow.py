"""Residual Flows: the multi-scale bijector."""

from __future__ import annotations

from collections import abc

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat, numerics
from tfp_glow._core.validation import (
  check_bools,
  check_counts,
  check_fractions,
  check_seed,
  checked_dtype,
  checked_event_shape,
)
from tfp_glow.bijectors import context_features, contexts
from tfp_glow.bijectors.actnorm import ActNorm
from tfp_glow.bijectors.composition import Sequence
from tfp_glow.bijectors.leaving import Flatten, HalfLeaves
from tfp_glow.bijectors.logit import Logit
from tfp_glow.bijectors.normalization import Normalization, checked_statistics
from tfp_glow.bijectors.residual import InvertibleResidualBlock
from tfp_glow.bijectors.scan import Scan
from tfp_glow.bijectors.squeeze import Squeeze
from tfp_glow.bijectors.whole_sequence import WholeSequence
from tfp_glow.networks.activations import activation_layer, check_activation
from tfp_glow.networks.lipschitz import LearnedOrder, LipschitzConv2D, LipschitzDense


class ResidualStep(Sequence):
  """One step of a residual flow; `inverse` is a residual block, then actnorm."""

  def __init__(self, block: InvertibleResidualBlock, actnorm: ActNorm, validate_args: bool = False,
               name: str = "residual_step"):
    """Creates the step.

    Args:
      block: `InvertibleResidualBlock`.
      actnorm: `ActNorm`, of the same `event_ndims`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if the `event_ndims` differ.
    """
    parameters = dict(locals())
    ranks = [part.inverse_min_event_ndims for part in (block, actnorm)]
    if ranks[0] != ranks[1]:
      raise ValueError(f"`block` and `actnorm` must have the same `event_ndims`. Received: {ranks}")
    event_shape = [None] * ranks[0]
    super().__init__([block, actnorm], forward_event_shape=event_shape, inverse_event_shape=event_shape,
                     dtype=actnorm.dtype, validate_args=validate_args, parameters=parameters, name=name)
    self.block = block
    self.actnorm = actnorm

  def build(self, event_shape: abc.Sequence[int] | tf.TensorShape) -> None:
    """Builds the block's network for events of this shape.

    Args:
      event_shape: Static shape of one event, `[H, W, C]` or `[C]`.

    Raises:
      ValueError: if the network does not fit them; see `InvertibleResidualBlock.build`.
    """
    self.block.build(event_shape)


class ResidualFlowBijector(WholeSequence):
  """A residual flow from a latent vector to an image or a vector.

  ```none
  inverse: logit or normalisation, [squeeze], actnorm; then, for each scale, steps of a residual block and actnorm, and
           after all scales except the last: squeeze [and half of the channels leaves]; at the end, on the flat vector,
           steps of a fully connected residual block and actnorm.
  ```

  Each network is LipSwish, 3x3 convolution, LipSwish, 1x1 convolution, LipSwish, 3x3 convolution, or as many fully
  connected layers. The first network of the flow has no LipSwish before its first layer.

  The latent is a vector, standard normal if the model is right. It holds the channels that leave at each scale, in
  order, and the rest at the end. `split_latent` returns these parts as images.

  `inverse` is one pass. `forward` solves each block by fixed-point iterations and is far slower. Log-dets are
  estimated. See `InvertibleResidualBlock` for this, for `training`, and for `after_update`, which must follow every
  update of the weights (`FlowModel` handles both).

  #### Example

  ```python
  import tensorflow_probability as tfp
  import tfp_glow

  flow = tfp_glow.ResidualFlowBijector((8, 8, 1), num_scales=2, num_blocks_per_scale=2, num_hidden=16)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [8 * 8 * 1])
  images = tfp.distributions.TransformedDistribution(base, flow)
  x = images.sample(3)      # [3, 8, 8, 1]
  images.log_prob(x)        # [3], in nats
  ```

  References:
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019), appendix E. The order of the parts follows
    the authors' code.
  """

  def __init__(self, output_shape: int | abc.Sequence[int] = (32, 32, 3), num_scales: int = 3,
               num_blocks_per_scale: int | abc.Sequence[int] = 16, num_hidden: int = 512, num_dense_blocks: int = 4,
               num_dense_hidden: int = 128, logit_alpha: float | str | None = "auto", coefficient: float = 0.98,
               log_det: str = "russian_roulette", num_terms: int = 2, num_eval_terms: int = 20,
               roulette: str = "poisson", probe: str = "gaussian", seed: int | None = None,
               dtype: tf.DType | str | None = None, validate_args: bool = False, name: str = "residual_flow",
               mean_and_deviation: tuple[abc.Sequence[float], abc.Sequence[float]] | None = None,
               factor_out: bool = False, squeeze_first: bool = False,
               activation: str | abc.Callable[[tf.Tensor], tf.Tensor] = "lip_swish",
               learn_orders: bool | str = False,
               context_shape: abc.Sequence[int] | abc.Mapping[str, abc.Sequence[int]] | None = None,
               context_network: keras.Layer | None = None, log_scale_factor: float = numerics.LOG_SCALE_FACTOR):
    """Creates the bijector.

    Args:
      output_shape: `(H, W, C)` of an image; `H` and `W` must be divisible by 2 to the number of squeezes, which is
        `num_scales - 1`, or `num_scales` with `squeeze_first`. Or `(C,)` of a vector: only fully connected blocks.
      num_scales: Python `int`; 0 for vectors.
      num_blocks_per_scale: Python `int`, or a sequence with one for each scale.
      num_hidden: Python `int`, channels of the hidden layers of the convolutional networks.
      num_dense_blocks: Python `int`, number of fully connected blocks.
      num_dense_hidden: Python `int`, width of the hidden layers in their networks.
      logit_alpha: Python `float`, `alpha` of `Logit`, for images whose values lie in `[-1/2, 1/2]` (others become
        NaN). `None`: no logit. `"auto"`: 0.05 for images without `mean_and_deviation`, else `None`.
      coefficient: Python `float` below 1, bound of the norm of each layer.
      log_det: See `InvertibleResidualBlock`.
      num_terms: See `InvertibleResidualBlock`.
      num_eval_terms: See `InvertibleResidualBlock`.
      roulette: See `InvertibleResidualBlock`.
      probe: See `InvertibleResidualBlock`.
      seed: Python `int`, of initial values and estimates: same seed, same values. `None`: new ones each time (the same
        after `keras.utils.set_random_seed`).
      dtype: Floating dtype of parameters, images and latents. Default: Keras' `floatx`.
      validate_args: Python `bool`: a non-finite input is an error, at a cost.
      name: Python `str`.
      mean_and_deviation: Pair of sequences, a mean and a deviation for each channel of pixels between 0 and 1 (as
        published; the flow's own values lie 1/2 lower). Images are normalised by them instead of the logit. `None`: no
        normalisation.
      factor_out: Python `bool`: whether half of the channels leaves after each scale except the last.
      squeeze_first: Python `bool`: whether images are squeezed first.
      activation: `"lip_swish"`, another name of `keras.activations` (`"elu"`), or your own function, nowhere steeper
        than 1. To save the flow, register the function by `keras.saving.register_keras_serializable`.
      learn_orders: `True`: the orders of the norms that bound the layers are learned, three for each block: the order
        of a layer's outputs is that of the next layer's inputs, and that of the last layer's outputs is that of the
        first layer's inputs. `"per_position"`: the same, with the authors' norm of 1x1 convolutions; see
        `LipschitzConv2D`.
      context_shape: As in `GlowBijector`. All residual blocks depend on `context`, which must be passed as
        `bijector_kwargs={"context": context}`; see `InvertibleResidualBlock`. The first scale has the size of the
        image, after the first squeeze if any. Fully connected blocks get images flattened.
      context_network: As in `GlowBijector`.
      log_scale_factor: Of each `ActNorm`. The default is Glow's; the authors' code has 1.

    Raises:
      TypeError: if `activation` is not as above, or `context_network` is not a Keras layer.
      ValueError: if another argument is not as above, or `activation` is steeper than 1.
    """
    parameters = dict(locals())
    check_bools(factor_out=factor_out, squeeze_first=squeeze_first)
    shape, num_blocks = _checked_sizes(output_shape, num_scales, num_blocks_per_scale, squeeze_first)
    check_counts(num_hidden=num_hidden, num_dense_hidden=num_dense_hidden)
    check_counts(least=0 if num_scales else 1, num_dense_blocks=num_dense_blocks)
    check_seed(seed)
    if not isinstance(learn_orders, bool) and learn_orders != "per_position":
      raise ValueError(f"`learn_orders` must be a `bool` or 'per_position'. Received: {learn_orders!r}")
    _check_is_of_images(shape, factor_out=factor_out, squeeze_first=squeeze_first)
    dtype = checked_dtype(dtype or keras.config.floatx())
    check_activation(activation, dtype)
    context_shapes = contexts.checked_context_shape(context_shape)
    features = _context_features(context_shapes, context_network, shape, num_scales, squeeze_first, dtype)
    make = _Maker(coefficient, activation, learn_orders, dtype, seed, features, log_scale_factor, dict(
        log_det=log_det, num_terms=num_terms, num_eval_terms=num_eval_terms, roulette=roulette, probe=probe))
    first, event_shape = _entrance(shape, logit_alpha, mean_and_deviation, dtype), shape
    if squeeze_first:
      first.append(Squeeze(dtype=dtype, name="squeeze_first"))
      event_shape = first[-1].inverse_event_shape(shape)
    first.append(make.actnorm(event_shape))
    segments, shapes = make.scales(event_shape, num_blocks, num_hidden, factor_out)
    if num_scales:
      segments[-1].append(Flatten(shapes[-1], dtype))
    flat_shape = tf.TensorShape([shapes[-1].num_elements()])
    segments[-1] += make.steps(flat_shape, num_dense_blocks, num_dense_hidden, num_scales == 0, "dense")
    segments[0] = first + segments[0]
    parts = _nested(segments, shapes, dtype) if factor_out else sum(segments, [])
    super().__init__(parts, forward_event_shape=[shape.num_elements()], inverse_event_shape=shape,
                     dtype=dtype, validate_args=validate_args, parameters=parameters, name=name)
    self._segments = _compat.untracked(self, segments)
    self._shapes = _compat.untracked(self, shapes)
    if features is not None:
      self._take_context(context_shapes, features)

  def _context_of_parts(self, features, parts):
    return [*features.of_levels(parts), features.flat(parts)]  # Each part chooses those of its size.

  def _latent_shapes(self):
    if not self.parameters["factor_out"]:
      return self._shapes[-1:]
    return [_half(shape) for shape in self._shapes[:-1]] + self._shapes[-1:]

  def _feature_shapes(self):
    return self._latent_shapes() if self.parameters["factor_out"] else self._shapes

  def _inverse_with_features(self, y, context=None, **kwargs):
    if self.parameters["factor_out"]:
      return super()._inverse_with_features(y, context=context, **kwargs)
    kwargs |= self._condition(context)
    features, total = [], tf.zeros(tf.shape(y)[:1], y.dtype)
    for segment, shape in zip(self._segments, self._shapes):
      y, log_det = self._run(y, segment, True, kwargs)
      total += log_det
      features.append(tf.reshape(y, [-1, *shape]))  # The last is flat.
    return y, total, features


def _context_features(context_shapes, context_network, shape, num_scales, squeeze_first, dtype):
  """`ContextFeatures` for all scales of a flow; `None` if there is no context."""
  if context_shapes is None:
    context_features.check_no_network(context_network)
    return None
  sizes = [tuple(size // 2**(scale + squeeze_first) for size in shape[:2]) for scale in range(num_scales)]
  return context_features.ContextFeatures(context_shapes, context_network, sizes, dtype)


def _entrance(shape, logit_alpha, mean_and_deviation, dtype):
  """The bijector that images pass first: a list of at most one."""
  if isinstance(logit_alpha, str):
    if logit_alpha != "auto":
      raise ValueError("`logit_alpha` must be 'auto', None, or a number above 0 and below 0.5. "
                       f"Received: {logit_alpha!r}")
    logit_alpha = 0.05 if shape.rank == 3 and mean_and_deviation is None else None
  if logit_alpha is not None:
    check_fractions(0.5, logit_alpha=logit_alpha)
  if shape.rank != 3 and mean_and_deviation is not None:
    raise ValueError(f"`mean_and_deviation` must be None for vectors. Received: {mean_and_deviation!r}")
  if mean_and_deviation is None:
    return [] if logit_alpha is None else [Logit(logit_alpha, shape.rank, dtype)]
  if logit_alpha is not None:
    raise ValueError("`logit_alpha` must be None or 'auto' with `mean_and_deviation`, which replaces the logit. "
                     f"Received: {logit_alpha!r}")
  if not isinstance(mean_and_deviation, abc.Sequence) or len(mean_and_deviation) != 2:
    raise ValueError(f"`mean_and_deviation` must be a pair of sequences. Received: {mean_and_deviation!r}")
  mean, deviation = checked_statistics(*mean_and_deviation)
  if len(mean) != shape[-1]:
    raise ValueError(f"`mean_and_deviation` must have one mean and one deviation for each of the {shape[-1]} channels. "
                     f"Received: {mean_and_deviation!r}")
  return [Normalization((mean - 0.5).tolist(), deviation.tolist(), shape.rank, dtype)]


def _nested(segments, shapes, dtype):
  """The parts of a flow in which half of the channels leaves: the next scale is a part of the previous one."""
  parts = segments[-1]
  for scale in reversed(range(len(segments) - 1)):
    kept = _half(shapes[scale])
    rest = Sequence(parts, forward_event_shape=[kept.num_elements()], inverse_event_shape=kept, dtype=dtype,
                    name=f"rest{scale}")
    parts = segments[scale] + [HalfLeaves(shapes[scale], rest, dtype, f"split{scale}")]
  return parts


def _half(shape):
  height, width, channels = shape
  return tf.TensorShape([height, width, channels // 2])


class _Maker:
  """Makes the steps of a flow, each with its own seed."""

  def __init__(self, coefficient, activation, learn_orders, dtype, seed, features, log_scale_factor, estimator):
    self._coefficient = coefficient
    self._activation = activation
    self._learn_orders = learn_orders
    self._dtype = dtype
    self._rng = numerics.generator(seed)
    self._features = features
    self._log_scale_factor = log_scale_factor
    self._estimator = estimator

  def scales(self, event_shape, num_blocks, num_hidden, factor_out):
    """The bijectors of each scale, a list of lists, and the shapes of their outputs for images.

    Vectors, for which `num_blocks` is empty, have one scale without bijectors.
    """
    segments, shapes = [], []
    for scale, count in enumerate(num_blocks):
      segments.append(self.steps(event_shape, count, num_hidden, scale == 0, f"scale{scale}"))
      if scale < len(num_blocks) - 1:
        segments[-1].append(Squeeze(dtype=self._dtype))
        event_shape = segments[-1][-1].inverse_event_shape(event_shape)
      shapes.append(event_shape)
      event_shape = _half(event_shape) if factor_out else event_shape
    return segments or [[]], shapes or [event_shape]

  def steps(self, event_shape, count, num_hidden, is_first, name):
    """A list of bijectors: `count` steps; the very first of the flow stands on its own."""
    alone = [self._step(event_shape, num_hidden, True)] if is_first else []
    for step in alone:
      step.build(event_shape)
    if count == len(alone):
      return alone
    scan = Scan(lambda k: self._step(event_shape, num_hidden, False), count - len(alone), event_shape,
                redraw=self._redraw, dtype=self._dtype, name=name)
    # In a graph, for all steps at once: one by one and eagerly, this would take longer than some training. (A concrete
    # function, because TensorFlow would warn about a `tf.function` that each flow traces again.)
    tf.function(scan.after_update, autograph=False).get_concrete_function()()
    return alone + [scan]

  def _step(self, event_shape, num_hidden, is_first):
    network = self._network(event_shape, num_hidden)
    block = InvertibleResidualBlock(keras.Sequential(network[is_first:]), event_ndims=event_shape.rank,
                                    seed=self._draw_seed(), dtype=self._dtype,
                                    context_shape=self._context_shape(event_shape), **self._estimator)
    return ResidualStep(block, self.actnorm(event_shape))

  def actnorm(self, event_shape):
    """An `ActNorm` for events of this shape."""
    return ActNorm(event_shape[-1], event_shape.rank, self._dtype, log_scale_factor=self._log_scale_factor)

  def _context_shape(self, event_shape):
    if self._features is None:
      return None
    return [*event_shape[:2], self._features.num_channels] if event_shape.rank == 3 else [self._features.num_flat]

  def _network(self, event_shape, num_hidden):
    """The layers of a network."""
    outputs = (num_hidden, num_hidden, event_shape[-1])
    orders = [LearnedOrder(dtype=self._dtype.name) for _ in outputs] if self._learn_orders else [2.] * len(outputs)
    layers = []
    for i, kernel_size in enumerate((3, 1, 3)):
      kwargs = {"coefficient": self._coefficient, "seed": self._draw_seed(), "dtype": self._dtype.name,
                "domain": orders[i], "codomain": orders[(i + 1) % len(orders)]}
      if self._learn_orders == "per_position" and event_shape.rank == 3 and kernel_size == 1:
        kwargs["per_position"] = True
      layers += [activation_layer(self._activation, self._dtype.name),
                 LipschitzDense(outputs[i], **kwargs) if event_shape.rank == 1 else
                 LipschitzConv2D(outputs[i], kernel_size, **kwargs)]
    return layers

  def _redraw(self, step):
    drawn = {id(variable): value for variable, value in step.block.redraw(self._draw_seed())}
    return [drawn.get(id(variable), variable.numpy()) for variable in step._keras_variables()]

  def _draw_seed(self):
    return int(self._rng.integers(2**30))


def _checked_sizes(output_shape, num_scales, num_blocks_per_scale, squeeze_first):
  """The shape of an event, and a list of the number of blocks in each scale."""
  shape = checked_event_shape("output_shape", output_shape, vectors=True)
  if len(shape) == 1 and (num_scales != 0 or isinstance(num_scales, bool)):
    raise ValueError(f"`num_scales` must be 0 for vectors. Received: {num_scales!r} for {output_shape!r}")
  if len(shape) == 3:
    check_counts(num_scales=num_scales)
    formula, what = (("`num_scales`", "`squeeze_first` and every scale but the first halve") if squeeze_first else
                     ("(`num_scales` - 1)", "every scale but the first halves"))
    divisor = 2**(num_scales - 1 + squeeze_first)
    if any(size % divisor for size in shape[:2]):
      raise ValueError(f"`output_shape` must have a height and width divisible by 2 ** {formula} = {divisor}, because "
                       f"{what} them. Received: {output_shape!r}")
  return tf.TensorShape(shape), _checked_num_blocks(num_blocks_per_scale, num_scales)


def _checked_num_blocks(num_blocks_per_scale, num_scales):
  if not isinstance(num_blocks_per_scale, (abc.Sequence, np.ndarray)) or isinstance(num_blocks_per_scale, str):
    check_counts(num_blocks_per_scale=num_blocks_per_scale)
    return [num_blocks_per_scale] * num_scales
  if len(num_blocks_per_scale) != num_scales:
    raise ValueError(f"`num_blocks_per_scale` must have one number for each of the {num_scales} scales. "
                     f"Received: {num_blocks_per_scale!r}")
  for count in num_blocks_per_scale:
    check_counts(num_blocks_per_scale=count)
  return list(num_blocks_per_scale)


def _check_is_of_images(shape, **options):
  """Raises `ValueError` if a flow of vectors is given an option for images."""
  for name, is_asked_for in options.items():
    if is_asked_for and shape.rank != 3:
      raise ValueError(f"`{name}` must be False for vectors. Received: {is_asked_for!r}")

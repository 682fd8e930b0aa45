"""Residual Flows: the multi-scale bijector."""

from __future__ import annotations

from collections import abc

import keras
import tensorflow as tf

from tfp_glow._core import numerics
from tfp_glow._core.validation import check_counts, check_fractions, check_seed, checked_dtype, checked_event_shape
from tfp_glow.bijectors.actnorm import ActNorm
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.composition import Sequence
from tfp_glow.bijectors.logit import Logit
from tfp_glow.bijectors.residual import InvertibleResidualBlock
from tfp_glow.bijectors.scan import Scan
from tfp_glow.bijectors.squeeze import Squeeze
from tfp_glow.bijectors.whole_flow import WholeFlow
from tfp_glow.networks.lipschitz import LipschitzConv2D, LipschitzDense, LipSwish


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
      ValueError: if it is of another.
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
      ValueError: if they do not fit it, see there.
    """
    self.block.build(event_shape)


class _Flatten(OnePassBijector):
  """`inverse`: from an image to a vector."""

  def __init__(self, event_shape, dtype):
    super().__init__(forward_event_shape=[event_shape.num_elements()], inverse_event_shape=event_shape, dtype=dtype,
                     name="flatten")

  def _forward_and_log_det(self, x):
    return tf.reshape(x, [-1, *self._event_shapes[True]]), tf.zeros([], x.dtype)

  def _inverse_and_log_det(self, y):
    return tf.reshape(y, [-1, *self._event_shapes[False]]), tf.zeros([], y.dtype)


class ResidualFlowBijector(WholeFlow, Sequence):
  """A residual flow, from a latent vector to an image or a vector.

  ```none
  inverse: logit, actnorm; then, for each scale, squeeze (but for the first scale) and steps of a residual block and
           actnorm; at the end, on the flat vector, steps of a fully connected residual block and actnorm.
  ```

  The networks are LipSwish, 3x3 convolution, LipSwish, 1x1 convolution, LipSwish, 3x3 convolution, or as many fully
  connected layers. The very first has no LipSwish before its first layer.

  Nothing leaves on the way: the latent is the vector that comes out. It is standard normal where the model is right.

  `inverse` is one pass. `forward` solves each block by fixed-point iterations, and is far slower. Log-dets are
  estimated; see `InvertibleResidualBlock`, also on `training` and on `after_update`, which is due after every update of
  the weights (`FlowModel` sees to both).

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
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019), appendix E; the order of its parts is that
    of the authors' code.
  """

  def __init__(self, output_shape: int | abc.Sequence[int] = (32, 32, 3), num_scales: int = 3,
               num_blocks_per_scale: int = 16, num_hidden: int = 512, num_dense_blocks: int = 4,
               num_dense_hidden: int = 128, logit_alpha: float | str | None = "auto", coefficient: float = 0.98,
               log_det: str = "russian_roulette", num_terms: int = 2, num_eval_terms: int = 20,
               roulette: str = "poisson", probe: str = "gaussian", seed: int | None = None,
               dtype: tf.DType | str | None = None, validate_args: bool = False, name: str = "residual_flow"):
    """Creates the bijector.

    Args:
      output_shape: `(H, W, C)` of an image, `H` and `W` divisible by `2 ** (num_scales - 1)`; or `(C,)` of a vector:
        then there are the fully connected blocks alone.
      num_scales: Python `int`; 0 for vectors.
      num_blocks_per_scale: Python `int`.
      num_hidden: Python `int`, channels of the hidden layers of the convolutional networks.
      num_dense_blocks: Python `int`, of fully connected blocks.
      num_dense_hidden: Python `int`, width of the hidden layers of their networks.
      logit_alpha: Python `float`, `alpha` of `Logit`, for images whose values lie in `[-1/2, 1/2]` (others become
        NaN). `None`: the values are taken as they are, centred on 0. `"auto"`: 0.05 for images, `None` for vectors.
      coefficient: Python `float` below 1, bound of the norm of each layer.
      log_det: See `InvertibleResidualBlock`.
      num_terms: See `InvertibleResidualBlock`.
      num_eval_terms: See `InvertibleResidualBlock`.
      roulette: See `InvertibleResidualBlock`.
      probe: See `InvertibleResidualBlock`.
      seed: Python `int`, of initial values and estimates: same seed, same values. `None`: others each time (after
        `keras.utils.set_random_seed`, the same).
      dtype: Floating dtype of parameters, images and latents. Default: Keras' `floatx`.
      validate_args: Python `bool`: a non-finite input is an error, at a cost.
      name: Python `str`.

    Raises:
      ValueError: if an argument is not as above.
    """
    parameters = dict(locals())
    shape = _checked_output_shape(output_shape, num_scales)
    check_counts(num_blocks_per_scale=num_blocks_per_scale, num_hidden=num_hidden, num_dense_hidden=num_dense_hidden)
    check_counts(least=0 if num_scales else 1, num_dense_blocks=num_dense_blocks)
    check_seed(seed)
    if isinstance(logit_alpha, str):
      if logit_alpha != "auto":
        raise ValueError("`logit_alpha` must be 'auto', None, or a number above 0 and below 0.5. "
                         f"Received: {logit_alpha!r}")
      logit_alpha = 0.05 if shape.rank == 3 else None
    if logit_alpha is not None:
      check_fractions(0.5, logit_alpha=logit_alpha)
    dtype = checked_dtype(dtype or keras.config.floatx())
    make = _Maker(coefficient, dtype, seed, dict(log_det=log_det, num_terms=num_terms, num_eval_terms=num_eval_terms,
                                                 roulette=roulette, probe=probe))
    latent_shape = tf.TensorShape([shape.num_elements()])
    parts = [] if logit_alpha is None else [Logit(logit_alpha, shape.rank, dtype)]
    parts.append(ActNorm(shape[-1], shape.rank, dtype))
    event_shape = shape
    for scale in range(num_scales):
      if scale:
        squeeze = Squeeze(dtype=dtype)
        parts.append(squeeze)
        event_shape = squeeze.inverse_event_shape(event_shape)
      parts += make.steps(event_shape, num_blocks_per_scale, num_hidden, scale == 0, f"scale{scale}")
    if num_scales:
      parts.append(_Flatten(event_shape, dtype))
    parts += make.steps(latent_shape, num_dense_blocks, num_dense_hidden, num_scales == 0, "dense")
    super().__init__(parts, forward_event_shape=latent_shape, inverse_event_shape=shape, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)


class _Maker:
  """Makes the steps of a flow, with a seed for each."""

  def __init__(self, coefficient, dtype, seed, estimator):
    self._coefficient = coefficient
    self._dtype = dtype
    self._rng = numerics.generator(seed)
    self._estimator = estimator

  def steps(self, event_shape, count, num_hidden, is_first, name):
    """A list of bijectors: `count` steps, the first on its own if it is the very first of the flow."""
    alone = [self._step(event_shape, num_hidden, True)] if is_first else []
    for step in alone:
      step.build(event_shape)
    if count == len(alone):
      return alone
    scan = Scan(lambda k: self._step(event_shape, num_hidden, False), count - len(alone), event_shape,
                redraw=self._redraw, dtype=self._dtype, name=name)
    # In a graph, all steps in one: one by one, and eagerly, it would take longer than to train for a while.
    # (Not called as a function, of which TensorFlow would warn that it is traced again and again: by each flow.)
    tf.function(scan.after_update, autograph=False).get_concrete_function()()
    return alone + [scan]

  def _step(self, event_shape, num_hidden, is_first):
    network = self._network(event_shape, num_hidden)
    block = InvertibleResidualBlock(keras.Sequential(network[is_first:]), event_ndims=event_shape.rank,
                                    seed=self._draw_seed(), dtype=self._dtype, **self._estimator)
    return ResidualStep(block, ActNorm(event_shape[-1], event_shape.rank, self._dtype))

  def _network(self, event_shape, num_hidden):
    """The layers of a network."""
    layers, num_outputs = [], event_shape[-1]
    for kernel_size, outputs in ((3, num_hidden), (1, num_hidden), (3, num_outputs)):
      kwargs = {"coefficient": self._coefficient, "seed": self._draw_seed(), "dtype": self._dtype.name}
      layers += [LipSwish(dtype=self._dtype.name), LipschitzDense(outputs, **kwargs) if event_shape.rank == 1 else
                 LipschitzConv2D(outputs, kernel_size, **kwargs)]
    return layers

  def _redraw(self, step):
    drawn = {id(variable): value for variable, value in step.block.redraw(self._draw_seed())}
    return [drawn.get(id(variable), variable.numpy()) for variable in step._keras_variables()]

  def _draw_seed(self):
    return int(self._rng.integers(2**30))


def _checked_output_shape(output_shape, num_scales):
  shape = checked_event_shape("output_shape", output_shape, vectors=True)
  if len(shape) == 1 and (num_scales != 0 or isinstance(num_scales, bool)):
    raise ValueError(f"`num_scales` must be 0 for vectors. Received: {num_scales!r} for {output_shape!r}")
  if len(shape) == 3:
    check_counts(num_scales=num_scales)
    if any(size % 2**(num_scales - 1) for size in shape[:2]):
      raise ValueError(f"`output_shape` must have a height and width divisible by 2 ** (`num_scales` - 1) = "
                       f"{2**(num_scales - 1)}, as every scale but the first halves them. Received: {output_shape!r}")
  return tf.TensorShape(shape)

"""Glow: the step of flow and the multi-scale bijector."""

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import numerics
from tfp_glow._core.validation import check_choice, check_counts, check_seed
from tfp_glow.bijectors.actnorm import ActNorm
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.channels import num_positions
from tfp_glow.bijectors.conv1x1 import InvertibleConv1x1, lu_factors, random_rotation
from tfp_glow.bijectors.coupling import AdditiveCoupling, AffineCoupling
from tfp_glow.bijectors.factor_out import FactorOut, TopPrior
from tfp_glow.bijectors.permutation import ChannelPermutation
from tfp_glow.bijectors.scan import Scan
from tfp_glow.bijectors.squeeze import Squeeze
from tfp_glow.bijectors.whole_flow import WholeFlow
from tfp_glow.networks.glow import CouplingNetwork

_COUPLINGS = {"affine": AffineCoupling, "additive": AdditiveCoupling}
_PERMUTATIONS = ("conv1x1", "reverse", "shuffle")


class GlowStep(OnePassBijector):
  """One step of flow, of images or vectors; `inverse` is actnorm, then permutation, then coupling.

  Actnorm and permutation are one matrix product: `((y + b) * s) @ W = y @ (s W) + (b s) @ W`.

  References:
    Kingma and Dhariwal, "Glow" (2018), figure 2 (a).
  """

  def __init__(self, actnorm, permutation, coupling, validate_args=False, name="glow_step"):
    """Creates the step.

    Args:
      actnorm: `ActNorm`.
      permutation: `InvertibleConv1x1` or `ChannelPermutation`.
      coupling: `AffineCoupling` or `AdditiveCoupling`. All three must have the same `event_ndims`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      ValueError: if they have not.
    """
    parameters = dict(locals())
    ranks = [part.inverse_min_event_ndims for part in (actnorm, permutation, coupling)]
    if len(set(ranks)) > 1:
      raise ValueError("`actnorm`, `permutation` and `coupling` must have the same `event_ndims`. "
                       f"Received: {ranks}")
    event_shape = [None] * (ranks[0] - 1) + [actnorm.shift.shape[0]]
    super().__init__(forward_event_shape=event_shape, inverse_event_shape=event_shape, dtype=actnorm.dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self.actnorm = self._add_child(actnorm)
    self.permutation = self._add_child(permutation)
    self.coupling = self._add_child(coupling)

  def build(self, event_shape):
    """Builds the coupling's network for events of this shape."""
    self.coupling.build(event_shape)

  def _forward_and_log_det(self, x):
    return self._prepare_and_apply(x, inverse=False)

  def _inverse_and_log_det(self, y):
    return self._prepare_and_apply(y, inverse=True)

  def _prepare(self, value, event_shape, inverse):
    matrix, log_det = self._matrix(value, inverse)
    weights, _ = self.coupling._prepare(value, event_shape, inverse)
    return (matrix, weights), num_positions(event_shape, self.dtype) * log_det

  def _prepare_back(self, value, event_shape, inverse):
    return self._matrix(value, not inverse)[0], self.coupling._prepare_back(value, event_shape, inverse)

  def _matrix(self, value, inverse):
    """Actnorm and permutation, for `_product`, and their log-det at one position."""
    shift = value(self.actnorm.shift)
    log_scale = numerics.log_scale_of(value(self.actnorm.log_scale))
    matrix, log_det = self.permutation.matrix(value, inverse)
    log_det_actnorm = tf.reduce_sum(log_scale, -1)
    if inverse:
      matrix = tf.expand_dims(tf.exp(log_scale), -1) * matrix
      bias = tf.reduce_sum(tf.expand_dims(shift, -1) * matrix, -2)
    else:
      matrix, bias = matrix * tf.expand_dims(tf.exp(-log_scale), -2), -shift
    return _of_halves(matrix, bias), log_det + (log_det_actnorm if inverse else -log_det_actnorm)

  def _enter(self, values):
    return self.coupling._enter(values)

  def _leave(self, values):
    return self.coupling._leave(values)

  def _apply(self, inputs, weights, inverse):
    matrix, coupling_weights = weights
    if inverse:
      return self.coupling._apply(_product(inputs, matrix), coupling_weights, inverse)
    outputs, log_det = self.coupling._apply(inputs, coupling_weights, inverse)
    return _product(outputs, matrix), log_det

  def _rebuild(self, outputs, weights, weights_back, variables, d_outputs, d_log_det, inverse):
    (matrix, coupling_weights), (matrix_back, coupling_weights_back) = weights, weights_back
    rebuild = lambda outputs, d_outputs: self.coupling._rebuild(
        outputs, coupling_weights, coupling_weights_back, variables, d_outputs, d_log_det, inverse)
    undo = lambda outputs, d_outputs: _undo_product(outputs, matrix, matrix_back, d_outputs)
    if inverse:
      between, d_between, d_coupling_weights, d_variables = rebuild(outputs, d_outputs)
      inputs, d_inputs, d_matrix = undo(between, d_between)
    else:
      between, d_between, d_matrix = undo(outputs, d_outputs)
      inputs, d_inputs, d_coupling_weights, d_variables = rebuild(between, d_between)
    return inputs, d_inputs, (d_matrix, d_coupling_weights), d_variables

  def _variables_of_apply(self):
    return self.coupling._variables_of_apply()

  def _walk(self, y):
    for bijector in (self.actnorm, self.permutation, self.coupling):
      for name, y, log_det in bijector._walk(y):
        yield name, y, log_det

  def _initialize(self, y):
    for bijector in (self.actnorm, self.permutation, self.coupling):
      y = bijector._initialize(y)
    return y


def _of_halves(matrix, bias):
  """The matrix of `z @ matrix + bias`, split for `z` in two tensors, `concat(z1, 1)` and `z2` (see `_Coupling`)."""
  where, batch = matrix.shape[-1] // 2, matrix.shape[:-2].as_list()
  # The channel of ones adds the bias, and stays: one row and one column more.
  rows = tf.split(tf.concat([matrix, tf.expand_dims(bias, -2)], axis=-2), [where, -1, 1], axis=-2)
  columns = tf.split(tf.concat([rows[0], rows[2], rows[1]], axis=-2), [where, -1], axis=-1)
  ones = np.broadcast_to(np.eye(matrix.shape[-1] + 1)[:, where:where + 1], batch + [matrix.shape[-1] + 1, 1])
  square = tf.concat([columns[0], tf.constant(ones, matrix.dtype), columns[1]], axis=-1)
  return tuple(tf.split(square, [where + 1, -1], axis=-2))


def _product(halves, matrix):
  """The two tensors of `z @ matrix + bias`; the matrix is from `_of_halves`."""
  (first, second), (top, bottom) = halves, matrix
  outputs = tf.matmul(_rows(first), top) + tf.matmul(_rows(second), bottom)
  outputs = tf.reshape(outputs, [-1, *_sizes(first)[1:-1], top.shape[-1]])
  return tuple(tf.split(outputs, [first.shape[-1], -1], axis=-1))


def _undo_product(outputs, matrix, matrix_back, d_outputs):
  """From outputs of `_product`, and their gradients: its inputs, and the gradients of inputs and matrix."""
  inputs = _product(outputs, matrix_back)
  d_rows = _rows(tf.concat(d_outputs, axis=-1))
  d_inputs = tuple(tf.reshape(tf.matmul(d_rows, part, transpose_b=True), [-1, *_sizes(half)[1:]])
                   for part, half in zip(matrix, inputs))
  return inputs, d_inputs, tuple(tf.matmul(_rows(half), d_rows, transpose_a=True) for half in inputs)


def _sizes(x):
  return [tf.shape(x)[i] if size is None else size for i, size in enumerate(x.shape)]


def _rows(x):
  return tf.reshape(x, [-1, x.shape[-1]])


class GlowBijector(WholeFlow):
  """Glow, multi-scale, from a latent vector to an image.

  ```none
  inverse: for each block (the paper's level): squeeze, K steps of flow; then, but in the last block, half of the
           channels leave, whitened by a Gaussian whose mean and scale are learned from the other half.
  ```

  All latents are standard normal where the model is right. The vector holds them one after the other, the first to
  leave first and the top last; `split_latent` gives them back as images.

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

  def __init__(self, output_shape=(32, 32, 3), num_glow_blocks=3, num_steps_per_block=32, num_hidden=512,
               coupling="affine", permutation="conv1x1", network_fn=None, num_classes=None, learn_top=True,
               gradient="autodiff", seed=None, dtype=None, validate_args=False, name="glow"):
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
    self._block_shapes = self._no_dependency(_block_shapes((height, width, channels), num_glow_blocks))
    seeds = _Seeds(seed)
    self.blocks = []
    self.splits = []
    for block, event_shape in enumerate(self._block_shapes):
      make_step, redraw = _step_maker(event_shape[-1], _COUPLINGS[coupling], permutation, network_fn, num_hidden, seeds,
                                      self.dtype)
      self.blocks.append(self._add_child(
          Scan(make_step, num_steps_per_block, event_shape, gradient, redraw, self.dtype, name=f"block{block}")))
      if block < num_glow_blocks - 1:
        self.splits.append(self._add_child(FactorOut(event_shape, self.dtype, name=f"split{block}")))
    self.top = self._add_child(TopPrior(self._block_shapes[-1], learn_top, num_classes, self.dtype, name="top"))

  @property
  def num_classes(self):
    """Number of classes, `None` where there are none."""
    return self.top.num_classes

  @property
  def num_class_features(self):
    """Number of the `class_features`: the channels of the top latent."""
    return self._block_shapes[-1][-1]

  def class_features(self, z, labels=None):
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

  def split_latent(self, z):
    """The latents as images, from the vector.

    Args:
      z: Tensor `[..., H * W * C]`.

    Returns:
      List of tensors `[..., h, w, c]`, one for each block: the first to leave first, the top last.

    Raises:
      ValueError: if the shape of `z` does not fit.
    """
    z = self._convert(z, "z", inverse=False)
    shapes = self._latent_shapes()
    parts = tf.split(z, [shape.num_elements() for shape in shapes], axis=-1)
    return [tf.reshape(part, tf.concat([tf.shape(z)[:-1], shape], axis=0)) for part, shape in zip(parts, shapes)]

  def join_latent(self, parts):
    """The inverse of `split_latent`.

    Args:
      parts: List of tensors `[..., h, w, c]`, as `split_latent` returns it.

    Returns:
      z: Tensor `[..., H * W * C]`.

    Raises:
      ValueError: if `parts` has not one tensor of the right shape for each block.
    """
    shapes = self._latent_shapes()
    parts = [tf.convert_to_tensor(part, self.dtype) for part in parts]
    if len(parts) != len(shapes) or any(not shape.is_compatible_with(part.shape[-3:])
                                        for part, shape in zip(parts, shapes)):
      raise ValueError(f"`parts` must have the shapes {[[...] + shape.as_list() for shape in shapes]}. "
                       f"Received: {[part.shape for part in parts]}")
    return tf.concat([tf.reshape(part, tf.concat([tf.shape(part)[:-3], [shape.num_elements()]], axis=0))
                      for part, shape in zip(parts, shapes)], axis=-1)

  def _latent_shapes(self):
    leaving = [tf.TensorShape([h, w, c // 2]) for h, w, c in self._block_shapes[:-1]]
    return leaving + [tf.TensorShape(self._block_shapes[-1])]

  def _forward_and_log_det(self, x, labels=None):
    *parts, top = self.split_latent(x)
    y, log_det = self.top._forward_and_log_det(top, labels)
    for block, noise in zip(reversed(range(len(self.blocks))), [None] + parts[::-1]):
      if noise is not None:
        y, log_det_split = self.splits[block].merge(y, noise)
        log_det += log_det_split
      y, log_det_steps = self.blocks[block]._forward_and_log_det(y)
      y, _ = self._squeeze._forward_and_log_det(y)
      log_det += log_det_steps
    return y, log_det

  def _inverse_and_log_det(self, y, labels=None):
    return self._encode(y, labels, lambda block, y: block._inverse_and_log_det(y))

  def _initialize(self, y):
    """Block after block; the top prior keeps its values, whatever the labels."""
    labels = None if self.top.num_classes is None else tf.zeros(tf.shape(y)[:1], tf.int32)
    return self._encode(y, labels, lambda block, y: (block._initialize(y), 0.))[0]

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


class _Seeds:
  """An endless row of seeds from one; of `None`s from `None`."""

  def __init__(self, seed):
    self._rng = None if seed is None else np.random.default_rng(seed)

  def next(self):
    return None if self._rng is None else int(self._rng.integers(2**30))


def _step_maker(num_channels, coupling, permutation, network_fn, num_hidden, seeds, dtype):
  """The `make_step` and the `redraw` of a block (see `Scan`)."""
  num_changed = num_channels - num_channels // 2
  num_outputs = 2 * num_changed if coupling is AffineCoupling else num_changed

  def make_network():
    if network_fn is not None:
      return network_fn(num_outputs)
    return CouplingNetwork(num_outputs, num_hidden, num_outputs // num_changed, seeds.next(),
                                    dtype=_network_policy(dtype), name="network")

  def draw_indices():
    if permutation == "reverse":
      return np.arange(num_channels)[::-1]
    return numerics.generator(seeds.next()).permutation(num_channels)

  def make_step(k):
    del k
    permute = (InvertibleConv1x1(num_channels, seeds.next(), dtype=dtype) if permutation == "conv1x1" else
               ChannelPermutation(draw_indices(), dtype=dtype))
    return GlowStep(ActNorm(num_channels, dtype=dtype), permute, coupling(make_network(), dtype=dtype))

  def redraw(step):
    values = {"indices": draw_indices()} if permutation != "conv1x1" else lu_factors(
        random_rotation(num_channels, seeds.next()), num_channels)
    drawn = [(getattr(step.permutation, key), value) for key, value in values.items()]
    drawn = {id(variable): value for variable, value in drawn + step.coupling.network.redraw(seeds.next())}
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
  shape = tuple(output_shape) if np.iterable(output_shape) else (output_shape,)
  if len(shape) != 3 or not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
    raise ValueError(f"`output_shape` must be (height, width, channels), positive `int`s. Received: {output_shape!r}")
  if any(size % 2**num_glow_blocks for size in shape[:2]):
    raise ValueError(f"`output_shape` must have a height and width divisible by 2 ** `num_glow_blocks` = "
                     f"{2**num_glow_blocks}, as every block halves them. Received: {output_shape!r}")
  return tuple(int(size) for size in shape)

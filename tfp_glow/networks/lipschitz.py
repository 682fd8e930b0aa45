"""Keras layers of bounded Lipschitz constant: the networks of invertible residual blocks."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import precision
from tfp_glow._core.numerics import generator
from tfp_glow._core.products import channel_product, conv2d, conv2d_back, matmul
from tfp_glow._core.validation import check_bools, check_counts, check_fractions, check_seed
from tfp_glow.networks import norms
from tfp_glow.networks.building import layers_of, value_of
from tfp_glow.networks.lip_swish import LipSwish
from tfp_glow.networks.norms import LearnedOrder


class _Lipschitz(keras.layers.Layer):
  """A linear map of bounded norm and a bias: the shared part of `LipschitzDense` (see there) and `LipschitzConv2D`."""

  def __init__(self, num_outputs, coefficient, domain, codomain, tolerance, max_iterations, seed, **kwargs):
    # Norms are computed in the precision of the kernel.
    super().__init__(autocast=False, **kwargs)
    check_fractions(coefficient=coefficient, tolerance=tolerance)
    check_counts(max_iterations=max_iterations)
    check_seed(seed)
    norms.check_orders(domain, codomain)
    self.num_outputs = num_outputs
    self.coefficient = float(coefficient)
    self.domain = domain
    self.codomain = codomain
    self.tolerance = float(tolerance)
    self.max_iterations = int(max_iterations)
    self.seed = seed

  # Implemented by subclasses.

  def linear_map(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The layer without its bias and with another kernel, which is not normalised.

    Args:
      inputs: Tensor `[N, ..., channels]`.
      kernel: Tensor of the shape of `kernel`.

    Returns:
      Tensor `[N, ..., filters]`.
    """
    raise NotImplementedError

  def transposed_map(self, outputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The transpose of `linear_map`.

    Args:
      outputs: Tensor `[N, ..., filters]`.
      kernel: Tensor of the shape of `kernel`.

    Returns:
      Tensor `[N, ..., channels]`.
    """
    raise NotImplementedError

  def _shapes(self, input_shape):
    """Shapes of the kernel, and of one input and one output as batches of one."""
    raise NotImplementedError

  def _is_used(self):
    """Whether the map uses each entry of the kernel: a Boolean array that broadcasts to the kernel's shape."""
    return np.ones([], bool)

  def build(self, input_shape):
    kernel_shape, self._one_input, self._one_output = self._shapes(input_shape)
    add = lambda name, shape, **kwargs: self.add_weight(name=name, shape=shape, initializer="zeros", **kwargs)
    self.kernel = add("kernel", kernel_shape)
    self.bias = add("bias", kernel_shape[-1:])
    if self._is_iterated:
      # All replicas compute the same values: any one of them will do.
      self.u, self.v = (add(name, shape, trainable=False, aggregation="only_first_replica")
                        for name, shape in (("u", self._one_output), ("v", self._one_input)))
    with tf.init_scope():
      for variable, value in self.redraw(self.seed):
        variable.assign(value)
      self.update_spectral_norm()

  def redraw(self, seed: int | None) -> list[tuple[keras.Variable, np.ndarray]]:
    """Initial values of another layer like this with another seed, including `vectors`.

    Args:
      seed: Python `int`, or `None` for any.

    Returns:
      List of `(variable of this one, array)`.
    """
    rng = generator(seed)
    bound = 1. / math.sqrt(np.prod(self.kernel.shape[:-1]))
    drawn = [(variable, rng.uniform(-bound, bound, variable.shape)) for variable in (self.kernel, self.bias)]
    return drawn + [(vector, rng.standard_normal(vector.shape)) for vector in self.vectors]

  @property
  def _is_iterated(self):
    """Whether the norm needs iterations."""
    return not norms.has_formula(self.domain, self.codomain)

  def norm(self) -> tf.Tensor:
    """The norm of the map before it is bounded.

    Returns:
      Scalar tensor.
    """
    return tf.reduce_max(self._norms(value_of(self.kernel)))

  def normalized_kernel(self) -> tf.Tensor:
    """The kernel that `call` uses.

    Returns:
      Tensor of the shape of `kernel`.
    """
    kernel = value_of(self.kernel)
    return kernel / tf.maximum(self._norms(kernel) / self.coefficient, 1.)

  @precision.full()
  def _norms(self, kernel):
    """The norms that bound the norm of the map, to be broadcast to their parts of the kernel."""
    orders = self._orders()
    if self._is_iterated:
      return norms.at_vectors(lambda v: self.linear_map(v, kernel), value_of(self.u), value_of(self.v), *orders)
    into_inputs = lambda kernel: self.transposed_map(tf.ones(self._one_output, kernel.dtype), kernel)
    into_outputs = lambda kernel: self.linear_map(tf.ones(self._one_input, kernel.dtype), kernel)
    return norms.by_formula(kernel * tf.cast(self._is_used(), kernel.dtype), into_inputs, into_outputs, *orders)

  def fold(self) -> list[tf.Tensor]:
    """Everything that `run` needs besides the inputs.

    Returns:
      List of tensors, the kernel and the bias.
    """
    return [self.normalized_kernel(), value_of(self.bias)]

  def run(self, inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """The layer, given the output of `fold`.

    Args:
      inputs: Tensor `[N, ..., channels]`.
      kernel: Tensor of the shape of `kernel`.
      bias: Tensor `[filters]`, or of the shape of the outputs.

    Returns:
      Tensor `[N, ..., filters]`.
    """
    inputs, kernel, bias = (tf.cast(tensor, self.compute_dtype) for tensor in (inputs, kernel, bias))
    outputs = self.linear_map(inputs, kernel)
    return tf.nn.bias_add(outputs, bias) if bias.shape.rank == 1 else outputs + bias

  def call(self, inputs):
    return self.run(inputs, *self.fold())

  def compute_output_shape(self, input_shape):
    return (*input_shape[:-1], self.num_outputs)

  def update_spectral_norm(self) -> None:
    """Updates `u` and `v`; see the class."""
    for vector, value in zip(self.vectors, self.next_vectors()):
      vector.assign(value)

  @property
  def vectors(self) -> list[keras.Variable]:
    """The variables `[u, v]`; an empty list if the norm is exact."""
    return [self.u, self.v] if self._is_iterated else []

  @precision.full()
  def next_vectors(self) -> list[tf.Tensor]:
    """The values that `update_spectral_norm` assigns to `vectors`.

    Returns:
      List of tensors like `vectors`.
    """
    if not self._is_iterated:
      return []
    kernel = value_of(self.kernel)
    return norms.vectors_of_norm(
        lambda v: self.linear_map(v, kernel), lambda u: self.transposed_map(u, kernel),
        value_of(self.u), value_of(self.v),
        *self._orders(), self.tolerance, self.max_iterations)

  def _orders(self):
    return [norms.order_of(order, self.kernel.dtype) for order in (self.domain, self.codomain)]

  def get_config(self):
    # Keras writes the objects themselves, and so keeps track of those that layers share.
    return {**super().get_config(), "domain": self.domain, "codomain": self.codomain, "coefficient": self.coefficient,
            "tolerance": self.tolerance, "max_iterations": self.max_iterations, "seed": self.seed}

  @classmethod
  def from_config(cls, config):
    orders = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("domain", "codomain")
              if isinstance(config[name], dict)}
    return cls(**{**config, **orders})


@keras.saving.register_keras_serializable("tfp_glow")
class LipschitzDense(_Lipschitz):
  """A dense layer whose matrix is scaled down so that its norm is at most `coefficient`.

  ```none
  call(x) = x @ (kernel / max(1, norm / coefficient)) + bias
  norm = max |x @ kernel|_codomain / |x|_domain
  ```

  With `domain` 1 or `codomain` `inf` the norm is that of the largest row or column of the kernel; each row or column is
  then bounded on its own. In other cases iterations find it: `norm = <u, v @ kernel>` for the vectors `u` and `v` at
  which it is attained. `u` and `v` are variables that are not trained. `call` does not change them, and gradients flow
  through the norm but not into them. `update_spectral_norm` updates them; call it after every change of the kernel. (A
  bijector's `after_update` does this for its network, and `FlowModel` calls that in every training step.)

  Such a norm is estimated from below. Where both orders are 2, an update finds it up to the `tolerance`. That was
  measured in the training of layers of the paper's sizes and after other weights were assigned, even if the old vectors
  belong to a smaller singular value of the new weights. It is no proof: if singular values of a large layer differ by a
  percent at most, the largest may by bad luck be missed until a later update. With other orders, only exhaustive search
  is known to find the norm. The iteration may then stop at a maximum that is not the largest, more often the nearer the
  orders are to 1 and infinity, and the layer is not bounded for certain.

  References:
    Gouk et al., "Regularisation of neural networks by enforcing Lipschitz continuity" (2018).
    Behrmann et al., "Invertible Residual Networks" (2019), section 2.1.
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019), section 3.2, on orders other than 2.
  """

  def __init__(self, units: int, coefficient: float = 0.98, domain: float | LearnedOrder = 2.,
               codomain: float | LearnedOrder = 2., tolerance: float = 1e-3, max_iterations: int = 200,
               seed: int | None = None, **kwargs: Any):
    """Creates the layer.

    Args:
      units: Python `int`, number of outputs.
      coefficient: Python `float` below 1, the bound of the norm.
      domain: Order of the norm of inputs: Python `float` of at least 1, `math.inf`, or `LearnedOrder`.
      codomain: The same for outputs. It may be 1 only if `domain` is 1; `domain` may be infinite only if `codomain` is.
        In a network, the order of one layer's outputs must be that of the next layer's inputs, and that of the last
        layer's outputs must be that of the first layer's inputs.
      tolerance: Python `float`. Where both orders are 2, the iteration ends when the norm grows by less than this, or
        may be off by less than this, relative to the norm. Otherwise it ends when `u` changes by less.
      max_iterations: Python `int`: the iteration ends after about this many steps in any case.
      seed: Python `int` of the initial values. `None`: new ones each time (the same after
        `keras.utils.set_random_seed`).
      **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
      ValueError: if an argument is not as above.
    """
    check_counts(units=units)
    super().__init__(units, coefficient, domain, codomain, tolerance, max_iterations, seed, **kwargs)
    self.units = units

  def _shapes(self, input_shape):
    return (input_shape[-1], self.units), (1, input_shape[-1]), (1, self.units)

  def linear_map(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return channel_product(inputs, kernel, matmul)

  def transposed_map(self, outputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return matmul(outputs, kernel, transpose_b=True)

  def get_config(self):
    return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tfp_glow")
class LipschitzConv2D(_Lipschitz):
  """A convolution of bounded norm, like `LipschitzDense`, for images of one size, padded with zeros.

  The norm is that of the convolution itself at that size, not of its kernel as a matrix. With `domain` 1 or `codomain`
  `inf`, each input or output channel is bounded on its own.

  References:
    As for `LipschitzDense`.
  """

  def __init__(self, filters: int, kernel_size: int, coefficient: float = 0.98, domain: float | LearnedOrder = 2.,
               codomain: float | LearnedOrder = 2., tolerance: float = 1e-3, max_iterations: int = 200,
               seed: int | None = None, per_position: bool = False, **kwargs: Any):
    """Creates the layer.

    Args:
      filters: Python `int`, number of output channels.
      kernel_size: Odd Python `int`.
      coefficient: See `LipschitzDense`.
      domain: See `LipschitzDense`.
      codomain: See `LipschitzDense`.
      tolerance: See `LipschitzDense`.
      max_iterations: See `LipschitzDense`.
      seed: See `LipschitzDense`.
      per_position: Python `bool`: whether the norm of a 1x1 convolution is that of its matrix at one position, also
        with learned orders, as in the authors' code. If orders decrease from inputs to outputs, this does not bound the
        map.
      **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
      ValueError: if an argument is not as above; on first use, if the size of the images is not known; later, if the
        size differs (except for a `kernel_size` of 1 with a `domain` of at most `codomain`).
    """
    check_counts(filters=filters, kernel_size=kernel_size)
    check_bools(per_position=per_position)
    if kernel_size % 2 == 0:
      raise ValueError(f"`kernel_size` must be odd. Received: {kernel_size!r}")
    if per_position and kernel_size != 1:
      raise ValueError(f"`per_position` must be False for kernels larger than 1x1. Received: {kernel_size!r}")
    super().__init__(filters, coefficient, domain, codomain, tolerance, max_iterations, seed, **kwargs)
    self.filters = filters
    self.kernel_size = kernel_size
    self.per_position = per_position

  @property
  def _is_local(self):
    """Whether the norm is that at one position."""
    if self.per_position:
      return True
    orders = self.domain, self.codomain
    return self.kernel_size == 1 and not any(isinstance(o, LearnedOrder) for o in orders) and orders[0] <= orders[1]

  def _shapes(self, input_shape):
    if len(input_shape) != 4:
      raise ValueError(f"`{self.name}` must be given images, [N, H, W, C]. Received: {tuple(input_shape)}")
    *size, channels = [1, 1, input_shape[-1]] if self._is_local else input_shape[1:]
    if None in size:
      raise ValueError(f"`{self.name}` must know the height and width of its inputs when it is built, because its norm "
                       f"depends on them. Received: {tuple(input_shape)}")
    return ((self.kernel_size, self.kernel_size, channels, self.filters), (1, *size, channels),
            (1, *size, self.filters))

  def run(self, inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    if not self._is_local and tuple(inputs.shape[1:3]) != self._one_input[1:3]:
      raise ValueError(f"`{self.name}` was built for images of size {self._one_input[1:3]}, on which its norm depends. "
                       f"Received: {tuple(inputs.shape)}")
    return super().run(inputs, kernel, bias)

  def linear_map(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    if self.kernel_size == 1:
      return channel_product(inputs, kernel[0, 0], matmul)
    return conv2d(inputs, kernel)

  def transposed_map(self, outputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    if self.kernel_size == 1:
      return channel_product(outputs, tf.transpose(kernel[0, 0]), matmul)
    return conv2d_back(outputs, kernel, self._one_input)

  def _is_used(self):
    # On images smaller than the kernel, its outer entries meet only padding.
    offsets = np.abs(np.arange(self.kernel_size) - self.kernel_size // 2)
    height, width = self._one_input[1:3]
    return ((offsets < height)[:, np.newaxis] & (offsets < width))[..., np.newaxis, np.newaxis]

  def get_config(self):
    return {**super().get_config(), "filters": self.filters, "kernel_size": self.kernel_size,
            "per_position": self.per_position}


def constrained_layers(network: keras.Layer) -> list[keras.Layer]:
  """The layers of bounded Lipschitz constant in a network, at any depth.

  Args:
    network: Keras layer.

  Returns:
    List of Keras layers.
  """
  return [layer for layer in layers_of(network) if isinstance(layer, _Lipschitz)]


def first_linear_map(network: keras.Layer) -> keras.Layer | None:
  """The first layer of bounded Lipschitz constant of a `keras.Sequential`; `None` if there is none.

  Args:
    network: Keras layer.

  Returns:
    Keras layer, or `None`.
  """
  layers = network.layers if type(network) is keras.Sequential else []
  return next((layer for layer in layers if isinstance(layer, _Lipschitz)), None)


def fold(network, shift=None):
  """A network's weights as tensors, for `run`, which then normalises no kernel again.

  Args:
    network: Keras layer. For a `keras.Sequential`, kernels of the layers above are normalised. For all other layers
      these are the values of the variables.
    shift: Tensor, added to the outputs of the `first_linear_map`; `None`: no shift. The Lipschitz constant does not
      depend on it.

  Returns:
    Nest of tensors.
  """
  if type(network) is keras.Sequential:  # A subclass may do more.
    folded = [fold(layer) for layer in network.layers]
    if shift is not None:
      first = network.layers.index(first_linear_map(network))
      kernel, bias = folded[first]
      folded[first] = [kernel, bias + tf.cast(shift, bias.dtype)]
    return _merge(network.layers, folded)
  if isinstance(network, (_Lipschitz, LipSwish)):
    return network.fold()
  return [value_of(variable) for variable in network.variables]


def _merge(layers, folded):
  """Moves the factors of `LipSwish` into the linear maps beside it: there are fewer weights than activations."""
  for i, layer in enumerate(layers):
    if not isinstance(layer, LipSwish):
      continue
    if i > 0 and isinstance(layers[i - 1], _Lipschitz):
      (factor,), folded[i][0] = folded[i][0], []
      folded[i - 1] = [tensor * tf.cast(factor, tensor.dtype) for tensor in folded[i - 1]]
    if i + 1 < len(layers) and isinstance(layers[i + 1], _Lipschitz):
      (factor,), folded[i][1] = folded[i][1], []
      kernel, bias = folded[i + 1]
      folded[i + 1] = [kernel * tf.cast(factor, kernel.dtype), bias]
  return folded


def run(network, inputs, weights):
  """The network, given the output of `fold`."""
  if type(network) is keras.Sequential:
    for layer, weights_of_layer in zip(network.layers, weights, strict=True):
      inputs = run(layer, inputs, weights_of_layer)
    return inputs
  if isinstance(network, (_Lipschitz, LipSwish)):
    return network.run(inputs, *weights)
  with keras.StatelessScope(state_mapping=list(zip(network.variables, weights, strict=True))):
    return network(inputs)

"""Coupling networks as Keras layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core.numerics import (
  activation_statistics,
  assign_unless_frozen,
  before_channels,
  generator,
  log_scale_of,
  within_reach,
  within_reach_pull_back,
)
from tfp_glow._core.products import conv2d, conv2d_back, conv2d_to_kernel, matmul, rows, with_rows
from tfp_glow.networks.building import value_of


def border_response(border_kernel, height, width):
  """The output of a 3x3 convolution for a channel that is 1 on the padding ring and 0 inside.

  The original appends that channel to the input of every 3x3 convolution, so that the network knows where the image
  ends. Its effect does not depend on the data: it is an additive map, and the input need not be copied.

  Computed in float64 whatever the kernel. In float32, oneDNN (TensorFlow's CPU library) prepares small products slowly.

  Args:
    border_kernel: Tensor `[..., 3, 3, 1, num_outputs]`.
    height: Height of the image.
    width: Width of the image.

  Returns:
    Tensor `[..., height, width, num_outputs]`.
  """
  ring = tf.pad(tf.zeros([1, height, width, 1]), [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1)
  patches = tf.reshape(tf.image.extract_patches(ring, [1, 3, 3, 1], [1] * 4, [1] * 4, "VALID"), [height * width, 9])
  batch, outputs = border_kernel.shape[:-4].as_list(), border_kernel.shape[-1]
  response = tf.cast(patches, tf.float64) @ tf.cast(tf.reshape(border_kernel, batch + [9, outputs]), tf.float64)
  return tf.cast(tf.reshape(response, batch + [height, width, outputs]), border_kernel.dtype)


def append_ones(inputs):
  """Appends to `[..., C]` the channel of ones that shows `ActNormConv2D` the border."""
  return tf.concat([inputs, tf.ones_like(inputs[..., :1])], axis=-1)


class _Folding(keras.layers.Layer):
  """Layers whose `fold` puts everything after a convolution into its kernel and bias, for many layers at once.

  `pull_back` has the gradients of `run`. TensorFlow's own would keep more tensors and take more operations.
  """

  def __init__(self, **kwargs):
    # Parameters are folded in their own precision, then cast.
    super().__init__(autocast=False, **kwargs)

  def _cast(self, tensor):
    return tf.cast(tensor, self.compute_dtype)

  def _scaled(self, kernel, scale):
    return self._cast(kernel * before_channels(scale, 3))


@keras.saving.register_keras_serializable("tfp_glow")
class ActNormConv2D(_Folding):
  """Convolution, actnorm, relu: `relu((conv(x) + shift) * exp(3 * log_scale))`.

  Convolutions larger than 1x1 see the border through one more input channel, of ones. It is padded with zeros like the
  other channels, and so is 1 minus the channel of `border_response`. The constant is part of the shift. Outputs
  therefore equal those of the original, whose kernel for that channel is the negative of this one.
  """

  def __init__(self, filters: int, kernel_size: int, seed: int | None = None, **kwargs: Any):
    """Creates the layer.

    Args:
      filters: Python `int`, number of output channels.
      kernel_size: 1 or 3.
      seed: Python `int` of the kernel's initial values, normal with standard deviation 0.05.
      **kwargs: Arguments of `keras.layers.Layer`.
    """
    super().__init__(**kwargs)
    self.filters = filters
    self.kernel_size = kernel_size
    self.sees_border = kernel_size > 1
    self.seed = seed

  def build(self, input_shape):
    size, channels = self.kernel_size, input_shape[-1]
    self.kernel = self.add_weight(name="kernel", shape=[size, size, channels + self.sees_border, self.filters],
                                  initializer=lambda shape, dtype: tf.constant(_draw_kernel(shape, self.seed), dtype))
    self.shift = self.add_weight(name="shift", shape=[self.filters], initializer="zeros")
    self.log_scale = self.add_weight(name="log_scale", shape=[self.filters], initializer="zeros")

  def fold(self, value: Callable[[keras.Variable], tf.Tensor] = value_of) -> tuple[tf.Tensor, tf.Tensor]:
    """The whole layer as `relu(conv(x, kernel) + bias)`.

    Args:
      value: Callable that maps a variable of this layer to its value, or to those of many layers stacked along a first
        dimension.

    Returns:
      kernel: Tensor `[..., size, size, channels (+ 1), filters]`.
      bias: Tensor `[..., filters]`.
    """
    return self._fold(value(self.kernel), value(self.shift), tf.exp(log_scale_of(value(self.log_scale))))

  def _fold(self, kernel, shift, scale):
    if self.sees_border:
      shift -= tf.reduce_sum(kernel[..., -1, :], [-3, -2])
    return self._scaled(kernel, scale), self._cast(shift * scale)

  def run(self, inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """The layer, given the output of `fold`. If it sees the border, the input's last channel is ones.

    Args:
      inputs: Tensor `[N, H, W, channels (+ 1)]`.
      kernel: See `fold`.
      bias: See `fold`.

    Returns:
      Tensor `[N, H, W, filters]`.
    """
    return self._convolve(inputs, kernel, bias, tf.nn.relu)

  def _convolve(self, inputs, kernel, bias, activation):
    inputs = self._cast(inputs)
    if self.sees_border:
      return activation(tf.nn.bias_add(conv2d(inputs, kernel), bias))
    # A 1x1 convolution is faster on CPUs as a matrix product. TensorFlow fuses the three if nothing comes between.
    product = matmul(rows(inputs), tf.reshape(kernel, kernel.shape[-2:]))
    return with_rows(activation(tf.nn.bias_add(product, bias)), inputs)

  def pull_back(self, inputs: tf.Tensor, outputs: tf.Tensor, kernel: tf.Tensor,
                d_outputs: tf.Tensor) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """The gradients of `run`, from tensors in the dtype in which it computes.

    Args:
      inputs: The inputs of `run`.
      outputs: The outputs of `run`.
      kernel: The kernel given to `run`.
      d_outputs: The gradient with respect to the outputs.

    Returns:
      d_inputs: The gradient with respect to the inputs.
      d_weights: The gradients with respect to kernel and bias.
    """
    d_sums = tf.raw_ops.ReluGrad(gradients=d_outputs, features=outputs)
    d_bias = tf.raw_ops.BiasAddGrad(out_backprop=d_sums)
    if self.sees_border:
      d_inputs = conv2d_back(d_sums, kernel, tf.shape(inputs))
      return d_inputs, (conv2d_to_kernel(inputs, d_sums, kernel.shape), d_bias)
    d_rows, matrix = rows(d_sums), tf.reshape(kernel, kernel.shape[-2:])
    d_kernel = tf.reshape(matmul(rows(inputs), d_rows, transpose_a=True), kernel.shape)
    return with_rows(matmul(d_rows, matrix, transpose_b=True), inputs), (d_kernel, d_bias)

  def call(self, inputs):
    return self.run(self._with_ones(inputs), *self.fold())

  def initialize(self, inputs: tf.Tensor) -> tf.Tensor:
    """Sets `shift` and `log_scale`, unless they are frozen, from the batch `inputs`; returns the outputs.

    Args:
      inputs: Tensor `[N, H, W, channels]`.

    Returns:
      Tensor `[N, H, W, filters]`.
    """
    weights = self._fold(value_of(self.kernel), tf.zeros_like(self.shift), tf.ones_like(self.shift))
    shift, log_scale = activation_statistics(self._convolve(self._with_ones(inputs), *weights, tf.identity))
    assign_unless_frozen(self.shift, shift)
    assign_unless_frozen(self.log_scale, log_scale)
    return self(inputs)

  def _with_ones(self, inputs):
    return append_ones(inputs) if self.sees_border else inputs

  def get_config(self):
    return {**super().get_config(), "filters": self.filters, "kernel_size": self.kernel_size, "seed": self.seed}


@keras.saving.register_keras_serializable("tfp_glow")
class ZeroConv2D(_Folding):
  """A 3x3 convolution that starts at zero: `(conv(x) + bias) * exp(3 * log_scale)`.

  It sees the border (`border_response`). The gain lets it leave zero quickly.
  """

  def __init__(self, filters: int, num_groups: int = 1, **kwargs: Any):
    """Creates the layer.

    Args:
      filters: Python `int`, number of output channels.
      num_groups: Python `int`, 2 for output channels in the order `shift, scale, shift, scale ...`, which `call`
        returns. Variables, `fold` and `run` hold one group after the other, which saves work for callers that split
        the groups.
      **kwargs: Arguments of `keras.layers.Layer`.
    """
    super().__init__(**kwargs)
    self.filters = filters
    self.num_groups = num_groups

  def build(self, input_shape):
    add = lambda name, shape: self.add_weight(name=name, shape=shape, initializer="zeros")
    self.kernel = add("kernel", [3, 3, input_shape[-1], self.filters])
    self.border_kernel = add("border_kernel", [3, 3, 1, self.filters])
    self.bias = add("bias", [self.filters])
    self.log_scale = add("log_scale", [self.filters])

  def fold(self, height: int | tf.Tensor, width: int | tf.Tensor,
           value: Callable[[keras.Variable], tf.Tensor] = value_of,
           offset: float | np.ndarray = 0.) -> tuple[tf.Tensor, ...]:
    """The whole layer as `conv(x, kernel) + additive_map`.

    Args:
      height: Height of the image.
      width: Width of the image.
      value: As in `ActNormConv2D.fold`.
      offset: Array `[filters]`, added to the outputs.

    Returns:
      kernel: Tensor `[..., 3, 3, channels, filters]`.
      additive_map: Tensor `[..., height, width, filters]`, in the dtype of the variables.
    """
    scale = tf.exp(log_scale_of(value(self.log_scale)))
    border = border_response(value(self.border_kernel), height, width)
    additive_map = (border + before_channels(value(self.bias), 2)) * before_channels(scale, 2)
    return self._scaled(value(self.kernel), scale), additive_map + tf.cast(offset, additive_map.dtype)

  def run(self, inputs: tf.Tensor, kernel: tf.Tensor, additive_map: tf.Tensor) -> tf.Tensor:
    """The layer, given the output of `fold`.

    Args:
      inputs: Tensor `[N, H, W, channels]`.
      kernel: See `fold`.
      additive_map: See `fold`.

    Returns:
      Tensor `[N, H, W, filters]`, of the dtype of `additive_map`.
    """
    return tf.cast(conv2d(self._cast(inputs), kernel), additive_map.dtype) + additive_map

  def pull_back(self, inputs: tf.Tensor, kernel: tf.Tensor,
                d_outputs: tf.Tensor) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """The gradients of `run`.

    Args:
      inputs: The inputs of `run`, in the dtype of the kernel.
      kernel: The kernel given to `run`.
      d_outputs: The gradient with respect to the outputs.

    Returns:
      d_inputs: The gradient with respect to the inputs.
      d_weights: The gradients with respect to kernel and additive map.
    """
    d_sums = self._cast(d_outputs)
    d_weights = conv2d_to_kernel(inputs, d_sums, kernel.shape), tf.reduce_sum(d_outputs, axis=0)
    return conv2d_back(d_sums, kernel, tf.shape(inputs)), d_weights

  def call(self, inputs):
    outputs = self._cast(self.run(inputs, *self.fold(*_height_and_width(inputs))))
    groups = tf.split(outputs, self.num_groups, axis=-1)
    return tf.reshape(tf.stack(groups, axis=-1), tf.shape(outputs)) if len(groups) > 1 else outputs

  def get_config(self):
    return {**super().get_config(), "filters": self.filters, "num_groups": self.num_groups}


@keras.saving.register_keras_serializable("tfp_glow")
class ZeroDense(keras.layers.Layer):
  """Dense layer that starts at zero, with a learned scale: `(x @ kernel + bias) * exp(3 * log_scale)`."""

  def __init__(self, units: int, **kwargs: Any):
    """Creates the layer.

    Args:
      units: Python `int`, number of outputs.
      **kwargs: Arguments of `keras.layers.Layer`.
    """
    super().__init__(**kwargs)
    self.units = units

  def build(self, input_shape):
    add = lambda name, *shape: self.add_weight(name=name, shape=shape, initializer="zeros")
    self.kernel = add("kernel", input_shape[-1], self.units)
    self.bias = add("bias", self.units)
    self.log_scale = add("log_scale", self.units)

  def call(self, inputs):
    kernel, bias, scale = map(value_of, (self.kernel, self.bias, self.log_scale))
    return (matmul(inputs, kernel) + bias) * tf.exp(log_scale_of(scale))

  def get_config(self):
    return {**super().get_config(), "units": self.units}


def _height_and_width(x):
  return [tf.shape(x)[i] if x.shape[i] is None else x.shape[i] for i in (1, 2)]


@keras.saving.register_keras_serializable("tfp_glow")
class CouplingNetwork(_Folding):
  """The original's coupling network: 3x3 and 1x1 convolutions with actnorm and relu, then a 3x3 that starts at zero.

  It clips inputs to plus and minus 1000 (`within_reach`). Called with `[inputs, context]`, where `context` is an image
  `[N, H, W, F]`, it sees both; the channels of the context come first.

  References:
    Kingma and Dhariwal, "Glow" (2018), section 4.
  """

  def __init__(self, num_output_channels: int, num_hidden: int = 512, num_groups: int = 1, seed: int | None = None,
               **kwargs: Any):
    """Creates the network.

    Args:
      num_output_channels: Python `int`.
      num_hidden: Python `int`, channels of both hidden layers.
      num_groups: See `ZeroConv2D`; an affine coupling is fastest with 2.
      seed: Python `int` of the initial values.
      **kwargs: Arguments of `keras.layers.Layer`; `dtype` takes a Keras dtype policy.
    """
    super().__init__(**kwargs)
    self.num_output_channels = num_output_channels
    self.num_hidden = num_hidden
    self.num_groups = num_groups
    self.seed = seed
    self.first, self.second = (
        ActNormConv2D(num_hidden, size, _part_of_seed(seed, i), dtype=self.dtype_policy, name=name)
        for i, (size, name) in enumerate(((3, "first"), (1, "second"))))
    self.last = ZeroConv2D(num_output_channels, num_groups, dtype=self.dtype_policy, name="last")

  def build(self, input_shape):
    if isinstance(input_shape[0], (list, tuple)):  # There is a context.
      input_shape = (*input_shape[0][:-1], input_shape[0][-1] + input_shape[1][-1])
    hidden_shape = (*input_shape[:-1], self.num_hidden)
    self.first.build(input_shape)
    self.second.build(hidden_shape)
    self.last.build(hidden_shape)

  def redraw(self, seed: int | None) -> list[tuple[keras.Variable, np.ndarray]]:
    """Initial values of another network like this with another seed; zeros are left out.

    Args:
      seed: Python `int`, or `None` for any.

    Returns:
      List of `(variable of this one, array)`.
    """
    return [(layer.kernel, _draw_kernel(layer.kernel.shape, _part_of_seed(seed, i)))
            for i, layer in enumerate((self.first, self.second))]

  def fold(self, height: int | tf.Tensor, width: int | tf.Tensor,
           value: Callable[[keras.Variable], tf.Tensor] = value_of,
           offset: float | np.ndarray = 0.) -> tuple[tuple[tf.Tensor, ...], ...]:
    """Everything that `run` needs besides the inputs; arguments as in `ZeroConv2D.fold`.

    Args:
      height: Height of the image.
      width: Width of the image.
      value: As in `ActNormConv2D.fold`.
      offset: Array `[num_output_channels]`, added to the outputs.

    Returns:
      Tuple of the outputs of each layer's `fold`.
    """
    return self.first.fold(value), self.second.fold(value), self.last.fold(height, width, value, offset)

  def run(self, inputs: tf.Tensor, weights: tuple[tuple[tf.Tensor, ...], ...],
          context: tf.Tensor | None = None) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """The network, given the output of `fold`; the last channel of `inputs` is ones.

    Args:
      inputs: Tensor `[N, H, W, channels + 1]`.
      weights: The output of `fold`.
      context: Tensor `[N, H, W, F]`, if the network was built with a context.

    Returns:
      outputs: Tensor `[N, H, W, num_output_channels]`, in the order of `ZeroConv2D`.
      hidden: Two tensors `[N, H, W, num_hidden]`, the outputs of the hidden layers, for `pull_back`.
    """
    first, second, last = weights
    hidden = self.first.run(_seen(within_reach(inputs), context), *first)
    hidden = hidden, self.second.run(hidden, *second)
    return self.last.run(hidden[1], *last), hidden

  def pull_back(self, inputs: tf.Tensor, hidden: tuple[tf.Tensor, tf.Tensor],
                weights: tuple[tuple[tf.Tensor, ...], ...], d_outputs: tf.Tensor, context: tf.Tensor | None = None
                ) -> tuple[tf.Tensor, tuple[tuple[tf.Tensor, ...], ...], tf.Tensor | None]:
    """The gradients of the outputs of `run`.

    Args:
      inputs: The inputs of `run`.
      hidden: The `hidden` that `run` returned.
      weights: The weights given to `run`.
      d_outputs: The gradient with respect to the outputs.
      context: The context given to `run`.

    Returns:
      d_inputs: The gradient with respect to the inputs.
      d_weights: The gradients with respect to `weights`, a nest like them.
      d_context: The gradient with respect to the context, `None` if there is none.
    """
    (first, _), (second, _), (last, _) = weights
    d_hidden, d_last = self.last.pull_back(hidden[1], last, d_outputs)
    d_hidden, d_second = self.second.pull_back(*hidden, second, d_hidden)
    clipped = within_reach(inputs)
    d_seen, d_first = self.first.pull_back(self._cast(_seen(clipped, context)), hidden[0], first, d_hidden)
    d_seen, d_context = tf.cast(d_seen, inputs.dtype), None
    if context is not None:
      d_context, d_seen = tf.split(d_seen, [context.shape[-1], -1], axis=-1)
    return within_reach_pull_back(inputs, clipped, d_seen), (d_first, d_second, d_last), d_context

  def call(self, inputs):
    return self.last(self.second(self.first(self._seen_of(inputs))))

  def initialize(self, inputs: tf.Tensor) -> tf.Tensor:
    """Data-dependent initialisation, layer after layer, from the batch `inputs`; returns the outputs.

    Args:
      inputs: Tensor `[N, H, W, channels]`, or a list of this and a context.

    Returns:
      Tensor `[N, H, W, num_output_channels]`.
    """
    return self.last(self.second.initialize(self.first.initialize(self._seen_of(inputs))))

  def _seen_of(self, inputs):
    inputs, context = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
    return _seen(within_reach(inputs), context)

  def compute_output_shape(self, input_shape):
    input_shape = input_shape[0] if isinstance(input_shape[0], (list, tuple)) else input_shape
    return (*input_shape[:-1], self.num_output_channels)

  def get_config(self):
    return {**super().get_config(), "num_output_channels": self.num_output_channels, "num_hidden": self.num_hidden,
            "num_groups": self.num_groups, "seed": self.seed}


def _seen(inputs, context):
  """The first layer's input. The channel of ones, if there is one, stays last."""
  return inputs if context is None else tf.concat([tf.cast(context, inputs.dtype), inputs], axis=-1)


def _draw_kernel(shape, seed):
  return generator(seed).normal(0., 0.05, shape)


def _part_of_seed(seed, index):
  return None if seed is None else seed + index

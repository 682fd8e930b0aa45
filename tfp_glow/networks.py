"""Coupling networks: Keras layers."""

import random

import keras
import numpy as np
import tensorflow as tf

from tfp_glow.gradients import custom_gradient

# The original trains `log_scale / 3` in place of `log_scale`, which makes its updates three times as large.
LOG_SCALE_FACTOR = 3.

# Learned log-scales act as if they lay within plus and minus this: half of float32's range, so that such a scale, its
# inverse and the squares of both are finite and not 0.
MAX_LOG_SCALE = 40.


def generator(seed):
  """NumPy's, from a seed; `None`: another each time, but the same after `keras.utils.set_random_seed`."""
  return np.random.default_rng(random.randrange(2**31) if seed is None else seed)


def bounded(log_scale, bound=MAX_LOG_SCALE):
  """`log_scale`, clipped to plus and minus `bound`.

  Beyond the bounds the gradient is that at the bound, so that training leads back, but at most 1: where a network makes
  so little of the scale, that of the squared latent may be anything.

  Args:
    log_scale: Tensor.
    bound: Python `float`.
  """

  @custom_gradient
  def clip(x):
    clipped = tf.clip_by_value(x, -bound, bound)
    return clipped, lambda d_outputs: tf.where(tf.equal(clipped, x), d_outputs, tf.clip_by_value(d_outputs, -1., 1.))

  return clip(log_scale)


def activation_statistics(x):
  """The shift and the raw log-scale after which `(x + shift) * exp(3 * log_scale)` has mean 0 and variance 1.

  Of a channel that is constant but for rounding (a batch of one image that has come down to one position, for example)
  nothing is known of the deviation: its scale is 1. Scaled up step after step, other batches would overflow.

  Args:
    x: Tensor `[..., C]`.

  Returns:
    shift: Tensor `[C]`.
    log_scale: Tensor `[C]`.
  """
  axes = list(range(x.shape.rank - 1))
  shift = -tf.reduce_mean(x, axes)
  deviation = tf.sqrt(tf.reduce_mean(tf.square(x + shift), axes))
  log_scale = -tf.math.log(deviation + 1e-6) / LOG_SCALE_FACTOR
  is_constant = deviation <= 1e-6 * (1. + tf.abs(shift))
  return shift, tf.where(is_constant, tf.zeros_like(log_scale), log_scale)


def within_reach(inputs):
  """Inputs of a network, clipped to plus and minus 1000.

  Actnorms have made them about 1. (A pixel that is black in all images but one is, with 8 bits, 900 deviations off.)
  Further out convolutions and relus only multiply, coupling after coupling, until they overflow. The couplings stay
  invertible.
  """
  return tf.clip_by_value(inputs, -1000., 1000.)


def log_scale_of(parameter):
  """What a variable `log_scale` stands for: 3 times it, within bounds."""
  return bounded(LOG_SCALE_FACTOR * parameter)


def border_response(border_kernel, height, width):
  """What a 3x3 convolution makes of a channel that is 1 on the padding ring and 0 inside.

  The original appends that channel to the input of every 3x3 convolution, so that the network knows where the image
  ends. It does not depend on the data: it is an additive map, and the input need not be copied.

  In float64, whatever the kernel: in float32 oneDNN, TensorFlow's library on CPUs, prepares small products at length.

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
  """Appends to `[..., C]` the channel of ones that `ActNormConv2D` sees the border by."""
  return tf.concat([inputs, tf.ones_like(inputs[..., :1])], axis=-1)


def before_channels(x, num_dims):
  """From `[..., C]` to `[..., 1, ..., 1, C]`, with so many dimensions of size 1; `[..., C]` is known when built."""
  return tf.reshape(x, x.shape[:-1].as_list() + [1] * num_dims + [x.shape[-1]])


def value_of(variable):
  """The value of a `keras.Variable` itself; instead of it the methods `fold` also take functions that give stacks."""
  return tf.convert_to_tensor(variable.value)


class _Folding(keras.layers.Layer):
  """Layers that fold all that follows a convolution into its kernel and bias.

  `fold` does what is small, for many layers at once; the product of kernel and scale is left to `run`, as a copy of all
  kernels would take as much memory as the parameters, and its gradients twice that.
  """

  def __init__(self, **kwargs):
    # Parameters are folded in their own precision, then cast.
    super().__init__(autocast=False, **kwargs)

  def _cast(self, *tensors):
    return [tf.cast(tensor, self.compute_dtype) for tensor in tensors]


@keras.saving.register_keras_serializable("tfp_glow")
class ActNormConv2D(_Folding):
  """Convolution, actnorm, relu: `relu((conv(x) + shift) * exp(3 * log_scale))`.

  Convolutions larger than 1x1 see the border: they have one more input channel, of ones. At the border, where other
  channels are padded with zeros, so is this one: it is 1 minus the channel of `border_response`. The constant in this
  is part of the shift, so that outputs are those of the original, whose kernel for that channel is the negative of
  this.
  """

  def __init__(self, filters, kernel_size, seed=None, **kwargs):
    """Creates the layer.

    Args:
      filters: Python `int`, number of output channels.
      kernel_size: 1 or 3.
      seed: Python `int` of the kernel's initial values, normal with standard deviation 0.05.
      **kwargs: Of `keras.layers.Layer`.
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

  def fold(self, value=value_of):
    """The whole layer as `relu(conv(x, kernel * scale) + bias)`.

    Args:
      value: Callable, from a variable of this layer to its value, or to those of many layers along a first dimension.

    Returns:
      kernel: Tensor `[..., size, size, channels (+ 1), filters]`.
      scale: Tensor `[..., filters]`.
      bias: Tensor `[..., filters]`.
    """
    scale = tf.exp(log_scale_of(value(self.log_scale)))
    return self._fold(value(self.kernel), value(self.shift), scale)

  def _fold(self, kernel, shift, scale):
    if self.sees_border:
      shift -= tf.reduce_sum(kernel[..., -1, :], [-3, -2])
    return kernel, scale, shift * scale

  def run(self, inputs, kernel, scale, bias):
    """The layer, of what `fold` returned; the input's last channel is that of ones where the border is seen."""
    return self._convolve(inputs, kernel, scale, bias, tf.nn.relu)

  def _convolve(self, inputs, kernel, scale, bias, activation):
    inputs, kernel, bias = self._cast(inputs, kernel * scale, bias)
    if self.sees_border:
      return activation(tf.nn.bias_add(tf.nn.conv2d(inputs, kernel, strides=1, padding="SAME"), bias))
    # As a matrix product a 1x1 convolution is faster on CPUs. TensorFlow fuses the three if nothing comes between.
    flat = tf.matmul(tf.reshape(inputs, [-1, inputs.shape[-1]]), tf.reshape(kernel, kernel.shape[-2:]))
    flat = activation(tf.nn.bias_add(flat, bias))
    return tf.reshape(flat, [-1, *_height_and_width(inputs), self.filters])

  def call(self, inputs):
    return self.run(self._with_ones(inputs), *self.fold())

  def initialize(self, inputs):
    """Sets `shift` and `log_scale` from the batch `inputs`; returns the outputs."""
    weights = self._fold(value_of(self.kernel), tf.zeros_like(self.shift), tf.ones_like(self.shift))
    shift, log_scale = activation_statistics(self._convolve(self._with_ones(inputs), *weights, tf.identity))
    self.shift.assign(shift)
    self.log_scale.assign(log_scale)
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

  def __init__(self, filters, num_groups=1, **kwargs):
    """Creates the layer.

    Args:
      filters: Python `int`, number of output channels.
      num_groups: Python `int`, 2 if the output channels are to be `shift, scale, shift, scale ...`: `call` returns them
        so. Variables hold one group after the other, and so do `fold` and `run`, to spare whoever wants them apart the
        work.
      **kwargs: Of `keras.layers.Layer`.
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

  def fold(self, height, width, value=value_of, offset=0.):
    """The whole layer as `conv(x, kernel * scale) + additive_map`.

    Args:
      height: Height of the image.
      width: Width of the image.
      value: As in `ActNormConv2D.fold`.
      offset: Array `[filters]`, added to the outputs.

    Returns:
      kernel: Tensor `[..., 3, 3, channels, filters]`.
      scale: Tensor `[..., filters]`.
      additive_map: Tensor `[..., height, width, filters]`.
    """
    scale = tf.exp(log_scale_of(value(self.log_scale)))
    border = border_response(value(self.border_kernel), height, width)
    additive_map = (border + before_channels(value(self.bias), 2)) * before_channels(scale, 2)
    return value(self.kernel), scale, additive_map + tf.cast(offset, additive_map.dtype)

  def run(self, inputs, kernel, scale, additive_map):
    """The layer, of what `fold` returned."""
    inputs, kernel, additive_map = self._cast(inputs, kernel * scale, additive_map)
    return tf.nn.conv2d(inputs, kernel, strides=1, padding="SAME") + additive_map

  def call(self, inputs):
    outputs = self.run(inputs, *self.fold(*_height_and_width(inputs)))
    groups = tf.split(outputs, self.num_groups, axis=-1)
    return tf.reshape(tf.stack(groups, axis=-1), tf.shape(outputs)) if len(groups) > 1 else outputs

  def get_config(self):
    return {**super().get_config(), "filters": self.filters, "num_groups": self.num_groups}


@keras.saving.register_keras_serializable("tfp_glow")
class ZeroDense(keras.layers.Layer):
  """Dense layer that starts at zero, with a learned scale: `(x @ kernel + bias) * exp(3 * log_scale)`."""

  def __init__(self, units, **kwargs):
    """Creates the layer.

    Args:
      units: Python `int`, number of outputs.
      **kwargs: Of `keras.layers.Layer`.
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
    return (inputs @ kernel + bias) * tf.exp(log_scale_of(scale))

  def get_config(self):
    return {**super().get_config(), "units": self.units}


def _height_and_width(x):
  return [tf.shape(x)[i] if x.shape[i] is None else x.shape[i] for i in (1, 2)]


@keras.saving.register_keras_serializable("tfp_glow")
class CouplingNetwork(_Folding):
  """The original's coupling network: 3x3 and 1x1 convolutions with actnorm and relu, then a 3x3 that starts at zero.

  Inputs beyond 1000 it takes for 1000 (`within_reach`).

  References:
    Kingma and Dhariwal, "Glow" (2018), section 4.
  """

  def __init__(self, num_output_channels, num_hidden=512, num_groups=1, seed=None, **kwargs):
    """Creates the network.

    Args:
      num_output_channels: Python `int`.
      num_hidden: Python `int`, channels of both hidden layers.
      num_groups: See `ZeroConv2D`; an affine coupling is fastest with 2.
      seed: Python `int` of the initial values.
      **kwargs: Of `keras.layers.Layer`; `dtype` takes a Keras dtype policy.
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
    hidden_shape = (*input_shape[:-1], self.num_hidden)
    self.first.build(input_shape)
    self.second.build(hidden_shape)
    self.last.build(hidden_shape)

  def redraw(self, seed):
    """What another network like this, with another seed, starts from: `(own variable, array)`, zeros left out."""
    return [(layer.kernel, _draw_kernel(layer.kernel.shape, _part_of_seed(seed, i)))
            for i, layer in enumerate((self.first, self.second))]

  def fold(self, height, width, value=value_of, offset=0.):
    """All that does not depend on the inputs, for `run`; arguments as in `ZeroConv2D.fold`."""
    return self.first.fold(value), self.second.fold(value), self.last.fold(height, width, value, offset)

  def run(self, inputs, weights):
    """The network, of what `fold` returned; the last channel of `inputs` is that of ones. Outputs: see `ZeroConv2D`."""
    first, second, last = weights
    return self.last.run(self.second.run(self.first.run(within_reach(inputs), *first), *second), *last)

  def call(self, inputs):
    return self.last(self.second(self.first(within_reach(inputs))))

  def initialize(self, inputs):
    """Data-dependent initialisation, layer after layer, from the batch `inputs`; returns the outputs."""
    return self.last(self.second.initialize(self.first.initialize(within_reach(inputs))))

  def compute_output_shape(self, input_shape):
    return (*input_shape[:-1], self.num_output_channels)

  def get_config(self):
    return {**super().get_config(), "num_output_channels": self.num_output_channels, "num_hidden": self.num_hidden,
            "num_groups": self.num_groups, "seed": self.seed}


def _draw_kernel(shape, seed):
  return generator(seed).normal(0., 0.05, shape)


def _part_of_seed(seed, index):
  return None if seed is None else seed + index


def is_built(network):
  """Whether all variables of `network` exist; raises `TypeError` for what is not a Keras layer."""
  if not isinstance(network, keras.layers.Layer):
    raise TypeError("`network` must be a layer or model of Keras 3 (`keras.layers.Layer`); layers of `tf_keras` are "
                    f"others. Received: {network!r}")
  return network.built


def build(network, input_shape, num_output_channels, dtype):
  """Builds `network` by one call on zeros, and checks that it can serve in a bijector.

  Args:
    network: Keras layer.
    input_shape: Static shape of one input, without batch dimension; unknown sizes of images are taken as 4.
    num_output_channels: Expected size of the output's last dimension.
    dtype: Of the input.

  Returns:
    The dtype of the output.

  Raises:
    ValueError: if the output has another shape, or a call changes the network's state.
  """
  sizes = [4 if size is None else size for size in input_shape]
  with tf.init_scope():
    inputs = tf.zeros([1] + sizes, dtype)
    outputs = network(inputs)
    expected = [1] + sizes[:-1] + [num_output_channels]
    if outputs.shape.as_list() != expected:
      raise ValueError(f"`network` must map the shape {[1] + sizes} to {expected}. Received: {network.name!r}, which "
                       f"returns {outputs.shape.as_list()}")
    _check_stateless(network, inputs)
  return outputs.dtype


def _check_stateless(network, inputs):
  before = [(v, tf.convert_to_tensor(v.value)) for v in network.variables]
  with keras.StatelessScope(state_mapping=before) as scope:
    network(inputs, training=True)
    changed = [v.path for v, value in before if scope.get_current_value(v) is not value]
  if changed:
    raise ValueError(
        "`network` must compute the same function on every call, or the bijector cannot be inverted: no layer whose "
        "state changes when it is called, such as BatchNormalization or Dropout (in a coupling, LayerNormalization and "
        f"GroupNormalization are fine). Received: {network.name!r}, which changes {', '.join(changed)}")

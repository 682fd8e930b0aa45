"""Coupling networks: Keras layers."""

import keras
import tensorflow as tf

# The original trains `log_scale / 3` in place of `log_scale`, which makes its updates three times as large.
LOG_SCALE_FACTOR = 3.


def activation_statistics(x):
  """The shift and the raw log-scale after which `(x + shift) * exp(3 * log_scale)` has mean 0 and variance 1.

  Args:
    x: Tensor `[..., C]`.

  Returns:
    shift: Tensor `[C]`.
    log_scale: Tensor `[C]`.
  """
  axes = list(range(x.shape.rank - 1))
  shift = -tf.reduce_mean(x, axes)
  deviation = tf.sqrt(tf.reduce_mean(tf.square(x + shift), axes))
  return shift, -tf.math.log(deviation + 1e-6) / LOG_SCALE_FACTOR


def border_response(border_kernel, height, width):
  """What a 3x3 convolution makes of a channel that is 1 on the padding ring and 0 inside.

  The original appends that channel to the input of every 3x3 convolution, so that the network knows where the image
  ends. It does not depend on the data: it is an additive map, and the input need not be copied.

  Args:
    border_kernel: Tensor `[3, 3, 1, num_outputs]`.
    height: Height of the image.
    width: Width of the image.

  Returns:
    Tensor `[1, height, width, num_outputs]`.
  """
  ring = tf.pad(tf.zeros([1, height, width, 1], border_kernel.dtype), [[0, 0], [1, 1], [1, 1], [0, 0]],
                constant_values=1)
  return tf.nn.conv2d(ring, border_kernel, strides=1, padding="VALID")


def _height_and_width(x):
  dynamic = tf.shape(x)
  return [dynamic[i] if x.shape[i] is None else x.shape[i] for i in (1, 2)]


@keras.saving.register_keras_serializable("tfp_glow")
class ActNormConv2D(keras.layers.Layer):
  """Convolution, actnorm, relu: `relu((conv(x) + shift) * exp(3 * log_scale))`.

  Convolutions larger than 1x1 see the border (`border_response`). The actnorm is folded into the kernel.
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
    self.seed = seed

  def build(self, input_shape):
    size, channels = self.kernel_size, input_shape[-1]
    sees_border = size > 1
    # Drawn as one, as the original does, so that a border kernel is not a copy of the first channel's.
    draw = keras.initializers.RandomNormal(stddev=0.05, seed=self.seed)
    drawn = draw([size, size, channels + sees_border, self.filters], dtype=self.variable_dtype)
    self.kernel = self.add_weight(name="kernel", shape=[size, size, channels, self.filters],
                                  initializer=lambda shape, dtype: drawn[:, :, :channels])
    if sees_border:
      self.border_kernel = self.add_weight(name="border_kernel", shape=[size, size, 1, self.filters],
                                           initializer=lambda shape, dtype: drawn[:, :, channels:])
    self.shift = self.add_weight(name="shift", shape=[self.filters], initializer="zeros")
    self.log_scale = self.add_weight(name="log_scale", shape=[self.filters], initializer="zeros")

  def call(self, inputs):
    scale = tf.exp(LOG_SCALE_FACTOR * tf.convert_to_tensor(self.log_scale))
    return tf.nn.relu(self._convolve(inputs, scale, self.shift * scale))

  def initialize(self, inputs):
    """Sets `shift` and `log_scale` from the batch `inputs`; returns the outputs."""
    raw = self._convolve(inputs, tf.ones_like(self.log_scale), tf.zeros_like(self.shift))
    shift, log_scale = activation_statistics(raw)
    self.shift.assign(shift)
    self.log_scale.assign(log_scale)
    return self(inputs)

  def _convolve(self, inputs, scale, bias):
    outputs = tf.nn.conv2d(inputs, self.kernel * scale, strides=1, padding="SAME")
    if self.kernel_size > 1:
      bias += border_response(self.border_kernel * scale, *_height_and_width(inputs))
    return outputs + bias

  def get_config(self):
    return {**super().get_config(), "filters": self.filters, "kernel_size": self.kernel_size, "seed": self.seed}


@keras.saving.register_keras_serializable("tfp_glow")
class ZeroConv2D(keras.layers.Layer):
  """A 3x3 convolution that starts at zero: `(conv(x) + bias) * exp(3 * log_scale)`.

  It sees the border (`border_response`). The gain lets it leave zero quickly.
  """

  def __init__(self, filters, **kwargs):
    """Creates the layer.

    Args:
      filters: Python `int`, number of output channels.
      **kwargs: Of `keras.layers.Layer`.
    """
    super().__init__(**kwargs)
    self.filters = filters

  def build(self, input_shape):
    add = lambda name, shape: self.add_weight(name=name, shape=shape, initializer="zeros")
    self.kernel = add("kernel", [3, 3, input_shape[-1], self.filters])
    self.border_kernel = add("border_kernel", [3, 3, 1, self.filters])
    self.bias = add("bias", [self.filters])
    self.log_scale = add("log_scale", [self.filters])

  def call(self, inputs):
    scale = tf.exp(LOG_SCALE_FACTOR * tf.convert_to_tensor(self.log_scale))
    outputs = tf.nn.conv2d(inputs, self.kernel * scale, strides=1, padding="SAME")
    border = border_response(self.border_kernel * scale, *_height_and_width(inputs))
    return outputs + (border + self.bias * scale)

  def get_config(self):
    return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("tfp_glow")
class CouplingNetwork(keras.layers.Layer):
  """The original's coupling network: 3x3 and 1x1 convolutions with actnorm and relu, then a 3x3 that starts at zero.

  References:
    Kingma and Dhariwal, "Glow" (2018), section 4.
  """

  def __init__(self, num_output_channels, num_hidden=512, seed=None, **kwargs):
    """Creates the network.

    Args:
      num_output_channels: Python `int`.
      num_hidden: Python `int`, channels of both hidden layers.
      seed: Python `int` of the initial values.
      **kwargs: Of `keras.layers.Layer`; `dtype` takes a Keras dtype policy.
    """
    super().__init__(**kwargs)
    self.num_output_channels = num_output_channels
    self.num_hidden = num_hidden
    self.seed = seed
    part = lambda index: None if seed is None else seed + index
    self.first = ActNormConv2D(num_hidden, 3, part(0), dtype=self.dtype_policy, name="first")
    self.second = ActNormConv2D(num_hidden, 1, part(1), dtype=self.dtype_policy, name="second")
    self.last = ZeroConv2D(num_output_channels, dtype=self.dtype_policy, name="last")

  def build(self, input_shape):
    hidden_shape = (*input_shape[:-1], self.num_hidden)
    self.first.build(input_shape)
    self.second.build(hidden_shape)
    self.last.build(hidden_shape)

  def call(self, inputs):
    return self.last(self.second(self.first(inputs)))

  def initialize(self, inputs):
    """Data-dependent initialisation, layer after layer, from the batch `inputs`; returns the outputs."""
    return self.last(self.second.initialize(self.first.initialize(inputs)))

  def compute_output_shape(self, input_shape):
    return (*input_shape[:-1], self.num_output_channels)

  def get_config(self):
    return {**super().get_config(), "num_output_channels": self.num_output_channels, "num_hidden": self.num_hidden,
            "seed": self.seed}


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


def _check_stateless(network, inputs):
  before = [(v, tf.convert_to_tensor(v.value)) for v in network.variables]
  with keras.StatelessScope(state_mapping=before) as scope:
    network(inputs, training=True)
    changed = [v.path for v, value in before if scope.get_current_value(v) is not value]
  if changed:
    raise ValueError(
        "`network` must compute the same function on every call, or the bijector cannot be inverted: no layer whose "
        "state changes when it is called, such as BatchNormalization or Dropout (LayerNormalization and "
        f"GroupNormalization are fine). Received: {network.name!r}, which changes {', '.join(changed)}")

"""Keras networks as parts of bijectors: building them, and whether they can serve as such."""

import keras
import tensorflow as tf


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


def value_of(variable):
  """The value of a `keras.Variable` itself; instead of it the methods `fold` also take functions that give stacks."""
  return tf.convert_to_tensor(variable.value)

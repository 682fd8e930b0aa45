"""Keras networks as parts of bijectors: building them, and checking that they can serve as parts."""

import contextlib
import threading

import keras
import tensorflow as tf

from tfp_glow._core import precision

# Held by the thread that makes layers compute in full precision, because all threads see a layer's policy.
_POLICIES = threading.RLock()


def policy_of(dtype):
  """The dtype policy of a flow's networks: Keras' global one if its variables are of `dtype`, else the name of `dtype`.

  It may compute in lower precision.

  Args:
    dtype: `tf.DType`.
  """
  policy = keras.config.dtype_policy()
  return policy if policy.variable_dtype == dtype.name else dtype.name


def is_built(network, name="network"):
  """Whether all variables of a network exist; raises `TypeError` if the argument `name` is not a Keras layer."""
  if not isinstance(network, keras.layers.Layer):
    raise TypeError(f"`{name}` must be a layer or model of Keras 3 (`keras.layers.Layer`), not of `tf_keras`. "
                    f"Received: {network!r}")
  return network.built


def build(network, input_shape, num_output_channels, dtype, context_shape=None):
  """Builds `network` by one call on zeros, and checks that it can serve in a bijector.

  Args:
    network: Keras layer.
    input_shape: Static shape of one input, without batch dimension; unknown sizes of images are taken as 4.
    num_output_channels: Expected size of the output's last dimension.
    dtype: Dtype of the input.
    context_shape: Static shape of one context, or a dict of them: the network is then called with `[input, context]`.
      `None`: it is called with the input.

  Returns:
    The dtype of the output.

  Raises:
    ValueError: if the output has another shape, or a call changes the network's state.
  """
  sizes = [4 if size is None else size for size in input_shape]
  with tf.init_scope():
    inputs = tf.zeros([1] + sizes, dtype)
    if context_shape is not None:
      inputs = [inputs, tf.nest.map_structure(lambda shape: tf.zeros([1, *shape], dtype), context_shape)]
  outputs = outputs_of(network, inputs, dtype)
  expected = [1] + sizes[:-1] + [num_output_channels]
  if outputs.shape.as_list() != expected:
    raise ValueError(f"`network` must map the shape {[1] + sizes} to {expected}. Received: {network.name!r}, which "
                     f"returns {outputs.shape.as_list()}")
  return check_stateless(network, inputs).dtype


def outputs_of(network, inputs, dtype):
  """Calls a network, which builds it if needed.

  The call is in full precision, so that the network accepts inputs in it, whatever its own policy is.

  Args:
    network: Keras layer.
    inputs: Tensor, or a nest of them.
    dtype: Dtype of the inputs.

  Returns:
    The outputs of the network.
  """
  _check_keeps_what_it_knows(network)
  _rebuild_lower_inputs(network, dtype)
  with tf.init_scope(), precision.full(), computing_in_full(lower_layers_of(network, dtype), dtype):
    outputs = network(inputs)
  for layer in layers_of(network):
    if not layer.trainable:
      layer.trainable = False  # Freezes the new variables as well.
  return outputs


def _check_keeps_what_it_knows(network):
  """Raises `ValueError` for layers that learn by `adapt`, because files do not hold what they learned."""
  for layer in layers_of(network):
    given = [getattr(layer, name, None) for name in ("input_mean", "input_bin_boundaries")]
    if hasattr(layer, "finalize_state") and all(value is None for value in given):
      raise ValueError(
          "`network` must have no layers that learn by `adapt`, because files would not hold what they learned. Pass "
          "numbers, as in `keras.layers.Normalization(mean=np.ravel(layer.mean), variance=np.ravel(layer.variance))`. "
          f"Received: {layer.name!r} in {network.name!r}")


def check_stateless(network, inputs, name="network"):
  """Raises `ValueError` if a network, the argument `name`, has state that a call changes.

  Returns:
    The outputs of the network, by its own dtype policy.
  """
  before = [(v, tf.convert_to_tensor(v.value)) for v in network.variables]
  with tf.init_scope(), keras.StatelessScope(state_mapping=before) as scope:
    outputs = network(inputs, training=True)
    changed = [v.path for v, value in before if scope.get_current_value(v) is not value]
  if changed:
    raise ValueError(
        f"`{name}` must compute the same function on every call, or the bijector cannot be inverted. Avoid layers "
        "whose state changes when they are called, such as BatchNormalization or Dropout (in a coupling, "
        "LayerNormalization and GroupNormalization are fine). "
        f"Received: {network.name!r}, which changes {', '.join(changed)}")
  return outputs


def layers_of(network):
  """A list of the Keras layers of a network, at any depth, including itself."""
  return list(_layers_in(network, {}))


def _layers_in(value, seen):
  """Yields the Keras layers in a layer, or in a nest of layers, from what their attributes hold."""
  if id(value) in seen or not isinstance(value, (keras.Layer, dict, list, tuple, set)):
    return
  seen[id(value)] = value
  if isinstance(value, keras.Layer):
    yield value
    value = vars(value)
  for item in list(value.values() if isinstance(value, dict) else value):
    yield from _layers_in(item, seen)


def lower_layers_of(network, dtype):
  """A list of the layers of a network that compute in lower precision than `dtype`."""
  return [layer for layer in layers_of(network) if tf.as_dtype(layer.compute_dtype).size < dtype.size]


@contextlib.contextmanager
def computing_in_full(layers, dtype):
  """Makes layers compute in `dtype`, if the evaluation is in full precision (see `precision`).

  Args:
    layers: List of Keras layers, from `lower_layers_of`.
    dtype: Floating dtype.
  """
  if not layers:
    yield
    return
  with _POLICIES:  # Also in training: what is traced then must not see policies that other threads changed.
    if not precision.is_full():
      yield
      return
    policies = [layer.dtype_policy for layer in layers]
    try:
      for layer in layers:
        layer.dtype_policy = dtype.name
      yield
    finally:
      for layer, policy in zip(layers, policies):
        layer.dtype_policy = policy


def _rebuild_lower_inputs(network, dtype):
  """Makes each `keras.Sequential` in a network take its inputs in `dtype` at its next call.

  Otherwise it casts them to the dtype in which it was built, whatever the policies of its layers are later.
  """
  for layer in layers_of(network):
    if isinstance(layer, keras.Sequential) and layer.built and layer.layers and any(
        tf.as_dtype(tensor.dtype).size < dtype.size for tensor in layer.inputs):
      parts = layer.layers
      for _ in range(len(parts) + 1):  # One more for its input layer.
        layer.pop(rebuild=False)
      for part in parts:
        layer.add(part, rebuild=False)


def value_of(variable):
  """The value of a `keras.Variable`. The methods `fold` also take functions that return stacks instead of this one."""
  return tf.convert_to_tensor(variable.value)

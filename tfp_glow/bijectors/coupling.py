"""Coupling layers."""

import tensorflow as tf

from tfp_glow import networks
from tfp_glow.bijectors.one_pass import OnePassBijector


class _Coupling(OnePassBijector):
  """Changes the second half of the channels by what a network makes of the first half.

  With `C` channels, the first `C // 2` condition and stay; the rest changes.
  """

  def __init__(self, network, event_ndims, dtype, validate_args, parameters, name):
    super().__init__(forward_event_shape=[None] * event_ndims, inverse_event_shape=[None] * event_ndims, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self.network = network
    self._num_channels = None
    if networks.is_built(network):
      self._adopt(network.variables)

  def _num_network_outputs(self, num_changed):
    raise NotImplementedError

  def _transform(self, inputs, h, inverse):
    """The second half, changed by the network's output `h`; and the log-det of that."""
    raise NotImplementedError

  def build(self, event_shape):
    """Builds the network, if it is not yet, and checks it.

    The first call does it as well; do it yourself where the variables are needed before.

    Args:
      event_shape: Static shape of one event, `[H, W, C]` or `[C]`.

    Raises:
      ValueError: if the network's output has another shape than the coupling needs, there are fewer than two channels
        or others than before, or the network holds state that a call changes.
    """
    event_shape = tf.TensorShape(event_shape)
    num_channels = event_shape[-1]
    if num_channels == self._num_channels:
      return
    if self._num_channels is not None:
      # Convolutions would not refuse a multiple of the channels they know: they would take it for groups.
      raise ValueError(f"`{self.name}` was built for {self._num_channels} channels. Received: event shape {event_shape}")
    if num_channels is None or num_channels < 2:
      raise ValueError(f"`{self.name}` needs at least two channels, known when the graph is built, to split. "
                       f"Received: event shape {event_shape}")
    was_built = networks.is_built(self.network)
    kept = num_channels // 2
    networks.build(self.network, event_shape[:-1].concatenate(kept),
                   self._num_network_outputs(num_channels - kept), self.dtype)
    if not was_built:
      self._adopt(self.network.variables)
    self._num_channels = num_channels

  def _forward_and_log_det(self, x):
    return self._couple(x, self.network, inverse=False)

  def _inverse_and_log_det(self, y):
    return self._couple(y, self.network, inverse=True)

  def _initialize(self, y):
    self.build(y.shape[1:])
    return self._couple(y, getattr(self.network, "initialize", self.network), inverse=True)[0]

  def _couple(self, inputs, network, inverse):
    self.build(inputs.shape[1:])
    kept, changed = tf.split(inputs, [inputs.shape[-1] // 2, -1], axis=-1)
    # A network of lower precision must not lower that of the flow.
    h = tf.cast(network(kept), inputs.dtype)
    changed, log_det = self._transform(changed, h, inverse)
    return tf.concat([kept, changed], axis=-1), log_det


class AffineCoupling(_Coupling):
  """Scales and shifts the second half of the channels.

  ```none
  y1, y2 = split(y)
  h = network(y1)
  shift = h[..., 0::2]
  scale = sigmoid(h[..., 1::2] + 2)
  inverse(y) = concat(y1, (y2 + shift) * scale)
  inverse log-det = sum(log(scale))

  forward(x) = concat(x1, x2 / scale - shift)
  forward log-det = -sum(log(scale))
  ```

  The scale lies between 0 and 1: data to latent contracts, and a network that returns 0 scales by 0.88.

  References:
    Kingma and Dhariwal, "Glow" (2018), table 1; the sigmoid and the interleaved channels are those of the original code.
  """

  def __init__(self, network, event_ndims=3, dtype=None, validate_args=False, name="affine_coupling"):
    """Creates the coupling.

    Args:
      network: Keras layer or model, from `[N, H, W, C // 2]` to `[N, H, W, 2 * (C - C // 2)]`; or, with `event_ndims` 1,
        from `[N, C // 2]` to `[N, 2 * (C - C // 2)]`. It may have a method `initialize(inputs)` for data-dependent
        initialisation, which returns its outputs.
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      TypeError: if `network` is not a Keras layer.
      ValueError: on first use or `build`, if it does not fit the data, or holds state that a call changes.
    """
    parameters = dict(locals())
    super().__init__(network, event_ndims, dtype, validate_args, parameters, name)

  def _num_network_outputs(self, num_changed):
    return 2 * num_changed

  def _transform(self, inputs, h, inverse):
    shift = h[..., 0::2]
    raw = h[..., 1::2] + 2.
    log_scale = tf.math.log_sigmoid(raw)
    # 1 / sigmoid(raw) = 1 + exp(-raw) without a division by what may round to 0.
    outputs = (inputs + shift) * tf.sigmoid(raw) if inverse else inputs * (1. + tf.exp(-raw)) - shift
    log_det = tf.reduce_sum(log_scale, axis=list(range(1, h.shape.rank)))
    return outputs, log_det if inverse else -log_det


class AdditiveCoupling(_Coupling):
  """Shifts the second half of the channels: volume-preserving.

  ```none
  y1, y2 = split(y)
  inverse(y) = concat(y1, y2 + network(y1))
  forward(x) = concat(x1, x2 - network(x1))
  ```

  Both log-dets are 0.

  References:
    Dinh et al., "NICE" (2014); Kingma and Dhariwal, "Glow" (2018), section 3.3.
  """

  def __init__(self, network, event_ndims=3, dtype=None, validate_args=False, name="additive_coupling"):
    """Creates the coupling.

    Args:
      network: As in `AffineCoupling`, but with `C - C // 2` outputs.
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      TypeError: if `network` is not a Keras layer.
      ValueError: on first use or `build`, if it does not fit the data, or holds state that a call changes.
    """
    parameters = dict(locals())
    super().__init__(network, event_ndims, dtype, validate_args, parameters, name)

  def _num_network_outputs(self, num_changed):
    return num_changed

  def _transform(self, inputs, h, inverse):
    return inputs + h if inverse else inputs - h, tf.zeros([], inputs.dtype)

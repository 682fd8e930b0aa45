"""Coupling layers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat
from tfp_glow._core.gradients import custom_gradient, with_pull_back
from tfp_glow._core.validation import check_choice
from tfp_glow.bijectors import contexts, halves
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.step import Step
from tfp_glow.networks import building, elsewhere
from tfp_glow.networks.glow import CouplingNetwork

# The least scale of an affine coupling. The sigmoid alone reaches 0 at -88 in float32. The way back overflows long
# before that.
MIN_SCALE = 1e-3


class _Coupling(OnePassBijector):
  """Changes the second half of the channels by a network's outputs for the first half.

  The first `C // 2` of `C` channels are the condition and stay unchanged; the rest changes.
  """

  # The output channels alternate between the parameters of the transformation. These numbers are added to them.
  offsets = (0.,)

  def __init__(self, network, event_ndims, dtype, validate_args, parameters, name, context_shape):
    check_choice("event_ndims", event_ndims, (1, 2, 3, 4))
    shapes = contexts.checked_context_shape(context_shape)
    super().__init__(forward_event_shape=[None] * event_ndims, inverse_event_shape=[None] * event_ndims, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self.network = network
    self._own_context_shapes = _compat.untracked(self, shapes)
    self._num_channels = None
    self.lower_layers = []
    if building.is_built(network):
      self._adopt(network.variables)

  @property
  def argument_names(self) -> frozenset[str]:
    return frozenset() if self._own_context_shapes is None else frozenset({"context"})

  @property
  def context_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    return contexts.as_public(self._own_context_shapes)

  def _depends_on_variables_only(self):
    return super()._depends_on_variables_only() and not elsewhere.is_read_by(self.network)

  def transform(self, inputs, parameters, inverse):
    """Changes the second half by the network's outputs; returns it with the log-det.

    Args:
      inputs: Tensor `[N, ..., C - C // 2]`.
      parameters: List of tensors of this shape, one for each entry of `offsets`.
      inverse: Python `bool`, the direction.

    Returns:
      outputs: Tensor of the shape of `inputs`.
      log_det: Tensor `[N]` or a scalar.
    """
    raise NotImplementedError

  def undo(self, outputs, parameters, d_outputs, d_log_det, inverse):
    """Recovers the inputs of `transform` from its outputs, and computes the gradients of its arguments.

    Args:
      outputs: Tensor `[N, ..., C - C // 2]`, as `transform` returned it.
      parameters: The `parameters` given to `transform`.
      d_outputs: The gradient with respect to `outputs`.
      d_log_det: The gradient with respect to the log-det, `[N]`.
      inverse: Python `bool`, the direction of `transform`.

    Returns:
      inputs: Tensor of the shape of `outputs`.
      d_inputs: The gradient with respect to it.
      d_parameters: List of the gradients with respect to `parameters`.
    """
    raise NotImplementedError

  def build(self, event_shape: Sequence[int] | tf.TensorShape) -> None:
    """Builds the network if needed, and checks it.

    The first call builds it, too. Call this only if you need the variables earlier.

    Args:
      event_shape: Static shape of one event, `[H, W, C]` or `[C]`.

    Raises:
      ValueError: if the network's output does not have the shape that the coupling needs, there are fewer than two
        channels or a different number than before, or the network holds state that a call changes.
    """
    event_shape = tf.TensorShape(event_shape)
    num_channels = event_shape[-1]
    if num_channels == self._num_channels:
      return
    if self._num_channels is not None:
      # Convolutions would accept a multiple of the channels they know, as groups.
      raise ValueError(f"`{self.name}` was built for {self._num_channels} channels. "
                       f"Received: event shape {event_shape}")
    if num_channels is None or num_channels < 2:
      raise ValueError(f"`{self.name}` needs at least two channels, known when the graph is built, to split. "
                       f"Received: event shape {event_shape}")
    was_built = building.is_built(self.network)
    kept = num_channels // 2
    building.build(self.network, event_shape[:-1].concatenate(kept), len(self.offsets) * (num_channels - kept),
                   self.dtype, self._own_context_shapes)
    if not was_built:
      self._adopt(self.network.variables)
    self._num_channels = num_channels
    self.lower_layers = _compat.untracked(self, building.lower_layers_of(self.network, self.dtype))

  def as_step(self) -> Step:
    """See `step.step_of`.

    Returns:
      `Step`.
    """
    return _CouplingStep(self)

  def _forward_and_log_det(self, x, context=None):
    return self.as_step().run(x, inverse=False, context=context)

  def _inverse_and_log_det(self, y, context=None):
    return self.as_step().run(y, inverse=True, context=context)

  def _initialize(self, y, context=None):
    return self._initialize_network(y, context, inverse=True)

  def _initialize_back(self, x, context=None):
    return self._initialize_network(x, context, inverse=False)

  def _initialize_network(self, values, context, inverse):
    self.build(values.shape[1:])
    kept, changed = tf.split(values, [values.shape[-1] // 2, -1], axis=-1)
    is_trained = any(variable.trainable for variable in self.network.variables)
    initialize = getattr(self.network, "initialize", self.network) if is_trained else self.network
    with self.network_in_its_precision():
      h = initialize(kept if context is None else [kept, context])
    changed, _ = self.transform(changed, self.groups(h), inverse)
    return tf.concat([kept, changed], axis=-1)

  def network_in_its_precision(self) -> contextlib.AbstractContextManager:
    """A context for calls of the network: it computes in the coupling's dtype, except in training.

    Returns:
      Context manager.
    """
    return building.computing_in_full(self.lower_layers, self.dtype)

  def groups(self, h: tf.Tensor) -> list[tf.Tensor]:
    """Splits the network's outputs, in its order, into groups.

    Args:
      h: Tensor `[..., number of outputs]`.

    Returns:
      List of tensors, each with one channel for each changing channel.
    """
    h = tf.cast(h, self.dtype)
    return [h[..., i::len(self.offsets)] + offset for i, offset in enumerate(self.offsets)]


class _CouplingStep(Step):
  """A coupling on `halves`. The network's weights are folded once for all steps, if it can fold them."""

  @property
  def variables(self):
    return [] if self.has_pull_back else super().variables

  @property
  def has_pull_back(self):
    """Whether the network takes folded weights as tensors, and returns its outputs in groups."""
    network = self._bijector.network
    return isinstance(network, CouplingNetwork) and network.num_groups == len(self._bijector.offsets)

  def prepare(self, value, event_shape, inverse):
    coupling, nothing = self._bijector, tf.zeros([], self._bijector.dtype)
    coupling.build(event_shape)
    if not self.has_pull_back:
      return (), nothing
    offsets = np.repeat(coupling.offsets, event_shape[-1] - event_shape[-1] // 2)
    with coupling.network_in_its_precision():
      *hidden, (kernel, additive_map) = coupling.network.fold(*event_shape[:2], value, offsets)
    # A network of lower precision must not lower the flow's: its outputs are summed in the flow's dtype.
    return (*hidden, (kernel, tf.cast(additive_map, coupling.dtype))), nothing

  def prepare_back(self, value, event_shape, inverse):
    return ()

  def enter(self, values):
    return halves.enter(values)

  def leave(self, values):
    return halves.leave(values)

  def apply(self, inputs, weights, inverse, context=None):
    kept, changed = halves.parts(inputs)
    parameters = self._network_outputs(kept, weights, context=context)
    changed, log_det = self._differentiable_transform(inverse)(changed, *parameters)
    return halves.joined(kept, changed), log_det

  def _differentiable_transform(self, inverse):
    """The coupling's `transform` with the gradients of `undo`, which take fewer passes over the data."""

    @custom_gradient
    def transform(inputs, *parameters):
      outputs, log_det = self._bijector.transform(inputs, parameters, inverse)

      def gradients(d_outputs, d_log_det):
        _, d_inputs, d_parameters = self._bijector.undo(outputs, parameters, d_outputs, d_log_det, inverse)
        return d_inputs, *d_parameters

      return (outputs, log_det), gradients

    return transform

  def activations_like(self, inputs, weights):
    (first, _), (second, _), (last, _) = weights
    spec = lambda kernel, dtype: tf.TensorSpec([*inputs.shape[:-1], kernel.shape[-1]], dtype)
    return [spec(first, first.dtype), spec(second, second.dtype), spec(last, inputs.dtype)]

  def apply_and_keep(self, inputs, weights, inverse, context=None):
    kept, changed = halves.parts(inputs)
    h, hidden = self._run_network(kept, weights, context)
    changed, log_det = self._bijector.transform(changed, self._split(h), inverse)
    return halves.joined(kept, changed), log_det, [*hidden, h]

  def outputs_again(self, inputs, activations, inverse):
    """The outputs of `apply_and_keep`, from its inputs and the activations that it returned."""
    kept, changed = halves.parts(inputs)
    changed, _ = self._bijector.transform(changed, self._split(activations[-1]), inverse)
    return halves.joined(kept, changed)

  def pull_back(self, inputs, activations, weights, d_outputs, d_log_det, inverse, context=None):
    (kept, changed), (d_kept, d_changed), (*hidden, h) = halves.parts(inputs), halves.parts(d_outputs), activations
    parameters = self._split(h)
    changed, _ = self._bijector.transform(changed, parameters, inverse)
    _, d_changed, d_parameters = self._bijector.undo(changed, parameters, d_changed, d_log_det, inverse)
    d_network, d_weights, d_context = self._pull_back_network(kept, hidden, weights, d_parameters, context)
    return halves.joined(d_kept + d_network, d_changed), d_weights, d_context

  def rebuild(self, outputs, weights, weights_back, variables, d_outputs, d_log_det, inverse, context=None):
    del weights_back
    (kept, changed), (d_kept, d_changed) = halves.parts(outputs), halves.parts(d_outputs)
    # One evaluation of the network rebuilds the inputs and gives the gradients.
    parameters, pull_back = self._network_with_pull_back(kept, weights, variables, context)
    changed, d_changed, d_parameters = self._bijector.undo(changed, parameters, d_changed, d_log_det, inverse)
    d_network, d_weights, d_variables, d_context = pull_back(d_parameters)
    d_inputs = halves.joined(d_kept + d_network, d_changed)
    return halves.joined(kept, changed), d_inputs, d_weights, d_variables, d_context

  def _network_with_pull_back(self, kept, weights, variables, context):
    """The network's outputs, and a function from their gradients to those of the arguments."""
    if not self.has_pull_back:
      given = () if context is None else (context,)
      outputs, pull_back = with_pull_back(self._network_outputs, (kept, weights, variables, *given))
      return outputs, pull_back if given else lambda d_outputs: (*pull_back(d_outputs), None)
    h, hidden = self._run_network(kept, weights, context)

    def pull_back(d_outputs):
      d_kept, d_weights, d_context = self._pull_back_network(kept, hidden, weights, d_outputs, context)
      return d_kept, d_weights, [], d_context

    return self._split(h), pull_back

  def _network_outputs(self, kept, weights, variables=(), context=None):
    """The network's outputs for `concat(kept, 1)`, one tensor for each group of channels."""
    del variables  # The network reads them itself.
    if self.has_pull_back:
      return self._split(self._run_network(kept, weights, context)[0])
    coupling, inputs = self._bijector, kept[..., :-1]
    # A network of lower precision must not lower the flow's.
    with coupling.network_in_its_precision():
      return coupling.groups(coupling.network(inputs if context is None else [inputs, context]))

  def _run_network(self, kept, weights, context):
    with self._bijector.network_in_its_precision():
      return self._bijector.network.run(kept, weights, context)

  def _pull_back_network(self, kept, hidden, weights, d_parameters, context):
    with self._bijector.network_in_its_precision():
      return self._bijector.network.pull_back(kept, hidden, weights, tf.concat(d_parameters, axis=-1), context)

  def _split(self, h):
    return tf.split(h, len(self._bijector.offsets), axis=-1)


class AffineCoupling(_Coupling):
  """Scales and shifts the second half of the channels.

  ```none
  y1, y2 = split(y)
  h = network(y1)
  shift = h[..., 0::2]
  scale = max(sigmoid(h[..., 1::2] + 2), 0.001)
  inverse(y) = concat(y1, (y2 + shift) * scale)
  inverse log-det = sum(log(scale))

  forward(x) = concat(x1, x2 / scale - shift)
  forward log-det = -sum(log(scale))
  ```

  The scale lies below 1: data to latent contracts. A network that returns 0 scales by 0.88. In the original the scale
  may reach 0, and the way back then divides by it. The lower bound here is the only difference.

  References:
    Kingma and Dhariwal, "Glow" (2018), table 1. The sigmoid and the interleaved channels follow the original code.
  """

  offsets = (0., 2.)

  def __init__(self, network: keras.Layer, event_ndims: int = 3, dtype: tf.DType | str | None = None,
               validate_args: bool = False, name: str = "affine_coupling",
               context_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None):
    """Creates the coupling.

    Args:
      network: Keras layer or model, from `[N, H, W, C // 2]` to `[N, H, W, 2 * (C - C // 2)]`; with `event_ndims` 1,
        from `[N, C // 2]` to `[N, 2 * (C - C // 2)]`. It may have a method `initialize(inputs)` for data-dependent
        initialisation, which returns its outputs; a `Scan` calls it in a `tf.function`. It must depend only on its
        inputs and its `variables`. Anything else that it reads gets no gradients, and passes of such a network are
        never remembered (see `OnePassBijector`).
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.
      context_shape: Shape of one `context`, `(D,)` or `(h, w, c)`, or a dict of such shapes. Calls then take `context`,
        and the network is called with `[inputs, context]`. `None`: no context.

    Raises:
      TypeError: if `network` is not a Keras layer.
      ValueError: if `event_ndims` or `context_shape` is not as above; on first use or `build`, if `network` does not
        fit the data, or has state that a call changes.
    """
    parameters = dict(locals())
    super().__init__(network, event_ndims, dtype, validate_args, parameters, name, context_shape)

  def transform(self, inputs: tf.Tensor, parameters: list[tf.Tensor], inverse: bool) -> tuple[tf.Tensor, tf.Tensor]:
    shift, raw = parameters
    scale = _scale(raw)
    outputs = (inputs + shift) * scale if inverse else inputs / scale - shift
    # `log_sigmoid(raw)` is ten times as slow on CPUs, and no more exact in the sum.
    log_det = tf.reduce_sum(tf.math.log(scale), axis=list(range(1, raw.shape.rank)))
    return outputs, log_det if inverse else -log_det

  def undo(self, outputs: tf.Tensor, parameters: list[tf.Tensor], d_outputs: tf.Tensor, d_log_det: tf.Tensor,
           inverse: bool) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    # Where the scale is at its minimum, use the sigmoid's gradient, not 0, so that training can leave it.
    shift, raw = parameters
    scale = _scale(raw)
    d_log_det = tf.reshape(d_log_det, [-1] + [1] * (raw.shape.rank - 1))
    if inverse:
      inputs, d_inputs = outputs / scale - shift, d_outputs * scale
      return inputs, d_inputs, [d_inputs, (d_outputs * outputs + d_log_det) * (1. - scale)]
    inputs, d_inputs = (outputs + shift) * scale, d_outputs / scale
    return inputs, d_inputs, [-d_outputs, (d_inputs * inputs + d_log_det) * (scale - 1.)]


def _scale(raw):
  return tf.maximum(tf.sigmoid(raw), MIN_SCALE)


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

  def __init__(self, network: keras.Layer, event_ndims: int = 3, dtype: tf.DType | str | None = None,
               validate_args: bool = False, name: str = "additive_coupling",
               context_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None):
    """Creates the coupling.

    Args:
      network: As in `AffineCoupling`, but with `C - C // 2` outputs.
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.
      context_shape: Shape of one `context`, `(D,)` or `(h, w, c)`, or a dict of such shapes. Calls then take `context`,
        and the network is called with `[inputs, context]`. `None`: no context.

    Raises:
      TypeError: if `network` is not a Keras layer.
      ValueError: if `event_ndims` or `context_shape` is not as above; on first use or `build`, if `network` does not
        fit the data, or has state that a call changes.
    """
    parameters = dict(locals())
    super().__init__(network, event_ndims, dtype, validate_args, parameters, name, context_shape)

  def transform(self, inputs: tf.Tensor, parameters: list[tf.Tensor], inverse: bool) -> tuple[tf.Tensor, tf.Tensor]:
    shift, = parameters
    return inputs + shift if inverse else inputs - shift, tf.zeros([], inputs.dtype)

  def undo(self, outputs: tf.Tensor, parameters: list[tf.Tensor], d_outputs: tf.Tensor, d_log_det: tf.Tensor,
           inverse: bool) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    shift, = parameters
    return outputs - shift if inverse else outputs + shift, d_outputs, [d_outputs if inverse else -d_outputs]

"""Makes the steps of flow of a `Scan`."""

import keras
import numpy as np

from tfp_glow._core import numerics
from tfp_glow.bijectors.actnorm import ActNorm
from tfp_glow.bijectors.conv1x1 import InvertibleConv1x1, lu_factors, random_rotation
from tfp_glow.bijectors.glow_step import GlowStep
from tfp_glow.bijectors.permutation import ChannelPermutation


def step_maker(num_channels, coupling, permutation, network_fn, default_network, rng, dtype, context_shape,
               event_ndims=3):
  """The `make_step` and the `redraw` of a `Scan`.

  Args:
    num_channels: Python `int`.
    coupling: `AffineCoupling` or `AdditiveCoupling`.
    permutation: `"conv1x1"`, `"reverse"` or `"shuffle"`.
    network_fn: Callable, from the number of output channels to a Keras layer; `None`: `default_network` makes it.
    default_network: Callable, from the number of output channels, the number of them for each changing channel, and a
      seed, to a Keras layer with a method `redraw`, for example `CouplingNetwork`.
    rng: NumPy's generator, from which seeds are drawn.
    dtype: `tf.DType`.
    context_shape: See `AffineCoupling`.
    event_ndims: 3 for images, 1 for vectors.

  Returns:
    make_step: Callable, from the index of a step to a `GlowStep`.
    redraw: Callable, from a step to the initial values of another one; `None` if there is a `network_fn`.

  Raises:
    TypeError: if `network_fn` is not callable, or is itself a layer.
  """
  if network_fn is not None and (not callable(network_fn) or isinstance(network_fn, keras.Layer)):
    raise TypeError("`network_fn` must be a function from a number of output channels to a Keras layer, or None. "
                    f"Received: {network_fn!r}")
  num_changed = num_channels - num_channels // 2
  num_outputs = len(coupling.offsets) * num_changed
  draw_seed = lambda: int(rng.integers(2**30))

  def make_network():
    if network_fn is not None:
      return network_fn(num_outputs)
    return default_network(num_outputs, len(coupling.offsets), draw_seed())

  def draw_indices():
    if permutation == "reverse":
      return np.arange(num_channels)[::-1]
    return numerics.generator(draw_seed()).permutation(num_channels)

  def make_step(k):
    del k
    permute = (InvertibleConv1x1(num_channels, draw_seed(), event_ndims=event_ndims, dtype=dtype)
               if permutation == "conv1x1" else ChannelPermutation(draw_indices(), event_ndims, dtype=dtype))
    return GlowStep(ActNorm(num_channels, event_ndims, dtype=dtype), permute,
                    coupling(make_network(), event_ndims, dtype=dtype, context_shape=context_shape))

  def redraw(step):
    values = {"indices": draw_indices()} if permutation != "conv1x1" else lu_factors(
        random_rotation(num_channels, draw_seed()), num_channels)
    drawn = [(getattr(step.permutation, key), value) for key, value in values.items()]
    drawn = {id(variable): value for variable, value in drawn + step.coupling.network.redraw(draw_seed())}
    return [drawn.get(id(variable), np.zeros(variable.shape)) for variable in step._keras_variables()]

  return make_step, redraw if network_fn is None else None

"""The coupling network for vectors, a Keras layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core.numerics import generator, within_reach
from tfp_glow._core.products import matmul
from tfp_glow.networks.building import value_of
from tfp_glow.networks.glow import ZeroDense

_NUM_HIDDEN_LAYERS = 2


@keras.saving.register_keras_serializable("tfp_glow")
class DenseCouplingNetwork(keras.layers.Layer):
  """The network of couplings of vectors: two hidden layers with gelu, then a dense layer that starts at zero.

  It clips inputs to plus and minus 1000, as `CouplingNetwork` does. Called with `[inputs, context]`, where `context` is
  a vector `[N, F]`, it sees both; the numbers of the context come first.
  """

  def __init__(self, num_outputs: int, num_hidden: int = 64, seed: int | None = None, **kwargs: Any):
    """Creates the network.

    Args:
      num_outputs: Python `int`.
      num_hidden: Python `int`, width of both hidden layers.
      seed: Python `int` of the initial values.
      **kwargs: Arguments of `keras.layers.Layer`; `dtype` takes a Keras dtype policy.
    """
    super().__init__(**kwargs)
    self.num_outputs = num_outputs
    self.num_hidden = num_hidden
    self.seed = seed
    self.last = ZeroDense(num_outputs, dtype=self.dtype_policy, name="last")

  def build(self, input_shape):
    shapes = input_shape if isinstance(input_shape[0], (list, tuple)) else [input_shape]
    sizes = [sum(shape[-1] for shape in shapes)] + [self.num_hidden] * _NUM_HIDDEN_LAYERS
    kernels = _draw_kernels(zip(sizes, sizes[1:]), self.seed)
    self.kernels = [self.add_weight(name=f"kernel{i}", shape=kernel.shape,
                                    initializer=lambda shape, dtype, kernel=kernel: tf.constant(kernel, dtype))
                    for i, kernel in enumerate(kernels)]
    self.biases = [self.add_weight(name=f"bias{i}", shape=[self.num_hidden], initializer="zeros")
                   for i in range(_NUM_HIDDEN_LAYERS)]
    self.last.build((*shapes[0][:-1], self.num_hidden))

  def redraw(self, seed: int | None) -> list[tuple[keras.Variable, np.ndarray]]:
    """Initial values of another network like this with another seed; zeros are left out.

    Args:
      seed: Python `int`, or `None` for any.

    Returns:
      List of `(variable of this one, array)`.
    """
    return list(zip(self.kernels, _draw_kernels([kernel.shape for kernel in self.kernels], seed)))

  def call(self, inputs):
    inputs, *context = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    hidden = tf.concat([*context, within_reach(inputs)], axis=-1)
    for kernel, bias in zip(self.kernels, self.biases):
      hidden = tf.nn.gelu(matmul(hidden, value_of(kernel)) + value_of(bias))
    return self.last(hidden)

  def compute_output_shape(self, input_shape):
    input_shape = input_shape[0] if isinstance(input_shape[0], (list, tuple)) else input_shape
    return (*input_shape[:-1], self.num_outputs)

  def get_config(self):
    return {**super().get_config(), "num_outputs": self.num_outputs, "num_hidden": self.num_hidden, "seed": self.seed}


def _draw_kernels(shapes, seed):
  """Normal, with a deviation that keeps the size of activations (He et al., 2015)."""
  rng = generator(seed)
  return [rng.normal(0., np.sqrt(2. / shape[0]), shape) for shape in shapes]

"""LipSwish, an activation nowhere steeper than 1."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_glow._core.gradients import custom_gradient
from tfp_glow.networks.building import value_of

# The steepest slope of `x * sigmoid(x)` is 1.0998.
_STEEPEST = 1.1


def lip_swish(x: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
  """`x * sigmoid(beta * x) / 1.1`: smooth, and nowhere steeper than 1.

  Args:
    x: Tensor.
    beta: Positive scalar tensor.

  Returns:
    Tensor of the shape of `x`.
  """
  return _swish(x * beta) / (_STEEPEST * beta)


@custom_gradient
def _swish(x):
  """`x * sigmoid(x)`. Memory limits its speed, so the derivatives pass over the data as few times as possible."""
  gate = tf.sigmoid(x)
  swish = x * gate
  # Once, for any number of gradients pulled back through it.
  slope = _slope_of_swish(x, gate, swish)
  return swish, lambda d_outputs: d_outputs * slope


def _slope_of_swish(x, gate, swish):
  """`gate + x * gate * (1 - gate)`."""

  @custom_gradient
  def slope_of(x):
    slope = gate + tf.raw_ops.SigmoidGrad(y=gate, dy=x)
    return slope, lambda d_slope: d_slope * (1. - gate) * (2. * slope - swish)

  return slope_of(x)


@keras.saving.register_keras_serializable("tfp_glow")
class LipSwish(keras.layers.Layer):
  """The activation `lip_swish` with a learned, positive beta: the softplus of a variable that starts at 0.5.

  Unlike ELU or softplus, its second derivative does not vanish where its slope is steep. So the gradient of a log-det
  does not saturate.

  References:
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019), section 3.3.
  """

  def __init__(self, **kwargs: Any):
    """Creates the layer.

    Args:
      **kwargs: Arguments of `keras.layers.Layer`.
    """
    super().__init__(autocast=False, **kwargs)

  def build(self, input_shape):
    self.beta = self.add_weight(name="beta", shape=(), initializer=keras.initializers.Constant(0.5))

  def fold(self) -> list[list[tf.Tensor]]:
    """Everything that `run` needs besides the inputs: factors of its inputs and of its outputs.

    Returns:
      before: List of scalar tensors.
      after: List of scalar tensors.
    """
    beta = tf.nn.softplus(value_of(self.beta))
    return [[beta], [1. / (_STEEPEST * beta)]]

  def run(self, inputs: tf.Tensor, before: list[tf.Tensor], after: list[tf.Tensor]) -> tf.Tensor:
    """The layer, given the output of `fold`. Either list is empty if a neighbour applies its factors.

    Args:
      inputs: Tensor.
      before: List of scalar tensors.
      after: List of scalar tensors.

    Returns:
      Tensor of the shape of `inputs`.
    """
    scale = lambda tensor, factors: tensor * tf.cast(factors[0], tensor.dtype) if factors else tensor
    return scale(_swish(scale(tf.cast(inputs, self.compute_dtype), before)), after)

  def call(self, inputs):
    return self.run(inputs, *self.fold())

  def compute_output_shape(self, input_shape):
    return input_shape

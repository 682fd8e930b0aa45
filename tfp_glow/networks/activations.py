"""Activations of contracting networks, which must be nowhere steeper than 1."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfp_glow.networks.lip_swish import LipSwish

LIP_SWISH = "lip_swish"


def check_activation(activation, dtype):
  """Raises `TypeError` for anything but an activation, and `ValueError` if it is unknown or somewhere steeper than 1.

  Args:
    activation: `"lip_swish"`, another name of `keras.activations`, or a function of a tensor.
    dtype: `tf.DType` of a function's input.
  """
  if activation == LIP_SWISH:
    return
  if not isinstance(activation, str) and not callable(activation):
    raise TypeError("`activation` must be 'lip_swish', another name of `keras.activations`, or a function. "
                    f"Received: {activation!r}")
  try:
    function = keras.activations.get(activation)
  except ValueError as error:
    raise ValueError("`activation` must be 'lip_swish', another name of `keras.activations`, or a function. "
                     f"Received: {activation!r}") from error
  is_exact = dtype == tf.float64 or isinstance(activation, str)
  points = np.linspace(-30., 30., 60_001 if is_exact else 6_001)
  # One element in each row, because an activation must treat each element on its own.
  values = np.asarray(function(tf.constant(points[:, np.newaxis], tf.float64 if is_exact else dtype)), np.float64)
  steepest = np.abs(np.diff(values[:, 0]) / np.diff(points)).max()
  if not steepest <= 1. + (1e-6 if is_exact else 1e-3):  # Rounding errors look like slopes.
    raise ValueError("`activation` must be nowhere steeper than 1, or the network would not contract (use 'lip_swish' "
                     f"instead of 'swish'). Received: {activation!r}, with a slope of {steepest:.4g}")


def activation_layer(activation, dtype):
  """A Keras layer of an activation that passes `check_activation`, with a dtype, a Python `str`."""
  return LipSwish(dtype=dtype) if activation == LIP_SWISH else keras.layers.Activation(activation, dtype=dtype)

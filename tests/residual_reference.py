"""The residual blocks of `tests/reference/residual_flows.npz`, in this package's layers."""

import functools
import pathlib

import keras
import numpy as np
import tensorflow as tf

import tfp_glow
from tfp_glow.networks.lipschitz import LipschitzConv2D, LipschitzDense, LipSwish

NUMBERS = dict(np.load(pathlib.Path(__file__).parent / "reference" / "residual_flows.npz"))
BLOCKS = ("fc", "conv")
LAYERS = (1, 3, 5)  # The others are activations.


def image(values):
  """From channels first, as in the reference, to channels last; vectors stay as they are."""
  return np.moveaxis(values, -3, -1) if values.ndim >= 3 else values


def kernel(weight):
  """From the reference's order of dimensions to Keras'."""
  return weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0)


def weight(kernel_):
  """The inverse of `kernel`."""
  return kernel_.T if kernel_.ndim == 2 else kernel_.transpose(3, 2, 0, 1)


def numbers(name):
  """The arrays of a block, by name, without the prefix."""
  return {key.removeprefix(f"{name}/"): value for key, value in NUMBERS.items() if key.startswith(f"{name}/")}


def make_network(name, dtype="float64"):
  """The network of a block, with the reference's weights and power-iteration vectors."""
  reference = numbers(name)
  layers = []
  for index in LAYERS:
    weights, coefficient = reference[f"layer{index}/weight"], float(reference[f"layer{index}/coeff"])
    make = LipschitzDense if weights.ndim == 2 else lambda filters, *args, size=weights.shape[-1], **kwargs: (
        LipschitzConv2D(filters, size, *args, **kwargs))
    layers += [LipSwish(dtype=dtype), make(len(weights), coefficient, dtype=dtype)]
  network = keras.Sequential(layers)
  network.build((None, *image(reference["x"]).shape[1:]))
  for index, layer in enumerate(layers):
    if index not in LAYERS:
      layer.beta.assign(reference[f"swish{index}/beta_raw"][0])
      continue
    layer.kernel.assign(kernel(reference[f"layer{index}/weight"]))
    layer.bias.assign(reference[f"layer{index}/bias"])
    for vector, key in ((layer.u, "u"), (layer.v, "v")):
      of_channels_first = (1, vector.shape[-1], *vector.shape[1:-1])
      vector.assign(image(reference[f"layer{index}/{key}"].reshape(of_channels_first)))
  return network


def make_block(name, dtype="float64", **kwargs):
  """The block."""
  event_ndims = 1 if name == "fc" else 3
  return tfp_glow.InvertibleResidualBlock(make_network(name, dtype), event_ndims=event_ndims, dtype=dtype, seed=0,
                                          **kwargs)


@functools.cache
def exact_block(name):
  """A block that no test changes, its numbers, and the inputs."""
  reference = numbers(name)
  return make_block(name, log_det="exact"), reference, tf.constant(image(reference["x"]))


def gradients_of(function, x, network):
  """Gradients of the sum of `function(x)`: by input, by kernels, by all other weights in their order."""
  with tf.GradientTape() as tape:
    tape.watch(x)
    total = tf.reduce_sum(function(x))
  sources = [x] + [variable.value for variable in network.trainable_variables]
  return tape.gradient(total, sources, unconnected_gradients="zero")

"""Models to save, and functions and classes that are registered with Keras for them."""

import keras
import numpy as np
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

tfb = tfp.bijectors
tfd = tfp.distributions
IMAGES = small_models.images(16)


@keras.saving.register_keras_serializable("tests")
def make_network(num_output_channels):
  return keras.Sequential([keras.layers.Conv2D(8, 3, padding="same", activation="gelu"),
                           keras.layers.Conv2D(num_output_channels, 3, padding="same", kernel_initializer="zeros")])


@keras.saving.register_keras_serializable("tests")
class NetworkMaker:
  """Callable, with a setting of its own."""

  def __init__(self, width):
    self.width = width

  def __call__(self, num_output_channels):
    return keras.layers.Conv2D(num_output_channels, self.width, padding="same")

  def get_config(self):
    return {"width": self.width}

  @classmethod
  def from_config(cls, config):
    return cls(**config)


def variable(*shape, name="v"):
  return tf.Variable(tf.random.stateless_uniform(shape, [1, 2], 0.5, 1.5), name=name)


def of_vectors(bijector, shape=(4,)):
  return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), shape), bijector)


def of_glow(**kwargs):
  """Makes a Glow of a standard normal of the same dtype."""
  zero = np.zeros([], kwargs.get("dtype", "float32"))
  make = lambda: tfp_glow.GlowBijector(small_models.SHAPE, **{
      "num_glow_blocks": 1, "num_steps_per_block": 2, "num_hidden": 4, "seed": 1, **kwargs})
  return lambda: tfd.TransformedDistribution(tfd.Sample(tfd.Normal(zero, 1.), [32]), make())


def make_model(make, num_bits=8):
  """A model with weights that no constructor gives it."""
  model = tfp_glow.FlowModel(make(), num_bits)
  for i, v in enumerate(model.distribution.trainable_variables):
    v.assign_add(0.1 * tf.random.stateless_uniform(v.shape, [i, 1], dtype=v.dtype))
  return model


def saved_and_loaded(model, tmp_path):
  model.save(tmp_path / "model.keras")
  return keras.models.load_model(tmp_path / "model.keras")


def everything_in(model):
  return [v.numpy() for v in model.weights + (model.optimizer.variables if model.compiled else [])]


def assert_equal(found, expected):
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a, b)


def fit(model, x=IMAGES, y=None, epochs=1):
  return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history

"""A variational autoencoder whose prior is a Glow: a flow as a part of a Keras model.

  python examples/vae.py

The same autoencoder of scikit-learn's digits is trained twice: with a standard normal prior of its latents, images
[4, 4, 2], and with a Glow as prior. Both maximize the evidence lower bound. With the default settings the test split
takes at most 2.05 bits per dim with the standard normal prior, and 1.88 with the Glow. (With the standard normal prior
and twice as many epochs, which take longer than the Glow's, it takes 2.02.)

Keras finds only the variables of layers and models. So the prior is a `FlowModel`: if a bare bijector is an attribute
of a Keras layer or model, Keras silently does not train it. Tensors and their gradients go through the `distribution`
of the `FlowModel`.
"""

import argparse
import time

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from options import non_negative_int, positive_float, positive_int

import tfp_glow
from tfp_glow import data

layers, tfd = keras.layers, tfp.distributions

SHAPE, LATENT_SHAPE, NUM_LEVELS = (8, 8, 1), (4, 4, 2), 16  # Of the digits, with 4 bits for each pixel.
NUM_FILTERS = 32
NUM_ESTIMATES = 20  # Number of estimates of the test split's bound, each with new latents.


class VAE(keras.Model):
  """Its loss is the negative evidence lower bound, in bits per dimension, of uint8 images `[N, 8, 8, 1]`."""

  def __init__(self, prior=None, seed=0):
    """Creates it; `prior` is a `FlowModel` of latents, `None` for a standard normal distribution."""
    super().__init__()
    conv = lambda filters, **kwargs: layers.Conv2D(filters, 3, padding="same", **kwargs)
    self.encoder = keras.Sequential([
        keras.Input(SHAPE), conv(NUM_FILTERS, activation="relu"), conv(2 * NUM_FILTERS, strides=2, activation="relu"),
        conv(2 * LATENT_SHAPE[-1])])
    self.decoder = keras.Sequential([
        keras.Input(LATENT_SHAPE), conv(2 * NUM_FILTERS, activation="relu"), layers.UpSampling2D(),
        conv(NUM_FILTERS, activation="relu"), conv(2 * SHAPE[-1])])
    self.prior = prior
    self.seeds = keras.random.SeedGenerator(seed)

  def call(self, images):
    levels = tf.cast(images // (256 // NUM_LEVELS), tf.float32)  # 0 .. NUM_LEVELS - 1
    posterior = tfd.Normal(*mean_and_deviation(self.encoder(levels / NUM_LEVELS - 0.5)))
    noise = keras.random.normal(tf.shape(posterior.loc), seed=self.seeds)
    z = posterior.loc + posterior.scale * noise
    mean, deviation = mean_and_deviation(self.decoder(z))
    pixels = tfd.QuantizedDistribution(
        tfd.Logistic(NUM_LEVELS * (mean + 0.5), NUM_LEVELS * deviation), 0., NUM_LEVELS - 1.)
    bound = event_sum(pixels.log_prob(levels)) + self.log_prior(z) - event_sum(posterior.log_prob(z))  # [N], nats
    self.add_loss(-tf.reduce_mean(bound) / (np.prod(SHAPE) * np.log(2.)))
    return z

  def log_prior(self, z):
    """Log-density of latents `[N, 4, 4, 2]`: `[N]`, nats."""
    return event_sum(tfd.Normal(0., 1.).log_prob(z)) if self.prior is None else self.prior.distribution.log_prob(z)


def mean_and_deviation(h):
  """Two tensors, from the two halves of the channels."""
  mean, raw = tf.split(h, 2, axis=-1)
  return mean, tf.nn.softplus(raw) + 1e-3


def event_sum(values):
  """Sums `[N, H, W, C]` to `[N]`."""
  return tf.reduce_sum(values, axis=[1, 2, 3])


def main():
  """Trains both; prints and returns their bounds of the test split, by the name of the prior."""
  args = parse_args()
  train, test = (data.load_images("digits", split, args.batch_size, seed=args.seed) for split in ("train", "test"))
  bounds = {}
  for name in ("standard normal", "glow"):
    keras.utils.set_random_seed(args.seed)  # Both start from the same autoencoder.
    start = time.monotonic()
    model = VAE(make_prior(args) if name == "glow" else None, args.seed)
    model.compile(keras.optimizers.Adam(args.learning_rate, global_clipnorm=100.))
    model.fit(train, epochs=args.epochs, shuffle=False, verbose=0)  # `train` is shuffled.
    bounds[name] = np.mean([model.evaluate(test, verbose=0) for _ in range(NUM_ESTIMATES)])
    count = sum(np.prod(variable.shape) for variable in model.trainable_variables)
    print(f"{name}: {bounds[name]:.3f} bits per dim of the test split at most, {count:,} parameters, "
          f"{time.monotonic() - start:.0f} s")
  return bounds


def parse_args():
  """The settings."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("--num-blocks", type=positive_int, default=1, help="scales of the Glow, each half as high and wide (%(default)s)")
  add("--num-steps", type=positive_int, default=4, help="steps of flow at each scale (%(default)s)")
  add("--num-hidden", type=positive_int, default=32, help="channels inside the coupling networks (%(default)s)")
  add("--epochs", type=positive_int, default=40, help="(%(default)s)")
  add("--batch-size", type=positive_int, default=64, help="(%(default)s)")
  add("--learning-rate", type=positive_float, default=2e-3, help="(%(default)s)")
  add("--seed", type=non_negative_int, default=0, help="the same seed gives the same result (%(default)s)")
  args = parser.parse_args()
  height, width, _ = LATENT_SHAPE
  if height % 2**args.num_blocks or width % 2**args.num_blocks:
    parser.error(f"--num-blocks must be such that height and width of the latents, {height} and {width}, are divisible "
                 f"by 2 ** num_blocks. Received: {args.num_blocks}")
  return args


def make_prior(args):
  """A `FlowModel` of latents."""
  glow = tfp_glow.GlowBijector(LATENT_SHAPE, args.num_blocks, args.num_steps, args.num_hidden, seed=args.seed)
  return tfp_glow.FlowModel(glow, num_bits=None)


if __name__ == "__main__":
  main()

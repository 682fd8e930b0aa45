"""Glow in ten lines, trained by a bare gradient tape: without `FlowModel`, without `fit`.

  python examples/bare_gradient_tape.py

The bijector is an ordinary TFP bijector over ordinary `tf.Variable`s. This script does by hand what `FlowModel` does
itself: noise within the bins of the pixels, initialisation from the first batch, bits per dimension (2.28 for the test
split with the default settings).
"""

import argparse

import keras
import tensorflow as tf
import tensorflow_probability as tfp
from options import non_negative_int, positive_float, positive_int

import tfp_glow
from tfp_glow import data, dequantize

tfd = tfp.distributions

SHAPE, NUM_DIMS, NUM_BITS = (8, 8, 1), 64, 4  # For scikit-learn's digits.


def main():
  """Trains; prints and returns bits per dimension of the test split."""
  args = parse_args()
  keras.utils.set_random_seed(args.seed)
  batches = data.load_images("digits", "train", args.batch_size, seed=args.seed, epochs=range(args.epochs))
  flow = train(batches, args)
  test_images = next(iter(data.load_images("digits", "test", batch_size=1000)))
  log_prob = flow.log_prob(values_of(test_images, step=-1))  # A density of values in bins of width 1/16.
  log_prob = dequantize.discrete_log_prob(log_prob, NUM_DIMS, NUM_BITS)
  bits_per_dim = float(tf.reduce_mean(dequantize.bits_per_dim(log_prob, NUM_DIMS)))
  print(f"Test bits per dim: {bits_per_dim:.3f}")
  return bits_per_dim


def parse_args():
  """The settings."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("--num-blocks", type=positive_int, default=2, help="scales, each half as high and wide (%(default)s)")
  add("--num-steps", type=positive_int, default=8, help="steps of flow at each scale (%(default)s)")
  add("--num-hidden", type=positive_int, default=64, help="channels inside the coupling networks (%(default)s)")
  add("--epochs", type=positive_int, default=20, help="(%(default)s)")
  add("--batch-size", type=positive_int, default=64, help="(%(default)s)")
  add("--learning-rate", type=positive_float, default=1e-3, help="(%(default)s)")
  add("--seed", type=non_negative_int, default=0, help="the same seed gives the same result (%(default)s)")
  return parser.parse_args()


def values_of(images, step):
  """uint8 images as floats in [-1/2, 1/2), each pixel at random in its bin, with new noise at each step.

  Steps below 0 are for evaluation.
  """
  return dequantize.dequantize(images, NUM_BITS, dequantize.image_noise(images, [0, step]))


def train(batches, args):
  """Trains a flow in ten lines."""
  glow = tfp_glow.GlowBijector(SHAPE, args.num_blocks, args.num_steps, args.num_hidden, seed=args.seed)
  flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [NUM_DIMS]), glow)
  optimizer = keras.optimizers.Adam(args.learning_rate, global_clipnorm=100.)
  glow.initialize(values_of(next(iter(batches)), step=-2))
  optimizer.build(flow.trainable_variables)

  @tf.function
  def train_step(images, step):
    with tf.GradientTape() as tape:
      loss = -tf.reduce_mean(flow.log_prob(values_of(images, step), bijector_kwargs={"training": True}))
    optimizer.apply(tape.gradient(loss, flow.trainable_variables))

  for step, images in batches.enumerate():
    train_step(images, step)
  return flow


if __name__ == "__main__":
  main()

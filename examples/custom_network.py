"""Glow with your own coupling networks: a small ResNet, or attention.

  python examples/custom_network.py --network resnet
  python examples/custom_network.py --network attention
  python examples/custom_network.py --network default

A coupling network is any Keras layer from `[N, h, w, c]` to `[N, h, w, num_output_channels]`. It need not be
invertible. There are three rules. `network_fn` makes a new network on each call, because every step of flow has its own
weights. The last layer starts at zero, so that the flow starts near the identity. No layer changes its state when it is
called (use LayerNormalization, not BatchNormalization; no Dropout).

With the default settings the test split of scikit-learn's digits takes 2.44 bits per dim with the ResNet (319,076
parameters), 2.60 with attention (58,980), and 2.48 with the default network (33,860).
"""

import argparse

import keras
from options import non_negative_int, positive_float, positive_int

import tfp_glow
from tfp_glow import data

layers = keras.layers


@keras.saving.register_keras_serializable("custom_network")
class ResNet(layers.Layer):
  """Convolutions, with a skip connection past each pair."""

  def __init__(self, num_output_channels, num_hidden, num_pairs=2, **kwargs):
    super().__init__(**kwargs)
    self.num_output_channels, self.num_hidden, self.num_pairs = num_output_channels, num_hidden, num_pairs
    self.enter = layers.Conv2D(num_hidden, 3, padding="same")
    self.pairs = [
        keras.Sequential([
            layers.LayerNormalization(),
            layers.Conv2D(num_hidden, 3, padding="same", activation="gelu"),
            layers.Conv2D(num_hidden, 3, padding="same"),
        ]) for _ in range(num_pairs)]
    self.leave = layers.Conv2D(num_output_channels, 3, padding="same", kernel_initializer="zeros")

  def build(self, input_shape):
    self.enter.build(input_shape)
    hidden_shape = (*input_shape[:-1], self.num_hidden)
    for pair in self.pairs:
      pair.build(hidden_shape)
    self.leave.build(hidden_shape)

  def call(self, inputs):
    hidden = self.enter(inputs)
    for pair in self.pairs:
      hidden = hidden + pair(hidden)
    return self.leave(hidden)

  def get_config(self):
    return {**super().get_config(), "num_output_channels": self.num_output_channels, "num_hidden": self.num_hidden,
            "num_pairs": self.num_pairs}


@keras.saving.register_keras_serializable("custom_network")
class Attention(layers.Layer):
  """Every position attends to all others; a learned vector for each position tells them apart."""

  def __init__(self, num_output_channels, num_hidden, num_heads=4, **kwargs):
    super().__init__(**kwargs)
    self.num_output_channels, self.num_hidden, self.num_heads = num_output_channels, num_hidden, num_heads
    self.enter = layers.Conv2D(num_hidden, 3, padding="same", activation="gelu")
    self.normalize = layers.LayerNormalization()
    self.attend = layers.MultiHeadAttention(num_heads, num_hidden // num_heads)
    self.leave = layers.Conv2D(num_output_channels, 3, padding="same", kernel_initializer="zeros")

  def build(self, input_shape):
    _, height, width, _ = input_shape
    hidden_shape = (None, height, width, self.num_hidden)
    self.positions = self.add_weight(name="positions", shape=hidden_shape[1:], initializer="random_normal")
    self.enter.build(input_shape)
    self.normalize.build(hidden_shape)
    self.attend.build((None, height * width, self.num_hidden), (None, height * width, self.num_hidden))
    self.leave.build(hidden_shape)

  def call(self, inputs):
    hidden = self.enter(inputs) + self.positions
    _, height, width, channels = hidden.shape
    line = keras.ops.reshape(self.normalize(hidden), [-1, height * width, channels])
    hidden = hidden + keras.ops.reshape(self.attend(line, line), [-1, height, width, channels])
    return self.leave(hidden)

  def get_config(self):
    return {**super().get_config(), "num_output_channels": self.num_output_channels, "num_hidden": self.num_hidden,
            "num_heads": self.num_heads}


NETWORKS = {"resnet": ResNet, "attention": Attention, "default": None}


def main():
  """Trains; prints and returns bits per dimension of the test split."""
  args = parse_args()
  keras.utils.set_random_seed(args.seed)  # For the networks' own initial values.
  train, test = (data.load_images("digits", split, args.batch_size, seed=args.seed) for split in ("train", "test"))
  model = make_model(args)
  model.compile(keras.optimizers.Adam(args.learning_rate, global_clipnorm=100.))
  model.fit(train, epochs=args.epochs, validation_data=test)
  bits_per_dim = model.evaluate(test, return_dict=True, verbose=0)["bits_per_dim"]
  num_parameters = sum(variable.shape.num_elements() for variable in model.distribution.trainable_variables)
  print(f"Test bits per dim: {bits_per_dim:.3f}, with {num_parameters:,} parameters")
  return bits_per_dim


def parse_args():
  """The settings."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("--network", choices=NETWORKS, default="resnet", help="(%(default)s)")
  add("--num-blocks", type=positive_int, default=2, help="scales, each half as high and wide (%(default)s)")
  add("--num-steps", type=positive_int, default=4, help="steps of flow at each scale (%(default)s)")
  add("--num-hidden", type=positive_int, default=32, help="channels inside the networks (%(default)s)")
  add("--epochs", type=positive_int, default=20, help="(%(default)s)")
  add("--batch-size", type=positive_int, default=64, help="(%(default)s)")
  add("--learning-rate", type=positive_float, default=1e-3, help="(%(default)s)")
  add("--seed", type=non_negative_int, default=0, help="the same seed gives the same result (%(default)s)")
  return parser.parse_args()


def make_model(args):
  """A `FlowModel` of scikit-learn's digits."""
  network = NETWORKS[args.network]
  network_fn = None if network is None else lambda num_output_channels: network(num_output_channels, args.num_hidden)
  glow = tfp_glow.GlowBijector((8, 8, 1), args.num_blocks, args.num_steps, args.num_hidden, network_fn=network_fn,
                               seed=args.seed)
  return tfp_glow.FlowModel(glow, num_bits=4, seed=args.seed)


if __name__ == "__main__":
  main()

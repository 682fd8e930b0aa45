"""The systems that the benchmarks compare, each with the same architecture: as functions that run one call.

Settings of the peers are the best of those that were tried:

- `tfb.Glow`: its default networks of the given width, inside one `tf.function`, Adam of `tf_keras` (a fused kernel).
- `normflows`: `GlowBlock`s with `use_lu=True`, as many threads as cores, Adam of `torch.optim`.
"""

import dataclasses
from typing import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Of a Glow, and the batches it gets."""
  image_shape: tuple = (32, 32, 3)
  num_levels: int = 2
  num_steps: int = 4
  num_hidden: int = 128
  batch_size: int = 16
  coupling: str = "affine"
  gradient: str = "autodiff"
  policy: str = "float32"
  learning_rate: float = 1e-4

  @property
  def num_dims(self):
    return int(np.prod(self.image_shape))

  def images(self, seed=0):
    """A batch of dequantized images of noise, float32."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (self.batch_size, *self.image_shape)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class System:
  """What can be timed. Every call returns when its result is there."""
  step: Callable  # One training step on a batch (NumPy, float32); returns the loss in nats per image.
  log_prob: Callable  # Of a batch, `[N]`, nats.
  sample: Callable  # A batch of new images.
  num_parameters: int


def make(name, architecture):
  """Builds a system, initialised from a batch where it does that."""
  return {"convolutions": _convolutions, "tfp_glow": _tfp_glow, "tfb.Glow": _tfb_glow, "normflows": _normflows}[name](
      architecture)


def _tensorflow_system(distribution, optimizer, variables, images):
  """`variables`: the distribution's trainable ones, as the optimizer takes them."""
  import tensorflow as tf  # pylint: disable=import-outside-toplevel

  @tf.function(autograph=False)
  def step(x):
    with tf.GradientTape() as tape:
      loss = -tf.reduce_mean(distribution.log_prob(x))
    optimizer.apply_gradients(zip(tape.gradient(loss, distribution.trainable_variables), variables))
    return loss

  log_prob = tf.function(distribution.log_prob, autograph=False)
  sample = tf.function(lambda seed: distribution.sample(len(images), seed=seed), autograph=False)
  seeds = iter(range(2**31))
  return System(lambda x: float(step(x)), lambda x: log_prob(x).numpy(),
                lambda: sample(tf.constant([0, next(seeds)])).numpy(), sum(int(np.prod(v.shape)) for v in variables))


def _keras_adam(architecture, tf_variables):
  import keras  # pylint: disable=import-outside-toplevel
  optimizer = keras.optimizers.Adam(architecture.learning_rate)
  variables = [keras.Variable(v) for v in tf_variables]
  optimizer.build(variables)
  return optimizer, variables


def _tfp_glow(architecture):
  # pylint: disable=import-outside-toplevel
  import keras
  import tensorflow_probability as tfp
  import tfp_glow
  keras.config.set_dtype_policy(architecture.policy)
  glow = tfp_glow.GlowBijector(
      architecture.image_shape, architecture.num_levels, architecture.num_steps, architecture.num_hidden,
      architecture.coupling, gradient=architecture.gradient, seed=0)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [architecture.num_dims])
  distribution = tfp.distributions.TransformedDistribution(base, glow)
  images = architecture.images()
  glow.initialize(images)
  return _tensorflow_system(distribution, *_keras_adam(architecture, distribution.trainable_variables), images)


def _tfb_glow(architecture):
  # pylint: disable=import-outside-toplevel
  import tensorflow_probability as tfp
  import tf_keras
  glow = tfp.bijectors.Glow(
      architecture.image_shape, num_glow_blocks=architecture.num_levels, num_steps_per_block=architecture.num_steps,
      coupling_bijector_fn=lambda shape: tfp.bijectors.GlowDefaultNetwork(shape, num_hidden=architecture.num_hidden),
      exit_bijector_fn=tfp.bijectors.GlowDefaultExitNetwork)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [architecture.num_dims])
  distribution = tfp.distributions.TransformedDistribution(base, glow)
  optimizer = tf_keras.optimizers.Adam(architecture.learning_rate)
  optimizer.build(distribution.trainable_variables)
  return _tensorflow_system(distribution, optimizer, distribution.trainable_variables, architecture.images())


def _convolutions(architecture):
  """The convolutions of the coupling networks with bias and relu, one after the other, and nothing around them."""
  import tensorflow as tf  # pylint: disable=import-outside-toplevel
  rng = np.random.default_rng(0)
  height, width, channels = architecture.image_shape
  draw = lambda *shape: tf.Variable(rng.normal(0., 0.05, shape), dtype=tf.float32)
  levels, inputs = [], []
  for _ in range(architecture.num_levels):
    height, width, channels = height // 2, width // 2, channels * 4
    kept, hidden = channels // 2, architecture.num_hidden
    outputs = channels if architecture.coupling == "affine" else kept
    inputs.append(tf.constant(rng.normal(size=(architecture.batch_size, height, width, kept)), tf.float32))
    levels.append([[draw(3, 3, kept, hidden), draw(hidden), draw(1, 1, hidden, hidden), draw(hidden),
                    draw(3, 3, hidden, outputs), draw(outputs)] for _ in range(architecture.num_steps)])
    channels = kept
  optimizer, variables = _keras_adam(architecture, tf.nest.flatten(levels))

  def network(x, weights):
    convolve = lambda x, kernel, bias: tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)
    hidden = tf.nn.relu(convolve(x, *weights[:2]))
    return convolve(tf.nn.relu(convolve(hidden, *weights[2:4])), *weights[4:])

  def run():
    total = 0.
    for x, level in zip(inputs, levels):
      # Level after level, as in a flow, not side by side.
      with tf.control_dependencies([total] if tf.is_tensor(total) else []):
        x = tf.identity(x)
      for weights in level:
        # As in a flow, the next step waits for this one, and its input has a gradient.
        outputs = network(x, weights)
        x = outputs[..., :x.shape[-1]]
      total += tf.reduce_sum(outputs)
    return total

  @tf.function(autograph=False)
  def step():
    with tf.GradientTape() as tape:
      loss = run()
    optimizer.apply_gradients(zip(tape.gradient(loss, [v.value for v in variables]), variables))
    return loss

  forward = tf.function(run, autograph=False)
  return System(lambda _: float(step()), lambda _: float(forward()), lambda: float(forward()),
                sum(int(np.prod(v.shape)) for v in variables))


def _normflows(architecture):
  # pylint: disable=import-outside-toplevel
  import os
  import normflows as nf
  import torch
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  num_levels, (height, width, channels) = architecture.num_levels, architecture.image_shape
  base, merges, flows = [], [], []
  for level in range(num_levels):
    steps = [nf.flows.GlowBlock(channels * 2**(num_levels + 1 - level), architecture.num_hidden,
                                scale=architecture.coupling == "affine", use_lu=True)
             for _ in range(architecture.num_steps)]
    flows.append(steps + [nf.flows.Squeeze()])
    if level:
      merges.append(nf.flows.Merge())
    exponent = num_levels - level
    shape = (channels * 2**(exponent + (level == 0)), height // 2**exponent, width // 2**exponent)
    base.append(nf.distributions.DiagGaussian(shape))
  model = nf.MultiscaleFlow(base, flows, merges, class_cond=False)
  optimizer = torch.optim.Adam(model.parameters(), lr=architecture.learning_rate)
  to_tensor = lambda x: torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))
  with torch.no_grad():
    model.log_prob(to_tensor(architecture.images()), None)  # Initialises its actnorms.

  def step(x):
    optimizer.zero_grad()
    loss = -model.log_prob(to_tensor(x), None).mean()
    loss.backward()
    optimizer.step()
    return float(loss)

  def log_prob(x):
    with torch.no_grad():
      return model.log_prob(to_tensor(x), None).numpy()

  def sample():
    with torch.no_grad():
      return model.sample(architecture.batch_size)[0].numpy()

  return System(step, log_prob, sample, sum(p.numel() for p in model.parameters()))

"""The systems that the benchmarks compare, as functions that run one call. All have the same architecture.

Settings of the peers are the best that were found:

- `tfb.Glow`: its default networks of the given width, inside one `tf.function`, Adam of `tf_keras` (a fused kernel).
- `normflows`: `GlowBlock`s with `use_lu=True`, as many threads as cores, Adam of `torch.optim`.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The architecture of a Glow, and its batches."""
  image_shape: tuple = (32, 32, 3)
  num_levels: int = 2
  num_steps: int = 4
  num_hidden: int = 128
  batch_size: int = 16
  coupling: str = "affine"
  gradient: str = "autodiff"
  policy: str = "float32"
  learning_rate: float = 1e-4
  clip_norm: float = math.inf  # Bound of the gradients' global norm.
  seed: int = 0  # Seed of the initial values.

  @property
  def num_dims(self):
    return int(np.prod(self.image_shape))

  def images(self, seed=0):
    """A batch of dequantized images of noise, float32."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (self.batch_size, *self.image_shape)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class System:
  """Functions that can be timed. Every call waits for its result."""
  step: Callable  # One training step on a batch (NumPy, float32); returns the loss in nats per image.
  log_prob: Callable  # Log-densities of a batch, `[N]`, nats.
  sample: Callable  # New images: a batch, or a given number of them.
  num_parameters: int
  set_learning_rate: Callable  # Sets the rate of the next steps.
  restart: Callable = None  # Draws weights by another seed, initialises from a batch, and resets the optimizer.


def tensorflow_system(make_distribution, initialize, make_optimizer, make_step, architecture):
  """A system made by these four functions.

  Args:
    make_distribution: From a seed to a `tfd.TransformedDistribution`.
    initialize: Function of a distribution and a batch.
    make_optimizer: From variables to an optimizer and these variables, in the form that it takes.
    make_step: From all three to a function that trains on a batch and returns the loss.
    architecture: `Architecture`.
  """
  import tensorflow as tf
  images = architecture.images()
  distribution = make_distribution(architecture.seed)
  initialize(distribution, images)
  optimizer, variables = make_optimizer(distribution.trainable_variables)
  step = make_step(distribution, optimizer, variables)
  log_prob = tf.function(distribution.log_prob, autograph=False)
  sample = tf.function(lambda seed, count: distribution.sample(count, seed=seed), autograph=False)
  seeds = iter(range(2**31))

  def restart(seed, x):
    for variable, fresh in zip(distribution.variables, make_distribution(seed).variables):
      variable.assign(fresh)
    for variable in optimizer.variables:
      variable.assign(tf.zeros_like(variable))
    initialize(distribution, x)

  return System(lambda x: float(step(x)), lambda x: log_prob(x).numpy(),
                lambda count=len(images): sample(tf.constant([0, next(seeds)]), count).numpy(),  # noqa: B008  It stays.
                sum(int(np.prod(v.shape)) for v in variables),
                lambda rate: optimizer.learning_rate.assign(rate), restart)


def _make_bare_step(distribution, optimizer, variables):
  import tensorflow as tf

  @tf.function(autograph=False)
  def step(x):
    with tf.GradientTape() as tape:
      loss = -tf.reduce_mean(distribution.log_prob(x))
    optimizer.apply_gradients(zip(tape.gradient(loss, distribution.trainable_variables), variables))
    return loss

  return step


def _clipping(architecture):
  """Keyword arguments for optimizers of Keras 3 and of `tf_keras`."""
  return {"global_clipnorm": architecture.clip_norm} if math.isfinite(architecture.clip_norm) else {}


def keras_adam(architecture, tf_variables):
  import keras
  optimizer = keras.optimizers.Adam(architecture.learning_rate, **_clipping(architecture))
  variables = [keras.Variable(v) for v in tf_variables]
  optimizer.build(variables)
  return optimizer, variables


def _tfp_glow(architecture, make_step=_make_bare_step):
  import keras
  import tensorflow_probability as tfp

  import tfp_glow
  keras.config.set_dtype_policy(architecture.policy)

  def make_distribution(seed):
    glow = tfp_glow.GlowBijector(
        architecture.image_shape, architecture.num_levels, architecture.num_steps, architecture.num_hidden,
        architecture.coupling, gradient=architecture.gradient, seed=seed)
    base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [architecture.num_dims])
    return tfp.distributions.TransformedDistribution(base, glow)

  return tensorflow_system(make_distribution, lambda distribution, x: distribution.bijector.initialize(x),
                           lambda variables: keras_adam(architecture, variables), make_step, architecture)


def _flow_model(architecture):
  """As `_tfp_glow`, but trained by `FlowModel` with its guards, whose loss is in bits per dimension."""
  import tensorflow as tf

  import tfp_glow
  nats = architecture.num_dims * math.log(2.)

  def make_step(distribution, optimizer, variables):
    del variables  # They share their storage with those of the model.
    model = tfp_glow.FlowModel(distribution, num_bits=None)
    model.compile(optimizer)
    train = tf.function(model.train_step, autograph=False)

    def step(x):
      model.reset_metrics()
      try:
        return nats * train(x)["loss"]
      except tf.errors.OpError:
        return math.nan

    return step

  return _tfp_glow(dataclasses.replace(architecture, clip_norm=architecture.clip_norm / nats), make_step)


def _tfb_glow(architecture):
  import tensorflow_probability as tfp
  import tf_keras

  def make_distribution(seed):
    tf_keras.utils.set_random_seed(seed)
    glow = tfp.bijectors.Glow(
        architecture.image_shape, num_glow_blocks=architecture.num_levels, num_steps_per_block=architecture.num_steps,
        coupling_bijector_fn=lambda shape: tfp.bijectors.GlowDefaultNetwork(shape, num_hidden=architecture.num_hidden),
        exit_bijector_fn=tfp.bijectors.GlowDefaultExitNetwork)
    base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [architecture.num_dims])
    return tfp.distributions.TransformedDistribution(base, glow)

  def make_optimizer(variables):
    optimizer = tf_keras.optimizers.Adam(architecture.learning_rate, **_clipping(architecture))
    optimizer.build(variables)
    return optimizer, variables

  # Its first call initialises it.
  return tensorflow_system(make_distribution, lambda distribution, x: distribution.log_prob(x), make_optimizer,
                           _make_bare_step, architecture)


def _convolutions(architecture):
  """The convolutions of the coupling networks with bias and relu, one after the other, and nothing else."""
  import tensorflow as tf
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
  optimizer, variables = keras_adam(architecture, tf.nest.flatten(levels))

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
                sum(int(np.prod(v.shape)) for v in variables), optimizer.learning_rate.assign)


def _normflows(architecture):
  import normflows as nf
  num_levels, (height, width, channels) = architecture.num_levels, architecture.image_shape

  def make_model():
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
    return nf.MultiscaleFlow(base, flows, merges, class_cond=False)

  return torch_system(make_model, lambda model, x: model.log_prob(x, None),
                      lambda model, count: model.sample(count)[0], architecture)


def torch_system(make_model, log_prob, sample, architecture, after_update=lambda model: None):
  """A system made by these functions, with as many threads as cores.

  Args:
    make_model: Makes a `torch.nn.Module` from torch's global seed.
    log_prob: From the model and a batch, channels first, to `[N]`. Its first call initialises the model.
    sample: From the model and a number of images to images.
    architecture: `Architecture`.
    after_update: Called with the model after each training step.
  """
  import os

  import torch
  torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
  to_tensor = lambda x: torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))
  model = optimizer = None

  def restart(seed, x):
    nonlocal model, optimizer
    torch.manual_seed(seed)
    np.random.seed(seed)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=architecture.learning_rate)
    with torch.no_grad():
      log_prob(model, to_tensor(x))

  restart(architecture.seed, architecture.images())

  def step(x):
    optimizer.zero_grad()
    loss = -log_prob(model, to_tensor(x)).mean()
    loss.backward()
    if math.isfinite(architecture.clip_norm):
      torch.nn.utils.clip_grad_norm_(model.parameters(), architecture.clip_norm)
    optimizer.step()
    after_update(model)
    return float(loss.detach())

  def evaluate(function, *args):
    model.eval()
    with torch.no_grad():
      result = function(model, *args).numpy()
    model.train()
    return result

  def set_learning_rate(rate):
    for group in optimizer.param_groups:
      group["lr"] = rate

  return System(step, lambda x: evaluate(log_prob, to_tensor(x)),
                lambda count=architecture.batch_size: evaluate(sample, count),
                sum(p.numel() for p in model.parameters()), set_learning_rate, restart)


# From a name to the function that builds the system of an `Architecture`, initialised from a batch if it needs one.
MAKERS = {"convolutions": _convolutions, "tfp_glow": _tfp_glow, "FlowModel": _flow_model, "tfb.Glow": _tfb_glow,
          "normflows": _normflows}

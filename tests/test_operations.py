"""Numbers of operations of flows: on GPUs each costs some microseconds, however small it is."""

import contextlib
import pathlib
import runpy

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow._core import gradients
from tfp_glow.training import update as update_lib

pytestmark = pytest.mark.slow
_FILE = pathlib.Path(__file__).parent.parent / "benchmarks" / "executed_operations.py"
executed = runpy.run_path(str(_FILE))["executed"]
# Bounds of the operations of a further step of flow, and of what a `FlowModel` adds to a training step.
MOST = {"log_prob": 28, "sample": 26, "autodiff": 83, "reversible": 85}
MOST_OF_A_MODEL = 191
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 2), np.uint8)


def _distribution(num_steps, gradient="autodiff"):
  glow = tfp_glow.GlowBijector((4, 4, 2), 1, num_steps, 4, gradient=gradient, seed=0)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [32])
  return tfp.distributions.TransformedDistribution(base, glow)


def _executed(what, num_steps):
  distribution = _distribution(num_steps, what if what in ("autodiff", "reversible") else "autodiff")
  y = tf.constant(tfp_glow.dequantize.dequantize(IMAGES, 8))
  variables = distribution.trainable_variables

  def gradients():
    with tf.GradientTape() as tape:
      loss = -tf.reduce_mean(distribution.log_prob(y, bijector_kwargs={"training": True}))
    return tape.gradient(loss, variables)

  functions = {"log_prob": lambda: distribution.log_prob(y), "sample": lambda: distribution.sample(3, seed=0)}
  function = tf.function(functions.get(what, gradients), autograph=False)
  return executed(lambda: tf.nest.map_structure(lambda tensor: tensor.numpy(), function()))


@pytest.mark.parametrize("what", MOST)
def test_of_a_further_step_of_flow(what):
  few, many = (_executed(what, num_steps) for num_steps in (3, 5))
  many.subtract(few)
  assert sum(many.values()) <= 2 * MOST[what], many
  # The products of the network, and that of actnorm and 1x1 convolution: one forward, two back; `"reversible"`
  # computes all of them once more.
  products = sum(count for kind, count in many.items() if "MatMul" in kind or "Conv2D" in kind)
  assert products == 2 * {"autodiff": 4 + 8 + 1, "reversible": 4 + 8 + 4}.get(what, 4)


def test_nothing_is_kept_for_gradients_that_nobody_asks_for():
  counts = _executed("log_prob", 3)
  # (Two in each step, however TensorFlow computes them.)
  assert sum(count for kind, count in counts.items() if "Conv2D" in kind) == 6
  assert not any(kind.startswith("TensorList") for kind in counts)


def test_a_graph_for_evaluation_alone_keeps_nothing():
  distribution = _distribution(3)

  def log_prob(y):
    with gradients.left_out():
      return distribution.log_prob(y)

  graph = tf.function(log_prob).get_concrete_function(tf.TensorSpec([None, 4, 4, 2])).graph.as_graph_def()
  operations = {node.op for part in (graph.node, *(f.node_def for f in graph.library.function)) for node in part}
  assert "Conv2D" in operations and not any(op.startswith("TensorList") for op in operations)


@pytest.mark.parametrize("rate", [1e-3, keras.optimizers.schedules.CosineDecay(1e-3, 9)], ids=["fixed", "schedule"])
def test_adam_is_one_operation_for_each_variable(rate):
  model = tfp_glow.FlowModel(_distribution(2))
  model.compile(keras.optimizers.Adam(rate))
  images = tf.constant(IMAGES)
  model.fit(images, verbose=0)
  step = tf.function(model.train_step, autograph=False)
  counts = executed(lambda: float(step(images)["loss"]))
  num_variables = len(model.trainable_variables)
  assert counts["Pow"] == 2 and counts["ResourceApplyAdam"] == num_variables and not counts["Sqrt"]
  assert counts["AssignAddVariableOp"] + counts["AssignSubVariableOp"] < num_variables
  assert int(model.optimizer.iterations) == 3


def test_what_a_model_adds():
  model = tfp_glow.FlowModel(_distribution(3))
  model.compile(keras.optimizers.Adam(1e-4))
  images = tf.constant(IMAGES)
  model.fit(images, verbose=0)
  step = tf.function(model.train_step, autograph=False)
  counts = executed(lambda: step(images)["loss"].numpy())
  counts.subtract(_executed("autodiff", 3))
  # A loop without a model has no optimizer here, dequantizes outside, and checks nothing.
  assert sum(counts.values()) <= MOST_OF_A_MODEL, counts


@pytest.mark.parametrize("make, kind, count", [
    # The iterations and the rate.
    (keras.optimizers.SGD, "ReadVariableOp", 2),
    (keras.optimizers.Adam, "Cos", 1),
    (lambda rate: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(rate)), "Cos", 1),
], ids=["rate", "schedule", "schedule with a loss scale"])
def test_the_learning_rate_is_read_once(make, kind, count):
  optimizer = make(keras.optimizers.schedules.CosineDecay(1e-3, 9) if kind == "Cos" else 1e-3)
  variables = [keras.Variable(np.zeros(shape)) for shape in SHAPES]
  optimizer.build(variables)

  def update():
    with update_lib.in_few_operations(optimizer):
      optimizer.apply_gradients([(tf.ones(variable.shape), variable) for variable in variables])

  graph = tf.function(update, autograph=False).get_concrete_function().graph.as_graph_def()
  nodes = [*graph.node, *(node for part in graph.library.function for node in part.node_def)]
  assert [node.op for node in nodes].count(kind) == count


def test_nodes_of_a_training_step():
  model = tfp_glow.FlowModel(tfp_glow.GlowBijector((8, 8, 3), 3, 2, 4, seed=0))
  model.compile(keras.optimizers.Adam(1e-4))
  model.optimizer.build(model.trainable_variables)
  step = tf.function(model.train_step, autograph=False).get_concrete_function(tf.TensorSpec([4, 8, 8, 3], tf.uint8))
  graph = step.graph.as_graph_def()
  assert len(graph.node) + sum(len(part.node_def) for part in graph.library.function) <= 4000


# With these both take the same steps: TensorFlow and Keras round others, such as 0.999, in different places.
BETAS = {"beta_1": 0.875, "beta_2": 1. - 2.**-10}
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(1e-2, epsilon=1e-3, **BETAS),
    "clipped": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1, global_clipnorm=0.5, **BETAS),
    "amsgrad": lambda: keras.optimizers.Adam(1e-2, amsgrad=True),
    "averages": lambda: keras.optimizers.AdamW(1e-2, use_ema=True, ema_overwrite_frequency=2, **BETAS),
    "accumulation": lambda: keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2, **BETAS),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(1e-3, 5)),
    "state": lambda: keras.optimizers.Nadam(1e-2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2, **BETAS)),
}
SHAPES = (3,), (2, 2)


def _trained(optimizer, gradients, dtypes, context=contextlib.nullcontext):
  """The variables, and those of the optimizer, after an update with each of the lists of gradients, in a graph."""
  variables = [keras.Variable(np.zeros(shape), dtype=dtype) for shape, dtype in zip(SHAPES, dtypes)]
  optimizer.build(variables)

  @tf.function
  def update(*gradients):
    with context(optimizer):
      optimizer.apply_gradients(zip(gradients, variables))

  for step in gradients:
    update(*(tf.constant(gradient, dtype) for gradient, dtype in zip(step, dtypes)))
  return [variable.numpy() for variable in (*variables, *optimizer.variables)]


def _gradients(num_steps):
  rng = np.random.default_rng(0)
  return [[rng.normal(0.3, size=shape) for shape in SHAPES] for _ in range(num_steps)]


@pytest.mark.parametrize("name, dtypes", [
    ("adam", ("float64", "float32")), *((name, ("float32", "float32")) for name in OPTIMIZERS)])
def test_an_update_is_that_of_the_optimizer_alone(name, dtypes):
  found = _trained(OPTIMIZERS[name](), _gradients(5), dtypes, update_lib.in_few_operations)
  for found, expected in zip(found, _trained(OPTIMIZERS[name](), _gradients(5), dtypes), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def _exact_adam(gradients):
  """Kingma and Ba, "Adam" (2015), section 2, last paragraph, from zeros, in float64."""
  value = mean = square = 0.
  for step, gradient in enumerate(gradients, 1):
    mean = mean + 0.1 * (gradient - mean)
    square = square + 0.001 * (gradient**2 - square)
    value = value - 1e-2 * np.sqrt(1. - 0.999**step) / (1. - 0.9**step) * mean / (np.sqrt(square) + 1e-7)
  return value


@pytest.mark.parametrize("num_steps", [1, 100])
def test_adam_is_exact(num_steps):
  gradients = _gradients(num_steps)
  exact = _exact_adam([first for first, _ in gradients])
  error = lambda context: np.max(np.abs(
      _trained(keras.optimizers.Adam(1e-2), gradients, ["float32"] * 2, context)[0] - exact)) / np.max(np.abs(exact))
  assert error(update_lib.in_few_operations) < 2e-6 < error(contextlib.nullcontext)  # Keras: 7e-6.

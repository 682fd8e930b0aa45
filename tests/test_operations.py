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
from tfp_glow.training import train_step

pytestmark = pytest.mark.slow
_FILE = pathlib.Path(__file__).parent.parent / "benchmarks" / "executed_operations.py"
executed = runpy.run_path(str(_FILE))["executed"]
# Bounds of the operations of a further step of flow.
MOST = {"log_prob": 28, "sample": 26, "autodiff": 87, "reversible": 89}
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
def test_the_powers_of_adam_are_computed_once(rate):
  model = tfp_glow.FlowModel(_distribution(2))
  model.compile(keras.optimizers.Adam(rate))
  images = tf.constant(IMAGES)
  model.fit(images, verbose=0)
  step = tf.function(model.train_step, autograph=False)
  counts = executed(lambda: float(step(images)["loss"]))
  num_variables = len(model.trainable_variables)
  assert counts["Pow"] == 2 and counts["AssignAddVariableOp"] >= 2 * num_variables
  assert counts["Sqrt"] <= num_variables + 2
  assert int(model.optimizer.iterations) == 3


OPTIMIZERS = {
    "averages": lambda: keras.optimizers.AdamW(1e-2, use_ema=True, ema_overwrite_frequency=2),
    "accumulation": lambda: keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(1e-3, 5)),
    "state": lambda: keras.optimizers.Nadam(1e-2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_that_of_the_optimizer_alone(name):
  rng = np.random.default_rng(0)
  values = [rng.normal(size=shape).astype(np.float32) for shape in ((3,), (2, 2))]
  steps = [[tf.constant(rng.normal(size=value.shape), tf.float32) for value in values] for _ in range(5)]

  def train(context):
    optimizer, variables = OPTIMIZERS[name](), [keras.Variable(value) for value in values]
    optimizer.build(variables)

    @tf.function
    def update(*gradients):
      with context(optimizer):
        optimizer.apply_gradients(zip(gradients, variables))

    for step in steps:
      update(*step)
    return [variable.numpy() for variable in (*variables, *optimizer.variables)]

  for found, expected in zip(train(train_step._scalars_read_once), train(contextlib.nullcontext), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-6)

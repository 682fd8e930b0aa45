"""`Scan`: one traced step over stacked parameters equals the steps one after the other."""

import bijector_cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_glow

SHAPE = [4, 4, 2]
LAYERS = {
    "convolutions": lambda units: bijector_cases.convolutions(units, "float64"),
    "layer normalisation": lambda units: keras.Sequential([
        keras.layers.Conv2D(4, 3, padding="same", dtype="float64"), keras.layers.LayerNormalization(dtype="float64"),
        keras.layers.Dense(units, dtype="float64")]),
    "group normalisation": lambda units: keras.Sequential([
        keras.layers.Dense(4, dtype="float64"), keras.layers.GroupNormalization(2, dtype="float64"),
        keras.layers.Dense(units, dtype="float64")]),
    "functional model": lambda units: _functional(units),
    "subclass without build": lambda units: _Subclass(units, dtype="float64"),
}


def _functional(units):
  inputs = keras.Input([None, None, 1], dtype="float64")
  hidden = keras.layers.Conv2D(3, 3, padding="same", activation="tanh", dtype="float64")(inputs)
  hidden = keras.layers.Concatenate(dtype="float64")([inputs, hidden])
  return keras.Model(inputs, keras.layers.Conv2D(units, 1, dtype="float64")(hidden))


class _Subclass(keras.layers.Layer):

  def __init__(self, units, **kwargs):
    super().__init__(**kwargs)
    self.hidden = keras.layers.Dense(3, activation="tanh", dtype="float64")
    self.out = keras.layers.Dense(units, dtype="float64")

  def call(self, inputs):
    return self.out(self.hidden(inputs))


def _make_step(network, dtype="float64"):
  return lambda k: bijector_cases.glow_step(2, dtype, seed=k, network=lambda units, _: network(units))


def _scan_and_steps(network, num_steps=3):
  """A `Scan`, and the same steps one by one with the same weights."""
  steps = [_make_step(network)(k) for k in range(num_steps)]
  for k, step in enumerate(steps):
    step.build(SHAPE)
    bijector_cases.perturb(step, seed=k)
  rows = iter(steps)
  return tfp_glow.Scan(lambda k: next(rows), num_steps, SHAPE, dtype="float64"), steps


def _run_steps(steps, value, inverse):
  total = 0.
  for step in steps if inverse else steps[::-1]:
    value, log_det = bijector_cases.run(step, value, inverse)
    total += log_det
  return value, total


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_steps_in_value_and_gradient(name, inverse):
  # The steps are copied into the stacks, so both sides hold the same weights, in variables of their own.
  scan, steps = _scan_and_steps(LAYERS[name])
  x = tf.constant(np.random.default_rng(0).standard_normal([2, *SHAPE]))
  results = []
  for run, owner in ((lambda v: bijector_cases.run(scan, v, inverse), [scan]),
                     (lambda v: _run_steps(steps, v, inverse), steps)):
    with tf.GradientTape() as tape:
      tape.watch(x)
      value, log_det = run(x)
      loss = tf.reduce_sum(tf.sin(value)) + tf.reduce_sum(log_det**2)
    variables = [part.trainable_variables for part in owner]
    results.append((value, log_det, tape.gradient(loss, [x] + sum(map(list, variables), []))))
  (value, log_det, (dx, *gradients)), (value_0, log_det_0, (dx_0, *gradients_0)) = results
  np.testing.assert_allclose(value, value_0, atol=1e-10)
  np.testing.assert_allclose(log_det, log_det_0, atol=1e-10)
  np.testing.assert_allclose(dx, dx_0, atol=1e-9)
  # `tf.Module` lists the variables of both in an order of its own: that of the steps is matched by their values.
  by_value = {np.stack([step.trainable_variables[i].numpy() for step in steps]).tobytes(): i
              for i in range(len(gradients))}
  for variable, gradient in zip(scan.trainable_variables, gradients):
    i = by_value[variable.numpy().tobytes()]
    stacked = np.stack([gradients_0[k * len(gradients) + i] for k in range(len(steps))])
    np.testing.assert_allclose(gradient, stacked, atol=1e-9, err_msg=variable.name)


def test_one_trace_and_a_graph_that_does_not_grow_with_the_number_of_steps():
  sizes, calls = [], []

  class Counted(_Subclass):

    def call(self, inputs):
      calls.append(inputs)
      return super().call(inputs)

  for num_steps in (2, 9):
    scan = tfp_glow.Scan(_make_step(lambda units: Counted(units, dtype="float64")), num_steps, SHAPE, dtype="float64")
    calls.clear()
    graph = tf.function(scan.inverse).get_concrete_function(tf.TensorSpec([2, *SHAPE], tf.float64)).graph.as_graph_def()
    assert len(calls) == 1
    sizes.append(len(graph.node) + sum(len(f.node_def) for f in graph.library.function))
  assert sizes[0] == sizes[1]


@pytest.mark.parametrize("layer, name", [(keras.layers.BatchNormalization, "moving_mean"),
                                         (lambda: keras.layers.Dropout(0.5), "seed")])
def test_layers_with_changing_state_are_refused(layer, name):
  network = lambda units: keras.Sequential([keras.layers.Dense(3), layer(), keras.layers.Dense(units)])
  with pytest.raises(ValueError, match=f"`network`.*BatchNormalization or Dropout.*Received: .*{name}"):
    tfp_glow.Scan(lambda k: bijector_cases.glow_step(2, network=lambda units, _: network(units)), 2, SHAPE)


@pytest.mark.parametrize("arguments, match", [
    (dict(num_steps=0), "`num_steps`.*Received: 0"),
    (dict(gradient="magic"), "`gradient`.*Received: 'magic'"),
    (dict(make_step=lambda k: tfp_glow.ActNorm(2 + k)), "`make_step`.*Received"),
    (dict(make_step=lambda k: tfp_glow.ActNorm(2, dtype="float64")), "`make_step`.*float64"),
    (dict(make_step=lambda k: tfp_glow.Squeeze()), "keep the event shape"),
    (dict(make_step=lambda k: k), "`OnePassBijector`. Received: 0"),
    (dict(make_step=lambda k: tfp_glow.ActNorm(2) if k else tfp_glow.InvertibleConv1x1(2)), "step 1 is ActNorm"),
])
def test_bad_arguments(arguments, match):
  arguments = {"make_step": lambda k: tfp_glow.ActNorm(2), "num_steps": 2, "event_shape": SHAPE, **arguments}
  with pytest.raises(ValueError, match=match):
    tfp_glow.Scan(**arguments)


def test_initialisation_equals_that_of_the_steps():
  make_network = lambda units: bijector_cases.coupling_network(units, "float64")
  scan, steps = _scan_and_steps(make_network)
  x = np.random.default_rng(0).normal(3., 2., [16, *SHAPE])
  value = x
  for step in steps:
    step.initialize(value)
    value = step.inverse(value).numpy()
  scan.initialize(x)  # Last: the first step is its template, and its workbench.
  np.testing.assert_allclose(scan.inverse(x), value, atol=1e-9)


def test_the_template_is_nobodys_parameter():
  scan, _ = _scan_and_steps(LAYERS["convolutions"])
  assert all(v.shape[0] == 3 for v in scan.variables)
  template = {v.value.ref() for v in scan.template._keras_variables()}
  assert not template & {v.ref() for v in scan.variables}
  before = scan.inverse(tf.ones([1, *SHAPE], tf.float64)).numpy()
  for v in scan.template._keras_variables():
    v.assign(tf.zeros_like(v.value))
  np.testing.assert_array_equal(scan.inverse(tf.ones([1, *SHAPE], tf.float64)), before)

"""`Scan`: one traced step over stacked parameters equals the steps one after the other."""

import functools

import bijector_cases
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
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
  # `tf.Module` lists the variables of both in different orders; they are matched by their values.
  by_value = {np.stack([step.trainable_variables[i].numpy() for step in steps]).tobytes(): i
              for i in range(len(gradients))}
  for variable, gradient in zip(scan.trainable_variables, gradients):
    i = by_value[variable.numpy().tobytes()]
    stacked = np.stack([gradients_0[k * len(gradients) + i] for k in range(len(steps))])
    np.testing.assert_allclose(gradient, stacked, atol=1e-9, err_msg=variable.name)


@pytest.mark.slow
def test_one_trace_and_a_graph_that_does_not_grow_with_the_number_of_steps():
  sizes, calls = [], []

  class Counted(_Subclass):

    def call(self, inputs):
      calls.append(inputs)
      return super().call(inputs)

  for num_steps in (1, 2, 9):
    scan = tfp_glow.Scan(_make_step(lambda units: Counted(units, dtype="float64")), num_steps, SHAPE, dtype="float64")
    calls.clear()
    graph = tf.function(scan.inverse).get_concrete_function(tf.TensorSpec([2, *SHAPE], tf.float64)).graph.as_graph_def()
    assert len(calls) == 1
    sizes.append(len(graph.node) + sum(len(f.node_def) for f in graph.library.function))
  assert sizes[0] < sizes[1] == sizes[2], "one step is no loop"


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
  scan.initialize(x)  # Last, because the first step is the template, which initialisation changes.
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


# The reversible gradient.


def _eagerly(function):
  """The expected values: graphs are compared with them, and eager code needs no graph."""
  return function


def _value_and_gradients(bijector, inputs, inverse, wrap=tf.function):
  """Value, log-det, and the gradients of a function of both with respect to the input and to every parameter."""
  run = bijector.inverse_and_log_det if inverse else bijector.forward_and_log_det
  variables = [v for v in bijector._keras_variables() if v.trainable]
  weights = np.random.default_rng(5).normal(size=inputs.shape).astype(inputs.dtype)
  weights_of_log_dets = np.arange(1., len(inputs) + 1., dtype=inputs.dtype) / 10.

  @wrap
  def compute(inputs):
    with tf.GradientTape() as tape:
      tape.watch(inputs)
      value, log_det = run(inputs)
      # Neither constant nor equal for all events, so that mixed-up gradients of log-dets and values show.
      loss = tf.reduce_sum(tf.reshape(weights, tf.shape(value)) * tf.sin(value)) + tf.reduce_sum(
          log_det * weights_of_log_dets)
    return value, log_det, tape.gradient(loss, [inputs] + [v.value for v in variables])

  return compute(tf.constant(inputs))


def _glow(gradient, dtype="float64", coupling="affine", permutation="conv1x1", num_blocks=1):
  glow = tfp_glow.GlowBijector((4, 4, 2), num_blocks, 2, 4, coupling, permutation, gradient=gradient, seed=0,
                               dtype=dtype)
  bijector_cases.perturb(glow)
  return glow


def _assert_same_gradients(actual, expected, tolerance):
  for a, b in zip(actual, expected, strict=True):
    scale = np.abs(b).max()
    assert scale > 0.
    np.testing.assert_allclose(a, b, rtol=0., atol=tolerance * scale)


@pytest.mark.slow  # The tests of any step and any network, below, are fast.
@pytest.mark.parametrize("coupling, permutation, num_blocks, inverse, dtype", [
    ("affine", "conv1x1", 2, True, "float32"), ("additive", "reverse", 1, True, "float64"),
    ("affine", "shuffle", 1, False, "float64"), ("additive", "conv1x1", 1, False, "float32")])
def test_gradients_of_graphs_are_those_of_a_tape(coupling, permutation, num_blocks, inverse, dtype):
  """In graphs both kinds are hand-written; eager code has the gradients of its tape."""
  inputs = np.random.default_rng(1).normal(size=[3, 4, 4, 2] if inverse else [3, 32]).astype(dtype)
  make = lambda gradient: _glow(gradient, dtype, coupling, permutation, num_blocks)
  value_0, log_det_0, gradients_0 = _value_and_gradients(make("autodiff"), inputs, inverse, _eagerly)
  for gradient in ("autodiff", "reversible"):
    value, log_det, gradients = _value_and_gradients(make(gradient), inputs, inverse)
    np.testing.assert_allclose(value, value_0, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(log_det, log_det_0, rtol=1e-6)
    _assert_same_gradients(gradients, gradients_0, 1e-8 if dtype == "float64" else 1e-4)


def _far_out(values):
  """Inputs, some beyond the range of networks, which clip them and have no gradient there."""
  values[0, 0] *= 1e4
  return values


@pytest.mark.parametrize("inverse, num_steps", [(True, 3), (False, 3), (True, 1)])
def test_hand_written_gradients_of_any_batch_size(inverse, num_steps):
  scan = _scan_by_hand(3, num_steps)
  inputs = _far_out(np.random.default_rng(1).normal(size=[2, 4, 4, 3]))
  *_, expected = _value_and_gradients(scan, inputs, inverse, _eagerly)
  wrap = functools.partial(tf.function, input_signature=[tf.TensorSpec([None, 4, 4, 3], tf.float64)])
  _assert_same_gradients(_value_and_gradients(scan, inputs, inverse, wrap)[2], expected, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("inverse", [True, False])
def test_hand_written_gradients_of_a_coupling_alone(inverse):
  make_step = lambda k: tfp_glow.AffineCoupling(_network_of_groups(4), dtype="float64")
  scan = tfp_glow.Scan(make_step, 2, [4, 4, 3], dtype="float64")
  bijector_cases.perturb(scan)
  inputs = np.random.default_rng(1).normal(size=[2, 4, 4, 3])
  *_, expected = _value_and_gradients(scan, inputs, inverse, _eagerly)
  _assert_same_gradients(_value_and_gradients(scan, inputs, inverse)[2], expected, 1e-10)


def _network_of_groups(units, dtype="float64"):
  """A `Scan` with hand-written gradients."""
  return tfp_glow.networks.CouplingNetwork(units, 5, num_groups=2, seed=0, dtype=dtype)


def _scan_by_hand(num_channels, num_steps, dtype="float64"):
  make_step = lambda k: bijector_cases.glow_step(num_channels, dtype, seed=k, network=_network_of_groups)
  scan = tfp_glow.Scan(make_step, num_steps, [4, 4, num_channels], dtype=dtype)
  bijector_cases.perturb(scan)
  return scan


@pytest.mark.slow
def test_hand_written_gradients_under_xla():
  """With a batch size that the graph does not know."""
  scan = _scan_by_hand(2, 2, "float32")
  y = np.random.default_rng(1).normal(size=[3, *SHAPE]).astype(np.float32)
  *_, expected = _value_and_gradients(scan, y, True, _eagerly)
  wrap = functools.partial(tf.function, jit_compile=True, input_signature=[tf.TensorSpec([None, *SHAPE], tf.float32)])
  _assert_same_gradients(_value_and_gradients(scan, y, True, wrap)[2], expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["autodiff", "reversible"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16"])
def test_networks_in_a_lower_precision_than_the_flow(dtype, gradient):
  network = lambda units, _: tfp_glow.networks.CouplingNetwork(units, 5, num_groups=2, seed=0, dtype=dtype)
  make_step = lambda k: bijector_cases.glow_step(2, "float64", seed=k, network=network)
  scan = tfp_glow.Scan(make_step, 2, SHAPE, gradient, dtype="float64")
  bijector_cases.perturb(scan)
  y = tf.constant(np.random.default_rng(1).normal(size=[2, *SHAPE]))
  variables = [v.value for v in scan._keras_variables() if v.trainable]

  def gradients(y, training):
    with tf.GradientTape() as tape:
      tape.watch(y)
      value, log_det = scan.inverse_and_log_det(y, training=training)
    return value, tape.gradient([value, log_det], [y, *variables])

  for training, tolerance in ((False, 1e-5), (True, 1e-5 if dtype == "float32" else 0.1)):
    (value, found), (value_0, expected) = tf.function(gradients)(y, training), gradients(y, training)
    assert value.dtype == tf.float64
    np.testing.assert_allclose(value, value_0, rtol=tolerance, atol=tolerance)
    for a, b in zip(found, expected, strict=True):
      error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
      assert error <= max(tolerance, 0.02 if dtype == "bfloat16" else 0.) * np.abs(np.asarray(b, np.float64)).max()


def _second_derivatives(scan, y, sources):
  """Gradients of the squared slope of a function of value and log-det."""
  with tf.GradientTape() as outer:
    outer.watch(y)
    with tf.GradientTape() as inner:
      inner.watch(y)
      value, log_det = scan.inverse_and_log_det(y)
      loss = tf.reduce_sum(tf.sin(value)) + tf.reduce_sum(log_det**2)
    bend = tf.reduce_sum(inner.gradient(loss, y)**2)
  return outer.gradient(bend, sources)


@pytest.mark.slow
def test_second_derivatives_of_hand_written_gradients():
  scan = _scan_by_hand(2, 2)
  variables = [v.value for v in scan._keras_variables() if v.trainable]

  bend = lambda y: _second_derivatives(scan, y, [y, *variables])
  y = tf.constant(np.random.default_rng(1).normal(size=[2, *SHAPE]))
  _assert_same_gradients(tf.function(bend)(y), bend(y), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_reversible_gradients_of_any_network(name):
  _check_reversible(_make_step(LAYERS[name]), inverse=True)


def _check_reversible(make_step, inverse):
  inputs = np.random.default_rng(1).normal(size=[2, *SHAPE])
  first, second = (tfp_glow.Scan(make_step, 3, SHAPE, gradient, dtype="float64") for gradient in (
      "autodiff", "reversible"))
  bijector_cases.perturb(first)
  for a, b in zip(second._keras_variables(), first._keras_variables(), strict=True):
    a.assign(b)
  gradients = [_value_and_gradients(bijector, inputs, inverse, wrap)[2] for bijector, wrap in (
      (second, tf.function), (first, _eagerly))]
  _assert_same_gradients(*gradients, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("make_step", [
    lambda k: tfp_glow.ActNorm(2, dtype="float64"),
    lambda k: tfp_glow.InvertibleConv1x1(2, seed=k, dtype="float64"),
    lambda k: tfp_glow.AffineCoupling(bijector_cases.coupling_network(2, "float64"), dtype="float64"),
])
@pytest.mark.parametrize("inverse", [True, False])
def test_reversible_gradients_of_any_step(make_step, inverse):
  _check_reversible(make_step, inverse)


def test_reversible_gradients_of_permutations():
  scan = tfp_glow.Scan(lambda k: tfp_glow.ChannelPermutation([1, 0], dtype="float64"), 3, SHAPE, "reversible",
                       dtype="float64")
  y = np.random.default_rng(1).normal(size=[2, *SHAPE])
  x, _, gradients = _value_and_gradients(scan, y, inverse=True)
  weights = np.random.default_rng(5).normal(size=y.shape)
  back = scan.forward(tf.constant(weights * np.cos(x)))
  np.testing.assert_allclose(gradients[0], back)


def test_reversible_takes_one_more_evaluation_of_each_network():
  calls = []

  class Counted(_Subclass):

    def call(self, inputs):
      calls.append(inputs)
      return super().call(inputs)

  for gradient, expected in (("autodiff", 3), ("reversible", 6)):
    scan = tfp_glow.Scan(_make_step(lambda units: Counted(units, dtype="float64")), 3, SHAPE, gradient, dtype="float64")
    calls.clear()
    with tf.GradientTape() as tape:  # Eager: every evaluation is a call.
      _, log_det = scan.inverse_and_log_det(tf.ones([2, *SHAPE], tf.float64))
    tape.gradient(log_det, scan.trainable_variables)
    assert len(calls) == expected


@pytest.mark.slow
def test_reversible_keeps_no_activations():
  """The gradient reads only the outputs of the forward loop."""

  def stored(gradient):
    scan = tfp_glow.Scan(_make_step(LAYERS["convolutions"]), 9, SHAPE, gradient, dtype="float64")

    @tf.function
    def compute(y):
      with tf.GradientTape() as tape:
        _, log_det = scan.inverse_and_log_det(y)
      return tape.gradient(log_det, scan.trainable_variables)

    graph = compute.get_concrete_function(tf.TensorSpec([2, *SHAPE], tf.float64)).graph.as_graph_def()
    return sum(node.op == "TensorListPushBack" for f in graph.library.function for node in f.node_def)

  assert stored("autodiff") > 5
  assert stored("reversible") == 0


@pytest.mark.slow
def test_reversible_under_xla():
  scan = tfp_glow.Scan(lambda k: bijector_cases.glow_step(2, seed=k), 2, SHAPE, "reversible")
  bijector_cases.perturb(scan)
  y = np.random.default_rng(1).normal(size=[3, *SHAPE]).astype(np.float32)
  *_, expected = _value_and_gradients(scan, y, True, _eagerly)
  *_, found = _value_and_gradients(scan, y, True, functools.partial(tf.function, jit_compile=True))
  _assert_same_gradients(found, expected, 1e-4)


@pytest.mark.slow
def test_reversible_second_derivatives():
  results = []
  for gradient in ("autodiff", "reversible"):
    scan = tfp_glow.Scan(_make_step(LAYERS["convolutions"]), 2, SHAPE, gradient, dtype="float64")
    y = tf.constant(np.random.default_rng(1).normal(size=[2, *SHAPE]))
    results.append(_second_derivatives(scan, y, y))
  np.testing.assert_allclose(results[1], results[0], rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_reversible_drift_at_depth_64():
  """In float32, rebuilding 64 steps adds nothing to the rounding errors that gradients have anyway."""
  y = tfp_glow.dequantize.dequantize(small_models.images(32, (4, 4, 2)), 8).numpy()

  def make(gradient, dtype):
    step = bijector_cases.glow_step(2, dtype)  # All start equal, and no two stay equal.
    return tfp_glow.Scan(lambda k: step, 64, [4, 4, 2], gradient, dtype=dtype)

  initialised = make("autodiff", "float32")
  bijector_cases.perturb(initialised)
  initialised.initialize(y)
  np.testing.assert_allclose(initialised.forward(initialised.inverse(y).numpy()), y, atol=1e-3)
  gradients = []
  for gradient, dtype in (("autodiff", "float64"), ("autodiff", "float32"), ("reversible", "float32")):
    scan = make(gradient, dtype)
    for variable, value in zip(scan._keras_variables(), initialised._keras_variables(), strict=True):
      variable.assign(tf.cast(value.value, variable.dtype))
    gradients.append(_value_and_gradients(scan, y[:4].astype(dtype), inverse=True)[2])
  exact, *rounded = [np.concatenate([np.ravel(g) for g in of_one]) for of_one in gradients]
  autodiff, reversible = (np.linalg.norm(g - exact) / np.linalg.norm(exact) for g in rounded)
  assert reversible < 2. * autodiff + 1e-5

"""What every bijector must do, for every bijector of `bijector_cases`."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import CASE, GLOW_CASES, NAMES, coupling_network, perturb, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tfp_glow

tfb, tfd = tfp.bijectors, tfp.distributions

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
TOLERANCE = {"float32": 2e-4, "float64": 1e-10}
BATCH = [6]


def is_slow(name):
  """Cases of several parts, except for a few that differ only in the number of parts."""
  few = ("glow_step", "glow_step_vector", "scan_vector", "glow_classes", "residual_vector")
  several = ("glow_", "scan", "residual", "own_", "chain", "invert_", "vector_flow")
  return name.startswith(several) and name not in few


def _marked(name, *others):
  return pytest.param(name, *others, marks=[pytest.mark.slow] * is_slow(name))


every_case = pytest.mark.parametrize("name", [_marked(name) for name in NAMES])
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
# Where both directions share code, half of the cases test each.
every_case_in_turn = pytest.mark.parametrize(
    "name, inverse", [_marked(name, i % 2 == 0) for i, name in enumerate(NAMES)])


def _directions():
  """Both for bijectors that are parts of others; for those with several parts, one in turn."""
  for index, name in enumerate(NAMES):
    if is_slow(name):
      yield _marked(name, index % 2 == 0)
    else:
      yield from ((name, inverse) for inverse in (False, True))


every_part_in_both_directions = pytest.mark.parametrize("name, inverse", list(_directions()))


def _ways():
  """A round trip takes both directions, so one is enough for the other dtype, or for several parts."""
  deep = ("scan", "glow_affine_conv1x1_3_blocks")
  for name in NAMES:
    yield _marked(name, True, "float64")
    if not is_slow(name):
      yield name, False, "float64"
    if not is_slow(name) or name in deep:
      yield _marked(name, True, "float32")


@functools.cache
def bijector_of(name, dtype):
  """One bijector for all tests that do not change its weights."""
  return CASE[name].make(dtype)


@functools.cache
def there_and_back(name, inverse, dtype):
  """`run` on a batch, then the other direction on a NumPy array of what came out: no pass can be recalled."""
  case, bijector = CASE[name], bijector_of(name, dtype)
  inputs = case.draw(BATCH, inverse, dtype)
  outputs, log_det = run(bijector, inputs, inverse, **case.labels(BATCH))
  inputs_again, log_det_back = run(bijector, outputs.numpy(), not inverse, **case.labels(BATCH))
  return inputs, outputs, log_det, inputs_again, log_det_back


def one_way(name, inverse):
  """Inputs, outputs and log-det of a direction in float64; with several parts, `forward` is the way back."""
  if is_slow(name) and not inverse:
    _, inputs, _, outputs, log_det = there_and_back(name, True, "float64")
    return inputs.numpy(), outputs, log_det
  return there_and_back(name, inverse, "float64")[:3]


def assert_close(actual, expected, dtype="float64"):
  assert np.all(np.isfinite(expected))
  np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


# Values and log-dets.


@pytest.mark.parametrize("name, inverse, dtype", list(_ways()))
def test_round_trip(name, inverse, dtype):
  inputs, outputs, log_det, inputs_again, log_det_back = there_and_back(name, inverse, dtype)
  assert outputs.dtype == log_det.dtype == dtype
  assert outputs.shape == BATCH + CASE[name].shape(not inverse) and log_det.shape == BATCH
  assert_close(inputs_again, inputs, dtype)
  assert_close(log_det, -log_det_back, dtype)
  assert outputs.shape != inputs.shape or not np.allclose(outputs, inputs), "the case is the identity"


def jacobian(function, inputs):
  """`d outputs / d inputs` at one example. Each row comes from a copy of the example, without a loop."""
  copies = tf.tile(inputs[tf.newaxis], [inputs.shape.num_elements()] + [1] * inputs.shape.rank)
  with tf.GradientTape() as tape:
    tape.watch(copies)
    outputs = tf.reshape(function(copies), [len(copies), -1])
  rows = tape.gradient(outputs, copies, output_gradients=tf.eye(len(copies), dtype=outputs.dtype))
  return tf.reshape(rows, outputs.shape)


@every_case
def test_log_det_is_that_of_the_jacobian(name):
  """The log-det of `inverse`. That of `forward` is its negative at the same point: `test_round_trip`."""
  inputs, _, log_det = one_way(name, True)
  labels = {key: value[1] for key, value in CASE[name].labels(BATCH).items()}
  matrix = jacobian(lambda x: run(bijector_of(name, "float64"), x, True, **labels)[0], tf.constant(inputs[1]))
  assert_close(log_det[1], np.linalg.slogdet(matrix)[1])


@every_part_in_both_directions
def test_methods_of_tfp_agree_with_one_pass(name, inverse):
  bijector, labels = bijector_of(name, "float64"), CASE[name].labels(BATCH)
  if not isinstance(bijector, tfp_glow.OnePassBijector):
    pytest.skip("a composition of TFP's has no other methods")
  inputs, outputs, log_det = one_way(name, inverse)
  value_of = bijector.inverse if inverse else bijector.forward
  log_det_of = bijector.inverse_log_det_jacobian if inverse else bijector.forward_log_det_jacobian
  # Each gets an array of its own, so that none can be answered by the pass of another.
  assert_close(value_of(inputs, **labels), outputs)
  whole_rank = len(CASE[name].shape(inverse)) + len(BATCH)
  assert_close(log_det_of(inputs, event_ndims=whole_rank, **labels), tf.reduce_sum(log_det))


# Shapes.


@every_case_in_turn
def test_leading_dimensions(name, inverse):
  case, batch_shape = CASE[name], [1, 3, 2]
  inputs, outputs, log_det = one_way(name, inverse)
  values, log_dets = run(bijector_of(name, "float64"), inputs.reshape(batch_shape + case.shape(inverse)), inverse,
                         **{key: value.reshape(batch_shape) for key, value in case.labels(BATCH).items()})
  assert values.shape == batch_shape + case.shape(not inverse) and log_dets.shape == batch_shape
  assert_close(tf.reshape(values, outputs.shape), outputs)
  assert_close(tf.reshape(log_dets, log_det.shape), log_det)


@every_case_in_turn
def test_one_example_without_a_batch(name, inverse):
  inputs, outputs, log_det = one_way(name, inverse)
  labels = {key: value[1] for key, value in CASE[name].labels(BATCH).items()}
  value, log_det_of_one = run(bijector_of(name, "float64"), inputs[1], inverse, **labels)
  assert value.shape == CASE[name].shape(not inverse) and log_det_of_one.shape == []
  assert_close(value, outputs[1])
  assert_close(log_det_of_one, log_det[1])


@every_case_in_turn
def test_empty_batch(name, inverse):
  case = CASE[name]
  values, log_dets = run(bijector_of(name, "float64"), case.draw([0], inverse, "float64"), inverse, **case.labels([0]))
  assert values.shape == [0] + case.shape(not inverse) and log_dets.shape == [0]


@every_case
@both_directions
def test_event_shapes(name, inverse):
  case, bijector = CASE[name], bijector_of(name, "float64")
  shape_of = bijector.inverse_event_shape if inverse else bijector.forward_event_shape
  tensor_of = bijector.inverse_event_shape_tensor if inverse else bijector.forward_event_shape_tensor
  assert shape_of(case.shape(inverse)) == case.shape(not inverse)
  np.testing.assert_array_equal(tensor_of(tf.constant(case.shape(inverse))), case.shape(not inverse))
  assert shape_of([None] * len(case.shape(inverse))).rank == len(case.shape(not inverse))
  distribution = tfd.TransformedDistribution(
      tfd.Sample(tfd.Normal(np.float64(0), 1.), case.shape(False)), bijector)
  assert distribution.event_shape == case.data_shape
  np.testing.assert_array_equal(distribution.event_shape_tensor(), case.data_shape)


def assert_error_says_what_it_received(error):
  assert "Received: " in str(error.value).splitlines()[-1], str(error.value)


@every_case
@both_directions
def test_wrong_shapes_are_errors(name, inverse):
  case, bijector = CASE[name], bijector_of(name, "float64")
  shape = case.shape(inverse)
  any_size = name == "logit"
  for wrong in [shape[1:]] + [[size + 1 for size in shape]] * (not any_size):
    with pytest.raises(ValueError) as error:
      run(bijector, np.zeros(wrong), inverse, **case.labels([]))
    assert_error_says_what_it_received(error)


@every_case
@both_directions
def test_wrong_dtypes_are_errors(name, inverse):
  case, bijector = CASE[name], bijector_of(name, "float64")
  method = bijector.inverse if inverse else bijector.forward
  # TFP's own compositions raise a `ValueError` of TensorFlow's.
  error = TypeError if isinstance(bijector, tfp_glow.OnePassBijector) else (TypeError, ValueError)
  for wrong in ("float32", "int32"):
    with pytest.raises(error, match="float64"):
      method(tf.zeros(BATCH + case.shape(inverse), wrong), **case.labels(BATCH))


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(size=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
       batch_shape=st.lists(st.integers(1, 3), max_size=3), dtype=st.sampled_from(list(TOLERANCE)),
       block_size=st.integers(1, 3))
def test_any_shape_of_layers(size, batch_shape, dtype, block_size):
  height, width, channels = size
  layers = [tfp_glow.Squeeze(block_size, dtype=dtype), tfp_glow.ActNorm(channels * block_size**2, dtype=dtype),
            tfp_glow.InvertibleConv1x1(channels * block_size**2, seed=0, dtype=dtype)]
  if channels * block_size**2 > 1:
    changed = channels * block_size**2 - channels * block_size**2 // 2
    layers.append(tfp_glow.AffineCoupling(coupling_network(2 * changed, dtype), dtype=dtype))
  _check_any_shape(layers, [*batch_shape, height * block_size, width * block_size, channels], dtype)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(num_blocks=st.integers(1, 2), size=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)),
       batch_shape=st.lists(st.integers(1, 2), max_size=2), dtype=st.sampled_from(list(TOLERANCE)),
       coupling=st.sampled_from(["affine", "additive"]), permutation=st.sampled_from(["conv1x1", "reverse", "shuffle"]))
def test_any_shape_of_glow(num_blocks, size, batch_shape, dtype, coupling, permutation):
  output_shape = (size[0] * 2**num_blocks, size[1] * 2**num_blocks, size[2])
  glow = tfp_glow.GlowBijector(output_shape, num_blocks, 1, 4, coupling, permutation, seed=0, dtype=dtype)
  _check_any_shape([glow], [*batch_shape, *output_shape], dtype)


def _check_any_shape(layers, shape, dtype):
  """Round trip and log-dets through `layers`, one after the other, with noise on their weights."""
  y = np.random.default_rng(0).standard_normal(shape).astype(dtype)
  value, log_det = y, 0.
  for layer in layers:
    layer.inverse(value)
    perturb(layer)
    value, log_det_layer = layer.inverse_and_log_det(value)
    log_det += log_det_layer
  assert value.dtype == dtype and log_det.shape == shape[:-3]
  value = value.numpy()
  for layer in reversed(layers):
    value, log_det_layer = layer.forward_and_log_det(value)
    log_det += log_det_layer
  assert_close(value, y, dtype)
  # Relative to the number of dimensions, over which it is a sum.
  assert_close(log_det / np.prod(shape[-3:]), np.zeros(shape[:-3]), dtype)


# Gradients.


@every_part_in_both_directions
def test_every_weight_receives_a_gradient(name, inverse):
  case, bijector = CASE[name], bijector_of(name, "float64")
  inputs = case.draw([4], inverse, "float64")
  with tf.GradientTape() as tape:
    outputs, log_det = run(bijector, inputs, inverse, **case.labels([4]))
    loss = tf.reduce_sum(log_det) - 0.5 * tf.reduce_sum(outputs**2)
  variables = bijector.trainable_variables
  gradients = tape.gradient(loss, variables)
  gradients = [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]
  without = [v.name for v, g in zip(variables, gradients) if g is None]
  wrong = [v.name for v, g in zip(variables, gradients)
           if g is not None and not (np.all(np.isfinite(g)) and np.any(g))]
  assert not without and not wrong, f"no gradient: {without}; zero or not finite: {wrong}"
  expected = 0 if name.startswith(("permutation", "squeeze", "logit", "normalization", "standardization",
                                       "whitening")) else 2
  assert len(variables) >= expected


# Graphs.


def traced(name, inverse, jit_compile=None):
  """`run` as a `tf.function` of a batch of unknown size."""
  case = CASE[name]
  signature = [tf.TensorSpec([None] + case.shape(inverse), "float64")]
  signature += [tf.TensorSpec([None], "int64")] * (case.num_classes is not None)
  return tf.function(
      lambda inputs, *labels: run(bijector_of(name, "float64"), inputs, inverse, **dict(zip(["labels"], labels))),
      input_signature=signature, jit_compile=jit_compile)


def check_traced(name, inverse, jit_compile=None):
  inputs, outputs, log_det = one_way(name, inverse)
  function = traced(name, inverse, jit_compile)
  values, log_dets = function(inputs, *CASE[name].labels(BATCH).values())
  assert_close(values, outputs)
  assert_close(log_dets, log_det)
  return function.get_concrete_function()


@every_part_in_both_directions
def test_function_of_an_unknown_number_of_examples(name, inverse):
  shapes = check_traced(name, inverse).output_shapes
  assert shapes[0].as_list() == [None] + CASE[name].shape(not inverse) and shapes[1].as_list() == [None]


@pytest.mark.parametrize("name, inverse", [
    ("scan_vector", False), ("scan_vector", True), ("glow_classes", True),
    pytest.param("glow_classes", False, marks=pytest.mark.slow)])
def test_xla(name, inverse):
  check_traced(name, inverse, jit_compile=True)


# One of each kind of layer, scan and composition that is not above; the others have the same operations.
@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "permutation", "squeeze_by_3", "additive_coupling_odd", "affine_coupling_sequential", "factor_out", "logit",
    "residual", "scan", "scan_residual", "chain_of_inverted"])
def test_xla_of_each_kind(name):
  check_traced(name, inverse=True, jit_compile=True)


# Weights.


def by_methods_of_tfp(bijector, inputs, inverse, labels):
  """Value and log-det as `log_prob` asks for them."""
  value_of = bijector.inverse if inverse else bijector.forward
  log_det_of = bijector.inverse_log_det_jacobian if inverse else bijector.forward_log_det_jacobian
  return value_of(inputs, **labels), log_det_of(inputs, **labels)


@every_part_in_both_directions
def test_fresh_after_an_update(name, inverse):
  case, bijector = CASE[name], bijector_of(name, "float64")
  inputs, labels = tf.constant(case.draw(BATCH, inverse, "float64")), case.labels(BATCH)
  old_values = [v.numpy() for v in bijector.variables]
  try:
    before = by_methods_of_tfp(bijector, inputs, inverse, labels)
    perturb(bijector, seed=1, scale=0.03)
    after = by_methods_of_tfp(bijector, inputs, inverse, labels)
    expected = run(bijector, tf.identity(inputs), inverse, **labels)
  finally:
    for variable, old in zip(bijector.variables, old_values):
      variable.assign(old)
  for actual, right in zip(after, expected):
    assert_close(actual, right)
  assert not bijector.trainable_variables or not np.allclose(expected[0], before[0]), "the update changed nothing"


@every_case
def test_checkpoint_holds_each_variable_once_and_restores_it(name, tmp_path):
  inputs, outputs, log_det = one_way(name, True)
  path = tf.train.Checkpoint(bijector=bijector_of(name, "float64")).write(str(tmp_path / "checkpoint"))
  stored = [key for key, _ in tf.train.list_variables(path) if key != "_CHECKPOINTABLE_OBJECT_GRAPH"]
  assert len(stored) == len({v.ref() for v in bijector_of(name, "float64").variables}), stored

  other = CASE[name].make("float64")
  for variable in other.variables:
    variable.assign(tf.zeros_like(variable))
  tf.train.Checkpoint(bijector=other).read(path).assert_consumed()
  restored = run(other, inputs, True, **CASE[name].labels(BATCH))
  assert_close(restored[0], outputs)
  assert_close(restored[1], log_det)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glow_classes", _marked("glow_network_fn")])
def test_saved_model(name, tmp_path):
  module = tf.Module()
  module.bijector = bijector_of(name, "float64")
  module.forward, module.inverse = traced(name, False), traced(name, True)
  tf.saved_model.save(module, str(tmp_path))
  loaded = tf.saved_model.load(str(tmp_path))
  for inverse, function in ((False, loaded.forward), (True, loaded.inverse)):
    inputs, outputs, log_det = one_way(name, inverse)
    values, log_dets = function(inputs, *CASE[name].labels(BATCH).values())
    assert_close(values, outputs)
    assert_close(log_dets, log_det)


@pytest.mark.slow
def test_the_table_is_complete():
  bijectors = [bijector_of(name, "float64") for name in NAMES]
  inside = {type(part) for bijector in bijectors for part in [bijector, *bijector.submodules]}
  public = {value for value in vars(tfp_glow).values()
            if isinstance(value, type) and issubclass(value, tfp_glow.OnePassBijector)}
  assert public - inside == {tfp_glow.OnePassBijector}
  assert len(GLOW_CASES) >= 8

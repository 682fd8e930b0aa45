"""Invertible residual blocks: values, what changes their estimates, blocks in `Scan`."""

import functools

import bijector_cases
import keras
import numpy as np
import pytest
import residual_reference
import tensorflow as tf

import tfp_glow
from tfp_glow.bijectors import log_det as log_dets
from tfp_glow.likelihood import image_likelihood
from tfp_glow.likelihood.standard_normal import with_standard_normal

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
RNG = np.random.default_rng(0)


# Numbers of the authors' code. Its parameters are float32, exact to 1e-7.


@pytest.mark.parametrize("name", ["fc", pytest.param("conv", marks=pytest.mark.slow)])
def test_values_log_dets_and_gradients_of_the_reference(name):
  block, reference, x = residual_reference.exact_block(name)
  y, log_det = block.inverse_and_log_det(x)
  np.testing.assert_allclose(y, residual_reference.image(reference["y"]), atol=3e-7)
  np.testing.assert_allclose(y - x, residual_reference.image(reference["g"]), atol=3e-7)
  np.testing.assert_allclose(log_det, reference["logdet_exact"], rtol=1e-7)
  d_x, *found = residual_reference.gradients_of(lambda x: block.inverse_log_det_jacobian(x), x, block.network)
  np.testing.assert_allclose(d_x, residual_reference.image(reference["grad_exact/x"]), atol=1e-7)
  for index in range(6):
    if f"grad_exact/{index}.beta" in reference:
      np.testing.assert_allclose(found.pop(0), reference[f"grad_exact/{index}.beta"][0], rtol=1e-6)
      continue
    np.testing.assert_allclose(residual_reference.weight(found.pop(0).numpy()),
                               reference[f"grad_exact/{index}.weight"], atol=1e-6)
    np.testing.assert_allclose(found.pop(0), reference[f"grad_exact/{index}.bias"], atol=1e-6)
  assert not found


# Draws.


def block_of(**kwargs):
  """A stochastic block for vectors of 3."""
  block = bijector_cases.residual_block(3, "float64", log_det="russian_roulette", **kwargs)
  block.build([3])
  return block


Y = RNG.standard_normal([5, 3])


@pytest.mark.slow
def test_estimates_change_with_seed_and_update_alone():
  block = block_of()
  first = block.inverse_and_log_det(Y)[1].numpy()
  np.testing.assert_array_equal(block.inverse_and_log_det(Y.copy())[1], first)
  np.testing.assert_array_equal(block_of().inverse_and_log_det(Y)[1], first)
  other = bijector_cases.residual_block(3, "float64", log_det="russian_roulette")
  other._noise_seed.assign([1, 0])
  assert np.abs(other.inverse_and_log_det(Y)[1] - first).max() > 1e-6
  block.after_update()
  second = block.inverse_and_log_det(Y)[1].numpy()
  assert np.abs(second - first).max() > 1e-6
  block._noise_seed.assign(block_of()._noise_seed.value)
  np.testing.assert_allclose(block.inverse_and_log_det(Y)[1], first, rtol=1e-3)  # The norms have changed a little.


def test_events_have_probes_of_their_own():
  log_det = block_of().inverse_and_log_det(np.tile(Y[:1], [5, 1]))[1]
  assert len(set(log_det.numpy())) == 5


@pytest.mark.slow
def test_estimates_are_those_of_graphs_and_of_xla():
  block = block_of()
  expected = block.inverse_and_log_det(Y, training=True)
  for jit_compile in (False, True):
    found = tf.function(lambda y: block.inverse_and_log_det(y, training=True), jit_compile=jit_compile)(Y)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9)


def test_training_is_a_choice_of_the_graph():
  with pytest.raises(ValueError, match="`training` must be a Python `bool`. Received: "):
    block_of().inverse_and_log_det(Y, training=tf.ones([5]))


def test_log_dets_of_both_directions_have_the_same_noise():
  block = block_of()
  x, log_det = block.inverse_and_log_det(Y)
  y, log_det_back = block.forward_and_log_det(x.numpy())
  np.testing.assert_allclose(y, Y, atol=1e-11)
  np.testing.assert_allclose(log_det_back, -log_det, atol=1e-9)


def test_one_evaluation_and_one_more_for_the_gradient():
  calls = []

  class Counted(keras.layers.Layer):

    def call(self, inputs):
      calls.append(inputs)
      return 0.1 * tf.sin(inputs)

  for log_det, expected in (("exact", 1), ("russian_roulette", 2)):
    block = tfp_glow.InvertibleResidualBlock(Counted(dtype="float64"), log_det, event_ndims=1, dtype="float64")
    block.build([3])
    y = tf.constant(Y)
    calls.clear()
    with tf.GradientTape() as tape:
      tape.watch(y)
      total = tf.add_n([tf.reduce_sum(part) for part in block.inverse_and_log_det(y)])
    assert len(calls) == 1
    tape.gradient(total, y)
    assert len(calls) == expected


# Gradients.


@pytest.mark.slow
def test_second_derivatives_are_nan_where_they_are_not_supported():
  y, found = tf.constant(Y), {}
  for log_det in ("exact", "russian_roulette"):
    block = bijector_cases.residual_block(3, "float64", log_det=log_det)
    block.build([3])
    kernel = block.network.trainable_variables[0].value
    with tf.GradientTape(persistent=True) as outer:
      outer.watch(y)
      with tf.GradientTape() as inner:
        inner.watch(y)
        total = tf.reduce_sum(block.inverse_and_log_det(y)[1])
      slope = tf.reduce_sum(inner.gradient(total, y)**2)
    found[log_det] = [outer.gradient(slope, source).numpy() for source in (y, kernel)]
    np.testing.assert_array_equal(np.isnan(outer.gradient(total, kernel)), False)
  assert all(np.isfinite(bend).all() and np.abs(bend).max() > 0. for bend in found["exact"])
  assert all(np.isnan(bend).all() for bend in found["russian_roulette"])


@pytest.mark.slow
def test_a_function_under_a_persistent_tape_has_gradients():
  block = block_of()
  function = tf.function(lambda y: block.inverse_and_log_det(y)[1])
  y = tf.constant(Y)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(y)
    total = tf.reduce_sum(function(y))
  with tf.GradientTape() as once:
    once.watch(y)
    again = tf.reduce_sum(block.inverse_and_log_det(y)[1])
  np.testing.assert_allclose(tape.gradient(total, y), once.gradient(again, y), rtol=1e-9)


def test_forward_alone_makes_no_jacobian(monkeypatch):
  block = bijector_cases.residual_block(3, "float64")
  block.build([3])
  x = block.inverse(Y)
  calls, exact = [], log_dets.exact
  monkeypatch.setattr(log_dets, "exact", lambda *args: (calls.append(1), exact(*args))[1])
  again = tf.identity(x)
  np.testing.assert_allclose(block.forward(again), Y, atol=1e-5)
  assert not calls
  block.forward_log_det_jacobian(tf.identity(x))
  assert len(calls) == 1


@pytest.mark.slow
def test_forward_alone_estimates_no_log_det(monkeypatch):
  scan = tfp_glow.Scan(lambda k: block_of(), 2, Y.shape[1:], dtype="float64")
  flow = tfp_glow.Chain([tfp_glow.ActNorm(3, 1, "float64"), scan])
  x = flow.inverse(Y)
  decode = image_likelihood.ImageLikelihood(with_standard_normal(flow), None).decode

  def fail(*_):
    raise AssertionError("estimated")

  monkeypatch.setattr(log_dets.SeriesEstimator, "__call__", fail)
  for forward in (scan.forward, flow.forward, decode):
    np.testing.assert_allclose(forward(tf.identity(x)), Y, atol=1e-5)
  with pytest.raises(AssertionError, match="estimated"):
    flow.forward_log_det_jacobian(tf.identity(x))


_HOLDERS = {
    "alone": lambda block: block, "chain": lambda block: tfp_glow.Chain([tfp_glow.ActNorm(3, 1, "float64"), block]),
    "invert": tfp_glow.Invert, "scan": lambda block: tfp_glow.Scan(lambda k: block, 1, Y.shape[1:], dtype="float64")}


@pytest.mark.parametrize("name", ["forward", "inverse", "forward_and_log_det", "inverse_and_log_det",
                                  "forward_log_det_jacobian", "inverse_log_det_jacobian"])
@pytest.mark.parametrize("holder", _HOLDERS)
def test_the_option_without_a_log_det_is_not_public(holder, name):
  bijector = _HOLDERS[holder](block_of())
  assert bijector.argument_names == {"training"}
  with pytest.raises(TypeError, match="must be given arguments that it, or a part of it, takes: training. Received: "
                                      "needs_log_det$"):
    getattr(bijector, name)(Y, needs_log_det=False)


class _Holder(tfp_glow.OnePassBijector):
  """A user's bijector with a block in it, with functions that take no further arguments, or any."""

  def __init__(self, block):
    super().__init__(forward_event_shape=[3], inverse_event_shape=[3], dtype="float64")
    self.block = self._add_child(block)

  def _forward_and_log_det(self, x):
    return self.block._forward_and_log_det(x)

  def _inverse_and_log_det(self, y):
    return self.block._inverse_and_log_det(y)


class _HolderOfAny(_Holder):

  def _forward_and_log_det(self, x, **kwargs):
    return self.block._forward_and_log_det(x, **kwargs)


@pytest.mark.parametrize("cls", [_Holder, _HolderOfAny])
def test_a_block_in_a_bijector_of_a_user(cls):
  holder = cls(block_of())
  np.testing.assert_allclose(holder.forward(holder.inverse(Y).numpy()), Y, atol=1e-5)
  with pytest.raises(TypeError, match="Received: needs_log_det$"):
    holder.forward_log_det_jacobian(Y, needs_log_det=False)


# In `Scan`.


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["autodiff", "reversible"])
def test_a_scan_of_blocks_equals_the_blocks_one_by_one(gradient):
  make = lambda k: bijector_cases.residual_block(3, "float64", seed=k, log_det="russian_roulette")
  blocks = [make(k) for k in range(3)]
  scan = tfp_glow.Scan(make, 3, [3], gradient, dtype="float64")
  results = []
  for parts, owner in (([scan], scan), (blocks, None)):
    y = tf.constant(Y)
    with tf.GradientTape() as tape:
      tape.watch(y)
      x, total = y, 0.
      for part in parts:
        x, log_det = part.inverse_and_log_det(x, training=True)
        total += log_det
      loss = tf.reduce_sum(tf.sin(x)) + tf.reduce_sum(total * np.arange(1., 6.))
    sources = [v.value for v in (owner or blocks[0])._keras_variables() if v.trainable]
    gradients = tape.gradient(loss, [y] + sources)
    results.append([x, total, gradients[0]] + [g if owner is None else g[0] for g in gradients[1:]])
  for a, b in zip(*results, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-9)
  back = scan.forward(results[0][0].numpy())
  np.testing.assert_allclose(back, Y, atol=1e-10)


@pytest.mark.slow
def test_the_update_of_a_scan_is_that_of_its_blocks():
  make = lambda k: bijector_cases.residual_block(3, "float64", seed=k, log_det="russian_roulette")
  blocks, scan = [make(k) for k in range(3)], tfp_glow.Scan(make, 3, [3], dtype="float64")
  for block in blocks:
    block.build([3])
  for k, block in enumerate(blocks):
    for stack, variable in zip(scan._stacks, block._keras_variables(), strict=True):
      if variable.trainable:
        variable.assign(3. * variable.value)
        stack.value[k].assign(variable.value)
    block.after_update()
  for wrap in (lambda f: f, lambda f: tf.function(f, jit_compile=True)):
    wrap(scan.after_update)()
    for stack, *values in zip(scan._stacks, *[block._keras_variables() for block in blocks], strict=True):
      np.testing.assert_allclose(stack, np.stack(values), atol=1e-2)  # Vectors, to the tolerance.
    seeds = np.stack([block._noise_seed for block in blocks])
    np.testing.assert_array_equal(scan.stacked(scan.template._noise_seed), seeds)
    for block in blocks:
      block.after_update()


# Construction.


def test_a_block_of_any_network_that_contracts():
  block = tfp_glow.InvertibleResidualBlock(keras.layers.Rescaling(0.5, dtype="float64"), "exact", event_ndims=1,
                                           dtype="float64")
  np.testing.assert_allclose(block.inverse_log_det_jacobian(Y), 3. * np.log(1.5))
  np.testing.assert_allclose(block.forward(1.5 * Y), Y, atol=1e-11)


@pytest.mark.parametrize("arguments, match", [
    (dict(log_det="magic"), "`log_det` must be one of .*Received: 'magic'"),
    (dict(roulette="russian"), "`roulette`.*Received: 'russian'"),
    (dict(probe="normal"), "`probe`.*Received: 'normal'"),
    (dict(num_terms=0), "`num_terms`.*Received: 0"),
    (dict(num_eval_terms=1.5), "`num_eval_terms`.*Received: 1.5"),
    (dict(max_iterations=True), "`max_iterations`.*Received: True"),
    (dict(tolerance=1.), "`tolerance`.*Received: 1.0"),
    (dict(event_ndims=2), "`event_ndims`.*Received: 2"),
])
def test_bad_arguments(arguments, match):
  with pytest.raises(ValueError, match=match):
    tfp_glow.InvertibleResidualBlock(keras.layers.Dense(3), **arguments)


@pytest.mark.slow
def test_bad_networks():
  make = functools.partial(tfp_glow.InvertibleResidualBlock, event_ndims=1)
  with pytest.raises(ValueError, match=r"must not be 'exact' for events of more than 256 .*Received: \(257,\)"):
    make(keras.layers.Rescaling(0.5), "exact").build([257])
  with pytest.raises(TypeError, match="`network` must be a layer.*Received: 3"):
    make(3)
  for network, match in ((keras.layers.Dense(2), r"`network` must map the shape \[1, 3\] to \[1, 3\]"),
                         (keras.layers.BatchNormalization(), "`network`.*changes"),
                         (keras.layers.Dense(3, dtype="bfloat16"), "`network` must compute in.*Received: bfloat16")):
    with pytest.raises(ValueError, match=match):
      make(network).build([3])
  block = make(keras.layers.Dense(3))
  with pytest.raises(ValueError, match=r"must have a shape that is known.*Received: \(None,\)"):
    block.build([None])
  block.build([3])
  with pytest.raises(ValueError, match=r"never changes.*Received: \(4,\), previously \(3,\)"):
    block.inverse(np.zeros([2, 4], np.float32))

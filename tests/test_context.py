"""Conditional flows: what a context reaches, and that results are those of the given context."""

import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import perturb

import tfp_glow
from tfp_glow.bijectors import context_features, contexts
from tfp_glow.networks import elsewhere

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
tfb, tfd = tfp.bijectors, tfp.distributions
SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).standard_normal([3, *SHAPE])
VECTOR, IMAGE = (2,), (8, 8, 1)
SHAPES = {"vector": VECTOR, "large image": IMAGE, "small image": (1, 1, 3), "both": {"v": VECTOR, "i": (2, 2, 2)}}


@keras.saving.register_keras_serializable("tests")
class Network(keras.Layer):
  """A context network that counts its evaluations."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.dense = keras.layers.Dense(3, activation="tanh", dtype=self.dtype_policy,
                                    kernel_initializer=keras.initializers.RandomNormal(seed=0))
    self.calls = 0

  def call(self, context):
    self.calls += 1
    return self.dense(context)


def _context(shape, batch=(3,), seed=1):
  rng = np.random.default_rng(seed)
  if isinstance(shape, dict):
    return {name: rng.standard_normal([*batch, *part]) for name, part in shape.items()}
  return rng.standard_normal([*batch, *shape])


def _glow(context_shape=VECTOR, dtype="float64", perturbed=True, **kwargs):
  glow = tfp_glow.GlowBijector(SHAPE, 2, 2, 3, context_shape=context_shape, seed=0, dtype=dtype, **kwargs)
  if perturbed:
    perturb(glow, scale=0.3)
  return glow


def _residual(context_shape=VECTOR, dtype="float64", perturbed=True, **kwargs):
  flow = tfp_glow.ResidualFlowBijector(SHAPE, 2, [1, 2], 4, num_dense_blocks=1, num_dense_hidden=5, logit_alpha=None,
                                       log_det="exact", context_shape=context_shape, seed=0, dtype=dtype, **kwargs)
  if perturbed:
    perturb(flow, scale=0.3)
  return flow


def _two_inputs(units):
  inputs, context = keras.Input([2, 2, 2], dtype="float64"), keras.Input([2, 2, 16], dtype="float64")
  both = keras.layers.Concatenate(dtype="float64")([inputs, context])
  hidden = keras.layers.Conv2D(3, 3, padding="same", activation="tanh", dtype="float64")(both)
  return keras.Model([inputs, context], keras.layers.Conv2D(units, 1, dtype="float64")(hidden))


@functools.cache
def _shared(make, shape="vector"):
  """A flow that no test may change."""
  return make(SHAPES[shape])


each_flow = pytest.mark.parametrize("make", [_glow, pytest.param(_residual, marks=pytest.mark.slow)],
                                    ids=["glow", "residual flow"])


@each_flow
@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_and_log_det(make, shape):
  """The log-det is that of the autodiff Jacobian with respect to the image alone."""
  flow, context = _shared(make, shape), _context(SHAPES[shape])
  z, log_det = flow.inverse_and_log_det(IMAGES, context=context)
  y, log_det_back = flow.forward_and_log_det(z.numpy(), context=context)
  np.testing.assert_allclose(y, IMAGES, atol=1e-8)
  np.testing.assert_allclose(log_det_back, -log_det, atol=1e-7)
  images = tf.constant(IMAGES)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(images)
    z, _ = flow.inverse_and_log_det(images, context=context)
  jacobians = tape.batch_jacobian(z, images, experimental_use_pfor=False)
  np.testing.assert_allclose(log_det, np.linalg.slogdet(np.reshape(jacobians, [3, 16, 16]))[1], atol=1e-9)


@each_flow
def test_each_event_has_its_own_context(make):
  flow, context = _shared(make), _context(VECTOR)
  z, log_det = flow.inverse_and_log_det(IMAGES, context=context)
  for n in range(3):
    alone, log_det_alone = flow.inverse_and_log_det(IMAGES[n], context=context[n])
    np.testing.assert_allclose(alone, z[n], atol=1e-12)
    np.testing.assert_allclose(log_det_alone, log_det[n], atol=1e-12)
  same, _ = flow.inverse_and_log_det(np.stack([IMAGES] * 2), context=context)
  np.testing.assert_allclose(same, np.stack([z] * 2), atol=1e-12)


@each_flow
def test_nothing_depends_on_the_context_at_the_start(make):
  flow = make(perturbed=False, context_network=Network(dtype="float64"))
  flow.initialize(IMAGES, context=_context(VECTOR))
  first, second = (flow.inverse_and_log_det(IMAGES, context=_context(VECTOR, seed=seed)) for seed in (1, 2))
  np.testing.assert_array_equal(first[0], second[0])
  np.testing.assert_array_equal(first[1], second[1])


def _parts_of_glow(flow):
  return {"coupling of block 0": flow.blocks[0], "coupling of block 1": flow.blocks[1], "split": flow.splits[0],
          "top": flow.top}


@pytest.mark.parametrize("part", ["coupling of block 0", "coupling of block 1", "split", "top"])
def test_context_reaches_each_part_of_a_glow(part):
  flow = _glow(perturbed=False)
  perturb(_parts_of_glow(flow)[part], scale=0.3)
  first, second = (flow.inverse_and_log_det(IMAGES, context=_context(VECTOR, seed=seed)) for seed in (1, 2))
  assert np.abs(first[0] - second[0]).max() > 1e-3
  assert np.abs(first[1] - second[1]).max() > 1e-3


@pytest.mark.parametrize("make, num_classes", [(_glow, None), (_glow, 2),
                                               pytest.param(_residual, None, marks=pytest.mark.slow)])
def test_every_parameter_has_a_gradient(make, num_classes):
  kwargs, labels = ({}, {}) if num_classes is None else ({"num_classes": num_classes}, {"labels": [0, 1, 1]})
  flow = make(context_network=Network(dtype="float64"), **kwargs)
  with tf.GradientTape() as tape:
    z, log_det = flow.inverse_and_log_det(IMAGES, context=_context(VECTOR), **labels)
    loss = tf.reduce_sum(z**2) - tf.reduce_sum(log_det)
  for variable, gradient in zip(flow.trainable_variables, tape.gradient(loss, flow.trainable_variables)):
    assert gradient is not None and np.abs(tf.convert_to_tensor(gradient)).max() > 0., variable.name


def _gradients(flow, values, context, inverse):
  """Gradients of a loss of both outputs, by inputs, context and variables."""
  values, context = tf.constant(values), tf.constant(context)
  with tf.GradientTape() as tape:
    tape.watch([values, context])
    outputs, log_det = (flow.inverse_and_log_det if inverse else flow.forward_and_log_det)(values, context=context)
    loss = tf.reduce_sum(tf.sin(outputs)) + tf.reduce_sum(log_det * [1., -2., 3.])
  return tape.gradient(loss, [values, context, *flow.trainable_variables])


@pytest.mark.slow
@pytest.mark.parametrize("inverse", [True, False], ids=["inverse", "forward"])
@pytest.mark.parametrize("network_fn, num_steps", [(None, 1), (None, 3), (_two_inputs, 3)],
                         ids=["default, one", "default", "own"])
def test_gradients_of_scanned_steps(inverse, network_fn, num_steps):
  """Hand-written and reversible gradients in graphs equal those of the tape, also for the context."""
  make = functools.partial(tfp_glow.GlowBijector, SHAPE, 1, num_steps, 4, network_fn=network_fn, context_shape=IMAGE,
                           seed=0, dtype="float64")
  flows = [make(gradient="autodiff"), make(gradient="reversible")]
  perturb(flows[0], scale=0.1)
  for to, source in zip(flows[1].variables, flows[0].variables):
    to.assign(source)
  values = IMAGES if inverse else np.reshape(IMAGES, [3, 16])
  expected = _gradients(flows[0], values, _context(IMAGE), inverse)
  assert np.abs(expected[1]).max() > 1e-3
  for flow in flows:
    in_graph = tf.function(lambda flow=flow: _gradients(flow, values, _context(IMAGE), inverse))
    for found in (_gradients(flow, values, _context(IMAGE), inverse), in_graph()):
      for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


@each_flow
@pytest.mark.slow
def test_compiled_by_xla(make):
  flow, context = make(dtype="float32"), _context(VECTOR).astype(np.float32)
  run = lambda y: flow.inverse_and_log_det(y, context=context)
  images = tf.constant(IMAGES, tf.float32)
  expected, found = run(images), tf.function(run, jit_compile=True)(images)
  for a, b in zip(found, expected):
    np.testing.assert_allclose(a, b, atol=1e-4)


@each_flow
def test_context_network_is_evaluated_once_a_pass(make):
  network = Network(dtype="float64")
  flow = make(context_network=network)
  distribution = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 1.), [16]), flow)
  network.calls = 0
  distribution.log_prob(tf.constant(IMAGES), bijector_kwargs={"context": _context(VECTOR)})
  assert network.calls == 1


@each_flow
@pytest.mark.slow
def test_initialisation_is_that_of_the_context(make):
  """Once the context has an effect, initial values depend on it, and a context must be given."""
  flow, context = make(perturbed=False), _context(VECTOR)
  rng = np.random.default_rng(0)
  for variable in flow.trainable_variables:  # Variables that are not set from data, so that the context has an effect.
    variable.assign_add(tf.constant(0.3 * rng.standard_normal(variable.shape)))
  flow.initialize(IMAGES, context=context)
  first = [v.numpy() for v in flow.variables]
  flow.initialize(IMAGES, context=3. * context)
  assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(first, [v.numpy() for v in flow.variables])
             if a.dtype == np.float64)
  with pytest.raises(ValueError, match=r"`context` of .* must be given.*Received: None"):
    flow.initialize(IMAGES)


# Never the result of another context.


@pytest.mark.parametrize("make, in_graph", [(_glow, False), (_glow, True), (_residual, False)],
                         ids=["glow", "glow in a graph", "residual flow"])
def test_another_context_has_another_answer(make, in_graph):
  flow = _shared(make)
  first, second = _context(VECTOR), _context(VECTOR, seed=2)

  def run(y):
    z = flow.inverse(y, context=first)
    return z, flow.forward(z, context=second), flow.inverse(y, context=second), flow.forward(z, context=first)

  z, other, other_z, back = (tf.function(run, autograph=False) if in_graph else run)(tf.constant(IMAGES))
  np.testing.assert_allclose(back, IMAGES, atol=1e-8)
  np.testing.assert_allclose(other, flow.forward(z.numpy(), context=second), atol=1e-9)
  np.testing.assert_allclose(other_z, flow.inverse(IMAGES, context=second), atol=1e-9)
  assert np.abs(other - IMAGES).max() > 1e-2


@pytest.mark.parametrize("make_variable", [tf.Variable, functools.partial(keras.Variable, dtype="float64")],
                         ids=["TensorFlow", "Keras"])
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_a_context_that_is_changed_in_place(in_graph, make_variable):
  flow, context = _glow(), make_variable(_context(VECTOR))

  def run(y):
    z = flow.inverse(y, context=context)
    context.assign_add(tf.ones_like(context))
    return z, flow.forward(z, context=context)

  z, back = (tf.function(run, autograph=False) if in_graph else run)(tf.constant(IMAGES))
  np.testing.assert_allclose(back, flow.forward(z.numpy(), context=_context(VECTOR) + 1.), atol=1e-9)


class Holder:
  """An object that holds a condition."""
  condition = None


HELD = Holder()


class _ReadsAttribute(keras.Layer):

  def call(self, inputs):
    return inputs * self.condition


class _ReadsGlobal(keras.Layer):

  def call(self, inputs):
    return inputs * HELD.condition


class _ReadsObject(keras.Layer):

  def __init__(self):
    super().__init__(dtype="float64")
    self.held = HELD

  def call(self, inputs):
    return inputs * self.held.condition


def _reads_attribute(condition):
  network = _ReadsAttribute(dtype="float64")
  network.condition = condition
  return network


def _reads_closure(condition):
  return keras.layers.Lambda(lambda inputs: inputs * condition, dtype="float64")


def _reads_activation(condition):
  return keras.layers.Activation(lambda inputs: inputs * condition, dtype="float64")


def _reads_function(condition):
  return keras.layers.Lambda(tf.function(lambda inputs: inputs * condition), dtype="float64")


def _reads_operand(condition):
  inputs = keras.Input([8], dtype="float64")
  return keras.Model(inputs, inputs * condition)


SETTINGS = types.ModuleType("settings")


def _reads_module(condition):
  SETTINGS.condition = condition
  return keras.layers.Lambda(lambda inputs: inputs * SETTINGS.condition, dtype="float64")


class Slots:
  """Has no `__dict__`."""
  __slots__ = ["condition"]


def _reads_part_of(held, condition):
  held.condition = condition
  return keras.layers.Lambda(lambda inputs: inputs * held.condition, dtype="float64")


READERS = {"operand of a functional model": _reads_operand, "module": _reads_module,
           "slot": lambda condition: _reads_part_of(Slots(), condition),
           "tf.Module": lambda condition: _reads_part_of(tf.Module(), condition),
           "attribute": _reads_attribute, "closure": _reads_closure, "activation": _reads_activation,
           "tf.function": _reads_function, "global": lambda _: _ReadsGlobal(dtype="float64"),
           "object": lambda _: _ReadsObject()}


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
def test_networks_that_read_elsewhere_are_computed_afresh(make):
  HELD.condition = condition = tf.Variable(1., dtype=tf.float64)
  coupling = tfp_glow.AdditiveCoupling(make(condition), event_ndims=1, dtype="float64")
  y = tf.constant(IMAGES.reshape([3, 16]))
  z = coupling.inverse(y)
  condition.assign(3.)
  assert np.abs(coupling.forward(z) - y).max() > 0.1
  np.testing.assert_allclose(coupling.forward(z), coupling.forward(z.numpy()))


def test_networks_of_keras_are_remembered():
  networks = [keras.Sequential([keras.layers.Dense(4, activation="gelu"), keras.layers.Dense(8)]), Network(),
              tfp_glow.networks.CouplingNetwork(8, 4), _two_inputs(8)]
  networks[0].build([None, 3])
  assert not any(map(elsewhere.is_read_by, networks))


def test_no_network_is_searched_where_there_is_nothing_to_remember(monkeypatch):
  """The search takes time, and much for large networks."""
  flow, searched = _glow(), []
  monkeypatch.setattr(elsewhere, "is_read_by", lambda network: searched.append(network) or False)
  z = flow.inverse(tf.constant(IMAGES), context=_context(VECTOR))
  assert not searched
  np.testing.assert_array_equal(flow.forward(z, context=_context(VECTOR)), IMAGES)  # The result itself.
  assert searched


@pytest.mark.parametrize("context, message", [
    (np.zeros([3, 2, 1]), r"`context` must have shape .*Received: \(3, 2, 1\)"),
    (np.zeros([4, 4, 2]), r"`context` must have shape .*Received: \(4, 4, 2\)")])
def test_contexts_of_latents_that_do_not_fit(context, message):
  glow = _glow(IMAGE, num_classes=2)
  for call in (lambda z: glow.class_features(z, [0, 1, 1], context),
               lambda z: glow.relabelled(z, [0, 1, 1], [[0], [0], [0]], context)):
    with pytest.raises(ValueError, match=message):
      call(tf.zeros([3, 16], tf.float64))


def test_one_context_for_all_latents():
  glow, context = _glow(num_classes=2), _context(VECTOR)
  z = glow.inverse(IMAGES, labels=[0, 1, 1], context=context[0])
  found = [glow.class_features(z, [0, 1, 1], one) for one in (context[0], np.stack([context[0]] * 3))]
  np.testing.assert_allclose(*found, atol=1e-12)


# Sizes.


def test_features_of_each_level():
  """Features are squeezed to the first level, then averaged; smaller ones are repeated."""
  shapes = contexts.checked_context_shape({"v": (2,), "l": (8, 8, 1), "s": (2, 2, 1)})
  features = context_features.ContextFeatures(shapes, None, [(4, 4), (2, 2), (1, 1)], tf.float64)
  context = _context({"v": (2,), "l": (8, 8, 1), "s": (2, 2, 1)})
  first, second, third = (level.numpy() for level in features.of_levels(features.parts(context)))
  assert features.num_channels == 2 + 4 + 1
  large = context["l"].reshape([3, 4, 2, 4, 2]).transpose([0, 1, 3, 2, 4]).reshape([3, 4, 4, 4])
  found = {"l": first[..., :4], "s": first[..., 4:5], "v": first[..., 5:]}
  np.testing.assert_allclose(np.sort(found["l"]), np.sort(large))
  np.testing.assert_array_equal(found["s"], context["s"].repeat(2, 1).repeat(2, 2))
  np.testing.assert_array_equal(found["v"], np.broadcast_to(context["v"][:, None, None], [3, 4, 4, 2]))
  np.testing.assert_allclose(second, first.reshape([3, 2, 2, 2, 2, 7]).mean((2, 4)))
  np.testing.assert_allclose(third, first.mean((1, 2), keepdims=True))
  np.testing.assert_array_equal(features.flat(features.parts(context)), np.concatenate(
      [context[name].reshape([3, -1]) for name in ("l", "s", "v")], axis=1))


# Classes.


def test_latents_under_another_label():
  glow, context = _glow(num_classes=3), _context(VECTOR)
  labels, others = np.array([0, 1, 2]), np.array([[2, 0], [1, 1], [0, 1]])
  z, log_det = glow.inverse_and_log_det(IMAGES, labels=labels, context=context)
  found, change = glow.relabelled(z, labels, others, context)
  for k in range(2):
    expected, expected_log_det = glow.inverse_and_log_det(IMAGES, labels=others[:, k], context=context)
    np.testing.assert_allclose(found[:, k], expected, atol=1e-12)
    np.testing.assert_allclose(log_det + change[:, k], expected_log_det, atol=1e-12)


# In compositions, and part after part.


def test_in_chains():
  glow, context = _glow(), _context(VECTOR)
  expected, log_det = glow.inverse_and_log_det(IMAGES - 0.5, context=context)
  chain = tfp_glow.Chain([tfb.Shift(tf.constant(0.5, tf.float64)), glow])
  assert chain.context_shape == VECTOR
  found = chain.inverse_and_log_det(IMAGES, context=context)
  np.testing.assert_allclose(found[0], expected, atol=1e-12)
  np.testing.assert_allclose(found[1], log_det, atol=1e-12)
  back = tfp_glow.Invert(chain).inverse_and_log_det(found[0].numpy(), context=context)
  np.testing.assert_allclose(back[0], IMAGES, atol=1e-9)
  distribution = tfd.TransformedDistribution(
      tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 1.), [16]), tfb.Chain([tfb.Shift(np.array(0.5)), glow]))
  found = distribution.log_prob(IMAGES, bijector_kwargs={glow.name: {"context": context}})
  np.testing.assert_allclose(found, distribution.distribution.log_prob(expected) + log_det, atol=1e-9)


@each_flow
def test_walk(make):
  flow, context = _shared(make), _context(VECTOR)
  steps = list(flow.walk(IMAGES, context=context))
  total = sum(np.broadcast_to(log_det, [3]) for _, _, log_det in steps)
  np.testing.assert_allclose(total, flow.inverse_and_log_det(IMAGES, context=context)[1], atol=1e-9)


# What does not fit.


@pytest.mark.parametrize("context_shape", [(), (2, 2), (0,), (2.5,), "ab", 3, {}, {"a": (2, 2)}, {1: (2,)}, (2, 2, -1)])
def test_no_shape_of_a_context(context_shape):
  with pytest.raises(ValueError, match=r"`context_shape` must be .*Received"):
    tfp_glow.GlowBijector(SHAPE, 1, 1, 2, context_shape=context_shape)


@pytest.mark.parametrize("context_shape", [(3, 3, 1), (4, 2, 1), (6, 6, 1)])
def test_images_that_do_not_fit(context_shape):
  with pytest.raises(ValueError, match=r"`context_shape` must be vectors, or images whose height .*Received"):
    tfp_glow.GlowBijector(SHAPE, 1, 1, 2, context_shape=context_shape)


@pytest.mark.parametrize("context, message", [
    (None, r"`context` of `glow` must be given.*\(2,\).*Received: None"),
    (np.zeros([3, 3]), r"`context` must have shape \(2,\), after that of the batch.*Received: \(3, 3\)"),
    (np.zeros([4, 2]), r"`context` must have shape .*Received: \(4, 2\)"),
    (np.zeros([2, 3, 2]), r"`context` must have shape .*Received: \(2, 3, 2\)"),
    ({"a": np.zeros([3, 2])}, r"`context` of `glow` must be one tensor.*Received: a dict with the keys \['a'\]")])
def test_contexts_that_do_not_fit(context, message):
  with pytest.raises(ValueError, match=message):
    _glow().inverse(IMAGES, context=context)


def test_contexts_that_are_not_finite():
  with pytest.raises(tf.errors.InvalidArgumentError, match="`context` of `glow` must be finite"):
    _glow(perturbed=False, validate_args=True).inverse(IMAGES, context=np.full([3, 2], np.nan))


def test_dicts_that_do_not_fit():
  flow, context = _glow(SHAPES["both"]), _context(SHAPES["both"])
  for wrong in ({"v": context["v"]}, context | {"more": context["v"]}, context["v"], types.MappingProxyType(context)):
    with pytest.raises(ValueError, match=r"`context` of `glow` must be a dict with the keys \['i', 'v'\].*Received"):
      flow.inverse(IMAGES, context=wrong)


def test_context_where_there_is_none():
  with pytest.raises(TypeError, match=r"`glow` must be given arguments that it.*Received: context"):
    tfp_glow.GlowBijector(SHAPE, 1, 1, 2).inverse(IMAGES.astype(np.float32), context=np.zeros([3, 2]))
  with pytest.raises(ValueError, match=r"`context_network` must be None.*Received"):
    tfp_glow.GlowBijector(SHAPE, 1, 1, 2, context_network=keras.layers.Dense(2))


@pytest.mark.parametrize("network, error, message", [
    (lambda context: context, TypeError, r"`context_network` must be a layer or model of Keras 3.*Received"),
    (keras.layers.Dropout(0.5), ValueError, r"`context_network` must compute the same.*Received"),
    (keras.layers.Reshape([2, 1]), ValueError, r"`context_network` must return vectors.*Received")])
def test_networks_that_do_not_fit(network, error, message):
  with pytest.raises(error, match=message):
    tfp_glow.GlowBijector(SHAPE, 1, 1, 2, context_shape=VECTOR, context_network=network)

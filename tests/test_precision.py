"""Only training computes in less than float32, whatever the device's products and the dtype policy.

The device is emulated: it rounds float32 operands to 10 bits (TensorFloat-32).
"""

import contextlib
import functools
import threading

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
import tf32
from bijector_cases import perturb

import tfp_glow
from tfp_glow import dequantize, evaluation, latent
from tfp_glow._core import precision
from tfp_glow.bijectors.factor_out import FactorOut

tfd = tfp.distributions

SHAPE = (8, 8, 1)
IMAGES = small_models.images(16, SHAPE)
LABELS = np.arange(16) % 3


def network(num_outputs):
  """A user's network of Keras' own layers."""
  conv = functools.partial(keras.layers.Conv2D, padding="same")
  return keras.Sequential([conv(12, 3, activation="relu"), conv(num_outputs, 3)])


def make(policy="float32", weight_y=0., **kwargs):
  """A model with weights that are not initial ones, but the same each time."""
  keras.config.set_dtype_policy(policy)
  try:
    glow = tfp_glow.GlowBijector(SHAPE, **{
        "num_glow_blocks": 2, "num_steps_per_block": 3, "num_hidden": 16, "seed": 0, **kwargs})
    model = tfp_glow.FlowModel(glow, weight_y=weight_y)
    model.adapt(IMAGES if glow.num_classes is None else (IMAGES, LABELS))
    perturb(glow, scale=0.04)
    if weight_y:
      perturb(model.classifier, scale=0.3)
  finally:
    keras.config.set_dtype_policy("float32")
  model.compile("sgd")
  return model


KINDS = {"float32": {}, "bfloat16": {
    "policy": "mixed_bfloat16", "num_classes": 3, "weight_y": 0.01, "gradient": "reversible"},
         "one level": {"num_glow_blocks": 1, "num_steps_per_block": 6}}


@functools.cache
def pair(kind):
  """A model, and the same in float32 throughout, whose products are not rounded."""
  model, exact = make(**KINDS[kind]), make(**{**KINDS[kind], "policy": "float32"})
  for a, b in zip(exact.weights, model.weights):
    a.assign(b)
  return model, exact


def of_model(model, **labels):
  """All that a model computes, by its methods; with labels only the methods that differ most."""
  x = (IMAGES, labels["labels"]) if labels else (IMAGES,)
  z = model.encode(IMAGES, **labels)
  data = tf.data.Dataset.from_tensors(x if labels else IMAGES)
  found = {
      "encode": z, "decode": model.decode(z, **labels), "log_prob": model.log_prob(IMAGES, **labels),
      "sample": model.sample(16, seed=0, **labels), "evaluate": model.evaluate(data, verbose=0)[0]}
  if labels:
    lines = latent.interpolate(z, model.encode(IMAGES[::-1], **labels), 3)
    found |= {"class_probabilities": model.class_probabilities(IMAGES),
              "bits_per_dim": evaluation.bits_per_dim(model, IMAGES, LABELS, verbose=0).per_image,
              "interpolate": np.stack([model.decode(line, **labels) for line in lines], axis=1)}
  else:
    found |= {"predict": model.predict(data, verbose=0), "test_on_batch": model.test_on_batch(*x),
              "call": model(tf.constant(IMAGES))}
  return found


@functools.cache
def expected_of_model(kind):
  """Eagerly: there are no graphs to build."""
  tf.config.run_functions_eagerly(True)
  try:
    return of_model(pair(kind)[1], **labels_of(kind))
  finally:
    tf.config.run_functions_eagerly(False)


@functools.cache
def expected_of_bijector(kind):
  return of_bijector(pair(kind)[1], COMPILED["eager"], **labels_of(kind))


def of_bijector(model, compiled, **labels):
  """The same of its distribution, by TFP's methods."""
  x = dequantize.dequantize(tf.constant(IMAGES), 8, 0.5)
  flow, distribution = model.distribution.bijector, model.distribution
  z = compiled(lambda x: flow.inverse(x, **labels))(x)
  y = compiled(lambda z: flow.forward(z, **labels))(tf.identity(z))
  log_prob = compiled(lambda x: distribution.log_prob(x, bijector_kwargs=labels))(x)
  return {"inverse": z, "forward": y, "decode": dequantize.quantize(y, 8), "log_prob": log_prob}


def of_saved_model(path, **labels):
  signatures = tf.saved_model.load(str(path)).signatures
  labels = {key: tf.constant(value, tf.int32) for key, value in labels.items()}
  answers = dict(signatures["log_prob"](images=tf.constant(IMAGES), **labels))
  answers |= signatures["encode"](images=tf.constant(IMAGES), **labels)
  answers["decode"] = signatures["decode"](latent=answers["latent"], **labels)["images"]
  answers["sample"] = signatures["sample"](
      num_samples=tf.constant(16), temperature=tf.constant(1.), seed=tf.constant([0, 0]), **labels)["images"]
  answers["interpolate"] = signatures["interpolate"](
      first=tf.constant(IMAGES), second=tf.constant(IMAGES[::-1]), num_steps=tf.constant(3), **labels)["images"]
  return answers


def assert_as_in_float32(found, expected):
  for key, value in expected.items():
    value = np.asarray(value)
    if value.dtype == np.uint8:
      np.testing.assert_array_equal(found[key], value, err_msg=key)
    else:
      np.testing.assert_allclose(found[key], value, rtol=5e-5, atol=2e-4, err_msg=key)


def labels_of(kind):
  return {"labels": LABELS} if kind == "bfloat16" else {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one level", "bfloat16"])
def test_methods_of_a_model(kind):
  expected = expected_of_model(kind)
  np.testing.assert_array_equal(expected["decode"], IMAGES)
  with tf32.emulated():
    model = make(**KINDS[kind])  # What is traced, is traced there.
    found = of_model(model, **labels_of(kind))
    assert tf.config.experimental.tensor_float_32_execution_enabled()
  for a, b in zip(model.weights, pair(kind)[1].weights):  # Also the graphs that `adapt` has made.
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=a.name)
  assert_as_in_float32(found, expected)


COMPILED = {"eager": lambda function: function, "function": functools.partial(tf.function, autograph=False),
            "XLA": functools.partial(tf.function, autograph=False, jit_compile=True)}


@pytest.mark.slow
@pytest.mark.parametrize("kind, mode", [  # Graphs are slow to build: one kind for each graph mode.
    ("float32", "eager"), ("bfloat16", "eager"),
    ("bfloat16", "function"), ("one level", "XLA")])
def test_bijectors(kind, mode):
  model, _ = pair(kind)
  expected = expected_of_bijector(kind)
  np.testing.assert_array_equal(expected["decode"], IMAGES)
  with tf32.emulated(always=mode == "XLA"):
    rounded = model.distribution.bijector.inverse(
        dequantize.dequantize(tf.constant(IMAGES), 8, 0.5), training=True, **labels_of(kind))
    assert np.abs(rounded - expected["inverse"]).max() > 5e-3
    assert_as_in_float32(of_bijector(model, COMPILED[mode], **labels_of(kind)), expected)


@pytest.mark.slow
def test_saved_models(tmp_path, kind="bfloat16"):
  model, of_model = pair(kind)[0], expected_of_model(kind)
  expected = {key: of_model[key] for key in ("decode", "log_prob", "sample", "interpolate")}
  expected["latent"] = of_model["encode"]
  with tf32.emulated(always=True):
    model.export(tmp_path / "model")
    assert_as_in_float32(of_saved_model(tmp_path / "model", **labels_of(kind)), expected)


@pytest.mark.slow
def test_the_users_own_networks():
  """In graphs of the user's, TensorFlow's switch alone keeps them exact."""
  model, exact = (make(policy, network_fn=network, num_glow_blocks=1) for policy in ("mixed_bfloat16", "float32"))
  for a, b in zip(exact.weights, model.weights):
    a.assign(b)
  with tf32.emulated():
    fresh = of_bijector(model, COMPILED["eager"])
    by_model = {"encode": model.encode(IMAGES), "log_prob": model.log_prob(IMAGES)}
  assert_as_in_float32(fresh, of_bijector(exact, COMPILED["eager"]))
  assert_as_in_float32(by_model, {"encode": exact.encode(IMAGES), "log_prob": exact.log_prob(IMAGES)})
  layers = model.distribution.bijector.blocks[0].template.coupling.network.layers
  policies = {layer.dtype_policy.name for layer in layers}
  assert policies == {"mixed_bfloat16"}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3,), (4, 4, 1)])
def test_residual_flows(shape):
  """Also `forward`, whose tolerance cannot be reached with rounded products."""
  flow = tfp_glow.ResidualFlowBijector(shape, len(shape) // 2, 1, 8, int(len(shape) == 1), 8, None, seed=0,
                                       log_det="power_series", num_terms=1, num_eval_terms=1)
  perturb(flow, scale=0.3)
  x = np.random.default_rng(0).standard_normal([4, *shape]).astype(np.float32)
  run = tf.function(lambda x: (flow.inverse(x), flow.forward(tf.identity(flow.inverse(x)))), autograph=False)
  expected = run(x)
  np.testing.assert_allclose(expected[1], x, atol=1e-5)
  with tf32.emulated():
    for found, value in zip(tf.function(run.python_function, autograph=False)(x), expected):
      np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)
    eager = flow.inverse(x)
    assert np.abs(flow.inverse_and_log_det(x, training=True)[0] - expected[0]).max() > 1e-5
  np.testing.assert_allclose(eager, expected[0], rtol=1e-5, atol=1e-5)


def gradients(model, training):
  with tf.GradientTape() as tape:
    log_prob = model.distribution.log_prob(
        dequantize.dequantize(tf.constant(IMAGES), 8, 0.5), bijector_kwargs={"training": training})
  return tape.gradient(log_prob, model.distribution.trainable_variables)


def distance(a, b):
  flat = lambda gradients: np.concatenate([np.ravel(g) for g in gradients]).astype(np.float64)
  return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_training_computes_in_less(policy):
  """Reversible gradients are those of autodiff at the same precision."""
  autodiff, reversible = make(policy, gradient="autodiff"), make(policy, gradient="reversible")
  exact = gradients(make(), False)
  with tf32.emulated(always=True):
    found = [gradients(model, True) for model in (autodiff, reversible)]
    full = [gradients(model, False) for model in (autodiff, reversible)]
  assert distance(found[1], found[0]) < 1e-2
  for values in full:
    assert distance(values, exact) < 1e-3 < distance(found[0], exact)


@pytest.mark.slow
def test_a_flow_in_the_base_distribution_trains_in_less():
  """As a flow in the bijector does. It is evaluated in float32."""
  models = []
  for policy in ("mixed_bfloat16", "float32"):
    base = make(policy, num_glow_blocks=1).distribution
    models.append(small_models.compiled(tfp_glow.FlowModel(tfd.TransformedDistribution(base, tfp_glow.ActNorm(1))),
                                        keras.optimizers.SGD(0.), run_eagerly=True))
  np.testing.assert_allclose(*(model.evaluate(IMAGES, verbose=0)[0] for model in models), rtol=1e-6)
  lower, full = (model.train_on_batch(IMAGES)[0] for model in models)
  assert 1e-5 < abs(lower / full - 1.) < 0.1


@pytest.mark.slow
def test_fit_trains_in_less():
  """The loss of a training step is that of the policy; `evaluate` is in float32."""
  model, exact = (make(policy, num_glow_blocks=1) for policy in ("mixed_bfloat16", "float32"))
  exact.compile("sgd", run_eagerly=True)
  np.testing.assert_allclose(*(m.evaluate(IMAGES, verbose=0)[0] for m in (model, exact)), rtol=1e-6)
  lower, full = (m.train_on_batch(IMAGES)[0] for m in (model, exact))
  assert 1e-5 < abs(lower / full - 1.) < 0.1


@pytest.mark.slow
def test_the_switch_is_as_it_was():
  switch = tf.config.experimental
  model = pair("float32")[0]
  for is_on in (False, True):
    switch.enable_tensor_float_32_execution(is_on)
    model.encode(IMAGES)
    with pytest.raises(ValueError):
      model.encode(IMAGES[..., 0])
    assert switch.tensor_float_32_execution_enabled() == is_on


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_networks_within_networks(policy):
  """Networks that were built before and cast their inputs, and a subclass that does more."""

  class Tripled(keras.Sequential):

    def call(self, inputs):
      return 3. * super().call(inputs)

  def make_network(policy):
    keras.config.set_dtype_policy(policy)
    try:
      drawn = keras.initializers.RandomNormal(stddev=0.5, seed=1)
      dense = functools.partial(keras.layers.Dense, kernel_initializer=drawn)
      built = keras.Sequential([dense(8)])
      built(tf.zeros([1, 2]))
      inputs = keras.Input([2], dtype="float32")
      return Tripled([keras.Model(inputs, dense(8)(built(inputs))), keras.Sequential([dense(4)])])
    finally:
      keras.config.set_dtype_policy("float32")

  y = np.random.default_rng(0).standard_normal([5, 4]).astype(np.float32)
  lower, exact = (tfp_glow.AffineCoupling(make_network(policy), 1) for policy in (policy, "float32"))
  expected = exact.inverse(y)
  lower.build([4])
  for a, b in zip(exact.network.weights, lower.network.weights):
    a.assign(tf.cast(b, tf.float32))
  expected = exact.inverse(y)
  np.testing.assert_allclose(lower.inverse(y), expected, rtol=1e-6)
  assert np.abs(lower.inverse(y, training=True) - expected).max() > 1e-4


@contextlib.contextmanager
def another_thread_that_samples():
  """Samples, or does anything else that needs TensorFlow's switch to be off meanwhile."""
  is_off, is_done = threading.Event(), threading.Event()

  def sample():
    with precision.switched_off():
      is_off.set()
      is_done.wait()

  thread = threading.Thread(target=sample)
  thread.start()
  try:
    is_off.wait()
    yield
  finally:
    is_done.set()
    thread.join()


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_training_that_begins_while_the_switch_is_off_goes_on_when_it_is_on(mode, monkeypatch):
  """The Gaussians of splits, and their gradients, are still in float32, on a machine with such a card."""
  monkeypatch.setattr(precision, "_has_tensor_float_32", lambda: True)
  split = FactorOut((4, 4, 8))
  perturb(split, scale=0.1)
  y = tf.constant(np.random.default_rng(0).standard_normal([2, 4, 4, 8]), tf.float32)

  def value_and_gradients(meanwhile):
    with tf.GradientTape() as tape:
      tape.watch(y)
      with meanwhile:
        x, log_det = split.inverse_and_log_det(y, training=True)
    return x, log_det, *tape.gradient([x, log_det], [y, *split.trainable_variables])

  expected = value_and_gradients(contextlib.nullcontext())
  with tf32.emulated():
    found = COMPILED[mode](lambda: value_and_gradients(another_thread_that_samples()))()
  for a, b in zip(found, expected):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_what_is_traced_while_the_switch_is_off_may_run_when_it_is_on(monkeypatch):
  """For example, another thread samples meanwhile, on a machine with such a card."""
  monkeypatch.setattr(precision, "_has_tensor_float_32", lambda: True)
  glow = make(num_glow_blocks=1).distribution.bijector
  x = dequantize.dequantize(tf.constant(IMAGES), 8, 0.5)
  with tf32.emulated():
    function = tf.function(glow.inverse, autograph=False)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    expected = function(x)
    tf.config.experimental.enable_tensor_float_32_execution(True)
    np.testing.assert_allclose(function(x), expected, rtol=1e-5, atol=1e-5)

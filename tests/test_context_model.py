"""`FlowModel` of flows that are conditioned on a context: batches, methods, SavedModels, callbacks, what is refused."""

import functools

import context_flows
import distributed_runs
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import perturb
from context_flows import DICTS, IMAGES, LABELS, MIDPOINTS, VECTORS

import tfp_glow
from tfp_glow import callbacks, pictures
from tfp_glow.storage.signatures import signatures as make_signatures

tfd = tfp.distributions
pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
DICT_SHAPE = {"pose": (2,), "grey": (2, 2, 1)}


def _model(compile_options=None, num_bits=8, **kwargs):
  flow = context_flows.AffineOfContext(**kwargs)
  return small_models.compiled(tfp_glow.FlowModel(flow, num_bits), keras.optimizers.SGD(1e-3),
                               **{"run_eagerly": True, **(compile_options or {})})


@functools.cache
def _models(name):
  kwargs = {"vector": {}, "dict": {"context_shape": DICT_SHAPE}, "both": {"num_classes": 3},
            "none": {"context_shape": None}, "classes": {"context_shape": None, "num_classes": 3}}[name]
  return _model(**kwargs)


def _bits(model, labels=0, context=None):
  noise = tfp_glow.dequantize.image_noise(tf.constant(IMAGES), (0, -1)).numpy()
  values = (IMAGES + np.float64(noise)) / 256. - 0.5
  nats = context_flows.log_prob(model.distribution.bijector, values, labels, context)
  return -nats / (context_flows.NUM_VALUES * np.log(2.))


def _dataset(*parts):
  return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(5)


# What is computed.


def test_shapes_of_contexts():
  assert _models("vector").context_shape == (5,) and _models("none").context_shape is None
  assert _models("dict").context_shape == DICT_SHAPE


@pytest.mark.parametrize("name, given, labels", [
    ("vector", {"context": VECTORS}, 0), ("dict", {"context": DICTS}, 0),
    ("both", {"context": VECTORS, "label": LABELS}, LABELS), ("classes", {"label": LABELS}, LABELS)])
def test_forms_of_batches(name, given, labels):
  model = _models(name)
  expected = _bits(model, labels, given.get("context"))
  as_one = {"image": IMAGES, **given}
  found = [model.predict(data, batch_size=size, verbose=0) for data, size in (
      (_dataset(IMAGES, given), None), (_dataset(as_one), None), (as_one, 5))]
  np.testing.assert_allclose(found, [expected] * 3, rtol=1e-5)
  means = [model.evaluate(*data, batch_size=size, verbose=0, return_dict=True)["bits_per_dim"] for data, size in (
      ((IMAGES, given), 5), ((as_one,), 5), ((_dataset(IMAGES, given),), None))]
  means.append(model.test_on_batch(IMAGES, given, return_dict=True)["bits_per_dim"])
  np.testing.assert_allclose(means, expected.mean(), rtol=1e-5)


def test_what_the_model_does_not_take_is_not_used():
  given = {"context": VECTORS, "label": LABELS, "name": LABELS.astype(str)}
  for name, used in (("vector", {"context": VECTORS}), ("none", {}), ("classes", {"labels": LABELS})):
    model = _models(name)
    np.testing.assert_allclose(model.predict(_dataset({"image": IMAGES, **given}), verbose=0),
                               _bits(model, **{"labels": 0, **used}), rtol=1e-5)


def test_methods():
  model = _models("both")
  flow = model.distribution.bijector
  found = model.log_prob(IMAGES, LABELS, context=VECTORS)
  np.testing.assert_allclose(found, context_flows.log_prob(flow, MIDPOINTS, LABELS, VECTORS), rtol=1e-5)
  z = model.encode(IMAGES, LABELS, VECTORS)
  np.testing.assert_allclose(z, flow.inverse(MIDPOINTS, labels=LABELS, context=VECTORS), atol=1e-5)
  np.testing.assert_array_equal(model.decode(z, LABELS, VECTORS), IMAGES)
  assert (model.decode(z, LABELS, -VECTORS) != IMAGES).any()
  samples = model.sample(12, 0.5, LABELS, seed=(1, 2), context=VECTORS)
  np.testing.assert_array_equal(samples, tfp_glow.dequantize.quantize(flow.forward(
      model._likelihood.latents.sample(12, 0.5, (1, 2)), labels=LABELS, context=VECTORS), 8))


def test_one_context_for_all():
  model = _models("both")
  repeated = np.repeat(VECTORS[:1], 12, axis=0)
  np.testing.assert_array_equal(model.sample(12, labels=1, seed=0, context=VECTORS[0]),
                                model.sample(12, labels=1, seed=0, context=repeated))
  of_dict = {key: value[0] for key, value in DICTS.items()}
  np.testing.assert_array_equal(
      _models("dict").sample(2, seed=0, context=of_dict),
      _models("dict").sample(2, seed=0, context={key: np.stack([value] * 2) for key, value in of_dict.items()}))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floating_dtypes(dtype):
  model, rounded = _models("vector"), VECTORS.astype(dtype)
  np.testing.assert_array_equal(model.log_prob(IMAGES, context=rounded), model.log_prob(
      IMAGES, context=rounded.astype(np.float32)))
  np.testing.assert_allclose(model.predict(_dataset(IMAGES, {"context": rounded}), verbose=0),
                             _bits(model, context=rounded.astype(np.float32)), rtol=1e-5)


def test_evaluation():
  model = _models("both")
  for data in ((IMAGES, {"context": VECTORS, "label": LABELS}),
               (_dataset({"image": IMAGES, "context": VECTORS, "label": LABELS}),)):
    found = tfp_glow.evaluation.bits_per_dim(model, *data, verbose=0)
    np.testing.assert_allclose(found.per_image, _bits(model, LABELS, VECTORS), rtol=1e-5)


def test_an_event_that_is_several_to_the_flow():
  """All of them have the same context and the same label."""
  vectors = context_flows.AffineOfContext((32,), num_classes=3)
  base = tfd.Sample(tfd.Normal(0., 1.), [2, 32])
  model = tfp_glow.FlowModel(tfd.TransformedDistribution(base, vectors), num_bits=None)
  pairs = MIDPOINTS.reshape([6, 2, 32]).astype(np.float32)
  of_each = [context_flows.log_prob(vectors, pairs[:, i], LABELS[:6], VECTORS[:6], num_bits=0) for i in range(2)]
  np.testing.assert_allclose(model.log_prob(pairs, LABELS[:6], context=VECTORS[:6]), sum(of_each), rtol=1e-5)
  model.adapt((pairs, {"context": VECTORS[:6]}))
  np.testing.assert_array_equal(vectors.initialized_with["context"], np.repeat(VECTORS[:6], 2, axis=0))


# Training.


def test_flows_are_initialized_with_the_contexts_of_the_batch():
  for train in (lambda model: model.fit(_dataset(IMAGES, {"context": VECTORS}), verbose=0),
                lambda model: model.adapt({"image": IMAGES[:5], "context": VECTORS[:5]}),
                lambda model: model.train_on_batch(IMAGES[:5], {"context": np.float64(VECTORS[:5])})):
    model = _model()
    train(model)
    found = model.distribution.bijector.initialized_with["context"]
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, VECTORS[:5])


def _steps(strategy, **options):
  """Weights after an epoch of three steps."""
  with strategy.scope():
    model = _model(options, context_shape=DICT_SHAPE, num_classes=3)
    model.adapt((IMAGES, {"context": DICTS}))
  model.fit(IMAGES, {"context": DICTS, "label": LABELS}, batch_size=4, shuffle=False, verbose=0)
  return small_models.weights_of(model)


def test_a_step_of_training():
  model = _model(num_classes=3)
  model.adapt((IMAGES, {"context": VECTORS}))
  flow = model.distribution.bijector
  values = tfp_glow.dequantize.dequantize(IMAGES, 8, tfp_glow.dequantize.image_noise(tf.constant(IMAGES), (0, 0)))
  with tf.GradientTape() as tape:
    loss = -tf.reduce_mean(model.distribution.log_prob(
        values, bijector_kwargs={"labels": LABELS, "context": VECTORS})) / (context_flows.NUM_VALUES * np.log(2.))
  gradients = tape.gradient(loss, flow.trainable_variables)
  expected = [v - 1e-3 * tf.convert_to_tensor(g) for v, g in zip(flow.trainable_variables, gradients)]
  model.train_on_batch(IMAGES, {"context": VECTORS, "label": LABELS})
  for variable, value in zip(flow.trainable_variables, expected):
    np.testing.assert_allclose(variable, value, atol=1e-6)


@pytest.mark.slow
def test_graphs_xla_and_replicas():
  one = tf.distribute.get_strategy()
  eagerly = _steps(one)
  for strategy, options in ((one, {"run_eagerly": False, "jit_compile": True}),
                            (distributed_runs.mirrored(2), {"run_eagerly": False})):
    for found, expected in zip(_steps(strategy, **options), eagerly, strict=True):
      np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name, context, what", [
    ("vector", np.where(np.arange(60).reshape(12, 5) == 7, np.nan, VECTORS), r"at \[1, 2\]"),
    ("dict", DICTS | {"pose": np.full([12, 2], np.inf, np.float32)}, r"shape \(4, 2\), 8 of 8 NaN")])
def test_contexts_that_are_not_finite_end_training(name, context, what):
  data = tf.data.Dataset.from_tensor_slices((IMAGES, {"context": context})).batch(4)
  model = _model(context_shape=DICT_SHAPE if name == "dict" else (5,))
  good = DICTS if name == "dict" else VECTORS
  model.adapt((IMAGES, {"context": good}))
  before = small_models.weights_of(model)
  with pytest.raises(FloatingPointError, match=f"at step 1: a value of the contexts is not finite.*{what}"):
    model.fit(data, verbose=0)
  for a, b in zip(before, small_models.weights_of(model)):
    np.testing.assert_array_equal(a, b)


# What is refused, before any work.

_NAN = np.where(np.arange(60).reshape(12, 5) == 7, np.nan, VECTORS).astype(np.float32)
_CASES = [
    ("vector", None, ValueError, r"`context` must be given: the model takes contexts of shape \(5,\). Received: None"),
    ("vector", VECTORS[:, :3], ValueError, r"`context` must have shape \[None, 5\].*Received: \(12, 3\)"),
    ("vector", VECTORS[:, :, None], ValueError, r"`context` must have shape \[None, 5\].*Received: \(12, 5, 1\)"),
    ("vector", VECTORS[:7], ValueError, "`context` must be 12 contexts, one for each image. Received: 7"),
    ("vector", _NAN, ValueError, "`context` must be finite. Received: shape"),
    ("vector", VECTORS.astype(np.int32), TypeError, "`context` must be floating, scaled.*Received: int32"),
    ("vector", VECTORS.astype(np.uint8), TypeError, "`context` must be floating, scaled.*Received: uint8"),
    ("vector", DICTS, ValueError, r"`context` must be one tensor, of shape \[None, 5\]. Received: a dict"),
    ("dict", VECTORS, ValueError, r"`context` must be a dict with the keys \['grey', 'pose'\]. Received: no dict"),
    ("dict", {"pose": VECTORS[:, :2]}, ValueError, r"`context` must be a dict.*Received: one with the keys \['pose'\]"),
    ("dict", DICTS | {"more": VECTORS}, ValueError, "`context` must be a dict with the keys"),
    ("dict", DICTS | {"pose": VECTORS}, ValueError, r"`context\['pose'\]` must have shape \[None, 2\]"),
    ("dict", DICTS | {"pose": LABELS}, TypeError, r"`context\['pose'\]` must be floating"),
]


@pytest.mark.parametrize("call", ["fit", "evaluate", "validation_data", "log_prob", "sample", "decode"])
@pytest.mark.parametrize("name, context, error, match", _CASES)
def test_contexts_that_do_not_fit(call, name, context, error, match):
  model = _models(name)
  good = (IMAGES, {"context": DICTS if name == "dict" else VECTORS})
  given = {} if context is None else {"context": context}
  calls = {
      "fit": lambda: model.fit(IMAGES, given, verbose=0), "evaluate": lambda: model.evaluate(IMAGES, given, verbose=0),
      "validation_data": lambda: model.fit(*good, validation_data=(IMAGES, given), verbose=0),
      "log_prob": lambda: model.log_prob(IMAGES, context=context),
      "sample": lambda: model.sample(12, context=context),
      "decode": lambda: model.decode(np.zeros([12, *small_models.SHAPE]), context=context),
  }
  before = [v.numpy() for v in model.weights]
  with pytest.raises(error, match=match):
    calls[call]()
  for a, b in zip(before, model.weights):
    np.testing.assert_array_equal(a, b.numpy())


def test_datasets_that_do_not_fit():
  for data, error, match in ((_dataset(IMAGES), ValueError, "`context` must be given"),
                             (_dataset(IMAGES, {"context": LABELS}), TypeError, "`context` must be floating"),
                             (_dataset(IMAGES, {"context": DICTS}), ValueError, "`context` must be one tensor")):
    for call in (_models("vector").fit, _models("vector").predict):
      with pytest.raises(error, match=match):
        call(data, verbose=0)


def test_contexts_of_a_model_without():
  model = _models("none")
  for call in (lambda: model.log_prob(IMAGES, context=VECTORS), lambda: model.encode(IMAGES, context=VECTORS),
               lambda: model.sample(2, context=VECTORS[0])):
    with pytest.raises(ValueError, match="`context` must be None: the model takes no contexts. Received: "):
      call()


def test_adapt_needs_the_contexts():
  with pytest.raises(ValueError, match="`context` must be given"):
    _models("vector").adapt(IMAGES)


# SavedModels.


@pytest.mark.slow
@pytest.mark.parametrize("name, context", [("both", {"context": VECTORS}), (
    "dict", {f"context_{key}": value for key, value in DICTS.items()})])
def test_saved_model(tmp_path, name, context):
  model = _models(name)
  model.export(tmp_path / "model")
  signatures = tf.saved_model.load(tmp_path / "model").signatures
  labels = {"labels": LABELS} if name == "both" else {}
  live = labels | {"context": VECTORS if name == "both" else DICTS}
  given = {key: tf.constant(value) for key, value in (labels | context).items()}
  images = tf.constant(IMAGES)
  np.testing.assert_allclose(signatures["log_prob"](images=images, **given)["log_prob"], model.log_prob(IMAGES, **live),
                             rtol=1e-5)
  latent = signatures["encode"](images=images, **given)["latent"]
  np.testing.assert_allclose(latent, model.encode(IMAGES, **live), atol=1e-5)
  np.testing.assert_array_equal(signatures["decode"](latent=latent, **given)["images"], IMAGES)
  np.testing.assert_array_equal(signatures["sample"](
      num_samples=tf.constant(12), temperature=tf.constant(0.7), seed=tf.constant([1, 2]), **given)["images"],
      model.sample(12, 0.7, seed=(1, 2), **live))
  z = model.encode(IMAGES, **live), model.encode(IMAGES[::-1], **live)
  between = signatures["interpolate"](first=images, second=images[::-1], num_steps=tf.constant(4), **given)["images"]
  # (A third of the way, because half of it may lie on the edge between two grey levels.)
  np.testing.assert_array_equal(between[:, 1], model.decode(z[0] + (z[1] - z[0]) / 3., **live))
  last = sorted(given)[0]  # A context.
  with pytest.raises(tf.errors.InvalidArgumentError, match="`context` must be one for each image"):
    signatures["log_prob"](images=images, **given | {last: given[last][:1]})


def test_inputs_have_names_that_tensorflow_takes():
  likelihood = _model(context_shape={"my pose": (2,), "a/b-c": (3,)})._likelihood
  specs = make_signatures(likelihood)["log_prob"].input_signature
  assert {spec.name for spec in specs} == {"images", "context_my_pose", "context_a_b_c"}


@pytest.mark.slow
def test_warm_up_requests_have_contexts(tmp_path):
  prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
  _models("dict").export(tmp_path / "model", warm_up_batch_sizes=[2])
  path = tmp_path / "model" / "assets.extra" / "tf_serving_warmup_requests"
  for record in tf.data.TFRecordDataset(str(path)):
    request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
    found = {key: tf.make_ndarray(value).shape for key, value in request.inputs.items() if key.startswith("context")}
    assert found == {"context_pose": (2, 2), "context_grey": (2, 2, 2, 1)}


# Callbacks.


def _callback_model():
  return _model(event_shape=(4, 4, 1), num_classes=3)


def test_samples_of_a_column_have_the_same_context(tmp_path):
  images, model = IMAGES[..., :1], _callback_model()
  model.fit(images, {"context": VECTORS, "label": LABELS}, verbose=0, callbacks=[
      callbacks.SampleGrid(tmp_path, [0.5, 1.], num_columns=2, labels=[2, 0], context=VECTORS[:2])])
  rows = [model.sample(2, temperature, label, seed=0, context=VECTORS[:2])
          for temperature in (0.5, 1.) for label in (2, 0)]
  np.testing.assert_array_equal(_picture(tmp_path / "samples_0001.png"), pictures.tile(rows))


def test_contexts_along_an_interpolation_are_those_of_the_nearer_end(tmp_path):
  images, model = IMAGES[..., :1], _callback_model()
  given = {"labels": LABELS[:2], "context": VECTORS[:2]}
  model.fit(images, {"context": VECTORS, "label": LABELS}, verbose=0, callbacks=[
      callbacks.LatentInterpolation(tmp_path, images[:2], num_steps=3, **given)])
  ends, index = model.encode(images[:2], **given), [0, 0, 1]
  z = np.stack([ends[0], (ends[0] + ends[1]) / 2., ends[1]])
  row = model.decode(z, LABELS[index], VECTORS[index])
  np.testing.assert_array_equal(_picture(tmp_path / "interpolations_0001.png"), pictures.tile([row]))


def _picture(path):
  return tf.io.decode_png(path.read_bytes()).numpy()


def test_callbacks_refuse_contexts_that_do_not_fit(tmp_path):
  with pytest.raises(ValueError, match="`context` must be 2 contexts, one for each image"):
    callbacks.LatentInterpolation(tmp_path, IMAGES[:2], context=VECTORS)
  for callback in (callbacks.SampleGrid(tmp_path, num_columns=2, context=VECTORS), callbacks.SampleGrid(tmp_path)):
    with pytest.raises(ValueError, match="`context` must be"):
      _callback_model().fit(IMAGES[..., :1], {"context": VECTORS, "label": LABELS}, verbose=0, callbacks=[callback])


# Of a Glow.


@pytest.mark.slow
@pytest.mark.parametrize("is_built", [True, False])
def test_frozen_networks_stay_as_they_are(tmp_path, is_built):
  network = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(2)])
  if is_built:
    network.build([None, 5])
  network.layers[0].trainable = False
  glow = tfp_glow.GlowBijector(small_models.SHAPE, 1, 1, 4, context_shape=(5,), context_network=network, seed=0)
  perturb(glow)
  glow.mark_initialized()
  model = small_models.compiled(tfp_glow.FlowModel(glow), run_eagerly=True)
  before = [v.numpy() for v in network.variables]
  model.train_on_batch(IMAGES, {"context": VECTORS})
  assert [bool(np.any(v != old)) for v, old in zip(network.variables, before)] == [False, False, True, True]
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  assert len(loaded.trainable_variables) == len(model.trainable_variables) == len(glow.trainable_variables)
  assert len(network.trainable_variables) == 2


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [None, 3])
def test_glow_in_files(tmp_path, num_classes):
  glow = tfp_glow.GlowBijector(small_models.SHAPE, 1, 2, 4, context_shape=(5,), num_classes=num_classes, seed=0)
  model = small_models.compiled(tfp_glow.FlowModel(glow))
  given = {"context": VECTORS} | ({} if num_classes is None else {"label": LABELS})
  model.fit(IMAGES, given, verbose=0)
  perturb(glow)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  assert loaded.context_shape == (5,)
  given = {"context": VECTORS} | ({} if num_classes is None else {"labels": LABELS})
  np.testing.assert_array_equal(loaded.log_prob(IMAGES, **given), model.log_prob(IMAGES, **given))
  assert not np.allclose(model.log_prob(IMAGES, **given), model.log_prob(IMAGES, **given | {"context": -VECTORS}))
  lines = []
  model.summary(print_fn=lines.append)
  assert any(line.startswith("Total params: ") for line in lines)


@pytest.mark.slow
def test_hybrid_model(tmp_path):
  glow = tfp_glow.GlowBijector(small_models.SHAPE, 1, 1, 4, context_shape=(5,), seed=0)
  classifier = tfp_glow.ScaleClassifier(num_classes=3, num_channels=4, seed=0)
  model = small_models.compiled(tfp_glow.FlowModel(glow, classifier=classifier), run_eagerly=True)
  model.fit(IMAGES, {"context": VECTORS, "label": LABELS}, verbose=0)
  perturb(glow)
  found = model.class_probabilities(IMAGES, context=VECTORS)
  assert not np.allclose(found, model.class_probabilities(IMAGES, context=-VECTORS))
  model.export(tmp_path / "model")
  signatures = tf.saved_model.load(tmp_path / "model").signatures
  served = signatures["class_probabilities"](images=tf.constant(IMAGES), context=tf.constant(VECTORS))
  np.testing.assert_allclose(served["class_probabilities"], found, rtol=1e-5)


def test_keys_that_are_no_part_of_a_context():
  with pytest.raises(ValueError, match=r"must have the key 'context'\. Received: the keys \['contexts'\]"):
    _models("vector").fit(IMAGES, {"contexts": VECTORS}, verbose=0)


# Layers of context networks.


def test_layers_that_are_adapted_are_refused():
  """Their adapted state would not be in files."""
  layer = keras.layers.Normalization()
  layer.adapt(VECTORS)
  make = lambda network: tfp_glow.GlowBijector(
      small_models.SHAPE, 1, 1, 2, context_shape=(5,), context_network=network, seed=0)
  with pytest.raises(ValueError, match=r"no layers that learn by `adapt`.*Received: 'normalization.*' in 'sequential"):
    make(keras.Sequential([layer, keras.layers.Dense(3)]))
  make(keras.layers.Normalization(mean=np.ravel(layer.mean), variance=np.ravel(layer.variance)))


@pytest.mark.slow
def test_layers_are_frozen_and_unfrozen_by_compile():
  network = keras.Sequential([keras.Input([5]), keras.layers.Dense(3)])
  glow = tfp_glow.GlowBijector(small_models.SHAPE, 1, 1, 2, context_shape=(5,), context_network=network, seed=0)
  model = tfp_glow.FlowModel(glow)
  for is_trainable in (True, False, True):
    network.trainable = is_trainable
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    before = [v.numpy() for v in network.variables]
    for _ in range(2):  # At first nothing depends on the context, so there are no gradients.
      model.train_on_batch(IMAGES, {"context": VECTORS})
    assert is_trainable == any(np.any(v.numpy() != value) for v, value in zip(network.variables, before))

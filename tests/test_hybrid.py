"""Hybrid models: a classifier on features of every scale of a flow, trained together with it."""

import distributed_runs
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow.bijectors import log_det

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
SHAPE = (4, 4, 1)
NUM_DIMS = 16
IMAGES = small_models.images(12, SHAPE)
POINTS = IMAGES / 256. - 0.5  # For continuous models, whose values have no noise and can be computed again.
LABELS = (np.arange(12) % 3).astype(np.int64)
WEIGHTS = [0., 1. / NUM_DIMS, 1., 0.3]


def _glow(dtype=None, **kwargs):
  return tfp_glow.GlowBijector(SHAPE, 2, 1, 4, seed=0, dtype=dtype, **kwargs)


def _residual(dtype=None, **kwargs):
  return tfp_glow.ResidualFlowBijector(SHAPE, 2, 1, 4, 1, 4, log_det="power_series", num_terms=1, num_eval_terms=1,
                                       seed=0, dtype=dtype, **kwargs)


FLOWS = {"glow": _glow, "residual": _residual, "residual with exits": lambda dtype: _residual(dtype, factor_out=True)}


def _classifier(**kwargs):
  return tfp_glow.ScaleClassifier(3, **{"num_channels": 4, "seed": 1, **kwargs})


def _model(flow=None, likelihood_weight=1., num_bits=8, classifier=None, perturbed=True):
  model = tfp_glow.FlowModel(flow or _glow(), num_bits, classifier=classifier or _classifier(),
                             likelihood_weight=likelihood_weight)
  rng = np.random.default_rng(2)
  for variable in model.trainable_variables if perturbed else []:
    variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
  return model


def _numpy_logits(classifier, features):
  """Logits of lists of arrays, by the authors' formulas."""
  means = []
  sources = range(len(features)) if classifier.sources is None else classifier.sources
  for head, source in zip(classifier.heads, sources):
    kernel, bias, shift, log_scale = (np.asarray(variable) for variable in head)
    image = features[source]
    padded = np.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)])
    height, width = image.shape[1:3]
    sums = sum(padded[:, i:i + height, j:j + width] @ kernel[i, j] for i in range(3) for j in range(3)) + bias
    means.append(np.maximum((sums + shift) * np.exp(3. * log_scale), 0.).mean((1, 2)))
  return np.concatenate(means, -1) @ np.asarray(classifier.kernel) + np.asarray(classifier.bias)


def _features(flow, x):
  """The same numbers without the method that gives features and latents in one pass."""
  if isinstance(flow, tfp_glow.GlowBijector) or flow.parameters["factor_out"]:
    return flow.split_latent(flow.inverse(x))
  walk = {name: value for name, value, _ in flow.walk(x)}
  return [walk["squeeze"], tf.reshape(flow.inverse(x), [-1, 2, 2, 4])]


def _softmax(logits):
  return tf.nn.softmax(logits).numpy()


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("name", FLOWS)
def test_logits_loss_and_metrics(name):
  """With several weights; heads see each scale or, like the authors', what leaves there."""
  flow = FLOWS[name]("float64")
  for weight, sources in zip(WEIGHTS, [None, (0, 0), (1,), None]):
    model = small_models.compiled(_model(flow, weight, None, _classifier(sources=sources)))
    logits = _numpy_logits(model.classifier, [feature.numpy() for feature in _features(flow, POINTS)])
    probabilities = _softmax(logits)
    np.testing.assert_allclose(model.class_probabilities(POINTS), probabilities, rtol=1e-10)
    bits = -model.distribution.log_prob(POINTS).numpy() / np.log(2.)
    cross_entropy = -np.log(probabilities[np.arange(12), LABELS])
    results = model.evaluate(POINTS, LABELS, batch_size=12, return_dict=True, verbose=0)
    expected = {
        "loss": weight * bits.mean() + cross_entropy.mean() / np.log(2.), "bits_per_dim": bits.mean() / NUM_DIMS,
        "cross_entropy": cross_entropy.mean(), "accuracy": (probabilities.argmax(-1) == LABELS).mean()}
    assert results == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_a_classifier_alone_needs_no_log_det(monkeypatch):
  """Neither for training nor for class probabilities. No estimate is made whose NaN could reach a gradient."""
  model = small_models.compiled(_model(_residual(), 0., None))
  monkeypatch.setattr(log_det.SeriesEstimator, "evaluate", None)
  model.fit(POINTS.astype(np.float32), LABELS, verbose=0)
  model.class_probabilities(POINTS.astype(np.float32))
  with pytest.raises(TypeError, match="not callable"):
    model.evaluate(POINTS.astype(np.float32), LABELS, verbose=0)


def _gradients_of_formula(model, weight):
  with tf.GradientTape() as tape:
    logits = model.classifier(_features(model.distribution.bijector, tf.constant(POINTS)))
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, logits))
    if weight:
      loss -= weight * tf.reduce_mean(model.distribution.log_prob(POINTS, bijector_kwargs={"training": True}))
  gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
  return [gradient / np.log(2.) for gradient in map(tf.convert_to_tensor, gradients)]


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("weight", [0., 0.3])
@pytest.mark.parametrize("name", FLOWS)
def test_gradients(name, weight):
  """Gradients of a training step, for all weights of the likelihood, by the variables of flow and classifier."""
  model = small_models.compiled(_model(FLOWS[name]("float64"), weight, None), keras.optimizers.SGD(1e-3))
  model.adapt(POINTS)
  expected = _gradients_of_formula(model, weight)
  before = [v.numpy() for v in model.trainable_variables]
  history = model.fit(POINTS, LABELS, batch_size=12, shuffle=False, verbose=0).history
  # A classifier alone has no gradients by what it does not use.
  assert set(history) == {"loss", "cross_entropy", "accuracy"} | ({"bits_per_dim"} if weight else set())
  assert len(before) == len(model.distribution.trainable_variables) + 2 * 4 + 2
  for variable, value, gradient in zip(model.trainable_variables, before, expected):
    assert np.abs(gradient).max() > 1e-8, variable.path
    np.testing.assert_allclose((value - variable.numpy()) / 1e-3, gradient, rtol=1e-5, atol=1e-8, err_msg=variable.path)


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_initialisation():
  """The actnorms of the heads start from the first batch; a flow that is initialised stays as it is."""
  flow = _glow()
  flow.initialize(POINTS.astype(np.float32) / 2.)
  before = [v.numpy() for v in flow.trainable_variables]
  model = small_models.compiled(_model(flow, perturbed=False), keras.optimizers.SGD(0.))
  model.fit(IMAGES, LABELS, batch_size=12, shuffle=False, verbose=0)
  for variable, value in zip(flow.trainable_variables, before):
    np.testing.assert_array_equal(variable, value)
  assert model.classifier.initialized
  features = flow.inverse_with_features(tf.constant(POINTS, tf.float32))[2]
  for head, feature in zip(model.classifier.heads, features):
    sums = (head.sums(feature) + head.shift) * tf.exp(3. * head.log_scale)
    np.testing.assert_allclose(tf.reduce_mean(sums, [0, 1, 2]), 0., atol=0.1)
    np.testing.assert_allclose(tf.math.reduce_std(sums, [0, 1, 2]), 1., atol=0.1)
  model.adapt(IMAGES)
  assert max(np.abs(variable - value).max() for variable, value in zip(flow.trainable_variables, before)) > 0.1


def test_the_factor_of_log_scales_is_one_of_parameters_alone():
  features = [np.random.default_rng(0).normal(2., 3., [8, 2, 2, 3]).astype(np.float32)]
  heads, logits = [], []
  for factor in (1., 3.):
    classifier = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(_classifier(log_scale_factor=factor)))
    classifier.build([[None, 2, 2, 3]])
    classifier.initialize(features)
    heads.append(classifier.heads[0].log_scale.numpy())
    logits.append(classifier(features))
  np.testing.assert_allclose(heads[0], 3. * heads[1], rtol=1e-5)
  assert np.abs(heads[0]).max() > 0.1
  np.testing.assert_allclose(*logits, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_saved(tmp_path):
  """The loaded model has the same classifier, and trains on equally."""
  make = lambda: _model(likelihood_weight=0.3, classifier=_classifier(sources=(1, 0, 1)))
  model = small_models.compiled(make())
  model.fit(IMAGES, LABELS, verbose=0)
  model.save(tmp_path / "m.keras")
  model.save_weights(tmp_path / "m.weights.h5")
  others = [keras.models.load_model(tmp_path / "m.keras"), make()]
  others[1].load_weights(tmp_path / "m.weights.h5")
  for other in others:
    np.testing.assert_array_equal(other.class_probabilities(IMAGES), model.class_probabilities(IMAGES))
  histories = [m.fit(IMAGES, LABELS, shuffle=False, verbose=0).history for m in (model, others[0])]
  assert histories[0] == histories[1]


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0., 0.3])
def test_replicas_are_as_one_device(weight, request):
  """Also if one replica gets nothing of the last batch."""
  results = []
  for strategy in (distributed_runs.mirrored(2), tf.distribute.get_strategy()):
    if results:  # The one device, whose graphs take longer to trace than to replace.
      request.getfixturevalue("eagerly")
    with strategy.scope():
      model = small_models.compiled(_model(likelihood_weight=weight), keras.optimizers.SGD(1e-2))
    history = model.fit(IMAGES[:5], LABELS[:5], batch_size=4, shuffle=False, verbose=0).history
    metrics = model.evaluate(IMAGES[:5], LABELS[:5], batch_size=4, return_dict=True, verbose=0)
    results.append((history, metrics, model.class_probabilities(IMAGES)))
  keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.slow
def test_compiled_by_xla():
  losses = []
  for kwargs in ({"run_eagerly": True}, {"jit_compile": True}):
    model = small_models.compiled(_model(tfp_glow.GlowBijector(SHAPE, 1, 1, 4, seed=0)), **kwargs)
    losses.append([model.fit(IMAGES, LABELS, shuffle=False, verbose=0).history["loss"][0] for _ in range(2)])
  np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_saved_model(tmp_path):
  model = _model()
  model.export(tmp_path / "saved")
  signatures = tf.saved_model.load(tmp_path / "saved").signatures
  for images in (IMAGES, IMAGES[:0]):
    np.testing.assert_allclose(signatures["class_probabilities"](images=tf.constant(images))["class_probabilities"],
                               model.class_probabilities(images), rtol=1e-5)
  np.testing.assert_allclose(signatures["log_prob"](images=tf.constant(IMAGES))["log_prob"], model.log_prob(IMAGES),
                             rtol=1e-5)


@pytest.mark.usefixtures("eagerly")
def test_within_a_chain():
  """Parts between the data and the flow count for the features and for the likelihood."""
  flow = _glow()
  chain = tfp_glow.Chain([tfp.bijectors.Scale(2.), tfp_glow.ActNorm(1), flow])
  model = _model(chain)
  logits = _numpy_logits(model.classifier, [f.numpy() for f in _features(flow, chain.parts[1].inverse(
      tf.constant((IMAGES + 0.5) / 256. - 0.5, tf.float32) / 2.))])
  np.testing.assert_allclose(model.class_probabilities(IMAGES), _softmax(logits), rtol=1e-4)
  results = small_models.compiled(model).evaluate(IMAGES, LABELS, return_dict=True, verbose=0)
  assert results["bits_per_dim"] == pytest.approx(model.predict(IMAGES, verbose=0).mean(), rel=1e-5)


@pytest.mark.usefixtures("eagerly")
def test_labels():
  """Batches for loss and metrics have labels, as in the data pipelines; nothing else takes them."""
  model = small_models.compiled(_model())
  for call in (model.fit, model.evaluate):
    with pytest.raises(ValueError, match="`labels` must be given: the model has 3 classes"):
      call(IMAGES, verbose=0)
    with pytest.raises(ValueError, match="`labels` must be 12 integers in 0 .. 2"):
      call(IMAGES, LABELS + 1, verbose=0)
    with pytest.raises(TypeError, match="`labels` must be integers"):
      call(IMAGES, LABELS.astype(np.float32), verbose=0)
  with pytest.raises(ValueError, match="`labels` must be given"):
    model.test_on_batch(IMAGES)
  with pytest.raises(ValueError, match="`labels` must be given"):
    model.fit(IMAGES, LABELS, validation_data=(IMAGES,), verbose=0)
  results = [model.evaluate(data, return_dict=True, verbose=0) for data in (
      tf.data.Dataset.from_tensors((IMAGES, LABELS)), {"image": IMAGES, "label": LABELS})]
  assert results[0] == pytest.approx(results[1])
  with pytest.raises(ValueError, match="`labels` must be None"):
    model.log_prob(IMAGES, LABELS)
  with pytest.raises(ValueError, match="`labels` must be None"):
    model.sample(2, labels=1)
  assert model.num_classes is None and model.sample(2, seed=0).shape == (2, *SHAPE)
  np.testing.assert_array_equal(model.predict(tf.data.Dataset.from_tensors((IMAGES, LABELS)), verbose=0),
                                model.predict(IMAGES, verbose=0))


@pytest.mark.slow
def test_arguments_that_are_refused():
  flow = _glow()
  refused = [
      (ValueError, "`classifier` must be None for a class-conditional", {"distribution": _glow(num_classes=3)}),
      (ValueError, "`classifier` must be None for a distribution whose bijector has no features",
       {"distribution": small_models.gaussian(SHAPE)}),
      (ValueError, "`classifier` must be None for a distribution whose bijector has no features",
       {"distribution": small_models.residual_flow(), "num_bits": None}),
      (ValueError, "`weight_y` must be 0", {"distribution": _glow(num_classes=3), "weight_y": 1.}),
      (TypeError, "`classifier` must be a `ScaleClassifier`", {"classifier": keras.layers.Dense(3)}),
      (ValueError, "`sources` must be indices of the features", {"classifier": _classifier(sources=(0, 2))}),
      (ValueError, "`likelihood_weight` must be 1 without", {"classifier": None, "likelihood_weight": 0.}),
      *((ValueError, "`likelihood_weight` must be a finite number", {"likelihood_weight": weight})
        for weight in (-1., np.nan, np.inf, "1", True, None))]
  for error, match, kwargs in refused:
    with pytest.raises(error, match=f"{match}.*Received"):
      tfp_glow.FlowModel(**{"distribution": flow, "classifier": _classifier(), **kwargs})
  for match, kwargs in (("`sources` must be a sequence", {"sources": ()}), ("`sources`", {"sources": (-1,)}),
                        ("`sources`", {"sources": 1}), ("`num_channels`", {"num_channels": 0}),
                        ("`num_classes`", {"num_classes": 0.5}), ("`seed`", {"seed": -1}),
                        ("`log_scale_factor`", {"log_scale_factor": np.inf})):
    with pytest.raises(ValueError, match=f"{match}.*Received"):
      tfp_glow.ScaleClassifier(**{"num_classes": 3, **kwargs})
  built = _classifier()
  built.build([[None, 2, 2, 8], [None, 1, 1, 8]])
  with pytest.raises(ValueError, match="built for heads that see .2, 8. channels, in float32. Received: .*8, 8"):
    tfp_glow.FlowModel(flow, classifier=built)


def test_seeds_and_precision():
  """Same seed, same values; it computes in the flow's dtype, whatever the policy for networks."""
  policy = keras.config.dtype_policy()
  keras.config.set_dtype_policy("mixed_bfloat16")
  try:
    first, second, third = (_model(classifier=_classifier(seed=seed), perturbed=False) for seed in (5, 5, 6))
  finally:
    keras.config.set_dtype_policy(policy)
  assert first.classifier.compute_dtype == "float32"
  values = [[v.numpy() for v in model.classifier.trainable_variables] for model in (first, second, third)]
  keras.tree.map_structure(np.testing.assert_array_equal, values[0], values[1])
  assert not np.array_equal(values[0][0], values[2][0])
  for head, num_inputs in zip(first.classifier.heads, (2, 8)):
    assert 0.9 / np.sqrt(9 * num_inputs) < np.abs(head.kernel).max() <= 1. / np.sqrt(9 * num_inputs)


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_what_is_not_finite_is_named():
  model = small_models.compiled(_model(), keras.optimizers.SGD(1e-2))
  model.adapt(IMAGES)
  model.classifier.kernel.assign(np.nan * model.classifier.kernel)
  before = [v.numpy() for v in model.distribution.trainable_variables]
  with pytest.raises(FloatingPointError, match="step 1: the gradient of `.*` is not finite"):
    model.fit(IMAGES, LABELS, verbose=0)
  for variable, value in zip(model.distribution.trainable_variables, before):
    np.testing.assert_array_equal(variable, value)


def test_summary():
  lines = []
  _model().summary(print_fn=lines.append)
  row, = (line for line in lines if "ScaleClassifier" in line)
  assert row.endswith(f" {(9 * (2 + 8) * 4 + 2 * 3 * 4) + 2 * 4 * 3 + 3 + 1}")


@pytest.mark.slow
def test_learns_the_digits():
  train, test = (tfp_glow.data.load_images("digits", split, batch_size=128, with_labels=True, seed=0)
                 for split in ("train", "test"))
  flow = tfp_glow.GlowBijector((8, 8, 1), 2, 2, 16, seed=0)
  model = tfp_glow.FlowModel(flow, 4, classifier=tfp_glow.ScaleClassifier(10, 32, seed=0), likelihood_weight=1. / 64.)
  model.compile(keras.optimizers.Adam(3e-3))
  model.fit(train.repeat(6), verbose=0)
  results = model.evaluate(test, return_dict=True, verbose=0)
  assert results["accuracy"] > 0.85 and results["cross_entropy"] < 0.6 and results["bits_per_dim"] < 3.6

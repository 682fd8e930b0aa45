"""Bayes' rule from class-conditional densities; images of unknown class have the mean of these densities."""

import functools

import context_flows
import distributed_runs
import keras
import numpy as np
import pytest
import scipy.special
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import perturb
from context_flows import IMAGES, LABELS, MIDPOINTS, NUM_CLASSES, NUM_VALUES, VECTORS
from counted_networks import Count, CountedNetwork

import tfp_glow

tfb = tfp.bijectors
pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
PARTLY = np.where(np.arange(12) % 4 == 1, -1, LABELS).astype(np.int32)
UNKNOWN = PARTLY == -1
NOISE = tfp_glow.dequantize.image_noise(tf.constant(IMAGES), (0, -1)).numpy()


class Relabelling(context_flows.AffineOfContext):
  """A flow that finds the latents under another class without another pass."""

  def relabelled(self, z, labels, new_labels, context=None):
    y, log_det = self._forward_and_log_det(z, labels, context)
    found = [self._inverse_and_log_det(y, new_labels[:, k], context) for k in range(new_labels.shape[1])]
    return tf.stack([z for z, _ in found], axis=1), tf.stack([log_det + more for _, more in found], axis=1)


def _pair(**kwargs):
  """A chain of two flows with classes: one of them alone cannot tell what another class changes."""
  return tfp_glow.Chain([context_flows.AffineOfContext(context_shape=None, num_classes=NUM_CLASSES, seed=1),
                         Relabelling(num_classes=NUM_CLASSES)])


FLOWS = {"a pass for each class": functools.partial(context_flows.AffineOfContext, num_classes=NUM_CLASSES),
         "relabelled": functools.partial(Relabelling, num_classes=NUM_CLASSES),
         "within a chain": lambda: tfp_glow.Chain([tfb.Shift(0.25), Relabelling(num_classes=NUM_CLASSES)]),
         "two that know the class": _pair}


def _model(name, optimizer=None, **options):
  return small_models.compiled(tfp_glow.FlowModel(FLOWS[name]()), optimizer or keras.optimizers.SGD(1e-2),
                               **{"run_eagerly": True, **options})


@functools.cache
def _shared(name):
  return _model(name)


def _of_classes(model, noise=0.5):
  """Log-probabilities `[N, num_classes]`, by one call of the distribution for each class."""
  values = tf.constant((IMAGES + noise) / 256. - 0.5, tf.float32)
  found = [model.distribution.log_prob(values, bijector_kwargs={
      "labels": tf.fill([12], label), "context": tf.constant(VECTORS)}) for label in range(NUM_CLASSES)]
  return np.stack(found, axis=1) - NUM_VALUES * 8 * np.log(2.)


def _partly_known(of_classes, labels=PARTLY):
  """Log-probabilities `[N]`; for unknown classes by a sum over all classes."""
  marginal = scipy.special.logsumexp(of_classes, axis=1) - np.log(NUM_CLASSES)
  return np.where(labels == -1, marginal, of_classes[np.arange(12), labels])


# Values.


def test_the_sum_over_classes_is_that_of_formulas():
  model = _shared("relabelled")
  flow = model.distribution.bijector
  by_hand = np.stack([context_flows.log_prob(flow, MIDPOINTS, np.full([12], label), VECTORS)
                      for label in range(NUM_CLASSES)], axis=1)
  np.testing.assert_allclose(model.log_prob(IMAGES, PARTLY, context=VECTORS), _partly_known(by_hand), rtol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_unknown_classes(name):
  model = _shared(name)
  for labels in (PARTLY, np.full([12], -1), LABELS):
    np.testing.assert_allclose(model.log_prob(IMAGES, labels, context=VECTORS),
                               _partly_known(_of_classes(model), labels), rtol=1e-5)
  given = {"label": PARTLY.astype(np.int64), "context": VECTORS}
  bits = -_partly_known(_of_classes(model, NOISE)) / (NUM_VALUES * np.log(2.))
  np.testing.assert_allclose(model.predict({"image": IMAGES, **given}, batch_size=5, verbose=0), bits, rtol=1e-5)
  np.testing.assert_allclose(model.evaluate(IMAGES, given, batch_size=5, verbose=0, return_dict=True)["bits_per_dim"],
                             bits.mean(), rtol=1e-5)
  found = tfp_glow.evaluation.bits_per_dim(model, IMAGES, given, verbose=0)
  np.testing.assert_allclose(found.per_image, bits, rtol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_posterior(name):
  model = _shared(name)
  of_classes = _of_classes(model)
  found = model.class_posterior(IMAGES, context=VECTORS)
  np.testing.assert_allclose(found.sum(axis=1), 1., rtol=1e-5)
  np.testing.assert_allclose(found, scipy.special.softmax(of_classes, axis=1), rtol=1e-3, atol=1e-5)
  prior = np.array([0.7, 0., 0.3])
  expected = prior * np.exp(of_classes - of_classes.max(axis=1, keepdims=True))
  np.testing.assert_allclose(model.class_posterior(IMAGES, prior, VECTORS),
                             expected / expected.sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-5)


# Training.


def _gradients_of_a_step(model, labels=PARTLY):
  """Trains by plain gradient descent."""
  before = [v.numpy() for v in model.trainable_variables]
  model.train_on_batch(IMAGES, {"label": labels, "context": VECTORS})
  return [(old - v.numpy()) / model.optimizer.learning_rate.numpy()
          for old, v in zip(before, model.trainable_variables, strict=True)]


def _brute_force_gradients(model, labels=PARTLY):
  noise = tfp_glow.dequantize.image_noise(tf.constant(IMAGES), (0, 0))
  values = tfp_glow.dequantize.dequantize(IMAGES, 8, noise)
  with tf.GradientTape() as tape:
    of_classes = tf.stack([model.distribution.log_prob(values, bijector_kwargs={
        "labels": tf.fill([12], label), "context": tf.constant(VECTORS)}) for label in range(NUM_CLASSES)], axis=1)
    marginal = tf.reduce_logsumexp(of_classes, axis=1) - np.log(NUM_CLASSES)
    known = tf.gather(of_classes, np.maximum(labels, 0), batch_dims=1)
    loss = -tf.reduce_mean(tf.where(labels == -1, marginal, known)) / (NUM_VALUES * np.log(2.))
  return [tf.convert_to_tensor(g) for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("options", [{}, *(pytest.param(options, marks=pytest.mark.slow) for options in (
    {"run_eagerly": False}, {"run_eagerly": False, "jit_compile": True}))])
def test_gradients_of_a_step(name, options):
  model = _model(name, **options)
  model.adapt((IMAGES, {"context": VECTORS}))
  for labels in (PARTLY, LABELS):
    model.optimizer.iterations.assign(0)  # The noise is a function of it.
    expected = _brute_force_gradients(model, labels)
    for found, gradient in zip(_gradients_of_a_step(model, labels), expected, strict=True):
      np.testing.assert_allclose(found, gradient, rtol=1e-3, atol=1e-4)


def _glow_of_contexts():
  glow = tfp_glow.GlowBijector(small_models.SHAPE, 1, 1, 4, num_classes=NUM_CLASSES, seed=0, context_shape=(5,))
  perturb(glow, scale=0.1)
  return glow


@pytest.mark.parametrize("make", [FLOWS["a pass for each class"],
                                  pytest.param(_glow_of_contexts, marks=pytest.mark.slow)])
def test_gradients_of_images_and_contexts(make):
  """A user's own network may make the contexts, in graphs and eagerly."""
  model = tfp_glow.FlowModel(make(), num_bits=None)

  def find():
    images, context = tf.constant(MIDPOINTS, tf.float32), tf.constant(VECTORS)
    with tf.GradientTape() as tape:
      tape.watch([images, context])
      bits = model(images, tf.constant(PARTLY), context)
    return tape.gradient(bits, [images, context])

  for found, expected in zip(tf.function(find)(), find()):
    expected = np.asarray(expected)[UNKNOWN]
    np.testing.assert_allclose(np.asarray(found)[UNKNOWN], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name, jit_compile", [("relabelled", True), ("a pass for each class", False)])
def test_replicas(name, jit_compile):
  found = []
  for strategy, options in ((tf.distribute.get_strategy(), {}),
                            (distributed_runs.mirrored(2), {"run_eagerly": False, "jit_compile": jit_compile})):
    with strategy.scope():
      model = _model(name, **options)
      model.adapt((IMAGES, {"context": VECTORS}))
    model.fit(IMAGES, {"label": PARTLY, "context": VECTORS}, batch_size=6, shuffle=False, verbose=0)
    found.append(small_models.weights_of(model))
  for one, two in zip(*found, strict=True):
    np.testing.assert_allclose(one, two, atol=1e-6)


# Cost.


def _runs(network_runs, call):
  call()  # Traced.
  network_runs.runs = 0
  call()
  return network_runs.runs


@pytest.mark.slow
@pytest.mark.parametrize("make, most", [(lambda glow: glow, 1),
                                        (lambda glow: tfp_glow.Chain([tfb.Shift(0.25), glow]), 1),
                                        (lambda glow: tfp_glow.Invert(tfp_glow.Invert(glow)), 1 + NUM_CLASSES)])
def test_passes_through_a_glow(make, most):
  count = Count()
  glow = tfp_glow.GlowBijector(small_models.SHAPE, 1, 1, 4, num_classes=NUM_CLASSES, seed=0,
                               network_fn=lambda n: CountedNetwork(n, count))
  perturb(glow, scale=0.2)
  model = small_models.compiled(tfp_glow.FlowModel(make(glow)), keras.optimizers.SGD(1e-3))
  model.adapt(IMAGES)
  assert _runs(count, lambda: model.test_on_batch(IMAGES, LABELS)) == 1
  assert _runs(count, lambda: model.train_on_batch(IMAGES, LABELS)) == 1
  assert _runs(count, lambda: model.test_on_batch(IMAGES, PARTLY)) == most
  assert _runs(count, lambda: model.train_on_batch(IMAGES, PARTLY)) <= 2 * most - 1  # At most one pass is repeated.
  assert _runs(count, lambda: model.class_posterior(IMAGES)) == most
  of_classes = np.stack([model.log_prob(IMAGES, np.full([12], label)) for label in range(NUM_CLASSES)], axis=1)
  np.testing.assert_allclose(model.log_prob(IMAGES, PARTLY), _partly_known(of_classes), rtol=1e-5)
  np.testing.assert_allclose(model.class_posterior(IMAGES), scipy.special.softmax(of_classes, axis=1), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("make, context_shape, jit_compile", [
    (lambda glow: glow, None, False), (lambda glow: glow, (5,), True),
    (lambda glow: tfp_glow.Invert(tfp_glow.Invert(glow)), None, True)])
def test_gradients_of_a_glow(make, context_shape, jit_compile):
  glow = tfp_glow.GlowBijector(small_models.SHAPE, 1, 2, 4, num_classes=3, seed=0, context_shape=context_shape)
  context = {} if context_shape is None else {"context": tf.constant(VECTORS)}
  model = small_models.compiled(tfp_glow.FlowModel(make(glow)), keras.optimizers.SGD(1e-2), jit_compile=jit_compile)
  model.adapt((IMAGES, context))
  perturb(glow, scale=0.1)
  values = tfp_glow.dequantize.dequantize(IMAGES, 8, tfp_glow.dequantize.image_noise(tf.constant(IMAGES), (0, 0)))
  with tf.GradientTape() as tape:
    of_classes = tf.stack([model.distribution.log_prob(values, bijector_kwargs={
        "labels": tf.fill([12], label), **context}) for label in range(NUM_CLASSES)], axis=1)
    marginal = tf.reduce_logsumexp(of_classes, axis=1)
    known = tf.gather(of_classes, np.maximum(PARTLY, 0), batch_dims=1)
    loss = -tf.reduce_mean(tf.where(UNKNOWN, marginal, known)) / (NUM_VALUES * np.log(2.))
  expected = tape.gradient(loss, [v.value for v in model.trainable_variables])
  before = [v.numpy() for v in model.trainable_variables]
  model.train_on_batch(IMAGES, {"label": PARTLY, **context})
  for old, variable, gradient in zip(before, model.trainable_variables, expected, strict=True):
    gradient = tf.convert_to_tensor(gradient).numpy()
    np.testing.assert_allclose((old - variable.numpy()) / 1e-2, gradient, rtol=1e-3, atol=1e-4 * abs(gradient).max())


# With a classifier.


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["one", "two"])
def test_images_without_labels_do_not_count_for_the_classifier(strategy):
  strategy = tf.distribute.get_strategy() if strategy == "one" else distributed_runs.mirrored(2)
  with strategy.scope():
    distribution = small_models.distribution(num_steps_per_block=1, num_classes=NUM_CLASSES)
    model = small_models.compiled(tfp_glow.FlowModel(distribution, weight_y=0.5), keras.optimizers.SGD(0.))
    perturb(distribution.bijector, scale=0.2)
    distribution.bijector.mark_initialized()
  model.classifier.kernel.assign(np.random.default_rng(0).normal(size=model.classifier.kernel.shape))
  probabilities = model.class_probabilities(IMAGES)[~UNKNOWN]
  known = LABELS[~UNKNOWN]
  bits_y = -np.log2(probabilities[np.arange(len(known)), known])
  found = model.fit(IMAGES, PARTLY, batch_size=6, shuffle=False, verbose=0).history
  evaluated = model.evaluate(IMAGES, PARTLY, batch_size=6, verbose=0, return_dict=True)
  for results in ({key: value[0] for key, value in found.items()}, evaluated):
    # The class hardly depends on whether values are midpoints or have noise.
    np.testing.assert_allclose(results["bits_y"], bits_y.mean(), rtol=0.02)
    np.testing.assert_allclose(results["accuracy"], (probabilities.argmax(-1) == known).mean(), atol=0.01)
    np.testing.assert_allclose(results["loss"], results["bits_per_dim"] + 0.5 * results["bits_y"] * (~UNKNOWN).mean(),
                               rtol=1e-5)
  np.testing.assert_allclose(evaluated["bits_per_dim"], model.predict(
      tf.data.Dataset.from_tensors((IMAGES, PARTLY)), verbose=0).mean(), rtol=1e-5)


def test_hybrid_models_learn_from_images_without_labels():
  glow = tfp_glow.GlowBijector(small_models.SHAPE, 1, 1, 4, seed=0)
  classifier = tfp_glow.ScaleClassifier(num_classes=NUM_CLASSES, num_channels=4, seed=0)
  model = small_models.compiled(tfp_glow.FlowModel(glow, classifier=classifier), run_eagerly=True)
  model.adapt(IMAGES)
  known = model.evaluate(IMAGES[~UNKNOWN], LABELS[~UNKNOWN], verbose=0, return_dict=True)
  found = model.evaluate(IMAGES, PARTLY, verbose=0, return_dict=True)
  for key in ("cross_entropy", "accuracy"):
    np.testing.assert_allclose(found[key], known[key], rtol=1e-5)
  bits_y = found["cross_entropy"] * (~UNKNOWN).mean() / np.log(2.)
  np.testing.assert_allclose(found["loss"], NUM_VALUES * found["bits_per_dim"] + bits_y, rtol=1e-5)


# What is refused.


def test_unknown_classes_have_no_latents():
  model = _shared("relabelled")
  for call in (lambda: model.encode(IMAGES, PARTLY, VECTORS), lambda: model.sample(12, labels=PARTLY, context=VECTORS),
               lambda: model.decode(np.zeros([12, *small_models.SHAPE]), PARTLY, VECTORS)):
    with pytest.raises(ValueError, match=r"`labels` must be 12 integers in 0 \.\. 2 \(-1, an unknown class, is for"):
      call()


@pytest.mark.parametrize("labels", [LABELS - 2, LABELS + 1, np.int64(LABELS) + 2**32, np.int64(LABELS) - 2**32])
def test_labels_out_of_range(labels):
  model = _shared("relabelled")
  given = {"label": labels, "context": VECTORS}
  for call in (lambda: model.log_prob(IMAGES, labels, context=VECTORS), lambda: model.fit(IMAGES, given, verbose=0)):
    with pytest.raises(ValueError, match=r"`labels` must be 12 integers in 0 \.\. 2, or -1 for an image of unknown"):
      call()
  with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=r"`labels` must lie in 0 \.\. 2"):
    model.evaluate(tf.data.Dataset.from_tensors((IMAGES, given)), verbose=0)


@pytest.mark.parametrize("prior", [[0.5, 0.5], [0.5, 0.6, 0.1], [1.5, -0.5, 0.], [np.nan, 0.5, 0.5], "abc", 1., {}])
def test_priors(prior):
  with pytest.raises(ValueError, match="`prior` must be 3 probabilities whose sum is 1, or None. Received: "):
    _shared("relabelled").class_posterior(IMAGES, prior, VECTORS)


def test_a_model_without_classes_has_no_posterior():
  with pytest.raises(ValueError, match="`distribution` must be class-conditional"):
    tfp_glow.FlowModel(small_models.gaussian()).class_posterior(IMAGES)

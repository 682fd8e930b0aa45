"""The classifier on the top latent of a class-conditional Glow. Against the original's numbers: `test_original.py`."""

import distributed_runs
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
IMAGES = small_models.images()
LABELS = (np.arange(24) % 3).astype(np.int32)
WEIGHT = 0.5


def _model(**kwargs):
  return tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1, num_classes=3), weight_y=WEIGHT, **kwargs)


def _randomize(model, seed=0):
  rng = np.random.default_rng(seed)
  for variable in model.trainable_variables:
    variable.assign(variable + 0.1 * rng.normal(size=variable.shape).astype(np.float32))
  return model


@pytest.mark.slow
def test_loss_and_metrics():
  model = small_models.compiled(_randomize(_model()))
  results = model.evaluate(IMAGES, LABELS, batch_size=7, return_dict=True, verbose=0)
  assert set(results) == {"loss", "bits_per_dim", "bits_y", "accuracy"}
  np.testing.assert_allclose(results["bits_per_dim"], model.predict(
      tf.data.Dataset.from_tensors((IMAGES, LABELS)), verbose=0).mean(), rtol=1e-5)
  np.testing.assert_allclose(results["loss"], results["bits_per_dim"] + WEIGHT * results["bits_y"], rtol=1e-5)
  # The class hardly depends on whether values are midpoints or have noise.
  probabilities = model.class_probabilities(IMAGES)
  np.testing.assert_allclose(probabilities.sum(-1), 1., rtol=1e-5)
  expected = -np.log2(probabilities[np.arange(24), LABELS]).mean()
  np.testing.assert_allclose(results["bits_y"], expected, rtol=1e-3)
  np.testing.assert_allclose(results["accuracy"], (probabilities.argmax(-1) == LABELS).mean(), atol=0.05)


def test_starts_with_no_opinion():
  np.testing.assert_allclose(_model().class_probabilities(IMAGES), 1. / 3., rtol=1e-6)


def test_class_probabilities_do_not_depend_on_the_labels():
  model = _randomize(_model())
  glow = model.distribution.bijector
  x = tf.constant(IMAGES, tf.float32) / 256. - 0.5
  features = [glow.class_features(glow.inverse(x, labels=labels), labels=labels).numpy()
              for labels in (LABELS, (LABELS + 1) % 3)]
  np.testing.assert_allclose(*features, atol=1e-5)


@pytest.mark.slow
def test_learns_the_classes():
  images = np.concatenate([small_models.images(32), 255 - small_models.images(32)])
  labels = np.repeat([0, 1], 32)
  model = tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1, num_classes=2), weight_y=1.)
  model.compile(keras.optimizers.Adam(3e-3))
  before = model.evaluate(images, labels, return_dict=True, verbose=0)
  model.fit(images, labels, epochs=20, verbose=0)
  after = model.evaluate(images, labels, return_dict=True, verbose=0)
  assert before["bits_y"] == pytest.approx(1.)
  assert after["bits_y"] < 0.7 and after["accuracy"] > 0.9


@pytest.mark.slow
def test_the_flow_learns_from_the_classifier():
  """Gradients of `bits_y` reach not only the classifier but also the steps of flow."""
  steps = []
  for weight_y in (0., 100.):
    distribution = small_models.distribution(num_steps_per_block=1, num_classes=3)
    model = _randomize(tfp_glow.FlowModel(distribution, weight_y=weight_y))
    small_models.compiled(model, keras.optimizers.SGD(1e-3), run_eagerly=True).fit(IMAGES, LABELS, verbose=0)
    steps.append(model.distribution.bijector.blocks[0].trainable_variables[0].numpy())
  assert np.abs(steps[0] - steps[1]).max() > 1e-4


@pytest.mark.slow
def test_one_pass():
  """Loss and classifier come from one evaluation of each network."""
  calls = []

  class Counted(keras.layers.Layer):
    """Counts calls when they run, not when they are traced."""

    def build(self, input_shape):
      self.kernel = self.add_weight(shape=(input_shape[-1], self.filters), initializer="zeros")

    def __init__(self, filters):
      super().__init__()
      self.filters = filters

    def call(self, x):
      tf.py_function(lambda: calls.append(1), [], [])
      return x @ self.kernel

  distribution = small_models.distribution(num_classes=3, network_fn=Counted)
  model = tfp_glow.FlowModel(distribution, weight_y=WEIGHT)
  model.compile("sgd")
  model.adapt((IMAGES, LABELS))
  calls.clear()
  model.evaluate(IMAGES, LABELS, batch_size=24, verbose=0)
  assert len(calls) == 2  # One for each step of flow.
  calls.clear()
  model.fit(IMAGES, LABELS, batch_size=24, verbose=0)
  assert len(calls) == 2


@pytest.mark.slow
def test_on_two_replicas():
  results = []
  for strategy in (tf.distribute.get_strategy(), distributed_runs.mirrored(2)):
    with strategy.scope():
      distribution = small_models.distribution(num_steps_per_block=1, num_classes=3)
      model = tfp_glow.FlowModel(distribution, weight_y=WEIGHT)
      model.compile(keras.optimizers.SGD(0.1), run_eagerly=strategy.num_replicas_in_sync == 1)
    history = model.fit(IMAGES, LABELS, batch_size=12, shuffle=False, verbose=0).history
    metrics = model.evaluate(IMAGES, LABELS, batch_size=12, return_dict=True, verbose=0)
    results.append((history, metrics, model.classifier.kernel.numpy()))
  keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.slow
def test_weights_are_saved(tmp_path):
  model = _randomize(_model())
  model.save_weights(tmp_path / "m.weights.h5")
  other = _model()
  other.load_weights(tmp_path / "m.weights.h5")
  np.testing.assert_array_equal(other.class_probabilities(IMAGES), model.class_probabilities(IMAGES))


@pytest.mark.parametrize("weight_y", [-1., np.nan, np.inf, "1", True, None])
def test_bad_weight(weight_y):
  with pytest.raises(ValueError, match="`weight_y` must be a finite number.*Received"):
    tfp_glow.FlowModel(small_models.distribution(num_classes=3), weight_y=weight_y)


@pytest.mark.parametrize("make", [small_models.distribution, small_models.gaussian])
def test_without_classes(make):
  with pytest.raises(ValueError, match="`weight_y` must be 0 for a distribution.*Received: 0.5"):
    tfp_glow.FlowModel(make(), weight_y=WEIGHT)
  with pytest.raises(ValueError, match="`weight_y` must be positive"):
    tfp_glow.FlowModel(make()).class_probabilities(IMAGES)


def test_label_out_of_range():
  model = small_models.compiled(_model())
  for call in (model.fit, model.evaluate):
    with pytest.raises(ValueError, match="`labels` must be 24 integers in 0 .. 2"):
      call(IMAGES, LABELS + 1, verbose=0)

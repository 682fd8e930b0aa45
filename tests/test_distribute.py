"""Two replicas on the two logical CPU devices of `conftest.py`."""

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow

IMAGES = small_models.images(20)
pytestmark = pytest.mark.slow


def _train(strategy, **kwargs):
  with strategy.scope():
    model = small_models.compiled(tfp_glow.FlowModel(small_models.distribution(**kwargs)), keras.optimizers.Adam(1e-2))
  # The last of the batches of 8, 8 and 4 is small.
  history = model.fit(IMAGES, batch_size=8, epochs=2, shuffle=False, validation_data=(IMAGES[:7],), verbose=0).history
  return model, history


@pytest.fixture(scope="module")
def models():
  replicas = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  assert replicas.num_replicas_in_sync == 2
  return _train(tf.distribute.get_strategy()), _train(replicas)


def test_loss_is_that_of_one_device(models):
  (_, single), (_, mirrored) = models
  for key in ("loss", "bits_per_dim", "val_bits_per_dim"):
    np.testing.assert_allclose(mirrored[key], single[key], rtol=1e-5)


def test_weights_are_those_of_one_device(models):
  (single, _), (mirrored, _) = models
  for a, b in zip(single.distribution.variables, mirrored.distribution.variables):
    np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5, err_msg=a.name)


def test_replicas_are_equal(models):
  _, (mirrored, _) = models
  for variable in mirrored.distribution.variables:
    first, second = [copy.numpy() for copy in variable.values]
    np.testing.assert_array_equal(first, second, err_msg=variable.name)


def test_evaluation_sampling_and_export_work_with_replicas(models, tmp_path):
  (single, _), (mirrored, _) = models
  np.testing.assert_allclose(mirrored.predict(IMAGES, batch_size=8, verbose=0),
                             single.predict(IMAGES, batch_size=8, verbose=0), rtol=1e-4)
  np.testing.assert_array_equal(mirrored.decode(mirrored.encode(IMAGES)), IMAGES)
  assert mirrored.sample(2, seed=0).shape == (2, *small_models.SHAPE)
  mirrored.export(tmp_path / "saved_model")
  answer = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["log_prob"](images=tf.constant(IMAGES))
  np.testing.assert_allclose(answer["log_prob"], mirrored.log_prob(IMAGES), rtol=1e-5)


def test_reversible_gradients_with_replicas(models):
  (_, expected), _ = models
  model, found = _train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), gradient="reversible")
  for key in ("loss", "val_bits_per_dim"):
    np.testing.assert_allclose(found[key], expected[key], rtol=1e-4)
  for variable in model.distribution.variables:
    first, second = [copy.numpy() for copy in variable.values]
    np.testing.assert_array_equal(first, second, err_msg=variable.name)


def test_a_replica_without_images():
  """A batch smaller than the number of replicas."""
  histories = []
  for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
      model = small_models.compiled()
    histories.append(model.fit(IMAGES[:5], batch_size=4, epochs=2, shuffle=False, verbose=0).history["bits_per_dim"])
  np.testing.assert_allclose(histories[1], histories[0], rtol=1e-5)


def test_initialising_inside_a_replica_is_an_error():
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  with strategy.scope():
    actnorm = tfp_glow.ActNorm(2)
  with pytest.raises(RuntimeError, match="replicas"):
    strategy.run(lambda: actnorm.initialize(tf.ones([3, 4, 4, 2])))


def test_no_replica_updates_if_one_has_values_that_are_not_finite():
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  with strategy.scope():
    model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(), num_bits=None))
  images = np.random.default_rng(0).standard_normal([8, *small_models.SHAPE]).astype(np.float32)
  model.fit(images, batch_size=8, epochs=1, verbose=0)
  variables = [*model.distribution.variables, *(v.value for v in model.optimizer.variables)]
  before = [[copy.numpy() for copy in v.values] for v in variables]
  images[6, 1, 1, 1] = np.nan  # The second replica's half.
  with pytest.raises(FloatingPointError, match="step 2: a value of the images is not finite.*shape \\(4, 4, 4, 2\\)"):
    model.fit(images, batch_size=8, epochs=1, shuffle=False, verbose=0)
  for variable, copies in zip(variables, before):
    for copy, value in zip(variable.values, copies, strict=True):
      np.testing.assert_array_equal(copy.numpy(), value, err_msg=variable.name)

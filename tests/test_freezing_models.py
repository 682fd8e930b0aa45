"""`FlowModel`s with frozen parts: how they train, on replicas too, and when they must be compiled again."""

import distributed_runs
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from frozen_flows import IMAGES, SHAPE, VALUES, compile_eagerly, fit, make_glow, moved_by, names_of

import tfp_glow

tfb, tfd = tfp.bijectors, tfp.distributions


@pytest.mark.slow
def test_graphs_and_xla_keep_frozen_parts():
  model = tfp_glow.FlowModel(make_glow(gradient="reversible"))
  glow = model.distribution.bijector
  glow.blocks[0].trainable = False
  small_models.compiled(model, jit_compile=True)
  moved = moved_by(model, fit)
  assert moved == set(names_of(glow.trainable_variables)) and not any(name.startswith("block0") for name in moved)


@pytest.mark.slow
def test_replicas_train_with_frozen_parts_as_one_device():
  weights = []
  for strategy in (tf.distribute.get_strategy(), distributed_runs.mirrored(2)):
    with strategy.scope():
      glow = tfp_glow.GlowBijector(SHAPE, 1, 1, 4, seed=0)
      model = tfp_glow.FlowModel(glow)
      model.adapt(IMAGES)
      glow.blocks[0].template.coupling.trainable = False
      small_models.compiled(model, keras.optimizers.Adam(1e-2, epsilon=1e-4))
    moved = moved_by(model, lambda model: model.fit(IMAGES, batch_size=8, shuffle=False, verbose=0))
    assert moved and not any("_network_" in name for name in moved)
    weights.append(distributed_runs.values_of(model))
  for a, b in zip(*weights, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  for variable in model.distribution.variables:
    np.testing.assert_array_equal(*(copy.numpy() for copy in variable.values), err_msg=variable.name)


@pytest.mark.slow
def test_the_model_must_be_compiled_again():
  model = compile_eagerly(tfp_glow.FlowModel(make_glow()))
  block = model.distribution.bijector.blocks[1]
  block.trainable = False
  for train in (fit, lambda model: model.train_on_batch(IMAGES)):
    with pytest.raises(ValueError, match=r"compile the model again\. Received: block1_\S+ frozen, .* and \d+ others"):
      train(model)
  assert len(model.predict(IMAGES, verbose=0)) == len(IMAGES)
  block.trainable = True
  fit(model)
  block.template.coupling.network.trainable = False
  with pytest.raises(ValueError, match=r"compile the model again\. Received: block1_\S*network\S* frozen"):
    fit(model)
  compile_eagerly(model)
  assert not any("block1" in name and "network" in name for name in moved_by(model, fit))


@pytest.mark.slow
def test_a_compile_that_fails_changes_nothing():
  model = compile_eagerly(tfp_glow.FlowModel(make_glow()))
  model.distribution.bijector.top.trainable = False
  for options in ({"jit_compile": "no"}, {"unknown": 1}):
    with pytest.raises((TypeError, ValueError)):
      model.compile(**options)
    with pytest.raises(ValueError, match=r"compile the model again\. Received: top_"):
      fit(model)


def test_a_classifier_that_is_frozen_after_compile():
  classifier = tfp_glow.ScaleClassifier(num_classes=3, num_channels=4, seed=0)
  model = compile_eagerly(tfp_glow.FlowModel(make_glow(), classifier=classifier))
  classifier.trainable = False
  with pytest.raises(ValueError, match=r"compile the model again\. Received: \S*head0_kernel frozen.* and 7 others"):
    model.fit(IMAGES, np.arange(24) % 3, verbose=0)


@pytest.mark.slow
def test_parts_are_found_once(monkeypatch):
  """Looking for them takes longer than a step of a small model."""
  chain = tfp_glow.Chain([tfb.Shift(tf.Variable(tf.zeros(SHAPE))), make_glow()])
  model = small_models.compiled(tfp_glow.FlowModel(chain))
  model.adapt(IMAGES)
  model.train_on_batch(IMAGES)

  def walk(*args, **kwargs):
    raise AssertionError("`tf.Module` walks all parts")

  monkeypatch.setattr(tf.Module, "_flatten", walk)
  model.train_on_batch(IMAGES)
  chain.inverse_and_log_det(VALUES)


def test_compositions_of_tfp_cannot_be_frozen():
  chain = tfb.Chain([make_glow()])
  model = tfp_glow.FlowModel(chain)
  chain.trainable = False  # Python allows it.
  with pytest.raises(ValueError, match="`trainable` must be set on a part of this package.*Received: .*chain"):
    model.compile()


def test_the_model_follows_at_once():
  model = tfp_glow.FlowModel(make_glow())
  count = len(model.trainable_variables)
  glow = model.distribution.bijector
  glow.top.trainable = False
  assert len(model.trainable_variables) == count - 3
  glow.blocks[0].template.actnorm.trainable = False
  assert len(model.trainable_variables) == len(model.distribution.trainable_variables) == count - 5
  lines = []
  model.summary(print_fn=lines.append, show_trainable=True)
  assert next(line for line in lines if "top (TopPrior)" in line).endswith("no")
  assert next(line for line in lines if "split0" in line).endswith("yes")


def test_a_model_without_trained_parts():
  glow = make_glow()
  glow.trainable = False
  model = compile_eagerly(tfp_glow.FlowModel(glow))
  assert np.all(np.isfinite(model.predict(IMAGES, verbose=0)))
  with pytest.raises(ValueError, match="nothing to train"):
    fit(model)


@pytest.mark.slow
def test_a_classifier_of_a_frozen_flow():
  glow = make_glow()
  glow.trainable = False
  classifier = tfp_glow.ScaleClassifier(num_classes=3, num_channels=4, seed=0)
  model = compile_eagerly(tfp_glow.FlowModel(glow, classifier=classifier, likelihood_weight=0.))
  before = [v.numpy() for v in classifier.trainable_variables]
  assert not moved_by(model, lambda model: model.fit(IMAGES, np.arange(24) % 3, verbose=0))
  assert any(np.any(v.numpy() != old) for v, old in zip(classifier.trainable_variables, before))

"""Parts of a flow that are frozen: by `trainable` of bijectors, and of the layers of their networks."""

import distributed_runs
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import perturb

import tfp_glow
from tfp_glow import callbacks
from tfp_glow.bijectors import ownership

tfb, tfd = tfp.bijectors, tfp.distributions
SHAPE = (4, 4, 1)
IMAGES = small_models.images(24, SHAPE)
VALUES = IMAGES.astype(np.float32) / 256. - 0.5


def _glow(**kwargs):
  glow = tfp_glow.GlowBijector(SHAPE, 2, 2, 4, **{"seed": 0, **kwargs})
  perturb(glow)  # Or many gradients would be zero.
  glow.mark_initialized()
  return glow


def _distribution(bijector):
  return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [16]), bijector)


def _compiled(model, optimizer=None):
  return small_models.compiled(model, optimizer, run_eagerly=True)


def _names(variables):
  return [v.name for v in variables]


def _moved(model, train):
  """The names of the variables that training changes."""
  before = [v.numpy() for v in model.distribution.variables]
  train(model)
  return {v.name for v, old in zip(model.distribution.variables, before) if np.any(v.numpy() != old)}


def _fit(model):
  model.fit(IMAGES, batch_size=12, shuffle=False, verbose=0)


# What can be frozen, and of which variables it is said to be.


def _freeze_networks(glow):
  for block in glow.blocks:
    block.template.coupling.network.trainable = False  # Keras' own.


def _set(part):
  def freeze(glow):
    part(glow).trainable = False
  return freeze


FROZEN = {
    "level": (_set(lambda glow: glow.blocks[0]), lambda name: name.startswith("block0")),
    "actnorms of a level": (_set(lambda glow: glow.blocks[1].template.actnorm),
                            lambda name: name.startswith("block1") and "_actnorm_" in name),
    "couplings of a level": (_set(lambda glow: glow.blocks[1].template.coupling),
                             lambda name: name.startswith("block1") and "_network_" in name),
    "networks": (_freeze_networks, lambda name: "_network_" in name),
    "split": (_set(lambda glow: glow.splits[0]), lambda name: "split0" in name),
    "top": (_set(lambda glow: glow.top), lambda name: name.startswith("top"))}


def _gradients(distribution):
  """By the names of all variables; `None` of those that have none."""
  with tf.GradientTape() as tape:
    loss = tf.reduce_mean(distribution.log_prob(VALUES))
  gradients = tape.gradient(loss, distribution.variables)
  return {v.name: None if g is None else g.numpy() for v, g in zip(distribution.variables, gradients)}


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["autodiff", "reversible"])
@pytest.mark.parametrize("freeze, is_frozen", FROZEN.values(), ids=FROZEN)
def test_frozen_parts_have_no_gradients_and_others_have_the_same(freeze, is_frozen, gradient):
  glow = _glow(gradient=gradient)
  distribution = _distribution(glow)
  expected = _gradients(distribution)
  trained = _names(distribution.trainable_variables)
  freeze(glow)
  found = _gradients(distribution)
  assert 0 < len([name for name in trained if is_frozen(name)]) < len(trained)
  assert {name for name in trained if found[name] is None} == {name for name in trained if is_frozen(name)}
  for name in trained:
    if not is_frozen(name):
      np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
  left = [name for name in trained if not is_frozen(name)]
  assert _names(distribution.trainable_variables) == _names(glow.trainable_variables) == left


@pytest.mark.slow
@pytest.mark.parametrize("freeze, is_frozen", FROZEN.values(), ids=FROZEN)
def test_frozen_parts_do_not_move(freeze, is_frozen):
  glow = _glow()
  freeze(glow)
  model = tfp_glow.FlowModel(glow)
  trained = set(_names(v for v in glow.variables if v.trainable))
  optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.1, use_ema=True, ema_momentum=0.5)
  _compiled(model, optimizer)
  assert _moved(model, _fit) == trained and not any(map(is_frozen, trained))
  count = len(model.trainable_variables)
  assert count == len(trained)
  assert len(optimizer.variables) == 2 + 3 * count  # Steps, rate; of each variable two moments and its average.


@pytest.mark.slow
def test_graphs_and_xla_keep_frozen_parts():
  model = tfp_glow.FlowModel(_glow(gradient="reversible"))
  glow = model.distribution.bijector
  glow.blocks[0].trainable = False
  small_models.compiled(model, jit_compile=True)
  moved = _moved(model, _fit)
  assert moved == set(_names(glow.trainable_variables)) and not any(name.startswith("block0") for name in moved)


@pytest.mark.slow
def test_the_frozen_are_as_on_one_device_on_replicas():
  weights = []
  for strategy in (tf.distribute.get_strategy(), distributed_runs.mirrored(2)):
    with strategy.scope():
      glow = tfp_glow.GlowBijector(SHAPE, 1, 1, 4, seed=0)
      model = tfp_glow.FlowModel(glow)
      model.adapt(IMAGES)
      glow.blocks[0].template.coupling.trainable = False
      small_models.compiled(model, keras.optimizers.Adam(1e-2, epsilon=1e-4))
    moved = _moved(model, lambda model: model.fit(IMAGES, batch_size=8, shuffle=False, verbose=0))
    assert moved and not any("_network_" in name for name in moved)
    weights.append(distributed_runs.values_of(model))
  for a, b in zip(*weights, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  for variable in model.distribution.variables:
    np.testing.assert_array_equal(*(copy.numpy() for copy in variable.values), err_msg=variable.name)


# As in Keras.


def test_unfreezing_has_all_trained_that_was_before():
  glow = _glow()
  expected = _names(glow.trainable_variables)
  assert glow.trainable and glow.blocks[0].trainable
  glow.trainable = False
  assert not glow.trainable_variables and not glow.blocks[0].trainable and not glow.top.trainable
  assert not glow.blocks[0].template.coupling.network.trainable
  glow.top.trainable = True
  assert glow.trainable and not glow.blocks[0].trainable
  glow.trainable = True  # Also where it is `True` of a part already.
  assert _names(glow.trainable_variables) == expected and glow.blocks[0].trainable


@pytest.mark.parametrize("is_frozen", [False, True])
def test_gradients_of_the_way_back(is_frozen):
  """Which is recalled, so that its gradients take an evaluation with the weights of the way there."""
  flow = tfp_glow.VectorFlowBijector(3, num_steps=1, num_hidden=4, seed=0)
  perturb(flow)
  flow.parts[2].trainable = not is_frozen
  x, weights = tf.random.stateless_normal([5, 3], [0, 1]), tf.random.stateless_normal([5, 3], [0, 2])
  with tf.GradientTape() as tape:
    tape.watch(x)
    loss = tf.reduce_sum(weights * flow.inverse(flow.forward(x)))
  np.testing.assert_allclose(tape.gradient(loss, x), weights, atol=1e-5)
  assert bool(flow.trainable_variables) != is_frozen


def test_what_is_none_of_the_two():
  with pytest.raises(ValueError, match="`trainable` must be a `bool`. Received: 'no'"):
    _glow().trainable = "no"


def test_what_has_nothing_to_train_remembers():
  squeeze = tfp_glow.Squeeze()
  squeeze.trainable = False
  assert not squeeze.trainable


@pytest.mark.slow
def test_the_model_must_be_compiled_again():
  model = _compiled(tfp_glow.FlowModel(_glow()))
  block = model.distribution.bijector.blocks[1]
  block.trainable = False
  for train in (_fit, lambda model: model.train_on_batch(IMAGES)):
    with pytest.raises(ValueError, match=r"compile the model again\. Received: block1_\S+ frozen, .* and \d+ others"):
      train(model)
  assert len(model.predict(IMAGES, verbose=0)) == len(IMAGES)
  block.trainable = True
  _fit(model)
  block.template.coupling.network.trainable = False
  with pytest.raises(ValueError, match=r"compile the model again\. Received: block1_\S*network\S* frozen"):
    _fit(model)
  _compiled(model)
  assert not any("block1" in name and "network" in name for name in _moved(model, _fit))


@pytest.mark.slow
def test_a_compile_that_fails_changes_nothing():
  model = _compiled(tfp_glow.FlowModel(_glow()))
  model.distribution.bijector.top.trainable = False
  for options in ({"jit_compile": "no"}, {"unknown": 1}):
    with pytest.raises((TypeError, ValueError)):
      model.compile(**options)
    with pytest.raises(ValueError, match=r"compile the model again\. Received: top_"):
      _fit(model)


def test_a_classifier_that_is_frozen_after_compile():
  classifier = tfp_glow.ScaleClassifier(num_classes=3, num_channels=4, seed=0)
  model = _compiled(tfp_glow.FlowModel(_glow(), classifier=classifier))
  classifier.trainable = False
  with pytest.raises(ValueError, match=r"compile the model again\. Received: \S*head0_kernel frozen.* and 7 others"):
    model.fit(IMAGES, np.arange(24) % 3, verbose=0)


def test_followers_are_told_once():
  class Counter:
    count = 0

    def add(self):
      self.count += 1

  counter, chain = Counter(), tfp_glow.Chain([tfb.Shift(tf.Variable(0.5)), _glow()])
  ownership.on_trainable_changed(chain, counter.add)
  for value in (False, True):
    chain.trainable = value
  assert counter.count == 2
  chain.parts[1].blocks[0].template.actnorm.trainable = False
  assert counter.count == 3


@pytest.mark.slow
def test_parts_are_found_once(monkeypatch):
  """To look for them takes longer than a step of a small model."""
  chain = tfp_glow.Chain([tfb.Shift(tf.Variable(tf.zeros(SHAPE))), _glow()])
  model = small_models.compiled(tfp_glow.FlowModel(chain))
  model.adapt(IMAGES)
  model.train_on_batch(IMAGES)

  def walk(*args, **kwargs):
    raise AssertionError("`tf.Module` walks all parts")

  monkeypatch.setattr(tf.Module, "_flatten", walk)
  model.train_on_batch(IMAGES)
  chain.inverse_and_log_det(VALUES)


def test_compositions_of_tfp_have_no_such_thing():
  chain = tfb.Chain([_glow()])
  model = tfp_glow.FlowModel(chain)
  chain.trainable = False  # Python lets anybody do so.
  with pytest.raises(ValueError, match="`trainable` must be set on a part of this package.*Received: .*chain"):
    model.compile()


def test_the_model_knows_at_once():
  model = tfp_glow.FlowModel(_glow())
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


def test_a_model_of_which_nothing_is_trained():
  glow = _glow()
  glow.trainable = False
  model = _compiled(tfp_glow.FlowModel(glow))
  assert np.all(np.isfinite(model.predict(IMAGES, verbose=0)))
  with pytest.raises(ValueError, match="nothing to train"):
    _fit(model)


@pytest.mark.slow
def test_a_classifier_of_a_frozen_flow():
  glow = _glow()
  glow.trainable = False
  classifier = tfp_glow.ScaleClassifier(num_classes=3, num_channels=4, seed=0)
  model = _compiled(tfp_glow.FlowModel(glow, classifier=classifier, likelihood_weight=0.))
  before = [v.numpy() for v in classifier.trainable_variables]
  assert not _moved(model, lambda model: model.fit(IMAGES, np.arange(24) % 3, verbose=0))
  assert any(np.any(v.numpy() != old) for v, old in zip(classifier.trainable_variables, before))


# Networks of one's own, and other bijectors.


def test_networks_that_are_frozen_before_they_are_built():
  network = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(4)])
  coupling = tfp_glow.AffineCoupling(network, event_ndims=1)
  coupling.trainable = False
  coupling.build([4])
  assert len(coupling.variables) == 4 and not coupling.trainable_variables
  network.layers[1].trainable = True
  assert _names(coupling.trainable_variables) == _names(v.value for v in network.layers[1].variables)


def test_layers_of_networks_in_a_loop_of_ones_own():
  network = keras.Sequential([keras.Input([2]), keras.layers.Dense(3), keras.layers.Dense(4)])
  coupling = tfp_glow.AffineCoupling(network, event_ndims=1)
  network.layers[0].trainable = False
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(coupling.inverse_and_log_det(np.ones([3, 4], np.float32))[1])
  gradients = tape.gradient(loss, coupling.variables)
  assert [g is None for g in gradients] == [True, True, False, False]


def test_variables_of_tfp_in_a_chain():
  shift = tf.Variable(0.5)
  inner = _glow()
  chain = tfp_glow.Chain([tfb.Shift(shift), tfb.Invert(tfb.Invert(inner))])
  model = tfp_glow.FlowModel(chain)
  chain.trainable = False
  assert not chain.trainable and not shift.trainable and not inner.trainable and not inner.trainable_variables
  assert not model.trainable_variables and not model.distribution.trainable_variables
  chain.trainable = True
  assert shift.trainable and len(model.trainable_variables) == len(inner.trainable_variables) + 1


@pytest.mark.slow
def test_residual_blocks():
  flow = small_models.residual_flow()
  model = tfp_glow.FlowModel(small_models.of_standard_normal(flow), num_bits=None)
  points = small_models.points()
  model.adapt(points)
  scan = flow.parts[-1]
  parameters = [scan.stacked(v) for v in scan.template.block.network.trainable_variables]
  scan.template.block.trainable = False
  small_models.compiled(model, run_eagerly=True)
  before = [v.numpy() for v in parameters]
  others = [v.numpy() for v in model.distribution.trainable_variables]
  model.fit(points, batch_size=32, verbose=0)
  assert all(np.any(v.numpy() != old) for v, old in zip(model.distribution.trainable_variables, others))
  assert len(parameters) >= 4
  for value, old in zip(parameters, before):
    np.testing.assert_array_equal(value, old)


def test_a_step_alone_is_a_bijector_of_its_own():
  """The way that the documentation names."""
  def make_step(seed):
    network = tfp_glow.networks.CouplingNetwork(4, 4, seed=seed)
    return tfp_glow.GlowStep(tfp_glow.ActNorm(4), tfp_glow.InvertibleConv1x1(4, seed=seed),
                             tfp_glow.AffineCoupling(network))

  first, others = make_step(0), tfp_glow.Scan(lambda k: make_step(1 + k), 2, [2, 2, 4])
  first.build([2, 2, 4])
  chain = tfp_glow.Chain([tfp_glow.Squeeze(), first, others])
  first.trainable = False
  assert _names(chain.trainable_variables) == _names(others.trainable_variables) and others.trainable_variables


# Data-dependent initialisation.


def test_frozen_parts_keep_their_values_when_others_are_initialised():
  glow = tfp_glow.GlowBijector(SHAPE, 2, 2, 4, seed=0)
  glow.initialize(VALUES)
  glow.blocks[0].trainable = False
  before = [v.numpy() for v in glow.blocks[0].variables]
  glow.initialize(3. * VALUES + 1.)
  for value, old in zip(glow.blocks[0].variables, before):
    np.testing.assert_array_equal(value, old)
  # The next level follows what the first one makes of these images.
  last = [value for name, value, _ in glow.walk(3. * VALUES + 1.) if name == "block1, step of flow 0, actnorm"]
  np.testing.assert_allclose(np.mean(last[0], axis=(0, 1, 2)), 0., atol=1e-4)
  np.testing.assert_allclose(np.std(last[0], axis=(0, 1, 2)), 1., rtol=1e-2)


@pytest.mark.parametrize("invert", [False, True])
def test_frozen_layers_keep_their_values(invert):
  values = np.random.default_rng(0).normal(2., 3., [50, 2, 2, 4]).astype(np.float32)
  network = tfp_glow.networks.CouplingNetwork(4, 4, seed=0)
  for part in (tfp_glow.ActNorm(4), tfp_glow.AffineCoupling(network)):
    part.trainable = False
    if hasattr(part, "build"):
      part.build([2, 2, 4])
    before = [v.numpy() for v in part.variables]
    (tfp_glow.Invert(part) if invert else part).initialize(values)
    for value, old in zip(part.variables, before):
      np.testing.assert_array_equal(value, old)


def test_layers_of_networks_keep_their_values():
  values = np.random.default_rng(0).normal(2., 3., [50, 2, 2, 4]).astype(np.float32)
  coupling = tfp_glow.AffineCoupling(tfp_glow.networks.CouplingNetwork(4, 4, seed=0))
  coupling.build([2, 2, 4])
  network = coupling.network
  network.first.trainable = False
  before = [v.numpy() for v in network.variables]
  coupling.initialize(values)
  changed = {v.path for v, old in zip(network.variables, before) if np.any(v.numpy() != old)}
  assert changed == {network.second.shift.path, network.second.log_scale.path}


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("make", [tfp_glow.Standardization, tfp_glow.Whitening])
def test_what_is_measured_stays_as_it_is(make, invert):
  rows = np.random.default_rng(0).normal(2., 3., [50, 2]).astype(np.float32)
  part = make(2)
  part.initialize(rows)
  before = [v.numpy() for v in part.variables]
  part.trainable = False
  whole = tfp_glow.Chain([tfp_glow.Invert(part) if invert else part])
  whole.initialize(5. * rows)
  for variable, old in zip(part.variables, before, strict=True):
    np.testing.assert_array_equal(variable, old)
  whole.trainable = True
  whole.initialize(5. * rows)
  assert all(np.any(variable.numpy() != old) for variable, old in zip(part.variables, before))


@pytest.mark.parametrize("frozen", ["shift", "log_scale"])
@pytest.mark.parametrize("invert", [False, True])
def test_one_of_two_variables_keeps_its_value(frozen, invert):
  values = np.random.default_rng(0).normal(2., 3., [5000, 2]).astype(np.float32)
  actnorm = tfp_glow.ActNorm(2, event_ndims=1)
  getattr(actnorm, frozen).assign([0.3, -0.2])
  getattr(actnorm, frozen).trainable = False
  bijector = tfp_glow.Invert(actnorm) if invert else actnorm
  bijector.initialize(values)
  np.testing.assert_array_equal(getattr(actnorm, frozen), np.float32([0.3, -0.2]))
  found = bijector.inverse(values).numpy()
  if frozen == "shift":
    np.testing.assert_allclose(np.std(found, 0), 1., rtol=1e-4)
  else:
    np.testing.assert_allclose(np.mean(found, 0), 0., atol=1e-4)


def test_one_of_two_variables_of_a_convolution_keeps_its_value():
  values = np.random.default_rng(0).normal(2., 3., [50, 2, 2, 3]).astype(np.float32)
  network = tfp_glow.networks.CouplingNetwork(4, 4, seed=0)
  network(values)
  network.first.shift.trainable = False
  network.initialize(values)
  np.testing.assert_array_equal(network.first.shift, np.zeros(4))
  assert np.all(network.first.log_scale.numpy() != 0.)


@pytest.mark.slow
def test_a_frozen_classifier_keeps_its_values():
  classifier = tfp_glow.ScaleClassifier(num_classes=3, num_channels=4, seed=0)
  model = tfp_glow.FlowModel(_glow(), classifier=classifier)
  model.adapt(IMAGES)
  classifier.trainable = False
  before = [v.numpy() for v in classifier.variables]
  model.adapt(255 - IMAGES[::2])
  for variable, old in zip(classifier.variables, before, strict=True):
    np.testing.assert_array_equal(variable, old)
  classifier.trainable = True
  model.adapt(255 - IMAGES[::2])
  assert any(np.any(v.numpy() != old) for v, old in zip(classifier.variables, before))


# Files.


@keras.saving.register_keras_serializable("test_freezing")
def _whitening_step(k):
  return tfp_glow.Whitening(2)


@pytest.mark.slow
def test_parts_without_parameters_in_files(tmp_path):
  rows = np.random.default_rng(0).normal(2., 3., [50, 2]).astype(np.float32)
  whitening = tfp_glow.Scan(_whitening_step, 2, [2])
  chain = tfp_glow.Chain([tfp_glow.Standardization(2), whitening, tfp_glow.ActNorm(2, event_ndims=1)])
  model = tfp_glow.FlowModel(tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [2]), chain), num_bits=None)
  model.adapt(rows)
  chain.parts[0].trainable = whitening.trainable = False
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  parts = loaded.distribution.bijector.parts
  assert [part.trainable for part in parts] == [False, False, True]
  loaded.adapt(5. * rows)
  for variable, old in zip([v for part in parts[:2] for v in part.variables],
                           [v for part in chain.parts[:2] for v in part.variables], strict=True):
    np.testing.assert_array_equal(variable, old)
  assert all(np.any(v.numpy() != old.numpy()) for v, old in zip(parts[2].variables, chain.parts[2].variables))


def _fitted_and_loaded(model, folder):
  """What a file of the model, after a first `fit`, comes back as."""
  _compiled(model)
  _fit(model)
  model.save(folder / "model.keras")
  return keras.models.load_model(folder / "model.keras")


@pytest.mark.slow
@pytest.mark.parametrize("is_frozen_first", [True, False])
def test_frozen_parts_in_files(is_frozen_first, tmp_path):
  glow = _glow()
  glow.blocks[0].trainable = not is_frozen_first
  model = tfp_glow.FlowModel(glow)
  glow.blocks[0].trainable = False
  loaded = _fitted_and_loaded(model, tmp_path)
  np.testing.assert_array_equal(loaded.log_prob(IMAGES), model.log_prob(IMAGES))
  found = loaded.distribution.bijector
  assert not found.blocks[0].trainable and not found.blocks[0].trainable_variables and found.blocks[1].trainable
  for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
    np.testing.assert_array_equal(a, b, err_msg=a.path)
  assert _moved(loaded, _fit) == _moved(model, _fit)
  np.testing.assert_array_equal(loaded.log_prob(IMAGES), model.log_prob(IMAGES))
  found.blocks[0].trainable = True
  _compiled(loaded)
  assert any(name.startswith("block0") for name in _moved(loaded, _fit))


@pytest.mark.slow
def test_unfrozen_parts_in_files(tmp_path):
  """Frozen at first: neither weights nor what the optimizer keeps of them change places."""
  glow = _glow()
  glow.blocks[0].trainable = False
  model = tfp_glow.FlowModel(glow)
  glow.blocks[0].trainable = True
  loaded = _fitted_and_loaded(model, tmp_path)
  for each in (model, loaded):
    _fit(each)
  np.testing.assert_array_equal(loaded.log_prob(IMAGES), model.log_prob(IMAGES))


@pytest.mark.slow
def test_a_context_network_that_is_frozen_in_the_end(tmp_path):
  vectors = np.random.default_rng(0).standard_normal([24, 3]).astype(np.float32)
  network = keras.Sequential([keras.Input([3]), keras.layers.Dense(3), keras.layers.Dense(3)])
  glow = tfp_glow.GlowBijector(SHAPE, 1, 1, 4, seed=0, context_shape=(3,), context_network=network)
  perturb(glow)
  model = tfp_glow.FlowModel(glow)
  network.layers[0].trainable = False
  _compiled(model)
  model.fit(IMAGES, {"context": vectors}, verbose=0)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.log_prob(IMAGES, context=vectors), model.log_prob(IMAGES, context=vectors))
  assert len(loaded.trainable_variables) == len(model.trainable_variables) == len(glow.trainable_variables)


@pytest.mark.slow
def test_variables_of_tfp_in_files(tmp_path):
  chain = tfp_glow.Chain([tfb.Shift(tf.Variable(tf.zeros(SHAPE))), _glow()])
  model = tfp_glow.FlowModel(chain)
  chain.trainable = False
  chain.parts[1].blocks[1].trainable = True
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.log_prob(IMAGES), model.log_prob(IMAGES))
  names = lambda model: _names(model.distribution.trainable_variables)
  assert names(loaded) == names(model) and len(names(model)) == len(loaded.trainable_variables)


@pytest.mark.slow
def test_a_run_with_frozen_parts_goes_on(tmp_path):
  def run(folder, epochs):
    glow = _glow()
    glow.blocks[0].trainable = False
    model = _compiled(tfp_glow.FlowModel(glow), keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5))
    state = callbacks.TrainingState(folder)
    model.fit(IMAGES, batch_size=12, shuffle=False, initial_epoch=state.restore(model), epochs=epochs, verbose=0,
              callbacks=[state])
    return model

  run(tmp_path / "parts", 1)
  found, expected = run(tmp_path / "parts", 2), run(tmp_path / "whole", 2)
  for a, b in zip(found.weights + found.optimizer.variables, expected.weights + expected.optimizer.variables,
                  strict=True):
    np.testing.assert_array_equal(a, b, err_msg=a.path)

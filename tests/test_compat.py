"""What `_core/_compat.py` uses of the private parts of TensorFlow, Keras and TFP: present, and taken away."""

import functools
import gc
import pathlib
import types

import distributed_runs
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow._core import _compat, gradients
from tfp_glow.networks import elsewhere
from tfp_glow.training import update

tfb = tfp.bijectors
tfd = tfp.distributions
PACKAGE = pathlib.Path(tfp_glow.__file__).parent
IMAGES = small_models.images(16)


# The registry of gradients.


def _tripled_backwards():
  """A gradient in a function with a graph of its own, and the function."""

  @tf.function(autograph=False)
  def value(x):
    return gradients.custom_gradient(lambda x: (2. * x, lambda d: 3. * d))(x)

  x = tf.constant(1.)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = value(x)
  return tape.gradient(y, x).numpy(), value


def _num_registered_later():
  gc.collect()
  before = len(_compat.gradient_registry.list())
  gradient, value = _tripled_backwards()
  assert gradient == 3. and len(_compat.gradient_registry.list()) > before
  del value
  gc.collect()
  return len(_compat.gradient_registry.list()) - before


def test_gradients_are_forgotten():
  _tripled_backwards()
  assert _num_registered_later() == 0


@pytest.mark.parametrize("registry", [None, types.SimpleNamespace(), types.SimpleNamespace(_registry={})])
def test_gradients_are_right_but_not_forgotten(registry, monkeypatch):
  original = _compat.gradient_registry
  monkeypatch.setattr(_compat, "gradient_registry", registry)
  gc.collect()
  before = len(original.list())
  assert _tripled_backwards()[0] == 3.
  gc.collect()
  assert len(original.list()) > before


# Gradients that are sums.


def _renamed(monkeypatch, is_gone):
  """Makes Keras' optimizers add up gradients in a method of another name."""
  cls, = (c for c in keras.optimizers.SGD.__mro__ if "_all_reduce_sum_gradients" in vars(c))
  add_up = cls._all_reduce_sum_gradients

  def update_step(self, grads, variables, learning_rate):
    summed = add_up(self, list(zip(grads, [v.value for v in variables])))
    tf.__internal__.distribute.interim.maybe_merge_call(
        self._distributed_tf_update_step, self._distribution_strategy, summed, learning_rate)

  monkeypatch.setattr(cls, "_backend_update_step", update_step)
  if is_gone:
    monkeypatch.delattr(cls, "_all_reduce_sum_gradients")


def _after_a_step(make_optimizer, of_graph=True):
  """A variable after a step of two replicas, whose gradients add up to (3, 4)."""
  strategy = distributed_runs.mirrored(2)
  with strategy.scope():
    variable, other = (keras.Variable(np.zeros(2, np.float32), name=name) for name in ("variable", "other"))
    optimizer = make_optimizer()
    optimizer.build([variable, other])

  def step():
    _compat.apply_sums(optimizer, [tf.constant([3., 4.]), None], [variable, other])

  run = lambda: strategy.run(step)
  (tf.function(run, autograph=False) if of_graph else run)()
  copies = [copy.numpy() for copy in variable.value.values]
  np.testing.assert_array_equal(*copies)
  return copies[0]


_OPTIMIZERS = pytest.mark.parametrize("make_optimizer", [
    lambda: keras.optimizers.SGD(1., global_clipnorm=1.),
    lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1., clipnorm=1.), initial_scale=1.)],
    ids=["plain", "loss scale"])


@_OPTIMIZERS
@pytest.mark.parametrize("of_graph", [True, False])
@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_gradients_that_are_sums(make_optimizer, of_graph, is_there, monkeypatch):
  if not is_there:
    _renamed(monkeypatch, is_gone=True)
  np.testing.assert_allclose(_after_a_step(make_optimizer, of_graph), [-.6, -.8], rtol=1e-6)


@_OPTIMIZERS
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_gradients_that_would_be_added_up_again(make_optimizer, monkeypatch):
  _renamed(monkeypatch, is_gone=False)
  with pytest.raises(NotImplementedError, match="`_all_reduce_sum_gradients`.*Received: 3"):
    _after_a_step(make_optimizer)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_gradient_that_is_not_finite_is_so_on_all_replicas(monkeypatch):
  _renamed(monkeypatch, is_gone=True)
  optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.), initial_scale=2.**20)
  # The gradients of the other replica are zero: it would update, and the first would not.
  monkeypatch.setattr(tf, "constant", lambda value, constant=tf.constant: constant(value) / 0.)
  np.testing.assert_array_equal(_after_a_step(lambda: optimizer), [0., 0.])
  assert optimizer.dynamic_scale.numpy() == 2.**19


# The averages of Adam.


@pytest.mark.parametrize("missing", [None, "_get_variable_index", "_momentums", "_velocities"])
def test_an_adam_steps(missing, monkeypatch):
  """Its first step has the length of the learning rate, by TensorFlow's operation or by Keras' own."""
  if missing:
    monkeypatch.setattr(_compat, "adam_moments", lambda adam, variable: _moments_without(missing, adam, variable))
  variable = keras.Variable([1., -2.])
  optimizer = keras.optimizers.Adam(0.25, epsilon=1e-12)
  optimizer.build([variable])
  traced = tf.function(lambda: _applied(optimizer, tf.constant([3., -1e-3]), variable), autograph=False)
  traced()
  np.testing.assert_allclose(variable.numpy(), [0.75, -1.75], rtol=1e-5)
  operations = {operation.type for operation in traced.get_concrete_function().graph.get_operations()}
  assert ("ResourceApplyAdam" in operations) == (missing is None)


def _applied(optimizer, gradient, variable):
  with update.in_few_operations(optimizer):
    optimizer.apply_gradients([(gradient, variable)])


def _moments_without(missing, adam, variable, adam_moments=_compat.adam_moments):
  """`adam_moments` of a Keras in which one of the private names is not there."""
  names = {"_get_variable_index", "_momentums", "_velocities"} - {missing}
  return adam_moments(types.SimpleNamespace(**{name: getattr(adam, name) for name in names}), variable)


# Functions that are traced once for all replicas.


@pytest.mark.slow
@pytest.mark.parametrize("missing", [None, "UpdateContext", "_value", "_distributed_container",
                                     "_distribution_strategy"])
def test_what_replicas_share_is_traced_once_where_possible(missing, monkeypatch):
  if missing == "UpdateContext":
    monkeypatch.setattr(_compat, missing, None)
  monkeypatch.setattr(_compat, "hasattr", lambda owner, name: name != missing and hasattr(owner, name), raising=False)
  calls, share = [], tfp_glow.FlowModel._share
  monkeypatch.setattr(tfp_glow.FlowModel, "_share", lambda *args: (calls.append("share"), share(*args))[1])
  _, losses = _trained(distributed_runs.mirrored(2))
  assert len(calls) == (2 if missing else 1)
  np.testing.assert_allclose(losses, _losses_of_training_on_one_device(), rtol=1e-5)


def test_variables_are_those_of_the_first_replica():
  strategy = distributed_runs.mirrored(2)
  with strategy.scope():
    variable = keras.Variable(1.)
    optimizer = keras.optimizers.SGD(1.)
    optimizer.build([variable])
  value, of_optimizer = variable._value, optimizer._distribution_strategy
  with _compat.first_replica(optimizer, [variable]):
    optimizer.apply([tf.constant(2.)], [variable])
    value.assign_add(5.)  # A variable of another owner.
  assert [copy.numpy() for copy in value.values] == [4., 1.]
  assert variable._value is value and optimizer._distribution_strategy is of_optimizer


def test_handles_are_those_of_the_replica():
  strategy = distributed_runs.mirrored(2)
  with strategy.scope():
    variable = tf.Variable(1.)
  first = variable.values[0].handle
  found = []
  strategy.run(lambda: found.append(_compat.handle_here(first)))
  assert all(a is copy.handle for a, copy in zip(found, variable.values, strict=True))
  other = tf.constant(1.)
  assert _compat.handle_here(other) is other


# Models that Keras need not build.


def _trained(strategy):
  with strategy.scope():
    model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
  return model, model.fit(IMAGES[:11], batch_size=8, shuffle=False, verbose=0).history["loss"]


def _losses(strategy):
  model, history = _trained(strategy)
  return history, model.evaluate(IMAGES[:11], batch_size=8, verbose=0)


@functools.cache
def _losses_of_training_on_one_device():
  return _trained(tf.distribute.get_strategy())[1]


@pytest.mark.slow
def test_a_model_is_not_built_from_a_batch(monkeypatch):
  monkeypatch.setattr(keras.Model, "_symbolic_build", lambda *args, **kwargs: pytest.fail("built"))
  _losses(distributed_runs.mirrored(2))


@pytest.mark.slow
def test_a_model_that_keras_builds_is_the_same(monkeypatch):
  expected = _losses(tf.distribute.get_strategy())
  monkeypatch.delattr(_compat.BuiltModel, "_maybe_symbolic_build")
  assert _losses(tf.distribute.get_strategy()) == expected


# Directions.


def _wanted(monitor):
  """The comparison that Keras chooses by itself."""
  model = small_models.compiled(
      tfp_glow.FlowModel(small_models.distribution(num_classes=3), weight_y=0.01), run_eagerly=True)
  early = keras.callbacks.EarlyStopping(monitor)
  model.fit(IMAGES, np.arange(16) % 3, verbose=0, callbacks=[early])
  return early.monitor_op


@pytest.mark.slow
@pytest.mark.parametrize("monitor, wanted", [
    ("loss", keras.ops.less), ("bits_per_dim", keras.ops.less), ("bits_y", keras.ops.less),
    ("accuracy", keras.ops.greater)])
def test_callbacks_know_what_is_better(monitor, wanted):
  assert _wanted(monitor) is wanted


@pytest.mark.slow
def test_callbacks_ask_where_they_do_not_know(monkeypatch):
  monkeypatch.setattr(_compat, "set_direction", lambda metric, direction: None)
  with pytest.raises(ValueError, match="mode='min'"):
    _wanted("bits_per_dim")
  assert _wanted("loss") is keras.ops.less


# Deferred tensors.


def _with_deferred_tensor():
  scale = tfp.util.DeferredTensor(tf.Variable([0.5, 2.]), tfb.Softplus(), also_track=tf.Variable(1.))
  return tfp_glow.FlowModel(tfd.Independent(tfd.Normal(tf.zeros(2), scale), 1), num_bits=None)


def test_a_deferred_tensor_is_saved(tmp_path):
  model, x = _with_deferred_tensor(), np.ones([3, 2], np.float32)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.log_prob(x), model.log_prob(x))
  assert len(loaded.distribution.trainable_variables) == 2


@pytest.mark.parametrize("name", ["_transform_fn", "_also_track"])
def test_a_deferred_tensor_whose_parts_cannot_be_found(name, tmp_path):
  model = _with_deferred_tensor()
  scale = model.distribution.distribution.scale
  vars(scale)["hidden"] = vars(scale).pop(name)
  with pytest.raises(ValueError, match=f"`tfp.util.DeferredTensor` must have.*Received:.*{name}"):
    _compat.parts_of_deferred_tensor(scale)


# Inputs of operations.


def test_variables_that_functional_models_read_are_seen():
  inputs, variable = keras.Input([2]), tf.Variable(1.)
  assert elsewhere.is_read_by(keras.Model(inputs, inputs * variable))
  assert not elsewhere.is_read_by(keras.Model(inputs, inputs * 2.))


def test_networks_without_known_inputs_may_read_anything(monkeypatch):
  monkeypatch.setattr(keras.Operation, "__getattribute__", _without("_inbound_nodes"))
  with pytest.raises(NotImplementedError, match="`keras` must be.*`_inbound_nodes`.*Received: 3"):
    _compat.given_in_graphs_to(keras.layers.Activation("relu"))
  assert elsewhere.is_read_by(keras.layers.Activation("relu"))


def _without(missing):
  def get(obj, name):
    if name == missing:
      raise AttributeError(name)
    return object.__getattribute__(obj, name)

  return get


# What is kept from tracking.


def test_what_is_untracked_is_no_part():
  module, kept = tf.Module(), tfp_glow.ActNorm(2)
  module.part, module.kept = tfp_glow.ActNorm(2), _compat.untracked(module, [kept])
  assert module.kept == [kept] and type(module.kept) is list
  assert "kept" not in str(tf.train.Checkpoint(module=module).save_counter) and not any(
      path.startswith("kept") for path, _ in tf.train.TrackableView(module).children(module).items())


def test_what_cannot_be_untracked_is_as_it_was():
  assert _compat.untracked(object(), kept := [1]) is kept


# TFP's cache of compositions.


def test_compositions_are_forgotten():
  actnorm = tfp_glow.ActNorm(2, event_ndims=1)
  chain, y = tfb.Chain([tfb.Scale(2.), actnorm]), tf.ones([3, 2])
  held = chain.inverse(y)
  actnorm.shift.assign([1., 2.])
  np.testing.assert_allclose(chain.inverse(y), held + [1., 2.])


def test_compositions_that_cannot_be_forgotten(monkeypatch):
  actnorm = tfp_glow.ActNorm(2, event_ndims=1)
  monkeypatch.delattr(tfb.Bijector, "_cache")
  with pytest.raises(NotImplementedError, match="`tensorflow_probability` must be.*`_cache`.*Received: 0"):
    tfb.Chain([actnorm]).inverse(tf.ones([3, 2]))


# Bijectors that are not injective.


def test_bijectors_that_are_injective_are_known():
  assert _compat.is_injective(tfb.Exp()) and _compat.is_injective(tfp_glow.ActNorm(2))
  assert not _compat.is_injective(tfb.AbsoluteValue())


def test_bijectors_that_may_not_be_injective(monkeypatch):
  known = lambda owner, name, default: default if name == "_is_injective" else getattr(owner, name, default)
  monkeypatch.setattr(_compat, "getattr", known, raising=False)
  x, base = np.ones([3, 2], np.float32), tfd.Sample(tfd.Normal(tf.Variable(0.), 1.), [2])
  distribution = tfd.TransformedDistribution(base, tfb.Exp())
  model = tfp_glow.FlowModel(distribution, num_bits=None)
  np.testing.assert_allclose(model.log_prob(x), distribution.log_prob(x), rtol=1e-6)
  with pytest.raises((AttributeError, ValueError, tf.errors.InvalidArgumentError)):
    tfp_glow.FlowModel(tfd.TransformedDistribution(base, tfb.AbsoluteValue()), num_bits=None).log_prob(x)


# Classes without a public name.


def _chain(**kwargs):
  return tfb.Chain([tfb.Shift(0.125), small_models.distribution(num_steps_per_block=1, **kwargs).bijector])


@pytest.mark.parametrize("public, make", [
    (tfb.Chain, _chain), (tfb.Invert, lambda: tfb.Invert(tfp_glow.ActNorm(2))),
    (tfd.TransformedDistribution, small_models.distribution), (tfb.Exp, tfb.Exp)])
def test_classes_of_what_tfp_makes(public, make):
  assert type(make()) is _compat.class_made_of(public)


@pytest.mark.slow
def test_compositions_whose_classes_are_not_known(monkeypatch, tmp_path):
  model = tfp_glow.FlowModel(_chain())
  monkeypatch.setattr(_compat, "class_made_of", lambda public: public)
  base = tfd.Sample(tfd.Normal(0., 1.), [32])
  again = tfp_glow.FlowModel(tfd.TransformedDistribution(base, model.distribution.bijector))
  np.testing.assert_allclose(again.log_prob(IMAGES), model.log_prob(IMAGES), rtol=1e-5)
  with pytest.raises(ValueError, match="`labels` must be given.*Received: "):
    tfp_glow.FlowModel(tfd.TransformedDistribution(base, _chain(num_classes=3)))
  with pytest.raises(ValueError, match="to be saved.*Received: "):
    model.save(tmp_path / "model.keras")


# Functions that are not copied.


def _is_not_copied(function):
  return function.get_concrete_function(tf.constant(1.)).function_def.attr["_noinline"].b


def test_functions_are_of_their_own():
  function = _compat.function_of_its_own(lambda x: 2. * x)
  assert function(tf.constant(3.)) == 6. and _is_not_copied(function)


def test_functions_that_may_be_copied(monkeypatch):

  def refuse(function, autograph, **attributes):
    if attributes:
      raise ValueError(f"{attributes} are not supported.")
    return tf_function(function, autograph=autograph)

  tf_function = tf.function
  monkeypatch.setattr(tf, "function", refuse)
  function = _compat.function_of_its_own(lambda x: 2. * x)
  assert function(tf.constant(3.)) == 6. and not _is_not_copied(function)


# What is trained.


def test_variables_are_frozen_and_unfrozen():
  for variable in (tf.Variable(1.), tf.Variable(1., trainable=False)):
    was_trainable = variable.trainable
    for value in (False, True, False):
      _compat.set_trainable(variable, value)
      assert variable.trainable == value and _compat.was_made_trainable(variable) == was_trainable
      with tf.GradientTape() as tape:
        loss = 2. * variable
      assert (tape.gradient(loss, variable) is not None) == value


def test_copies_of_replicas_are_frozen():
  with distributed_runs.mirrored(2).scope():
    variable = tf.Variable(1.)
  _compat.set_trainable(variable, False)
  assert not any(copy.trainable for copy in [variable, *variable.values])


def test_variables_that_cannot_be_frozen(monkeypatch):
  actnorm = tfp_glow.ActNorm(2)
  monkeypatch.setattr(type(actnorm.shift.value), "trainable", property(lambda self: self._of_another_name))
  for variable in actnorm.variables:
    variable._of_another_name = True
  with pytest.raises(NotImplementedError, match=r"the `_trainable` of TensorFlow 2, .*Received: .*`actnorm_shift"):
    actnorm.trainable = False

"""Two and four replicas on the logical CPU devices of `conftest.py`."""

import collections
import functools

import distributed_runs
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow

IMAGES = distributed_runs.IMAGES
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unoptimized_graphs")]


# The last batch, of 3 images, is uneven for two replicas, and leaves one of four without any.


@pytest.fixture(scope="module")
def two():
  """A Glow with reversible gradients; on one device with those of autodiff."""
  return distributed_runs.train(distributed_runs.mirrored(2), gradient="reversible")


@pytest.fixture(scope="module")
def four():
  """The results of four replicas and of one device, with a distribution that is traced fast."""
  return [distributed_runs.train(strategy, make=small_models.gaussian)
          for strategy in (distributed_runs.mirrored(4), tf.distribute.get_strategy())]


@pytest.fixture(params=["two", "four"])
def mirrored(request):
  """The results of `distributed_runs.train` on replicas and on one device, and the distribution's maker."""
  if request.param == "two":
    return request.getfixturevalue("two"), request.getfixturevalue("one_device"), small_models.distribution
  return *request.getfixturevalue("four"), small_models.gaussian


def test_loss_and_weights_are_those_of_one_device(mirrored):
  (model, history), (single, expected), _ = mirrored
  assert history.keys() == expected.keys() == {"loss", "bits_per_dim", "val_loss", "val_bits_per_dim"}
  for key, values in expected.items():
    np.testing.assert_allclose(history[key], values, rtol=1e-5)
  for a, b in zip(distributed_runs.values_of(model), distributed_runs.values_of(single), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_initialisation_is_that_of_one_device(two, one_device):
  for a, b in zip(two[0].adapted_weights, one_device[0].adapted_weights, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def _check_replicas(model):
  for variable in model.distribution.variables:
    first, *others = [copy.numpy() for copy in variable.values]
    for other in others:
      np.testing.assert_array_equal(first, other, err_msg=variable.name)


def test_replicas_are_equal(mirrored):
  _check_replicas(mirrored[0][0])


def test_four_replicas_are_initialised_as_one_device():
  with distributed_runs.mirrored(4).scope():
    model = tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1))
  single = tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1))
  before = distributed_runs.values_of(model)
  for each in (model, single):
    each.adapt(IMAGES)
  assert any((a != b).any() for a, b in zip(before, distributed_runs.values_of(model)))
  _check_replicas(model)
  for a, b in zip(distributed_runs.values_of(model), distributed_runs.values_of(single), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_evaluation_sampling_and_export_work_with_replicas(two, one_device, tmp_path):
  model, single = two[0], one_device[0]
  np.testing.assert_allclose(model.predict(IMAGES, batch_size=8, verbose=0),
                             single.predict(IMAGES, batch_size=8, verbose=0), rtol=1e-4)
  np.testing.assert_array_equal(model.decode(model.encode(IMAGES)), IMAGES)
  assert model.sample(2, seed=0).shape == (2, *small_models.SHAPE)
  model.export(tmp_path / "saved_model")
  answer = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["log_prob"](images=tf.constant(IMAGES))
  np.testing.assert_allclose(answer["log_prob"], model.log_prob(IMAGES), rtol=1e-5)


def test_weights_go_from_replicas_to_replicas_and_to_one_device(mirrored, tmp_path):
  (model, _), _, make = mirrored
  model.save_weights(tmp_path / "model.weights.h5")
  with model.distribute_strategy.scope():
    same = tfp_glow.FlowModel(make())
  other = tfp_glow.FlowModel(make())
  for restored in (same, other):
    restored.load_weights(tmp_path / "model.weights.h5")
    for a, b in zip(distributed_runs.values_of(model), distributed_runs.values_of(restored), strict=True):
      np.testing.assert_array_equal(a, b)
  _check_replicas(same)


def test_a_whole_model_goes_from_one_device_to_replicas_and_back(tmp_path):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), keras.optimizers.Adam(1e-2))
  fit = lambda model: model.fit(IMAGES, batch_size=8, shuffle=False, verbose=0).history["loss"]
  everything_in = lambda model: [v.numpy() for v in model.weights + model.optimizer.variables]
  fit(model)
  model.save(tmp_path / "model.keras")
  with distributed_runs.mirrored(2).scope():
    replicated = keras.models.load_model(tmp_path / "model.keras")
  assert replicated.distribute_strategy is distributed_runs.mirrored(2)
  replicated.save(tmp_path / "replicated.keras")
  for loaded in (replicated, keras.models.load_model(tmp_path / "replicated.keras")):
    for a, b in zip(everything_in(loaded), everything_in(model), strict=True):
      np.testing.assert_array_equal(a, b)
  np.testing.assert_allclose(fit(replicated), fit(model), rtol=1e-5)
  for a, b in zip(everything_in(replicated), everything_in(model), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  _check_replicas(replicated)


def test_evaluation_and_prediction_with_four_replicas():
  """Results keep the order of the images; one replica gets none of the last batch."""
  with distributed_runs.mirrored(4).scope():
    model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
  single = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
  for method in ("evaluate", "predict"):
    found, expected = (getattr(m, method)(IMAGES, batch_size=8, verbose=0) for m in (model, single))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_metrics_of_a_batch_are_those_of_all_replicas():
  """The metrics that callbacks get during an epoch; in the second batch a replica has no images."""
  all_logs = []
  for strategy in (tf.distribute.get_strategy(), distributed_runs.mirrored(2)):
    with strategy.scope():
      model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
    found = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs, found=found: found.append([logs["loss"], logs["bits_per_dim"]]))
    model.fit(IMAGES[:6], batch_size=5, shuffle=False, verbose=0, callbacks=[record])
    all_logs.append(found)
  assert np.shape(all_logs) == (2, 2, 2)
  np.testing.assert_allclose(all_logs[1], all_logs[0], rtol=1e-5)


def test_gradients_are_clipped_as_on_one_device():
  weights = []
  for strategy in (tf.distribute.get_strategy(), distributed_runs.mirrored(2)):
    with strategy.scope():
      model = tfp_glow.FlowModel(small_models.gaussian())
      model.compile(keras.optimizers.SGD(1., global_clipnorm=.1))
    model.fit(IMAGES, batch_size=8, shuffle=False, verbose=0)
    weights.append(distributed_runs.values_of(model))
  for a, b in zip(*weights, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("make_optimizer", [
    lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
    lambda: keras.optimizers.Nadam(keras.optimizers.schedules.ExponentialDecay(1e-2, 1, 0.5)),
    lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1., momentum=0.5), 2., dynamic_growth_steps=2)],
    ids=["averages", "schedule", "loss scale"])
def test_optimizers_do_as_on_one_device(make_optimizer):
  states = []
  for strategy in (tf.distribute.get_strategy(), distributed_runs.mirrored(2)):
    with strategy.scope():
      model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), make_optimizer())
    model.fit(IMAGES, batch_size=8, shuffle=False, verbose=0)
    states.append([*distributed_runs.values_of(model), *(v.numpy() for v in model.optimizer.variables)])
  for a, b in zip(*states, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  for variable in model.optimizer.variables:
    np.testing.assert_array_equal(*(copy.numpy() for copy in variable.value.values), err_msg=variable.name)


def test_noise_of_replicas_differs_and_is_that_of_one_device():
  strategy, seed = distributed_runs.mirrored(4), tf.constant([3, 5])
  noise_of = tf.function(tfp_glow.dequantize.image_noise)
  dataset = tf.data.Dataset.from_tensor_slices(IMAGES[:8]).batch(8)
  batch = next(iter(strategy.experimental_distribute_dataset(dataset)))
  noise = strategy.experimental_local_results(strategy.run(noise_of, args=(batch, seed)))
  assert len({part.numpy().tobytes() for part in noise}) == 4
  np.testing.assert_array_equal(tf.concat(noise, 0), noise_of(tf.constant(IMAGES[:8]), seed))


def test_a_step_takes_two_exchanges_and_a_batch_of_evaluation_none():
  with distributed_runs.mirrored(2).scope():
    model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
  assert distributed_runs.numbers_of_exchanges(model) == {"train": 2, "test": 0}


def test_share_and_update_are_traced_once_for_all_replicas(monkeypatch):
  """Otherwise a program on many devices waits long for its first step."""
  calls, nodes = collections.Counter(), []
  apply_adam = tf.raw_ops.ResourceApplyAdam
  monkeypatch.setattr(tf.raw_ops, "ResourceApplyAdam",
                      lambda **kwargs: (calls.update(["update"]), apply_adam(**kwargs))[1])
  for count in (2, 4):
    with distributed_runs.mirrored(count).scope():
      model = small_models.compiled(tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1)))
    share = functools.wraps(model._share)(
        lambda *args, share=model._share: (calls.update(["share"]), share(*args))[1])
    monkeypatch.setattr(model, "_share", share)
    nodes.append(len(distributed_runs.nodes_of(model, model.train_step)))
  assert calls == {"share": 2, "update": 2 * len(model.trainable_variables)}
  # Most of them are handles of variables; the share alone has more than 1000.
  assert (nodes[1] - nodes[0]) / 2 < 250


def test_xla_compiles_what_each_replica_computes_by_itself():
  weights = []
  for strategy, jit_compile in ((tf.distribute.get_strategy(), False), (distributed_runs.mirrored(2), True)):
    with strategy.scope():
      model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), jit_compile=jit_compile)
    history = model.fit(IMAGES[:16], batch_size=8, epochs=2, shuffle=False, verbose=0).history
    weights.append([history["loss"], *distributed_runs.values_of(model)])
    assert set(model._xla_functions) == ({"_share"} if jit_compile else set())
  _check_replicas(model)
  for a, b in zip(*weights, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def optimized_graphs():
  """Graphs are optimized, as users have them; not so elsewhere in this file."""
  tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
  yield
  tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.mark.usefixtures("optimized_graphs")
def test_a_glow_that_xla_compiles_has_the_losses_of_one_device():
  """A Glow of few operations, because each replica compiles it anew."""
  images, losses = IMAGES[:16].astype(np.float32), []  # With this range losses are not near zero.
  one, two = tf.distribute.get_strategy(), distributed_runs.mirrored(2)
  for strategy, gradient in ((one, "autodiff"), (two, "autodiff"), (two, "reversible")):
    with strategy.scope():
      flow = small_models.distribution(num_steps_per_block=1, num_hidden=4, coupling="additive", permutation="reverse",
                                       learn_top=False, gradient=gradient)
      model = small_models.compiled(tfp_glow.FlowModel(flow, num_bits=None), keras.optimizers.Adam(1e-2, epsilon=1e-4),
                                    jit_compile=strategy is two, run_eagerly=strategy is one)
    losses.append(model.fit(images, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"])
  np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)


def test_a_batch_without_images_changes_nothing():
  with distributed_runs.mirrored(2).scope():
    model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), keras.optimizers.SGD(1.))
  model.adapt(IMAGES)
  before = distributed_runs.values_of(model)
  model.fit(tf.data.Dataset.from_tensors(IMAGES).map(lambda images: images[:tf.size(images) * 0]), verbose=0)
  for a, b in zip(before, distributed_runs.values_of(model)):
    np.testing.assert_array_equal(a, b)


def test_initialising_inside_a_replica_is_an_error():
  strategy = distributed_runs.mirrored(2)
  with strategy.scope():
    actnorm = tfp_glow.ActNorm(2)
  with pytest.raises(RuntimeError, match="replicas"):
    strategy.run(lambda: actnorm.initialize(tf.ones([3, 4, 4, 2])))


def test_no_replica_updates_if_one_has_values_that_are_not_finite():
  strategy = distributed_runs.mirrored(2)
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

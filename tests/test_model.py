
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

tfb = tfp.bijectors
tfd = tfp.distributions
IMAGES = small_models.images()


def one_step(num_bits=8, **kwargs):
  """A model of a single step of flow, without a loop."""
  return tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1, num_hidden=4, **kwargs), num_bits)


@pytest.fixture(scope="module")
def trained():
  model = small_models.compiled()
  model.history_ = model.fit(IMAGES, batch_size=8, epochs=4, shuffle=False, verbose=0).history
  return model


def test_fit_improves_bits_per_dim(trained):
  bits = trained.history_["bits_per_dim"]
  assert bits[-1] < bits[0] - 0.1
  np.testing.assert_allclose(trained.history_["loss"], bits)


def test_graph_and_eager_train_alike(trained):
  model = small_models.compiled(run_eagerly=True)
  bits = model.fit(IMAGES, batch_size=8, epochs=1, shuffle=False, verbose=0).history["bits_per_dim"]
  np.testing.assert_allclose(bits, trained.history_["bits_per_dim"][:1], rtol=1e-4)


def test_bits_per_dim_is_the_negative_log_likelihood_of_dequantized_images(trained):
  seed = (0, -1)
  noise = tfp_glow.dequantize.image_noise(tf.constant(IMAGES), seed)
  log_prob = trained.distribution.log_prob((IMAGES + noise) / 256. - 0.5)
  expected = 8. - log_prob / (np.log(2.) * IMAGES[0].size)
  np.testing.assert_allclose(trained.predict(IMAGES, verbose=0), expected, rtol=1e-5)


@pytest.mark.slow
def test_evaluate_gives_the_same_number_twice_and_for_every_batch_size(trained):
  evaluate = lambda size: trained.evaluate(IMAGES, batch_size=size, verbose=0, return_dict=True)["bits_per_dim"]
  assert evaluate(8) == evaluate(8)
  np.testing.assert_allclose([evaluate(5), evaluate(24)], evaluate(8), rtol=1e-6)
  np.testing.assert_allclose(trained.predict(IMAGES, batch_size=7, verbose=0).mean(), evaluate(8), rtol=1e-6)


@pytest.mark.slow
def test_training_noise_differs_between_steps_but_not_between_runs():
  histories = []
  for _ in range(2):
    model = small_models.compiled(one_step(), keras.optimizers.SGD(0.), run_eagerly=True)
    histories.append(model.fit(IMAGES, batch_size=24, epochs=2, shuffle=False,
                               verbose=0).history["bits_per_dim"])
  assert histories[0] == histories[1]
  assert histories[0][0] != histories[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("num_bits", [1, 5])
def test_fewer_bits(num_bits):
  model = small_models.compiled(one_step(num_bits), run_eagerly=True)
  bits = model.fit(IMAGES, epochs=1, verbose=0).history["bits_per_dim"][0]
  assert np.isfinite(bits)
  decoded = model.decode(model.encode(IMAGES))
  np.testing.assert_array_equal(decoded, IMAGES // 2**(8 - num_bits) * 2**(8 - num_bits))


@pytest.mark.slow
def test_encode_decode_round_trip(trained):
  z = trained.encode(IMAGES)
  assert z.shape == (24, 32) and z.dtype == np.float32
  decoded = trained.decode(z)
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, IMAGES)


def test_sample_is_reproducible_from_its_seed(trained):
  samples = trained.sample(5, seed=3)
  assert samples.shape == (5, 4, 4, 2) and samples.dtype == np.uint8
  np.testing.assert_array_equal(samples, trained.sample(5, seed=3))
  np.testing.assert_array_equal(samples, trained.sample(5, seed=(0, 3)))
  assert (samples != trained.sample(5, seed=4)).any()
  assert (trained.sample(5) != trained.sample(5)).any()


def test_temperature_zero_gives_the_mode_of_the_latent(trained):
  samples = trained.sample(3, temperature=0., seed=0)
  np.testing.assert_array_equal(samples, np.broadcast_to(trained.decode(np.zeros([1, 32])), samples.shape))
  spread = [trained.sample(200, temperature=t, seed=0).std(axis=0).mean() for t in (0.3, 1.)]
  assert spread[0] < spread[1]


@pytest.mark.slow
def test_weights_can_be_saved_and_restored(trained, tmp_path):
  trained.save_weights(tmp_path / "model.weights.h5")
  other = small_models.compiled(tfp_glow.FlowModel(small_models.distribution(seed=2)))
  other.load_weights(tmp_path / "model.weights.h5")
  before = small_models.weights_of(other)
  for a, b in zip(before, small_models.weights_of(trained), strict=True):
    np.testing.assert_array_equal(a, b)
  # Another graph of the same numbers may round the last bit differently; the same graph may not.
  predicted = trained.predict(IMAGES, verbose=0)
  np.testing.assert_allclose(other.predict(IMAGES, verbose=0), predicted, rtol=1e-6)
  for variable in trained.distribution.trainable_variables:
    variable.assign(0.5 * variable)
  assert (trained.predict(IMAGES, verbose=0) != predicted).all()
  trained.load_weights(tmp_path / "model.weights.h5")
  np.testing.assert_array_equal(trained.predict(IMAGES, verbose=0), predicted)
  other.compile(keras.optimizers.SGD(0.), run_eagerly=True)
  other.fit(IMAGES, epochs=1, verbose=0)  # Must not initialise again.
  for a, b in zip(before, small_models.weights_of(other)):
    np.testing.assert_array_equal(a, b)


def test_checkpoint_of_tensorflow_restores(trained, tmp_path):
  path = tf.train.Checkpoint(distribution=trained.distribution).write(str(tmp_path / "checkpoint"))
  other = small_models.distribution(seed=2)
  tf.train.Checkpoint(distribution=other).read(path).assert_consumed()
  for a, b in zip(trained.distribution.variables, other.variables):
    np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_distribution_is_trained_in_place(trained):
  held = [v.value for v in trained._adopted]
  assert all(any(v is w for w in held) for v in trained.distribution.trainable_variables)


# Inputs of fit.


def _as(kind):
  labels = np.arange(24)
  return {
      "array": (IMAGES, None), "array and labels": (IMAGES, labels), "dict": ({"image": IMAGES, "label": labels}, None),
      "dataset": (tf.data.Dataset.from_tensor_slices(IMAGES).batch(8), None),
      "dataset of pairs": (tf.data.Dataset.from_tensor_slices((IMAGES, labels)).batch(8), None),
      "dataset of dicts": (tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": labels}).batch(8), None),
      "generator": (((IMAGES[i:i + 8],) for i in range(0, 24, 8)), None),
  }[kind]


def _normalised():
  """Of the first batch, which would be another one if one was lost."""
  base = tfd.Sample(tfd.Normal(0., 1.), small_models.SHAPE)
  return small_models.compiled(
      tfp_glow.FlowModel(tfd.TransformedDistribution(base, tfp_glow.ActNorm(2))), run_eagerly=True)


@pytest.fixture(scope="module")
def eager_bits():
  model = _normalised()
  model.adapt(IMAGES[:8])
  return model.fit(IMAGES, batch_size=8, epochs=1, shuffle=False, verbose=0).history["bits_per_dim"]


@pytest.mark.parametrize("kind", ["array", "array and labels", "dict", "dataset", "dataset of pairs",
                                  "dataset of dicts", "generator"])
def test_every_form_of_input_gives_the_same_training(kind, eager_bits):
  model = _normalised()
  x, y = _as(kind)
  bits = model.fit(x, y, batch_size=8 if kind.startswith(("array", "dict")) else None, epochs=1, shuffle=False,
                   verbose=0).history["bits_per_dim"]
  np.testing.assert_allclose(bits, eager_bits, rtol=1e-5)


# Everything of Keras.


@pytest.mark.slow
def test_many_features_of_keras_at_once(tmp_path):
  data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(8)
  schedule = keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=12, warmup_steps=3, warmup_target=1e-2)
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), keras.optimizers.AdamW(
      schedule, clipnorm=10., use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=None), steps_per_execution=2)
  callbacks = [
      keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", monitor="val_bits_per_dim", save_best_only=True,
                                      save_weights_only=True),
      keras.callbacks.EarlyStopping("val_bits_per_dim", patience=1, restore_best_weights=True),
      keras.callbacks.TensorBoard(tmp_path / "logs"), keras.callbacks.CSVLogger(tmp_path / "log.csv"),
      keras.callbacks.SwapEMAWeights(swap_on_epoch=True), keras.callbacks.TerminateOnNaN()]
  history = model.fit(data, validation_data=data, epochs=4, callbacks=callbacks, verbose=0).history
  assert history["val_bits_per_dim"][-1] < history["val_bits_per_dim"][0]
  assert (tmp_path / "best.weights.h5").exists() and list((tmp_path / "logs").rglob("events*"))
  assert model.optimizer.iterations.numpy() == 12


@pytest.mark.slow
def test_ema_follows_the_weights():
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()),
                                keras.optimizers.SGD(1., use_ema=True, ema_momentum=0.5))
  weights = []
  record = keras.callbacks.LambdaCallback(
      on_train_batch_end=lambda batch, logs: weights.append(small_models.weights_of(model)))
  model.fit(IMAGES, batch_size=12, epochs=1, callbacks=[record], verbose=0)
  # At the end Keras assigns the averages, which start with the weights after the first step.
  for a, b, average in zip(*weights, small_models.weights_of(model)):
    assert np.abs(a - b).max() > 0.
    np.testing.assert_allclose(average, (a + b) / 2., rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_xla_and_eager_train_alike():
  histories = []
  for options in ({"run_eagerly": True}, {"jit_compile": True}):
    # Adam would make steps of full size from gradients that are rounding errors.
    model = small_models.compiled(one_step(), keras.optimizers.SGD(1e-3), **options)
    histories.append(model.fit(IMAGES, batch_size=12, epochs=2, shuffle=False, verbose=0).history["bits_per_dim"])
  np.testing.assert_allclose(*histories, rtol=1e-4)


@pytest.mark.slow
def test_validation_split_and_progress_bar(capsys):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
  history = model.fit(IMAGES, validation_split=0.25, epochs=1, verbose=1).history
  assert np.isfinite(history["val_bits_per_dim"][0])
  assert "bits_per_dim" in capsys.readouterr().out


# Any distribution.


@pytest.mark.slow
def test_trains_a_realnvp():
  network = tfb.real_nvp_default_template([16])
  shift = tfb.Shift(tf.Variable(tf.zeros([4]), name="shift"))
  flow = tfb.Chain([shift, tfb.RealNVP(2, shift_and_log_scale_fn=network)])
  flow.forward(tf.zeros([1, 4]))  # Makes the template's variables.
  distribution = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [4]), flow)
  data = np.random.default_rng(0).normal([1., -2., 0., 3.], 0.5, [256, 4]).astype(np.float32)
  model = tfp_glow.FlowModel(distribution, num_bits=None)
  model.compile(keras.optimizers.Adam(0.02))
  bits = model.fit(data, batch_size=64, epochs=20, verbose=0).history["bits_per_dim"]
  assert bits[-1] < bits[0] - 1.
  np.testing.assert_allclose(model.decode(model.encode(data)), data, atol=1e-4)


@pytest.mark.slow
def test_trains_a_multivariate_normal_to_the_moments_of_the_data():
  scale = tfp.util.TransformedVariable(np.eye(3, dtype=np.float32), tfb.FillScaleTriL(), name="scale")
  loc = tf.Variable(tf.zeros([3]), name="loc")
  distribution = tfd.MultivariateNormalTriL(loc, scale)
  rng = np.random.default_rng(0)
  data = (rng.normal(size=[512, 3]) @ [[1., .5, 0.], [0., .7, .2], [0., 0., .4]] + [1., 2., 3.]).astype(np.float32)
  model = tfp_glow.FlowModel(distribution, num_bits=None)
  model.compile(keras.optimizers.Adam(0.05))
  model.fit(tf.data.Dataset.from_tensors(data).repeat(300), verbose=0)  # As epochs, they would take seconds.
  np.testing.assert_allclose(loc, data.mean(0), atol=0.02)
  np.testing.assert_allclose(distribution.covariance(), np.cov(data.T), atol=0.05)


@pytest.mark.slow
def test_glow_trains_with_a_bare_gradient_tape():
  distribution = small_models.distribution(num_steps_per_block=1)
  x = tfp_glow.dequantize.dequantize(IMAGES, 8, 0.5)
  distribution.bijector.initialize(x)
  optimizer = keras.optimizers.Adam(1e-2)
  losses = []
  for _ in range(10):
    with tf.GradientTape() as tape:
      loss = -tf.reduce_mean(distribution.log_prob(x))
    optimizer.apply(tape.gradient(loss, distribution.trainable_variables), distribution.trainable_variables)
    losses.append(float(loss))
  assert losses[-1] < losses[0] - 5.


def test_trains_networks_that_are_built_when_first_called():
  network = keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(4)])
  flow = tfb.Chain([tfp_glow.ActNorm(4, 1), tfb.Chain([tfp_glow.AffineCoupling(network, 1)])])
  model = small_models.compiled(tfp_glow.FlowModel(
      tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [4]), flow), num_bits=None), run_eagerly=True)
  data = np.random.default_rng(0).normal(3., 2., [64, 4]).astype(np.float32)
  model.adapt(data)
  np.testing.assert_allclose(flow.bijectors[0].shift.numpy(), -data.mean(0), rtol=1e-5)
  before = [w.numpy() for w in network.weights]
  model.fit(data, epochs=1, verbose=0)
  assert all((a != w.numpy()).any() for a, w in zip(before, network.weights))


@pytest.mark.slow
def test_adapt_walks_through_a_chain():
  glow = tfp_glow.GlowBijector(small_models.SHAPE, 1, 2, 8, seed=0)
  base = tfd.Sample(tfd.Normal(0., 1.), [32])
  model = tfp_glow.FlowModel(tfd.TransformedDistribution(base, tfb.Chain([tfb.Scale(2.), glow])))
  model.adapt(IMAGES)
  values = tfp_glow.dequantize.dequantize(IMAGES, 8, tfp_glow.dequantize.image_noise(
      tf.constant(IMAGES), (0, -2**31))) / 2.
  expected = tfp_glow.GlowBijector(small_models.SHAPE, 1, 2, 8, seed=0)
  expected.initialize(values)
  for a, b in zip(glow.variables, expected.variables):
    np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


@pytest.mark.slow
def test_class_conditional():
  model = small_models.compiled(one_step(num_classes=3), run_eagerly=True)
  labels = np.arange(24) % 3
  model.fit(IMAGES, labels, epochs=2, verbose=0)
  z = model.encode(IMAGES, labels)
  assert (z != model.encode(IMAGES, 0)).any()
  np.testing.assert_array_equal(model.decode(z, labels), IMAGES)
  assert model.sample(3, labels=[0, 1, 2], seed=0).shape == (3, 4, 4, 2)
  with pytest.raises(ValueError, match="`labels`.*Received: None"):
    model.sample(3)
  with pytest.raises(ValueError, match=r"`labels`.*0 \.\. 2"):
    model.sample(3, labels=[0, 1, 3])


@pytest.mark.slow
def test_reversible_training_is_that_of_autodiff():
  """In float32. `test_distribute.py` has the same with replicas."""
  before = keras.config.dtype_policy()
  losses = {}
  for gradient in ("autodiff", "reversible"):
    try:
      keras.config.set_dtype_policy("mixed_bfloat16")
      distribution = small_models.distribution(num_hidden=4, gradient=gradient)
    finally:
      keras.config.set_dtype_policy(before)
    model = small_models.compiled(tfp_glow.FlowModel(distribution), run_eagerly=gradient == "autodiff")
    losses[gradient] = model.fit(IMAGES, batch_size=8, epochs=3, shuffle=False, verbose=0).history["bits_per_dim"]
    network = model.distribution.bijector.blocks[0].template.coupling.network
    assert network.compute_dtype == "bfloat16"
    assert {v.dtype for v in distribution.trainable_variables} == {tf.float32}
  np.testing.assert_array_equal(model.decode(model.encode(IMAGES)), IMAGES)
  np.testing.assert_allclose(losses["reversible"], losses["autodiff"], rtol=1e-2)
  assert losses["reversible"][-1] < losses["reversible"][0] - 0.1


@pytest.mark.slow
def test_empty_batches():
  model = small_models.compiled(one_step())
  z = model.encode(IMAGES[:0])
  assert z.shape == (0, 32) and model.decode(z).shape == (0, *small_models.SHAPE)
  assert model.log_prob(IMAGES[:0]).shape == (0,)
  batches = tf.data.Dataset.from_tensor_slices(IMAGES).batch(6)
  empty = batches.take(1).map(lambda batch: batch[:0])
  expected = model.evaluate(batches, return_dict=True, verbose=0)["bits_per_dim"]
  found = model.evaluate(empty.concatenate(batches), return_dict=True, verbose=0)["bits_per_dim"]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_samples_from_latents_without_a_mean():
  no_mean = tfd.Sample(tfd.Independent(tfd.TransformedDistribution(tfd.Normal(0., 1.), tfb.Tanh())), [32])
  glow = tfp_glow.GlowBijector(small_models.SHAPE, 1, 1, 4, seed=0)
  model = tfp_glow.FlowModel(tfd.TransformedDistribution(no_mean, glow), num_bits=None)
  assert model.sample(2, seed=0).shape == (2, *small_models.SHAPE)
  with pytest.raises(tf.errors.InvalidArgumentError, match="`temperature` must be 1"):
    model.sample(2, temperature=.5, seed=0)


def test_samples_from_latents_whose_mean_is_nan():
  cauchy = tfd.Sample(tfd.Cauchy(0., 1.), [32])
  model = tfp_glow.FlowModel(tfd.TransformedDistribution(cauchy, tfb.Reshape([4, 4, 2])(tfb.Scale(tf.Variable(.1)))))
  assert len(np.unique(model.sample(2, seed=0))) > 5
  with pytest.raises(tf.errors.InvalidArgumentError, match="`temperature` must be 1"):
    model.sample(2, temperature=.5, seed=0)


def test_images_that_are_not_finite_are_not_taken_for_black_ones():
  model = tfp_glow.FlowModel(small_models.gaussian())
  latents = model.encode(IMAGES)
  model.distribution.trainable_variables[0].assign(np.full(small_models.SHAPE, np.nan))
  for make in (lambda: model.sample(2, seed=0), lambda: model.decode(latents)):
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be finite to be uint8"):
      make()


# Errors.


def _empty_of_unknown_size():
  return tf.data.Dataset.from_tensor_slices(IMAGES).batch(8).filter(lambda batch: False)


@pytest.mark.parametrize("call, error, match", [
    (lambda m: m.fit(IMAGES.astype(np.float32), verbose=0), TypeError, "`images` must be uint8.*Received: float32"),
    (lambda m: m.fit(IMAGES[:, :, :3], verbose=0), ValueError, "`images` must have shape.*Received: "),
    (lambda m: m.fit(IMAGES[:0], verbose=0), ValueError, "`x` must hold at least one image"),
    (lambda m: m.evaluate(_empty_of_unknown_size(), verbose=0), ValueError, "`x` must hold at least one image"),
    (lambda m: m.predict(_empty_of_unknown_size(), verbose=0), ValueError, "`x` must hold at least one image"),
    (lambda m: m.fit({"img": IMAGES}, verbose=0), ValueError, "key 'image'.*Received: "),
    (lambda m: m.fit(IMAGES, sample_weight=np.ones(24), verbose=0), ValueError, "`sample_weight`"),
    (lambda m: m.encode(IMAGES.astype(np.int32)), TypeError, "`images` must be uint8.*Received: int32"),
    (lambda m: m.encode(IMAGES, labels=[0] * 24), ValueError, "`labels` must be None"),
    (lambda m: m.decode(np.zeros([2, 31])), ValueError, r"`z` must have shape \(None, 32\). Received: \(2, 31\)"),
    (lambda m: m.sample(0), ValueError, "`num_samples`.*Received: 0"),
    (lambda m: m.sample(2, temperature=-1.), ValueError, "`temperature`.*Received: -1"),
    (lambda m: m.sample(2, seed=0.5), ValueError, "`seed`.*Received: 0.5"),
    (lambda m: m.compile("adam", loss="mse"), ValueError, "`loss` must not be given.*Received: loss='mse'"),
    (lambda m: m.compile("adam", "mse"), TypeError, "positional"),
])
def test_bad_input(trained, call, error, match):
  with pytest.raises(error, match=match):
    call(trained)


def _without_optimizer():
  model = tfp_glow.FlowModel(small_models.gaussian())
  model.compile(None)
  return model


@pytest.mark.parametrize("make, error, match", [
    (lambda: tfp_glow.FlowModel(keras.layers.Dense(1)), TypeError, "`distribution`.*Received: "),
    (lambda: tfp_glow.FlowModel(tfd.Normal([0., 0.], 1.)), ValueError, "batch_shape"),
    (lambda: tfp_glow.FlowModel(tfd.Normal(0., 1.)), ValueError, "trainable `tf.Variable`s"),
    (lambda: tfp_glow.FlowModel(small_models.distribution(), num_bits=17), ValueError, "`num_bits`.*Received: 17"),
    (lambda: tfp_glow.FlowModel(small_models.distribution()).fit(IMAGES), ValueError, "compile"),
    (lambda: _without_optimizer().fit(IMAGES), ValueError, "`optimizer` of `compile`.*Received: None"),
    (lambda: _without_optimizer().train_on_batch(IMAGES), ValueError, "`optimizer` of `compile`.*Received: None"),
])
def test_bad_models(make, error, match):
  with pytest.raises(error, match=match):
    make()


@pytest.mark.slow
def test_train_on_batch_does_what_fit_does():
  fitted, trained = (small_models.compiled(one_step(), run_eagerly=True) for _ in range(2))
  fitted.fit(IMAGES, batch_size=24, shuffle=False, verbose=0)
  results = trained.train_on_batch(IMAGES, return_dict=True)
  assert trained.distribution.bijector.initialized
  assert results["bits_per_dim"] == pytest.approx(fitted.history.history["bits_per_dim"][0], rel=1e-5)
  for a, b in zip(small_models.weights_of(fitted), small_models.weights_of(trained)):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_a_traced_step_builds_the_optimizer():
  losses = []
  for build in (False, True):
    model = small_models.compiled()
    model.adapt(IMAGES)
    if build:
      model.optimizer.build(model.trainable_variables)
    step = tf.function(model.train_step)
    losses.append([float(step(tf.constant(IMAGES))["loss"]) for _ in range(3)])
    assert int(model.optimizer.iterations) == 3
  assert losses[0] == losses[1] and len(set(losses[0])) == 3


@pytest.mark.parametrize("make", [keras.optimizers.Adam, keras.optimizers.SGD])
def test_an_update_step_of_the_callers_is_called_and_kept(make):
  model, optimizer, updated = tfp_glow.FlowModel(small_models.gaussian()), make(1e-2), []
  update_step = lambda gradient, variable, rate: (
      updated.append(variable.name), make.update_step(optimizer, gradient, variable, rate))
  optimizer.update_step = update_step
  model.compile(optimizer, run_eagerly=True)
  for _ in range(2):
    model.train_on_batch(IMAGES)
  assert len(updated) == 2 * len(model.trainable_variables) and optimizer.update_step is update_step


@pytest.mark.slow
def test_train_on_batch_names_what_is_not_finite():
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
  model.distribution.trainable_variables[0].assign(np.nan * model.distribution.trainable_variables[0])
  with pytest.raises(FloatingPointError, match="step 1: the parameter"):
    model.train_on_batch(IMAGES)


@pytest.mark.slow
def test_masks_of_networks_are_kept():
  """TFP's autoregressive networks have masks as constraints of variables; without them log-dets would be wrong."""
  network = tfb.AutoregressiveNetwork(2, event_shape=[3], hidden_units=[8], activation="tanh")
  flow = tfb.MaskedAutoregressiveFlow(network)
  base = tfd.Sample(tfd.Normal(0., 1.), [3])
  model = tfp_glow.FlowModel(tfd.TransformedDistribution(base, flow), num_bits=None)
  model.compile(keras.optimizers.Adam(1e-2))
  rows = np.random.default_rng(0).standard_normal([64, 3]).astype(np.float32)
  before = [weight.numpy() for weight in network.trainable_variables]
  model.fit(rows @ np.float32([[1., 1., 0.], [0., 1., 1.], [0., 0., 1.]]), epochs=3, verbose=0)
  assert all(np.any(weight != value) for weight, value in zip(network.trainable_variables, before))
  y = tf.constant(rows[:5])
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(y)
    z = flow.inverse(y)
  jacobians = tape.batch_jacobian(z, y, experimental_use_pfor=False)
  np.testing.assert_allclose(flow.inverse_log_det_jacobian(y, 1), np.linalg.slogdet(jacobians)[1], atol=1e-5)
  assert not np.any(np.triu(jacobians, 1))

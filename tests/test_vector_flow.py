"""Glow of vectors, and what standardises the columns of tables."""

import functools
import warnings

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
import tf32
from bijector_cases import dense, perturb
from scipy import stats

import tfp_glow
from tfp_glow.training import batches, sources

tfb, tfd = tfp.bijectors, tfp.distributions
MEANS, DEVIATIONS = np.array([5., 1e6, -3e-9, 0.]), np.array([1e-3, 2e4, 1e-9, 1.])


def table(count=200, dtype="float32", seed=0):
  """Rows of four columns that depend on each other, in very different units."""
  rng = np.random.default_rng(seed)
  mixing = np.array([[1., 0.8, 0., 0.3], [0., 0.6, 0.5, 0.], [0., 0., 0.9, -0.5], [0., 0., 0., 0.8]])
  return (MEANS + DEVIATIONS * (rng.standard_normal([count, 4]) @ mixing)).astype(dtype)


def flow_of(num_dims=4, **kwargs):
  return tfp_glow.VectorFlowBijector(num_dims, **{"num_steps": 2, "num_hidden": 8, "seed": 0, **kwargs})


def model_of(flow, **kwargs):
  model = tfp_glow.FlowModel(flow, num_bits=None)
  model.compile(keras.optimizers.Adam(1e-2), **kwargs)
  return model


# Standardisation.


@pytest.mark.parametrize("dtype, tolerance", [("float32", 3e-4), ("float64", 1e-11)])
def test_standardised_columns_have_exact_densities_in_their_own_units(dtype, tolerance):
  """Against SciPy's normal density, in any units. (In float32 the mean 5 is exact to 2e-4 deviations.)"""
  rows, flow = table(dtype=dtype), tfp_glow.Standardization(4, dtype=dtype)
  flow.initialize(rows)
  z = flow.inverse(rows).numpy()
  np.testing.assert_allclose(z.mean(0), 0., atol=tolerance)
  np.testing.assert_allclose(z.std(0), 1., atol=tolerance)
  exact = np.float64(rows)
  expected = stats.norm.logpdf(exact, exact.mean(0), exact.std(0)).sum(1)
  normal = tfd.Sample(tfd.Normal(np.zeros([], dtype), 1.), [4])
  log_prob = tfd.TransformedDistribution(normal, flow).log_prob(rows)
  np.testing.assert_allclose(log_prob, expected, atol=10. * tolerance)
  np.testing.assert_allclose((flow.forward(z) - rows) / DEVIATIONS, np.zeros_like(rows), atol=2. * tolerance)


def test_channels_of_images_are_standardised_over_all_positions():
  images = np.random.default_rng(0).normal([3., -2.], [4., 0.5], [50, 3, 2, 2])
  flow = tfp_glow.Standardization(2, event_ndims=3, dtype="float64")
  flow.initialize(images)
  z, log_det = flow.inverse_and_log_det(images)
  np.testing.assert_allclose([z.numpy().mean((0, 1, 2)), z.numpy().std((0, 1, 2))], [[0., 0.], [1., 1.]], atol=1e-12)
  np.testing.assert_allclose(log_det, -6. * np.log(images.std((0, 1, 2))).sum())


def test_constant_columns_keep_their_scale():
  """Also columns that are constant except for float32's rounding."""
  rows = np.float32(np.c_[np.full(9, 7.), np.zeros(9), 1e8 + np.arange(9), np.arange(9)])
  flow = tfp_glow.Standardization(4)
  flow.initialize(rows)
  np.testing.assert_allclose(flow.deviation, [1., 1., 1., np.std(np.arange(9))], rtol=1e-6)
  assert np.all(np.isfinite(flow.inverse(rows)))


def test_it_is_not_trained():
  assert not tfp_glow.Standardization(4).trainable_variables
  assert {"standardization_mean", "standardization_deviation"} <= {
      v.name.split(":")[0] for v in flow_of().variables} - {v.name.split(":")[0] for v in flow_of().trainable_variables}


def test_before_another_flow():
  """A chain with a bijector of TFP, which has nothing to initialise."""
  scale = tfb.ScaleMatvecTriL(tf.Variable(np.eye(4)))
  model = tfp_glow.FlowModel(tfp_glow.Chain([tfp_glow.Standardization(4, dtype="float64"), scale]), num_bits=None)
  rows = table(dtype="float64")
  model.adapt(rows)
  expected = stats.norm.logpdf(rows, rows.mean(0), rows.std(0)).sum(1)
  np.testing.assert_allclose(model.log_prob(rows), expected, atol=1e-9)


# Whitening.


@pytest.mark.parametrize("count, share", [(400, 1e-4), (8, 0.0025), (2, 0.04)])
def test_whitened_rows_have_the_density_of_their_gaussian(count, share):
  rows = (table(count, "float64") - MEANS) / DEVIATIONS
  flow = tfp_glow.Whitening(4, dtype="float64")
  flow.initialize(rows)
  covariance = np.cov(rows.T, bias=True)
  expected = (1. - share) * covariance + share * np.trace(covariance) / 4. * np.eye(4)
  np.testing.assert_allclose(flow.factor.numpy() @ flow.factor.numpy().T, expected, rtol=1e-10, atol=1e-12)
  z, log_det = flow.inverse_and_log_det(rows)
  np.testing.assert_allclose(log_det + stats.norm.logpdf(z).sum(1),
                             stats.multivariate_normal.logpdf(rows, np.zeros(4), expected), rtol=1e-9)


def test_columns_that_whitening_must_not_stretch():
  """A constant column, two equal columns, and a single row."""
  rows = np.random.default_rng(0).standard_normal([100, 3]) * [1., 0., 1.]
  rows = np.c_[rows, rows[:, :1]]
  flow = tfp_glow.Whitening(4, dtype="float64")
  flow.initialize(rows)
  np.testing.assert_allclose(flow.factor[1], [0., 1., 0., 0.], atol=1e-5)
  assert np.abs(np.linalg.inv(flow.factor)).max() < 110.
  flow.initialize(rows[:1])
  np.testing.assert_allclose(flow.factor, np.eye(4))


# Densities in the units of the columns.


def test_at_the_start_it_is_a_gaussian_in_the_units_of_the_columns():
  """Networks start at zero, so the flow is an affine map, and SciPy gives its density."""
  model, rows = tfp_glow.FlowModel(flow_of(dtype="float64"), num_bits=None), table(dtype="float64")
  model.adapt(rows)
  origin, *corners = model.decode(np.r_[np.zeros([1, 4]), np.eye(4)])
  factor = (np.stack(corners) - origin) / DEVIATIONS
  expected = stats.multivariate_normal.logpdf((rows - origin) / DEVIATIONS, np.zeros(4), factor.T @ factor)
  np.testing.assert_allclose(model.log_prob(rows), expected - np.log(DEVIATIONS).sum(), atol=1e-6)
  best = stats.multivariate_normal.logpdf(rows / DEVIATIONS, rows.mean(0) / DEVIATIONS, np.cov((rows / DEVIATIONS).T))
  assert np.mean(expected) == pytest.approx(np.mean(best), abs=0.1)  # The covariance of the data.


@pytest.mark.slow
def test_units_change_nothing_but_the_units():
  """A model that is trained on columns in other units is the same."""
  def trained(rows):
    model = model_of(flow_of(dtype="float64"), run_eagerly=True)
    model.fit(rows, batch_size=100, epochs=2, shuffle=False, verbose=0)
    return model.log_prob(rows)

  rows, scale = table(dtype="float64"), np.array([1e3, 1e-6, 1e9, 2.])
  np.testing.assert_allclose(trained(rows * scale + 7.) + np.log(scale).sum(), trained(rows), atol=1e-3)


@pytest.mark.slow
def test_fit_looks_at_more_rows_than_a_batch():
  """In a sorted table the first batch is unlike the rest."""
  rows = np.sort(table(), axis=0)
  model = model_of(flow_of(), run_eagerly=True)
  model.optimizer.learning_rate = 0.
  model.fit(rows, batch_size=50, shuffle=False, verbose=0)
  flow = model.distribution.bijector
  np.testing.assert_allclose(flow.parts[0].mean, np.float64(rows).mean(0), rtol=1e-6)
  np.testing.assert_allclose(flow.parts[0].deviation, np.float64(rows).std(0), rtol=1e-5)


@pytest.mark.slow
def test_fit_looks_at_all_of_a_long_table(monkeypatch):
  """The table is sorted: its smallest rows are unlike the rest."""
  monkeypatch.setattr(batches, "NUM_ROWS_TO_ADAPT", 50)
  rows = np.sort(table(2000), axis=0)
  model = model_of(flow_of(), run_eagerly=True)
  model.optimizer.learning_rate = 0.
  model.fit(rows, batch_size=32, steps_per_epoch=1, verbose=0)
  standardization = model.distribution.bijector.parts[0]
  mean, deviation = np.float64(rows).mean(0), np.float64(rows).std(0)
  np.testing.assert_allclose((standardization.mean - mean) / deviation, np.zeros(4), atol=0.05)
  np.testing.assert_allclose(standardization.deviation / deviation, np.ones(4), rtol=0.1)


@pytest.mark.parametrize("kind", [np.asarray, tf.constant])
def test_rows_that_initialise_are_from_all_of_the_table(kind):
  index = np.arange(2000)
  x, y = sources.source_of(kind(index), {"context": kind(-index)}).spread_batch(50)
  np.testing.assert_array_equal(y["context"], -np.asarray(x))
  np.testing.assert_array_equal(np.asarray(x) // 40, np.arange(50))
  assert len(set(np.asarray(x) % 40)) > 20  # Also if rows of 40 kinds alternate.
  np.testing.assert_array_equal(sources.source_of(kind(index)).spread_batch(2000), index)


@pytest.mark.parametrize("make", [tfp_glow.Standardization, lambda num_dims: tfp_glow.Invert(
    tfp_glow.Standardization(num_dims)), lambda num_dims: flow_of(num_dims, num_steps=1)])
def test_digits_that_float32_loses_are_named(make):
  """Times of one day in seconds since 1970, beside columns that are far but wide, near, and constant."""
  rows = np.random.default_rng(0).normal([1e6, 1.7e9, 5., 0.], [1e3, 1e4, 1e-3, 1.], [50, 4])
  rows = np.float32(np.c_[rows, np.full(50, 1e7)])
  with pytest.warns(UserWarning, match=r'`dtype="float64"`.*, or .*subtract a constant.*Received: .* indices \[1\]$'):
    make(5).initialize(rows)


def test_nothing_is_said_of_digits_that_are_kept():
  rows = np.random.default_rng(0).normal([1e6, 1.7e9], [1e3, 1e4], [50, 2])
  near = np.float32(rows - [0., 1.7e9])
  for dtype, columns in (("float64", rows), ("float32", near)):
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      tfp_glow.Standardization(columns.shape[1], dtype=dtype).initialize(columns)


# What is refused.


@pytest.mark.parametrize("output_shape", [1, (1,), 0, (2, 3), (), "4", True, 2.5, None])
def test_wrong_shapes(output_shape):
  with pytest.raises(ValueError, match=r"`output_shape` must be D or \(D,\), an `int` of at least 2.*Received: "):
    tfp_glow.VectorFlowBijector(output_shape)


@pytest.mark.parametrize("options, error, match", [
    ({"num_steps": 0}, ValueError, "`num_steps`"), ({"num_hidden": 0}, ValueError, "`num_hidden`"),
    ({"seed": -1}, ValueError, "`seed`"), ({"gradient": "none"}, ValueError, "`gradient`"),
    ({"dtype": "float16"}, ValueError, "`dtype`"), ({"context_shape": ()}, ValueError, "`context_shape`"),
    ({"context_network": dense(2, "float32")}, ValueError, "`context_network` must be None without"),
    ({"context_network": 3, "context_shape": (2,)}, TypeError, "`context_network`"),
    ({"network_fn": lambda n: keras.layers.Dense(n + 1)}, ValueError, "`network` must map")])
def test_wrong_arguments(options, error, match):
  with pytest.raises(error, match=match):
    flow_of(**options)


def test_the_flow_of_single_numbers_that_the_message_names():
  flow = tfp_glow.ResidualFlowBijector(1, num_scales=0, num_dense_blocks=1, num_dense_hidden=4)
  assert flow.inverse(np.zeros([3, 1], np.float32)).shape == (3, 1)


@pytest.mark.parametrize("rows, error, match", [
    (np.where(np.arange(800).reshape(200, 4) == 5, np.nan, table()), ValueError, "must be finite. Received: "),
    (np.arange(80).reshape(20, 4), TypeError, "`images` must be floating.*Received: int64"),
    (table()[:, :3], ValueError, r"`images` must have shape \[None, 4\].*Received: "),
])
def test_what_is_in_a_table(rows, error, match):
  model = model_of(flow_of())
  for call in (model.adapt, functools.partial(model.fit, verbose=0)):
    with pytest.raises(error, match=match):
      call(rows)
  assert not model.distribution.bijector.initialized


# What the other flows do.


def test_seeds():
  values = [[v.numpy() for v in flow_of(seed=seed).variables] for seed in (0, 0, 1)]
  for a, b in zip(values[0], values[1], strict=True):
    np.testing.assert_array_equal(a, b)
  assert any(np.any(a != b) for a, b in zip(values[0], values[2]))
  kernels = next(v for v in flow_of(num_steps=3).variables if "kernel0" in v.name).numpy()
  assert kernels.shape == (3, 2, 8) and np.abs(kernels[1] - kernels[2]).max() > 0.1


def test_a_network_of_your_own():
  flow = flow_of(5, network_fn=lambda units: dense(units, "float32"))
  assert isinstance(flow.parts[-1].template.coupling.network, keras.Sequential)
  assert flow.parts[-1].template.coupling.network.output_shape[-1] == 2 * 3  # Shift and scale of three numbers.


@functools.cache
def _conditional(gradient="autodiff"):
  """A flow whose context is a vector and an image, and goes through a network."""
  vector, image = (keras.Input(shape, dtype="float64", name=name) for name, shape in (
      ("vector", [3]), ("image", [2, 2, 1])))
  both = keras.layers.Concatenate(dtype="float64")([vector, keras.layers.Flatten(dtype="float64")(image)])
  outputs = keras.layers.Dense(5, "tanh", dtype="float64",
                               kernel_initializer=keras.initializers.RandomNormal(seed=0))(both)
  network = keras.Model({"vector": vector, "image": image}, {"out": outputs, "image": image})
  flow = flow_of(3, dtype="float64", gradient=gradient, context_shape={"vector": (3,), "image": (2, 2, 1)},
                 context_network=network)
  perturb(flow, scale=0.3)
  return flow


def _context(count, seed=0):
  rng = np.random.default_rng(seed)
  return {"vector": tf.constant(rng.standard_normal([count, 3])),
          "image": tf.constant(rng.standard_normal([count, 2, 2, 1]))}


def test_log_det_given_a_context():
  flow, context, y = _conditional(), _context(4), tf.constant(np.random.default_rng(1).standard_normal([4, 3]))
  z, log_det = flow.inverse_and_log_det(y, context=context)
  np.testing.assert_allclose(flow.forward(z.numpy(), context=context), y, atol=1e-10)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(y)
    outputs = flow.inverse(y, context=context)
  jacobians = tape.batch_jacobian(outputs, y, experimental_use_pfor=False)
  np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobians)[1], atol=1e-10)
  for name in context:
    others = context | {name: _context(4, seed=1)[name]}
    assert np.abs(flow.inverse(y, context=others) - z).min(1).max() > 1e-3, name
  with pytest.raises(ValueError, match="`context` of `vector_flow` must be given"):
    flow.inverse(y)


@pytest.mark.slow
@pytest.mark.parametrize("inverse", [True, False])
def test_reversible_gradients_are_those_of_autodiff(inverse):
  """Gradients by weights, inputs and contexts, in a graph."""
  y, context, found = tf.constant(np.random.default_rng(1).standard_normal([4, 3])), _context(4), {}
  for gradient in ("autodiff", "reversible"):
    flow = _conditional(gradient)

    @tf.function(autograph=False)
    def gradients(flow=flow):
      with tf.GradientTape() as tape:
        tape.watch((y, context))
        value, log_det = (flow.inverse_and_log_det if inverse else flow.forward_and_log_det)(y, context=context)
        loss = tf.reduce_sum(log_det) - tf.reduce_sum(tf.sin(value))
      return tape.gradient(loss, [y, *context.values(), *flow.trainable_variables])

    found[gradient] = gradients()
  for a, b in zip(*found.values(), strict=True):
    assert np.any(a)
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_conditional_model(tmp_path):
  """It trains, is saved with its context network, and trains on."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal([256, 1]).astype(np.float32)
  y = (np.c_[x, -2. * x] + 0.1 * rng.standard_normal([256, 2])).astype(np.float32)
  flow = flow_of(2, context_shape=(1,), context_network=keras.Sequential([keras.layers.Dense(4, "tanh")]))
  model = model_of(flow)
  model.fit(y, {"context": x}, batch_size=64, epochs=30, verbose=0)
  given, others = (np.mean(model.log_prob(y, context=context)) for context in (x, x[::-1]))
  assert given > others + 1.
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.log_prob(y, context=x), model.log_prob(y, context=x))
  np.testing.assert_array_equal(loaded.sample(5, seed=0, context=x[0]), model.sample(5, seed=0, context=x[0]))
  fit = lambda model: model.fit(y, {"context": x}, shuffle=False, verbose=0).history["loss"]
  assert fit(loaded) == pytest.approx(fit(model), rel=1e-5)


@pytest.mark.slow
def test_saved_model(tmp_path):
  """TensorFlow alone answers in the units of the columns."""
  model, rows = tfp_glow.FlowModel(flow_of(), num_bits=None), table()
  model.adapt(rows)
  perturb(model.distribution.bijector)
  model.export(tmp_path / "served")
  signatures = tf.saved_model.load(str(tmp_path / "served")).signatures
  log_prob = signatures["log_prob"](images=tf.constant(rows))["log_prob"]
  np.testing.assert_allclose(log_prob, model.log_prob(rows), rtol=1e-5, atol=1e-4)
  latent = signatures["encode"](images=tf.constant(rows))["latent"]
  decoded = signatures["decode"](latent=latent)["images"]
  np.testing.assert_allclose((decoded - rows) / DEVIATIONS, np.zeros_like(rows), atol=1e-3)


@pytest.mark.slow
def test_lower_precision_is_that_of_training_alone():
  before = keras.config.dtype_policy()
  try:
    keras.config.set_dtype_policy("mixed_bfloat16")
    flow = flow_of(num_hidden=32)
  finally:
    keras.config.set_dtype_policy(before)
  exact, rows = flow_of(num_hidden=32), table()
  for each in (flow, exact):
    each.initialize(rows)
    perturb(each, scale=0.3)
  np.testing.assert_allclose(flow.inverse(rows), exact.inverse(rows), atol=1e-5)
  in_training, _ = flow.inverse_and_log_det(rows, training=True)
  assert 1e-4 < np.abs(in_training - exact.inverse(rows)).max() < 1.


@pytest.mark.slow
def test_devices_that_round_products():
  """A graph that is run by others, on a device that computes float32 products in TensorFloat-32."""
  flow, rows = flow_of(num_hidden=32), table()
  flow.initialize(rows)
  perturb(flow, scale=0.3)
  run = tf.function(lambda y: flow.inverse(y), autograph=False)
  expected = run(rows)
  with tf32.emulated():
    found = tf.function(run.python_function, autograph=False)(rows)
    assert np.abs(flow.inverse_and_log_det(rows, training=True)[0] - expected).max() > 1e-5
  np.testing.assert_allclose(found, expected, atol=2e-5)


# Densities that are known.


@pytest.mark.slow
def test_a_gaussian_is_learned_to_its_entropy():
  """In four dimensions, with columns in very different units; the exact value is from the formula."""
  keras.utils.set_random_seed(0)
  rng = np.random.default_rng(0)
  factor = DEVIATIONS[:, np.newaxis] * (np.eye(4) + 0.6 * rng.standard_normal([4, 4]))
  gaussian = stats.multivariate_normal(MEANS / DEVIATIONS, (factor / DEVIATIONS[:, np.newaxis]) @ (
      factor / DEVIATIONS[:, np.newaxis]).T)
  draw = lambda count, seed: gaussian.rvs(count, random_state=seed) * DEVIATIONS
  negative_entropy = -gaussian.entropy() - np.log(DEVIATIONS).sum()
  model = tfp_glow.FlowModel(flow_of(num_steps=4, num_hidden=32, dtype="float64"), num_bits=None)
  train = draw(40_000, 1)
  schedule = keras.optimizers.schedules.CosineDecay(5e-3, 5 * len(train) // 200)
  model.compile(keras.optimizers.Adam(schedule, global_clipnorm=10.))
  model.fit(train, batch_size=200, epochs=5, verbose=0)
  test = draw(100_000, 2)
  found = model.log_prob(test)
  exact = gaussian.logpdf(test / DEVIATIONS) - np.log(DEVIATIONS).sum()
  assert abs(np.mean(found) - negative_entropy) < 0.03
  assert 0. < np.mean(exact - found) < 0.01  # The divergence, without the noise of the samples.


@pytest.mark.slow
def test_integral_over_a_plane_in_other_units():
  """A learned density: its log-det contains that of the units."""
  keras.utils.set_random_seed(0)
  units = np.array([1e-4, 3e3])
  model = model_of(flow_of(2, num_steps=4, num_hidden=32, dtype="float64"))
  model.fit(small_models.points(2000).astype(np.float64) * units, batch_size=100, epochs=10, verbose=0)
  line = np.linspace(-12., 12., 601)
  grid = np.stack(np.meshgrid(line, line), axis=-1).reshape([-1, 2]) * units
  integral = np.exp(model.log_prob(grid)).sum() * (line[1] - line[0])**2 * units.prod()
  assert integral == pytest.approx(1., abs=1e-3)
  assert np.mean(model.log_prob(small_models.points(2000).astype(np.float64) * units)) > -1.5 - np.log(units).sum()

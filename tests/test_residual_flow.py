"""The residual flow: its architecture, and its training, saving and export by `FlowModel`."""

import functools
import inspect

import bijector_cases
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from distributed_runs import mirrored
from small_models import of_standard_normal, points, residual_flow, residual_model
from tensorflow.python.eager.polymorphic_function import polymorphic_function

import tfp_glow
from tfp_glow.networks import lipschitz

tfb, tfd = tfp.bijectors, tfp.distributions
pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
IMAGES = small_models.images(16, (4, 4, 1))


def make_flow(**kwargs):
  return tfp_glow.ResidualFlowBijector(**{
      "output_shape": (4, 4, 1), "num_scales": 2, "num_blocks_per_scale": 2, "num_hidden": 6, "num_dense_blocks": 1,
      "num_dense_hidden": 6, "seed": 0, **kwargs})


def constrained(flow):
  """`(layer, values of its variables)` for each layer of each step, with the steps of a `Scan` one by one."""
  for part in getattr(flow, "_parts", [flow]):
    if isinstance(part, tfp_glow.Scan):
      for values in part._rows():
        by_variable = dict(zip(map(id, part._template_variables), values))
        for layer in lipschitz.constrained_layers(part.template.block.network):
          yield layer, [by_variable[id(v)] for v in (layer.kernel, layer.u, layer.v)]
    elif isinstance(part, tfp_glow.ResidualStep):
      for layer in lipschitz.constrained_layers(part.block.network):
        yield layer, [tf.convert_to_tensor(v.value) for v in (layer.kernel, layer.u, layer.v)]


def check_norms(flow, slack=0.02):
  """Checks that the norm of each layer's exact matrix is within its bound."""
  for layer, (kernel, u, v) in constrained(flow):
    shape = layer._one_input[1:]
    size = int(np.prod(shape))
    matrix = np.reshape(layer.linear_map(tf.reshape(tf.eye(size), [size, *shape]), kernel), [size, -1])
    found = tf.reduce_sum(u * layer.linear_map(v, kernel))
    true = np.linalg.norm(matrix, 2)
    assert (1. - slack) * true < found < (1. + 1e-5) * true


# Architecture.


@pytest.mark.slow
def test_features_and_parts_of_latents():
  whole, factored = make_flow(), make_flow(factor_out=True, squeeze_first=True)
  x, log_det, features = whole.inverse_with_features(IMAGES.astype(np.float32) / 256. - 0.5)
  expected, expected_log_det = whole.inverse_and_log_det(IMAGES.astype(np.float32) / 256. - 0.5)
  np.testing.assert_array_equal(x, expected)
  np.testing.assert_allclose(log_det, expected_log_det, rtol=1e-6)
  assert [tuple(feature.shape[1:]) for feature in features] == whole.feature_shapes == [(2, 2, 4), (2, 2, 4)]
  np.testing.assert_array_equal(features[1], whole.split_latent(x)[0])
  assert np.abs(features[0] - features[1]).max() > 0.01
  # What leaves first is the output of the first scale, and nothing after it changes that.
  assert factored.feature_shapes == [(1, 1, 8), (1, 1, 8)]
  before = factored.split_latent(factored.inverse(IMAGES.astype(np.float32) / 256. - 0.5))
  scan = factored.parts[-1].rest.parts[0]
  scan.stacked(scan.template.block.network.layers[-1].bias).assign_add([[0.1] * 8] * 2)
  after = factored.split_latent(factored.inverse(IMAGES.astype(np.float32) / 256. - 0.5))
  np.testing.assert_array_equal(before[0], after[0])
  assert np.abs(before[1] - after[1]).max() > 0.01


@pytest.mark.slow
def test_temperature_by_level():
  model = tfp_glow.FlowModel(make_flow(factor_out=True), num_bits=8)
  flow = model.distribution.bijector
  parts = flow.split_latent(model.encode(model.sample(4, temperature=[0., 1.], seed=0)))
  # The image is rounded to its bins; the part that left first was 0.
  assert np.abs(parts[0]).max() < 0.2 < np.abs(parts[1]).max()
  with pytest.raises(ValueError, match="`temperature` must be one number.*for 2 levels"):
    model.sample(4, temperature=[1., 1., 1.])


@functools.cache
def image_flow():
  """One flow for all tests that do not train it."""
  return make_flow(num_dense_blocks=2)


def steps_of(flow):
  """A step for each part that has one; for a `Scan` its template."""
  return [part.template if isinstance(part, tfp_glow.Scan) else part for part in flow._parts if part.is_stochastic]


@pytest.mark.slow
def test_the_parts_are_those_of_the_paper():
  flow = image_flow()
  kinds = [type(part).__name__.lstrip("_") for part in flow._parts]
  assert kinds == ["Logit", "ActNorm", "ResidualStep", "Scan", "Squeeze", "Scan", "Flatten", "Scan"]
  assert [part.num_steps for part in flow._parts if isinstance(part, tfp_glow.Scan)] == [1, 2, 2]
  networks = [step.block.network for step in steps_of(flow)]
  kinds = [[type(layer).__name__ for layer in network.layers] for network in networks]
  assert kinds[0] == ["LipschitzConv2D", "LipSwish"] * 2 + ["LipschitzConv2D"]
  assert kinds[1:3] == [["LipSwish", "LipschitzConv2D"] * 3] * 2 and kinds[3] == ["LipSwish", "LipschitzDense"] * 3
  layers = [lipschitz.constrained_layers(network) for network in networks]
  assert [[layer.kernel_size for layer in of_one] for of_one in layers[:3]] == [[3, 1, 3]] * 3
  assert [[layer.kernel.shape[-1] for layer in of_one] for of_one in layers] == [
      [6, 6, 1], [6, 6, 1], [6, 6, 4], [6, 6, 16]]


@pytest.mark.slow
def test_defaults_are_those_of_the_paper():
  defaults = {name: parameter.default for name, parameter in inspect.signature(
      tfp_glow.ResidualFlowBijector.__init__).parameters.items()}
  expected = dict(num_scales=3, num_blocks_per_scale=16, num_hidden=512, num_dense_blocks=4, num_dense_hidden=128,
                  coefficient=0.98, num_terms=2, num_eval_terms=20, roulette="poisson")
  assert {key: defaults[key] for key in expected} == expected
  assert image_flow()._parts[0].parameters["alpha"] == 0.05


@pytest.mark.slow
def test_every_layer_starts_within_its_bound():
  flow = image_flow()
  check_norms(flow)
  # The steps have random values of their own; they are not copies.
  kernels = [kernel.numpy() for _, (kernel, *_) in constrained(flow)]
  assert len({kernel.tobytes() for kernel in kernels}) == len(kernels) == 3 * (2 + 2 + 2)
  assert len(set(noise_seeds(flow)[:, 0])) == 2 + 2 + 2


def noise_seeds(flow):
  """The seeds of all blocks, `[num_blocks, 2]`."""
  seeds = [v.numpy() for v in flow._variables_of_update() if v.dtype == "int32"]
  return np.concatenate([np.reshape(seed, [-1, 2]) for seed in seeds])


@pytest.mark.slow
def test_same_seed_same_flow():
  first, again, other = (
      residual_flow(num_dense_blocks=1, seed=seed).inverse_and_log_det(points(8)) for seed in (1, 1, 2))
  for a, b in zip(first, again):
    np.testing.assert_array_equal(a, b)
  assert np.abs(first[0] - other[0]).max() > 0.01


@pytest.mark.slow
def test_initialisation_makes_latents_standard():
  flow = image_flow()
  assert not flow.initialized
  x = 3. * np.random.default_rng(0).uniform(-0.5, 0.5, [200, 4, 4, 1]).astype(np.float32)**3
  flow.initialize(x)
  z = flow.inverse(x).numpy()
  assert flow.initialized
  np.testing.assert_allclose(z.mean(0), 0., atol=1e-3)
  np.testing.assert_allclose(z.std(0), 1., atol=1e-2)


def test_data_that_are_not_images_are_refused_at_once():
  flow = tfp_glow.ResidualFlowBijector(2, 0, num_dense_blocks=1, num_dense_hidden=4, logit_alpha=0.05)
  with pytest.raises(ValueError, match="`y` must lie between -1/2 and 1/2.*`logit_alpha=None`.*Received: -4 to 3"):
    flow.initialize([[-4., 3.], [0., 0.]])
  assert not flow.initialized and all(np.isfinite(v).all() for v in flow.trainable_variables)


@pytest.mark.slow
def test_a_walk_of_a_training_step():
  flow = residual_flow()
  *_, (_, z, _) = parts = list(flow.walk(points(4), training=True))
  expected, log_det = flow.inverse_and_log_det(points(4), training=True)
  np.testing.assert_allclose(z, expected, atol=1e-6)
  np.testing.assert_allclose(sum(part[2] for part in parts), log_det, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", [
    dict(num_blocks_per_scale=1), dict(num_scales=1, num_dense_blocks=0, logit_alpha=None)])
def test_without_blocks_of_a_kind(kwargs):
  x = np.random.default_rng(0).uniform(-0.5, 0.5, [3, 2, 2, 1])
  flow = make_flow(output_shape=(2, 2, 1), dtype="float64", log_det="exact", **kwargs)
  flow.initialize(x)
  z, log_det = flow.inverse_and_log_det(x)
  y, log_det_back = flow.forward_and_log_det(z.numpy())
  np.testing.assert_allclose(y, x, atol=1e-9)
  np.testing.assert_allclose(log_det_back, -log_det, atol=1e-8)


def copy_weights(source, target):
  """All weights but the seeds of noise."""
  values = [v.value for v in source._keras_variables() if v.dtype != "int32"]
  for variable, value in zip([v for v in target._keras_variables() if v.dtype != "int32"], values, strict=True):
    variable.assign(value)


@pytest.mark.slow
def test_the_size_of_the_graph_does_not_grow_with_the_number_of_blocks():
  sizes = []
  for count in (2, 3, 4):
    flow = residual_flow(num_dense_blocks=count, log_det="power_series", num_eval_terms=2)
    graph = tf.function(flow.inverse_and_log_det).get_concrete_function(
        tf.TensorSpec([3, 2], tf.float32)).graph.as_graph_def()
    sizes.append(len(graph.node) + sum(len(f.node_def) for f in graph.library.function))
  assert sizes[0] < sizes[1] == sizes[2], "the first is on its own, and a scan of one is no loop"


@pytest.mark.parametrize("arguments, match", [
    (dict(output_shape=(6, 4, 1), num_scales=3), "`output_shape` must have a height.*= 4.*Received: \\(6, 4, 1\\)"),
    (dict(output_shape=(4, 4)), "`output_shape` must be.*Received: \\(4, 4\\)"),
    (dict(output_shape=(0,)), "`output_shape` must be.*Received: \\(0,\\)"),
    (dict(output_shape=(True, 4, 1)), "`output_shape` must be.*Received: \\(True, 4, 1\\)"),
    (dict(output_shape=3), "`num_scales` must be 0 for vectors. Received: 2 for 3"),
    (dict(output_shape=3, num_scales=False), "`num_scales` must be 0 for vectors. Received: False"),
    (dict(num_scales=0), "`num_scales` must be a positive `int`. Received: 0"),
    (dict(num_blocks_per_scale=0), "`num_blocks_per_scale`.*Received: 0"),
    (dict(num_hidden=1.5), "`num_hidden`.*Received: 1.5"),
    (dict(num_dense_blocks=-1), "`num_dense_blocks` must be an `int` of at least 0. Received: -1"),
    (dict(num_dense_blocks=False), "`num_dense_blocks` must be.*Received: False"),
    (dict(output_shape=3, num_scales=0, num_dense_blocks=0), "`num_dense_blocks`.*Received: 0"),
    (dict(dtype="foo"), "`dtype` must be float32 or float64.*Received: 'foo'"),
    (dict(dtype="bfloat16"), "`dtype` must be float32 or float64.*Received: 'bfloat16'"),
    (dict(log_det=np.array(["exact"])), "`log_det` must be one of.*Received: array"),
    (dict(logit_alpha="none"), "`logit_alpha` must be.*Received: 'none'"),
    (dict(logit_alpha=0.5), "`logit_alpha` must be.*below 0.5. Received: 0.5"),
    (dict(coefficient=1.), "`coefficient`.*Received: 1.0"),
    (dict(log_det="magic"), "`log_det`.*Received: 'magic'"),
    (dict(activation="swish"), "nowhere steeper than 1.*Received: 'swish', with a slope of 1.1"),
    (dict(activation=lambda x: 1.1 * x), "nowhere steeper than 1.*Received: .*lambda.*with a slope of 1.1"),
    (dict(activation="magic"), "`activation` must be.*Received: 'magic'"),
    (dict(num_blocks_per_scale=[1]), "`num_blocks_per_scale` must have one number for each of the 2.*Received: .1."),
    (dict(num_blocks_per_scale=[1, 0]), "`num_blocks_per_scale`.*Received: 0"),
    (dict(output_shape=(6, 4, 1), squeeze_first=True), "divisible by 2 .. `num_scales` = 4.*Received: .6, 4, 1."),
    (dict(output_shape=3, num_scales=0, factor_out=True), "`factor_out` must be False for vectors. Received: True"),
    (dict(output_shape=3, num_scales=0, mean_and_deviation=([0.] * 3, [1.] * 3)), "must be None for vectors"),
    (dict(mean_and_deviation=([0.5], [0.])), "deviations must be positive. Received"),
    (dict(mean_and_deviation=([0.5] * 2, [1.] * 2)), "must have one mean and one deviation for each of the 1 channels"),
    (dict(mean_and_deviation=([0.5], [1.]), logit_alpha=0.1), "`logit_alpha` must be None or 'auto'.*Received: 0.1"),
    (dict(learn_orders="yes"), "`learn_orders` must be.*Received: 'yes'"),
    (dict(seed=-1), "`seed`.*Received: -1"),
])
def test_bad_arguments(arguments, match):
  with pytest.raises(ValueError, match=match):
    make_flow(**arguments)


@pytest.mark.slow
def test_vectors_need_not_be_bounded():
  """By default, because the logit is for images."""
  flow = tfp_glow.ResidualFlowBijector(3, 0, num_dense_blocks=1, num_dense_hidden=4, seed=0)
  assert np.isfinite(flow.inverse(np.full([1, 3], 100., np.float32))).all()
  assert np.isnan(image_flow().inverse(np.full([1, 4, 4, 1], 100., np.float32))).any()


@pytest.mark.slow
def test_many_flows_and_models_give_no_warning(caplog, monkeypatch):
  """Each is traced once."""
  # A new detector, because that of other tests may have given all its warnings.
  monkeypatch.setattr(polymorphic_function, "_frequent_tracing_detector_manager",
                      polymorphic_function._FrequentTracingDetectorManager())
  with caplog.at_level("WARNING", "tensorflow"):
    for _ in range(6):
      model = small_models.residual_model(residual_flow(num_dense_blocks=1, log_det="exact"))
      model.log_prob(points(2))
  assert not [record for record in caplog.records if "retracing" in record.getMessage()]


# In `FlowModel`.


@pytest.fixture(scope="module")
def trained():
  model = residual_model()
  model.history_ = model.fit(points(), batch_size=16, epochs=40, shuffle=False, verbose=0).history["bits_per_dim"]
  return model


@pytest.mark.slow
def test_fit_improves_and_keeps_the_norms(trained):
  assert np.mean(trained.history_[-3:]) < trained.history_[0] - 1.
  check_norms(trained.distribution.bijector)


@pytest.mark.slow
def test_each_step_has_noise_of_its_own(trained):
  steps = noise_seeds(trained.distribution.bijector)[:, 1]
  assert set(steps) <= {40 * 4, 40 * 4 + 1}  # One more if an update has found the first vectors.


@pytest.mark.slow
def test_training_takes_the_coarser_estimate_and_evaluation_the_finer(monkeypatch):
  asked = []
  original = tfp_glow.InvertibleResidualBlock._residual

  def record(self, y, weights, training):
    asked.append(training)
    return original(self, y, weights, training)

  monkeypatch.setattr(tfp_glow.InvertibleResidualBlock, "_residual", record)
  model = residual_model(residual_flow(num_dense_blocks=1), run_eagerly=True)
  model.adapt(points())
  asked.clear()
  model.fit(points(8), batch_size=8, verbose=0)
  assert asked and all(asked)
  asked.clear()
  model.evaluate(points(8), verbose=0)
  model.log_prob(points(8))
  assert asked and not any(asked)


@pytest.mark.slow
def test_evaluation_gives_the_same_number_twice(trained):
  first = trained.evaluate(points(), batch_size=16, verbose=0, return_dict=True)["bits_per_dim"]
  assert trained.evaluate(points(), batch_size=16, verbose=0, return_dict=True)["bits_per_dim"] == first


@pytest.mark.slow
def test_estimated_log_dets_of_a_flow_are_those_of_the_exact_one(trained):
  exact, flow, x = residual_flow(log_det="exact"), trained.distribution.bijector, points(4)
  copy_weights(flow, exact)
  draws = tf.function(flow.inverse_and_log_det)(np.repeat(x, 4000, 0))[1].numpy().reshape([4, 4000])
  deviations = (draws.mean(1) - exact.inverse_and_log_det(x)[1]) / draws.std(1) * np.sqrt(4000.)
  assert np.abs(deviations).max() < 4.


@pytest.mark.slow
def test_encode_decode_and_samples(trained):
  x = points()
  np.testing.assert_allclose(trained.decode(trained.encode(x)), x, atol=1e-4)
  samples = trained.sample(300, seed=0)
  np.testing.assert_array_equal(samples, trained.sample(300, seed=0))
  assert np.corrcoef(samples[:, 0]**2, samples[:, 1])[0, 1] > 0.95  # 0.988 of the data.


@pytest.mark.slow
def test_weights_and_model_are_saved(trained, tmp_path):
  trained.save_weights(tmp_path / "model.weights.h5")
  trained.save(tmp_path / "model.keras")
  other = residual_model(residual_flow(seed=1))
  other.load_weights(tmp_path / "model.weights.h5")
  for model in (other, keras.saving.load_model(tmp_path / "model.keras")):
    np.testing.assert_array_equal(model.distribution.log_prob(points(8)), trained.distribution.log_prob(points(8)))


@pytest.mark.slow
def test_the_exported_model_says_how_it_estimates(tmp_path):
  model = residual_model(residual_flow(num_dense_blocks=1))
  model.adapt(points())
  model.export(tmp_path / "saved_model")
  signatures = tf.saved_model.load(str(tmp_path / "saved_model")).signatures
  np.testing.assert_allclose(signatures["log_prob"](images=tf.constant(points()))["log_prob"],
                             model.log_prob(points()), rtol=1e-5)
  z = signatures["encode"](images=tf.constant(points()))["latent"]
  np.testing.assert_allclose(signatures["decode"](latent=z)["images"], points(), atol=1e-4)
  said = signatures["log_det_estimator"]()["log_det_estimator"].numpy().decode()
  assert said == ("Russian roulette: 20 terms and a poisson number of further ones, gaussian probes, fixed noise")


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [
    lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer])
def test_norms_follow_averaged_weights(wrap):
  model = residual_model(residual_flow(num_dense_blocks=1),
                         wrap(keras.optimizers.SGD(0.3, use_ema=True, ema_momentum=0.99)))
  model.fit(points(), batch_size=16, epochs=2, verbose=0)
  check_norms(model.distribution.bijector, slack=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [
    lambda flow: tfb.Chain([tfb.Shift(1.), flow]), lambda flow: tfb.Invert(tfb.Invert(flow))], ids=["chain", "invert"])
def test_updates_reach_a_flow_inside_of_other_bijectors(wrap):
  flow = residual_flow(num_dense_blocks=1, log_det="power_series")
  base = tfd.Sample(tfd.Normal(0., 1.), [2])
  model = small_models.compiled(tfp_glow.FlowModel(tfd.TransformedDistribution(base, wrap(flow)), num_bits=None),
                                run_eagerly=True)
  before, seeds = [v.numpy() for v in flow._variables_of_update()], noise_seeds(flow)
  model.fit(points(8), batch_size=8, verbose=0)
  for variable, value in zip(flow._variables_of_update(), before):
    assert np.abs(variable.numpy() - value).max() > 0.
  np.testing.assert_array_equal(noise_seeds(flow) - seeds, [[0, 1]] * len(seeds))  # Once for each step.


@pytest.mark.slow
def test_a_users_own_training_loop():
  flow = residual_flow(num_dense_blocks=1)
  flow.initialize(points())
  distribution, optimizer = of_standard_normal(flow), keras.optimizers.Adam(3e-2)
  variables = [keras.Variable(v, dtype=v.dtype.name) for v in flow.trainable_variables]

  @tf.function
  def step():
    with tf.GradientTape() as tape:
      loss = -tf.reduce_mean(distribution.log_prob(points(), bijector_kwargs={"training": True}))
    optimizer.apply(tape.gradient(loss, flow.trainable_variables), variables)
    flow.after_update()
    return loss

  optimizer.build(variables)
  losses = [step().numpy() for _ in range(40)]
  assert np.mean(losses[-5:]) < losses[0] - 0.1
  check_norms(flow)


@pytest.mark.slow
def test_xla_trains_as_well():
  """The loop over steps has the loop of the estimates within it."""
  make_step = lambda k: tfp_glow.ResidualStep(
      bijector_cases.residual_block(2, seed=k, log_det="russian_roulette"), tfp_glow.ActNorm(2, 1))
  histories = []
  for options in ({"run_eagerly": True}, {"jit_compile": True}):
    model = tfp_glow.FlowModel(tfp_glow.Scan(make_step, 2, [2]), num_bits=None)
    model.compile(keras.optimizers.Adam(1e-2), **options)
    history = model.fit(points(), batch_size=32, epochs=2, shuffle=False, verbose=0).history
    histories.append(history["bits_per_dim"])
  np.testing.assert_allclose(*histories, rtol=1e-3)
  check_norms(model.distribution.bijector)


@pytest.mark.slow
def test_images_are_trained_and_come_back():
  """Also images of one colour and of noise, and far latents."""
  flow = make_flow(num_blocks_per_scale=1, num_dense_blocks=0)
  model = small_models.compiled(tfp_glow.FlowModel(of_standard_normal(flow), num_bits=8), keras.optimizers.Adam(3e-3))
  history = model.fit(IMAGES, batch_size=16, epochs=36, verbose=0).history["bits_per_dim"]
  assert history[-1] < history[0] - 0.1
  check_norms(flow)
  plain = np.broadcast_to(np.array([0, 1, 127, 255], np.uint8)[:, None, None, None], [4, 4, 4, 1])
  noise = np.random.default_rng(0).integers(0, 256, [12, 4, 4, 1], dtype=np.uint8)
  for images in (IMAGES, np.concatenate([plain, noise])):
    np.testing.assert_array_equal(model.decode(model.encode(images)), images)
  z = 3. * np.random.default_rng(1).standard_normal([8, 16]).astype(np.float32)
  np.testing.assert_allclose(flow.inverse(flow.forward(z).numpy()), z, atol=1e-4 * np.abs(z).max())
  assert model.sample(3, seed=0).shape == (3, 4, 4, 1)


@pytest.mark.slow
def test_replicas_train_as_one_device_and_stay_equal():
  """With log-dets that need no random draws."""

  def train(**kwargs):
    model = residual_model(residual_flow(num_dense_blocks=1, log_det="exact"), **kwargs)
    return model, model.fit(points(), batch_size=32, epochs=2, shuffle=False, verbose=0).history["bits_per_dim"]

  _, expected = train(run_eagerly=True)
  with mirrored(2).scope():
    model, history = train()
  np.testing.assert_allclose(history, expected, rtol=1e-4)
  for variable in model.distribution.variables:
    first, second = (copy.numpy() for copy in variable.values)
    np.testing.assert_array_equal(first, second, err_msg=variable.name)
  check_norms(model.distribution.bijector)


@pytest.mark.slow
def test_each_replica_draws_noise_of_its_own():
  strategy = mirrored(2)
  with strategy.scope():
    flow = residual_flow(num_dense_blocks=1)
    flow.initialize(points())
  of_replicas = strategy.run(tf.function(lambda: flow.inverse_and_log_det(points(4), training=True)))
  values, log_dets = ([part.numpy() for part in strategy.experimental_local_results(of)] for of in of_replicas)
  np.testing.assert_array_equal(*values)
  assert (np.abs(log_dets[0] - log_dets[1]) > 1e-6).all()

"""`model.save` and `keras.models.load_model`: what comes back, what is refused, and what a file cannot do."""

import functools
import json
import zipfile

import forks
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow.storage import saving

tfb = tfp.bijectors
tfd = tfp.distributions
IMAGES = small_models.images(16)
LABELS = np.arange(16) % 3


@keras.saving.register_keras_serializable("tests")
def make_network(num_output_channels):
  return keras.Sequential([keras.layers.Conv2D(8, 3, padding="same", activation="gelu"),
                           keras.layers.Conv2D(num_output_channels, 3, padding="same", kernel_initializer="zeros")])


@keras.saving.register_keras_serializable("tests")
def make_wide_network(num_output_channels, width):
  return keras.layers.Conv2D(num_output_channels, width, padding="same")


@keras.saving.register_keras_serializable("tests")
class NetworkMaker:
  """Callable, with a setting of its own."""

  def __init__(self, width):
    self.width = width

  def __call__(self, num_output_channels):
    return keras.layers.Conv2D(num_output_channels, self.width, padding="same")

  def get_config(self):
    return {"width": self.width}

  @classmethod
  def from_config(cls, config):
    return cls(**config)


@keras.saving.register_keras_serializable("tests")
def make_step(k):
  del k
  return tfp_glow.GlowStep(tfp_glow.ActNorm(2), tfp_glow.InvertibleConv1x1(2, seed=0),
                           tfp_glow.AdditiveCoupling(make_network(1)))


@keras.saving.register_keras_serializable("tests")
def square(x):
  return tf.square(x)


def _variable(*shape, name="v"):
  return tf.Variable(tf.random.stateless_uniform(shape, [1, 2], 0.5, 1.5), name=name)


def _flow(bijector, shape=(4,)):
  return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), shape), bijector)


def _glow(**kwargs):
  """Of a standard normal of the same dtype."""
  zero = np.zeros([], kwargs.get("dtype", "float32"))
  make = lambda: tfp_glow.GlowBijector(small_models.SHAPE, **{
      "num_glow_blocks": 1, "num_steps_per_block": 2, "num_hidden": 4, "seed": 1, **kwargs})
  return lambda: tfd.TransformedDistribution(tfd.Sample(tfd.Normal(zero, 1.), [32]), make())


def _dense(width):
  return keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(width)])


def _shared_parts():
  scale, network, shift = _variable(4), _dense(2), tfb.Shift(_variable(4))
  return _flow(tfb.Chain([tfb.Scale(scale), shift, tfp_glow.AdditiveCoupling(network, 1), tfb.Scale(scale), shift,
                          tfp_glow.AdditiveCoupling(network, 1)]))


_GLOWS = {
    "defaults": _glow(num_glow_blocks=2), "additive": _glow(coupling="additive", permutation="reverse"),
    "shuffle": _glow(permutation="shuffle", seed=None), "classes": _glow(num_classes=3),
    "float64": _glow(dtype="float64", learn_top=False),
    "reversible": _glow(gradient="reversible", validate_args=True), "network_fn": _glow(network_fn=make_network),
    "network_fn with get_config": _glow(network_fn=NetworkMaker(3)),
    "network_fn with a setting": _glow(network_fn=functools.partial(make_wide_network, width=3)),
}
_IMAGE_FLOWS = {
    **_GLOWS,
    "gaussian": small_models.gaussian,
    "chain": lambda: tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(_variable(), _variable()), [32]),
        tfb.Chain([tfb.Scale(2.), tfb.Chain([tfb.Shift(_variable(*small_models.SHAPE)),
                                             small_models.distribution().bijector])])),
    "scan": lambda: tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), small_models.SHAPE),
                                                tfp_glow.Scan(make_step, 2, small_models.SHAPE)),
    "layers": lambda: tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [2, 2, 8]), tfb.Chain([
        tfp_glow.Squeeze(), tfp_glow.GlowStep(
            tfp_glow.ActNorm(8), tfp_glow.ChannelPermutation(np.arange(8)[::-1]),
            tfp_glow.AffineCoupling(tfp_glow.networks.CouplingNetwork(8, 4, num_groups=2, seed=0))),
        tfp_glow.InvertibleConv1x1(8, matrix=2. * np.eye(8)), tfp_glow.FactorOut([2, 2, 8]),
        tfp_glow.TopPrior([2, 2, 8])])),
}
_VECTOR_FLOWS = {
    "normal": lambda: tfd.Independent(tfd.Normal(_variable(4), _variable(4), validate_args=True), 1),
    "transformed variable": lambda: tfd.MultivariateNormalTriL(
        _variable(4), tfp.util.TransformedVariable(np.eye(4, dtype=np.float32), tfb.FillScaleTriL(), name="scale")),
    "deferred tensors": lambda: tfd.MultivariateNormalDiag(
        tfp.util.DeferredTensor(_variable(4), square),
        tfp.util.DeferredTensor(_variable(4), tfb.Exp(), name="deviation")),
    "vector flow": lambda: _flow(tfp_glow.VectorFlowBijector(4, 2, 4, gradient="reversible", seed=1)),
    "standardisation": lambda: _flow(tfp_glow.Chain([tfp_glow.Standardization(4), tfb.Shift(_variable(4))])),
    "mixture": lambda: tfd.MixtureSameFamily(
        tfd.Categorical(logits=_variable(2)), tfd.MultivariateNormalDiag(_variable(2, 4), tf.ones([2, 4]))),
    "linear operator": lambda: tfd.MultivariateNormalLinearOperator(
        _variable(4), tf.linalg.LinearOperatorDiag(_variable(4))),
    "float64": lambda: tfd.Independent(tfd.Normal(tf.Variable(np.zeros(4)), np.float64(2.)), 1),
    "constants": lambda: _flow(tfb.Chain([
        tfb.Permute(tf.constant([1, 0, 3, 2])), tfb.Shift(_variable(4)), tfb.Scale([1., 2., 3., np.pi]),
        tfb.Invert(tfb.Softplus(hinge_softness=np.float32(2.))),
        tfb.Reshape(event_shape_out=[4], event_shape_in=(2, 2)),
        tfb.Reshape(event_shape_out=tf.TensorShape([2, 2]), event_shape_in=[4])])),
    "shared": _shared_parts,
    "frozen": lambda: tfd.Independent(tfd.Normal(_variable(4), tf.Variable(tf.ones([4]), trainable=False)), 1),
}


def _model(make, num_bits=8):
  """With weights that no constructor would give it."""
  model = tfp_glow.FlowModel(make(), num_bits)
  for i, v in enumerate(model.distribution.trainable_variables):
    v.assign_add(0.1 * tf.random.stateless_uniform(v.shape, [i, 1], dtype=v.dtype))
  return model


def _saved_and_loaded(model, tmp_path):
  model.save(tmp_path / "model.keras")
  return keras.models.load_model(tmp_path / "model.keras")


def _everything_in(model):
  return [v.numpy() for v in model.weights + (model.optimizer.variables if model.compiled else [])]


def _assert_equal(found, expected):
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a, b)


def _fit(model, x=IMAGES, y=None, epochs=1):
  return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history


def _options(bijector):
  """The arguments of a constructor, as they are compared: with the dtype that the default stands for."""
  network_fn = bijector.parameters.get("network_fn")
  if isinstance(network_fn, functools.partial):
    network_fn = network_fn.func, network_fn.args, network_fn.keywords
  return {**bijector.parameters, "dtype": bijector.dtype, "network_fn": getattr(network_fn, "width", network_fn)}


@pytest.mark.parametrize("name", _IMAGE_FLOWS)
def test_flows_of_images(name, tmp_path):
  model = _model(_IMAGE_FLOWS[name])
  loaded = _saved_and_loaded(model, tmp_path)
  _assert_equal(_everything_in(loaded), _everything_in(model))
  condition = {"bijector_kwargs": {"labels": LABELS}} if name == "classes" else {}
  values = tfp_glow.dequantize.dequantize(IMAGES, 8, 0.5, model.distribution.dtype)
  np.testing.assert_array_equal(loaded.distribution.log_prob(values, **condition),
                                model.distribution.log_prob(values, **condition))
  assert str(loaded.distribution) == str(model.distribution) and loaded.num_bits == 8
  if name in _GLOWS:
    assert _options(loaded.distribution.bijector) == _options(model.distribution.bijector)


@pytest.mark.parametrize("name", _VECTOR_FLOWS)
def test_distributions_of_tfp(name, tmp_path):
  model = _model(_VECTOR_FLOWS[name], num_bits=None)
  loaded = _saved_and_loaded(model, tmp_path)
  data = np.random.default_rng(0).uniform(0.1, 2., [5, 4]).astype(model.distribution.dtype.as_numpy_dtype)
  _assert_equal(_everything_in(loaded), _everything_in(model))
  np.testing.assert_array_equal(loaded.distribution.log_prob(data), model.distribution.log_prob(data))
  of = lambda model: [(v.shape, v.dtype, v.trainable) for v in model.distribution.variables]
  assert of(loaded) == of(model) and loaded.num_bits is None


def test_what_is_shared_stays_shared(tmp_path):
  model = _saved_and_loaded(_model(_shared_parts, None), tmp_path)
  first, shift, coupling, second, same_shift, same_coupling = model.distribution.bijector.bijectors
  assert first.scale is second.scale and shift is same_shift
  assert coupling is not same_coupling and coupling.network is same_coupling.network
  assert len(model.distribution.trainable_variables) == 2 + 4


def test_networks_keep_their_precision(tmp_path):
  before = keras.config.dtype_policy()
  try:
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = _model(_glow())
  finally:
    keras.config.set_dtype_policy(before)
  loaded = _saved_and_loaded(model, tmp_path)
  assert keras.config.dtype_policy() == before
  values = tfp_glow.dequantize.dequantize(IMAGES, 8, 0.5)
  np.testing.assert_array_equal(loaded.distribution.log_prob(values), model.distribution.log_prob(values))
  assert loaded.distribution.bijector.blocks[0].template.coupling.network.compute_dtype == "bfloat16"


# Training goes on.


def _schedule():
  return keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=12, warmup_steps=2, warmup_target=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("make_optimizer", [
    lambda: "adam", lambda: keras.optimizers.AdamW(_schedule(), global_clipnorm=10., use_ema=True, ema_momentum=0.5),
    lambda: keras.optimizers.SGD(1e-2, momentum=0.9, gradient_accumulation_steps=3),
    lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.RMSprop(1e-3))])
def test_training_goes_on_as_if_it_had_not_stopped(make_optimizer, tmp_path):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(), seed=7), make_optimizer(), run_eagerly=True)
  _fit(model, epochs=2)
  loaded = _saved_and_loaded(model, tmp_path)
  assert type(loaded.optimizer) is type(model.optimizer) and loaded.optimizer.iterations == model.optimizer.iterations
  assert loaded.optimizer.get_config() == model.optimizer.get_config()
  before = _everything_in(model)
  _assert_equal(_everything_in(loaded), before)
  assert _fit(loaded, epochs=2) == _fit(model, epochs=2)
  _assert_equal(_everything_in(loaded), _everything_in(model))
  assert any((a != b).any() for a, b in zip(before, _everything_in(model)))


@pytest.mark.slow
def test_a_model_that_has_seen_nothing_is_initialised_by_fit(tmp_path):
  make = lambda: small_models.compiled(
      tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1)), run_eagerly=True)
  model = make()
  loaded = _saved_and_loaded(model, tmp_path)
  assert not loaded.distribution.bijector.initialized
  _fit(model)
  _fit(loaded)
  _assert_equal(_everything_in(loaded), _everything_in(model))


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}])
def test_the_compilation_is_kept(options, tmp_path, recwarn):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(), name="mine"), **options)
  loaded = _saved_and_loaded(model, tmp_path)
  of = lambda model: (model.run_eagerly, model.uses_xla, model.steps_per_execution, model.name)
  assert of(loaded) == of(model) and loaded.get_compile_config() == model.get_compile_config()
  assert not [w for w in recwarn if "keras" in str(w.message) or "optimizer" in str(w.message)]


def test_not_compiled(tmp_path):
  assert not _saved_and_loaded(tfp_glow.FlowModel(small_models.gaussian()), tmp_path).compiled
  small_models.compiled(tfp_glow.FlowModel(small_models.gaussian())).save(tmp_path / "compiled.keras")
  assert not keras.models.load_model(tmp_path / "compiled.keras", compile=False).compiled


@pytest.mark.slow
def test_model_checkpoint(tmp_path):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), run_eagerly=True)
  every, best = (keras.callbacks.ModelCheckpoint(tmp_path / name, **options) for name, options in (
      ("{epoch}.keras", {}), ("best.keras", {"monitor": "bits_per_dim", "save_best_only": True})))
  model.fit(IMAGES, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[every, best])
  resumed = keras.models.load_model(tmp_path / "2.keras")
  _fit(resumed)
  _assert_equal(_everything_in(resumed), _everything_in(model))
  _assert_equal(_everything_in(keras.models.load_model(tmp_path / "best.keras")), _everything_in(model))


def test_the_file_holds_json_and_arrays(tmp_path):
  _model(small_models.gaussian).save(tmp_path / "model.keras")
  with zipfile.ZipFile(tmp_path / "model.keras") as archive:
    assert sorted(archive.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]


_LOAD = """
import tfp_glow, keras
import numpy as np
data = np.load("data.npz")
for name, arrays in (("glow", (data["images"], data["labels"])), ("residual", (data["points"],))):
  model = keras.models.load_model(f"{name}.keras")
  history = model.fit(*arrays, batch_size=8, shuffle=False, verbose=0).history
  np.savez(f"{name}.npz", *[v.numpy() for v in model.weights + model.optimizer.variables], loss=history["loss"])
"""


@pytest.mark.slow
def test_a_fresh_process_goes_on_as_if_it_had_not_stopped(tmp_path):
  """And does not initialise again, from images that come in another order now; also a flow whose noise goes on."""
  glow = tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1, num_classes=3), num_bits=5, weight_y=0.01)
  models = {"glow": small_models.compiled(glow, run_eagerly=True),
            "residual": small_models.residual_model(
                small_models.residual_flow(num_dense_blocks=1),
                keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5), run_eagerly=True)}
  points = small_models.points(8)
  data = {"glow": (IMAGES[::-1], LABELS), "residual": (points[::-1], None)}
  _fit(glow, IMAGES, LABELS)
  _fit(models["residual"], points)
  for name, model in models.items():
    model.save(tmp_path / f"{name}.keras")
  np.savez(tmp_path / "data.npz", images=IMAGES[::-1], labels=LABELS, points=points[::-1])
  forks.run(tmp_path, forks.execute, tmp_path, _LOAD)
  for name, model in models.items():
    history = _fit(model, *data[name])
    found = dict(np.load(tmp_path / f"{name}.npz"))
    np.testing.assert_array_equal(found.pop("loss"), history["loss"])
    _assert_equal(found.values(), _everything_in(model))


# What is refused.


def _not_registered(num_output_channels):
  return keras.layers.Conv2D(num_output_channels, 3, padding="same")


class _Unregistered(keras.layers.Layer):
  """Takes its outputs from nowhere."""

  def call(self, inputs):
    return inputs


class _OwnShift(tfb.Shift):
  """Of the user's."""


@keras.saving.register_keras_serializable("tests")
class _MakerWithoutFromConfig:
  def __call__(self, num_output_channels):
    return keras.layers.Conv2D(num_output_channels, 3, padding="same")

  def get_config(self):
    return {}


@pytest.mark.parametrize("make, match", [
    (_glow(network_fn=_not_registered), r"`distribution\.bijector\.network_fn`.*Received: <function _not_registered"),
    (_glow(network_fn=lambda n: make_network(n)), r"`distribution\.bijector\.network_fn`.*<lambda>"),
    (_glow(network_fn=_MakerWithoutFromConfig()), "network_fn`.*_MakerWithoutFromConfig, which has no `from_config`"),
    (_glow(network_fn=functools.partial(_not_registered)), r"network_fn`.*Received: <function _not_registered"),
    (_glow(network_fn=NetworkMaker(3).__call__), r"`distribution\.bijector\.network_fn`.*bound method"),
    (lambda: _flow(tfb.Chain([tfb.Exp(), tfp_glow.AdditiveCoupling(
        keras.Sequential([keras.layers.Dense(2), _Unregistered()]), 1)])),
     r"`distribution\.bijector\.bijectors\[1\]\.network`.*_Unregistered"),
    (lambda: _flow(tfp_glow.AdditiveCoupling(
        keras.layers.Dense(2, activation=lambda x: x), 1)), r"\.network`.*lambda"),
    (lambda: _flow(tfp_glow.AdditiveCoupling(keras.Sequential([
        keras.layers.Dense(2), keras.layers.Lambda(lambda x: x)]), 1)), r"\.network`.*a lambda in it"),
    (lambda: _flow(_OwnShift(_variable(4))), r"`distribution\.bijector`.*Received: .*_OwnShift|own_shift"),
    (lambda: tfd.Normal(_variable(), tfp.util.DeferredTensor(_variable(), tf.exp)),
     r"`distribution\.scale\.transform_fn`"),
])
def test_a_refused_save_leaves_the_file_alone(make, match, tmp_path):
  path = tmp_path / "model.keras"
  path.write_text("of yesterday")
  model = tfp_glow.FlowModel(make(), num_bits=None)
  with pytest.raises(ValueError, match=match) as failure:
    model.save(path)
  assert "register_keras_serializable" in str(failure.value) and "save_weights" in str(failure.value)
  assert path.read_text() == "of yesterday"


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
  def __call__(self, step):
    return 1e-3


class _ScheduleWithConfig(_Schedule):
  def get_config(self):
    return {}


class _Optimizer(keras.optimizers.SGD):
  pass


class _Model(tfp_glow.FlowModel):
  pass


@pytest.mark.parametrize("make_model, optimizer, match", [
    (tfp_glow.FlowModel, keras.optimizers.SGD(_Schedule()), "`optimizer` must be .*registered with Keras.*get_config"),
    (tfp_glow.FlowModel, keras.optimizers.SGD(_ScheduleWithConfig()), "`optimizer` must.*_ScheduleWithConfig in it"),
    (tfp_glow.FlowModel, _Optimizer(), "`optimizer` must be .*registered with Keras.*_Optimizer in it"),
    (tfp_glow.FlowModel, keras.optimizers.SGD(lambda: 1e-3), "`optimizer` must be .*lambda"),
    (_Model, keras.optimizers.SGD(), "The class of a model must be registered.*Received: .*_Model"),
])
def test_what_keras_would_not_find_again_is_found_before_a_file_is_touched(make_model, optimizer, match, tmp_path):
  path = tmp_path / "model.keras"
  path.write_text("of yesterday")
  model = small_models.compiled(make_model(small_models.gaussian()), optimizer)
  with pytest.raises(ValueError, match=f"(?s){match}"):
    model.save(path)
  assert path.read_text() == "of yesterday" and list(tmp_path.iterdir()) == [path]


def test_a_save_that_fails_leaves_the_file_alone(tmp_path, monkeypatch):
  path = tmp_path / "model.keras"
  model = tfp_glow.FlowModel(small_models.gaussian())
  model.save(path)
  before = path.read_bytes()

  def save(self, filepath, **kwargs):
    with open(filepath, "wb") as file:
      file.write(b"half of")
    raise OSError("No space left on device")

  monkeypatch.setattr(keras.Model, "save", save)
  with pytest.raises(OSError, match="No space left"):
    model.save(path)
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_keras_asks_before_it_overwrites(tmp_path, monkeypatch):
  path = tmp_path / "model.keras"
  model = tfp_glow.FlowModel(small_models.gaussian())
  model.save(path, overwrite=False)
  before = path.read_bytes()
  model.distribution.trainable_variables[0].assign_add(tf.ones(model.distribution.trainable_variables[0].shape))
  monkeypatch.setattr("builtins.input", lambda question: "n")
  model.save(path, overwrite=False)
  assert path.read_bytes() == before
  model.save(path)
  assert path.read_bytes() != before


def test_a_frozen_model_stays_frozen(tmp_path):
  model = tfp_glow.FlowModel(small_models.gaussian())
  assert _saved_and_loaded(model, tmp_path).trainable_variables
  model.trainable = False
  assert not _saved_and_loaded(model, tmp_path).trainable_variables


@pytest.mark.parametrize("name", ["model", "model.h5", "model.txt"])
def test_other_file_formats(name, tmp_path):
  with pytest.raises(ValueError, match=r"(?s)`?\.keras.*Received: "):
    tfp_glow.FlowModel(small_models.gaussian()).save(tmp_path / name)
  assert not list(tmp_path.iterdir())


def test_functions_may_also_come_in_custom_objects(tmp_path):
  model = _model(_glow(network_fn=_not_registered))
  with keras.saving.custom_object_scope({"_not_registered": _not_registered}):
    model.save(tmp_path / "model.keras")
  with pytest.raises(ValueError, match="'_not_registered' must be registered.*custom_objects"):
    keras.models.load_model(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"_not_registered": _not_registered})
  assert loaded.distribution.bijector.parameters["network_fn"] is _not_registered
  _assert_equal(_everything_in(loaded), _everything_in(model))


@keras.saving.register_keras_serializable("tests")
def at_least_one(value):
  return tf.maximum(value, 1.)


@pytest.mark.parametrize("constraint", [at_least_one, keras.constraints.NonNeg()])
def test_constraints_of_variables(constraint, tmp_path):
  scale = tf.Variable(tf.ones([4]), constraint=constraint)
  loaded = _saved_and_loaded(tfp_glow.FlowModel(tfd.Independent(tfd.Normal(_variable(4), scale), 1)), tmp_path)
  found = loaded.distribution.distribution.scale.constraint
  np.testing.assert_array_equal(found(tf.constant([-1., 2.])), constraint(tf.constant([-1., 2.])))
  assert [v.constraint for v in loaded.trainable_variables].count(found) == 1


def test_constraints_that_cannot_be_saved(tmp_path):
  scale = tf.Variable(tf.ones([4]), constraint=lambda value: tf.maximum(value, 1.))
  model = tfp_glow.FlowModel(tfd.Independent(tfd.Normal(_variable(4), scale), 1))
  with pytest.raises(ValueError, match=r"`distribution\.distribution\.scale\.constraint` must be.*Received: <function"):
    model.save(tmp_path / "model.keras")


# Files that somebody has changed.


def _object(name, **arguments):
  return {"object": {"number": 0, "class": name, "arguments": arguments}}


_ARRAY = {"dtype": "float32", "shape": [1], "base64": "AACAPw=="}


@pytest.mark.parametrize("config, match", [
    (_object("os.system", command="true"), "of TFP or `tfp_glow` only, for `distribution`. Received: 'os.system'"),
    (_object("tfp.distributions.normal.Normal"), "of TFP or `tfp_glow` only"),
    (_object("tfp.distributions.Normal", loc=_object("tfp_glow.FlowModel")), "only, for `distribution.loc`"),
    (_object("tfp.distributions.Normal", loc=0.), "`distribution`.*scale"),
    (_object("tfp.distributions.Normal", loc=0., scale=1., more=2), "`distribution`.*more"),
    (_object("tfp.distributions.Normal", loc={"python": "1"}, scale=1.), "for `distribution.loc`. Received"),
    (_object("tfp.distributions.Normal", loc={"registered": "eval"}, scale=1.), "'eval' must be registered"),
    (_object("tfp.distributions.Normal", loc={"shared": 5}, scale=1.), "`distribution.loc`.*5"),
    (_object("tfp.distributions.Normal", loc={"dtype": "string"}, scale=1.), "`distribution.loc`.*string"),
    (_object("tfp.distributions.Normal", loc={"array": {**_ARRAY, "dtype": "resource"}}, scale=1.), "resource"),
    (_object("tfp.distributions.Normal", loc={"array": {**_ARRAY, "shape": [2]}}, scale=1.), "reshape"),
    (_object("tfp.distributions.Normal", loc={"array": _ARRAY, "tuple": []}, scale=1.), "for `distribution.loc`"),
    (_object("tfp.distributions.Normal", loc={"keras": {"number": 1, "config": {
        "class_name": "__lambda__", "config": {"value": "4wE="}}}}, scale=1.), "lambda"),
    (_object("tfp.distributions.Normal", loc={"keras": {"number": 1, "config": {
        "module": "os", "class_name": "system", "config": {}, "registered_name": "system"}}}, scale=1.), "system"),
    (_object("tfp.distributions.Normal", loc={"keras": {"number": 1, "config": {
        "module": "keras.ops", "class_name": "function", "config": "exp", "registered_name": "exp"}}}, scale=1.),
     "of a layer.*for `distribution.loc`"),
    (_object("tfp.bijectors.Exp"), "must be that of a distribution"),
    ([], "must be that of a distribution"),
    ({"object": 3}, "`distribution`"),
])
def test_a_changed_file_is_an_error(config, match, tmp_path):
  with pytest.raises(ValueError, match=match):
    saving.distribution_from_config(config)
  _model(small_models.gaussian).save(tmp_path / "model.keras")
  with zipfile.ZipFile(tmp_path / "model.keras") as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  whole = json.loads(members["config.json"])
  whole["config"]["distribution"] = config
  with zipfile.ZipFile(tmp_path / "changed.keras", "w") as archive:
    for name, content in {**members, "config.json": json.dumps(whole)}.items():
      archive.writestr(name, content)
  with pytest.raises(ValueError, match=match):
    keras.models.load_model(tmp_path / "changed.keras")


@pytest.mark.slow
def test_a_config_of_an_unknown_option_is_an_error():
  config = tfp_glow.FlowModel(small_models.gaussian()).get_config()
  with pytest.raises(TypeError, match="more"):
    tfp_glow.FlowModel.from_config({**config, "more": 1})

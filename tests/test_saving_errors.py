"""What `model.save` and `keras.models.load_model` refuse, and what a file cannot do."""

import functools
import json
import zipfile

import keras
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from saving_cases import (
  NetworkMaker,
  assert_equal,
  everything_in,
  make_model,
  make_network,
  of_glow,
  of_vectors,
  variable,
)

import tfp_glow
from tfp_glow.storage import saving

tfb = tfp.bijectors
tfd = tfp.distributions


# What cannot be saved.


def _not_registered(num_output_channels):
  return keras.layers.Conv2D(num_output_channels, 3, padding="same")


class _Unregistered(keras.layers.Layer):
  """A layer that is not registered."""

  def call(self, inputs):
    return inputs


class _OwnShift(tfb.Shift):
  """A user's bijector."""


@keras.saving.register_keras_serializable("tests")
class _MakerWithoutFromConfig:
  def __call__(self, num_output_channels):
    return keras.layers.Conv2D(num_output_channels, 3, padding="same")

  def get_config(self):
    return {}


@pytest.mark.parametrize("make, match", [
    (of_glow(network_fn=_not_registered), r"`distribution\.bijector\.network_fn`.*Received: <function _not_registered"),
    (of_glow(network_fn=lambda n: make_network(n)), r"`distribution\.bijector\.network_fn`.*<lambda>"),
    (of_glow(network_fn=_MakerWithoutFromConfig()), "network_fn`.*_MakerWithoutFromConfig, which has no `from_config`"),
    (of_glow(network_fn=functools.partial(_not_registered)), r"network_fn`.*Received: <function _not_registered"),
    (of_glow(network_fn=NetworkMaker(3).__call__), r"`distribution\.bijector\.network_fn`.*bound method"),
    (lambda: of_vectors(tfb.Chain([tfb.Exp(), tfp_glow.AdditiveCoupling(
        keras.Sequential([keras.layers.Dense(2), _Unregistered()]), 1)])),
     r"`distribution\.bijector\.bijectors\[1\]\.network`.*_Unregistered"),
    (lambda: of_vectors(tfp_glow.AdditiveCoupling(
        keras.layers.Dense(2, activation=lambda x: x), 1)), r"\.network`.*lambda"),
    (lambda: of_vectors(tfp_glow.AdditiveCoupling(keras.Sequential([
        keras.layers.Dense(2), keras.layers.Lambda(lambda x: x)]), 1)), r"\.network`.*a lambda in it"),
    (lambda: of_vectors(_OwnShift(variable(4))), r"`distribution\.bijector`.*Received: .*_OwnShift|own_shift"),
    (lambda: tfd.Normal(variable(), tfp.util.DeferredTensor(variable(), tf.exp)),
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
def test_what_keras_could_not_load_is_found_before_a_file_is_touched(make_model, optimizer, match, tmp_path):
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


@pytest.mark.parametrize("name", ["model", "model.h5", "model.txt"])
def test_other_file_formats(name, tmp_path):
  with pytest.raises(ValueError, match=r"(?s)`?\.keras.*Received: "):
    tfp_glow.FlowModel(small_models.gaussian()).save(tmp_path / name)
  assert not list(tmp_path.iterdir())


def test_functions_may_also_come_in_custom_objects(tmp_path):
  model = make_model(of_glow(network_fn=_not_registered))
  with keras.saving.custom_object_scope({"_not_registered": _not_registered}):
    model.save(tmp_path / "model.keras")
  with pytest.raises(ValueError, match="'_not_registered' must be registered.*custom_objects"):
    keras.models.load_model(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"_not_registered": _not_registered})
  assert loaded.distribution.bijector.parameters["network_fn"] is _not_registered
  assert_equal(everything_in(loaded), everything_in(model))


def test_constraints_that_cannot_be_saved(tmp_path):
  scale = tf.Variable(tf.ones([4]), constraint=lambda value: tf.maximum(value, 1.))
  model = tfp_glow.FlowModel(tfd.Independent(tfd.Normal(variable(4), scale), 1))
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
    (_object("tfp.distributions.Normal", loc={"array": {**_ARRAY, "dtype": "resource"}}, scale=1.),
     "numbers is needed, not resource"),
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
  make_model(small_models.gaussian).save(tmp_path / "model.keras")
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

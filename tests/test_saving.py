"""`model.save` and `keras.models.load_model`: what comes back."""

import functools
import zipfile

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from saving_cases import (
  IMAGES,
  NetworkMaker,
  assert_equal,
  everything_in,
  make_model,
  make_network,
  of_glow,
  of_vectors,
  saved_and_loaded,
  variable,
)

import tfp_glow

tfb = tfp.bijectors
tfd = tfp.distributions


@keras.saving.register_keras_serializable("tests")
def make_wide_network(num_output_channels, width):
  return keras.layers.Conv2D(num_output_channels, width, padding="same")


@keras.saving.register_keras_serializable("tests")
def make_step(k):
  del k
  return tfp_glow.GlowStep(tfp_glow.ActNorm(2), tfp_glow.InvertibleConv1x1(2, seed=0),
                           tfp_glow.AdditiveCoupling(make_network(1)))


@keras.saving.register_keras_serializable("tests")
def square(x):
  return tf.square(x)


def dense(width):
  return keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(width)])


def shared_parts():
  scale, network, shift = variable(4), dense(2), tfb.Shift(variable(4))
  return of_vectors(tfb.Chain([tfb.Scale(scale), shift, tfp_glow.AdditiveCoupling(network, 1), tfb.Scale(scale), shift,
                          tfp_glow.AdditiveCoupling(network, 1)]))


_GLOWS = {
    "defaults": of_glow(num_glow_blocks=2), "additive": of_glow(coupling="additive", permutation="reverse"),
    "shuffle": of_glow(permutation="shuffle", seed=None), "classes": of_glow(num_classes=3),
    "float64": of_glow(dtype="float64", learn_top=False),
    "reversible": of_glow(gradient="reversible", validate_args=True), "network_fn": of_glow(network_fn=make_network),
    "network_fn with get_config": of_glow(network_fn=NetworkMaker(3)),
    "network_fn with a setting": of_glow(network_fn=functools.partial(make_wide_network, width=3)),
}
_IMAGE_FLOWS = {
    **_GLOWS,
    "gaussian": small_models.gaussian,
    "chain": lambda: tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(variable(), variable()), [32]),
        tfb.Chain([tfb.Scale(2.), tfb.Chain([tfb.Shift(variable(*small_models.SHAPE)),
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
    "normal": lambda: tfd.Independent(tfd.Normal(variable(4), variable(4), validate_args=True), 1),
    "transformed variable": lambda: tfd.MultivariateNormalTriL(
        variable(4), tfp.util.TransformedVariable(np.eye(4, dtype=np.float32), tfb.FillScaleTriL(), name="scale")),
    "deferred tensors": lambda: tfd.MultivariateNormalDiag(
        tfp.util.DeferredTensor(variable(4), square),
        tfp.util.DeferredTensor(variable(4), tfb.Exp(), name="deviation")),
    "vector flow": lambda: of_vectors(tfp_glow.VectorFlowBijector(4, 2, 4, gradient="reversible", seed=1)),
    "standardisation": lambda: of_vectors(tfp_glow.Chain([tfp_glow.Standardization(4), tfb.Shift(variable(4))])),
    "mixture": lambda: tfd.MixtureSameFamily(
        tfd.Categorical(logits=variable(2)), tfd.MultivariateNormalDiag(variable(2, 4), tf.ones([2, 4]))),
    "linear operator": lambda: tfd.MultivariateNormalLinearOperator(
        variable(4), tf.linalg.LinearOperatorDiag(variable(4))),
    "float64": lambda: tfd.Independent(tfd.Normal(tf.Variable(np.zeros(4)), np.float64(2.)), 1),
    "constants": lambda: of_vectors(tfb.Chain([
        tfb.Permute(tf.constant([1, 0, 3, 2])), tfb.Shift(variable(4)), tfb.Scale([1., 2., 3., np.pi]),
        tfb.Invert(tfb.Softplus(hinge_softness=np.float32(2.))),
        tfb.Reshape(event_shape_out=[4], event_shape_in=(2, 2)),
        tfb.Reshape(event_shape_out=tf.TensorShape([2, 2]), event_shape_in=[4])])),
    "shared": shared_parts,
    "frozen": lambda: tfd.Independent(tfd.Normal(variable(4), tf.Variable(tf.ones([4]), trainable=False)), 1),
}


def _options(bijector):
  """The arguments of a constructor, in a form to compare, with the dtype that the default means."""
  network_fn = bijector.parameters.get("network_fn")
  if isinstance(network_fn, functools.partial):
    network_fn = network_fn.func, network_fn.args, network_fn.keywords
  return {**bijector.parameters, "dtype": bijector.dtype, "network_fn": getattr(network_fn, "width", network_fn)}


@pytest.mark.parametrize("name", _IMAGE_FLOWS)
def test_flows_of_images(name, tmp_path):
  model = make_model(_IMAGE_FLOWS[name])
  loaded = saved_and_loaded(model, tmp_path)
  assert_equal(everything_in(loaded), everything_in(model))
  condition = {"bijector_kwargs": {"labels": np.arange(16) % 3}} if name == "classes" else {}
  values = tfp_glow.dequantize.dequantize(IMAGES, 8, 0.5, model.distribution.dtype)
  np.testing.assert_array_equal(loaded.distribution.log_prob(values, **condition),
                                model.distribution.log_prob(values, **condition))
  assert str(loaded.distribution) == str(model.distribution) and loaded.num_bits == 8
  if name in _GLOWS:
    assert _options(loaded.distribution.bijector) == _options(model.distribution.bijector)


@pytest.mark.parametrize("name", _VECTOR_FLOWS)
def test_distributions_of_tfp(name, tmp_path):
  model = make_model(_VECTOR_FLOWS[name], num_bits=None)
  loaded = saved_and_loaded(model, tmp_path)
  data = np.random.default_rng(0).uniform(0.1, 2., [5, 4]).astype(model.distribution.dtype.as_numpy_dtype)
  assert_equal(everything_in(loaded), everything_in(model))
  np.testing.assert_array_equal(loaded.distribution.log_prob(data), model.distribution.log_prob(data))
  of = lambda model: [(v.shape, v.dtype, v.trainable) for v in model.distribution.variables]
  assert of(loaded) == of(model) and loaded.num_bits is None


def test_what_is_shared_stays_shared(tmp_path):
  model = saved_and_loaded(make_model(shared_parts, None), tmp_path)
  first, shift, coupling, second, same_shift, same_coupling = model.distribution.bijector.bijectors
  assert first.scale is second.scale and shift is same_shift
  assert coupling is not same_coupling and coupling.network is same_coupling.network
  assert len(model.distribution.trainable_variables) == 2 + 4


def test_networks_keep_their_precision(tmp_path):
  before = keras.config.dtype_policy()
  try:
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = make_model(of_glow())
  finally:
    keras.config.set_dtype_policy(before)
  loaded = saved_and_loaded(model, tmp_path)
  assert keras.config.dtype_policy() == before
  values = tfp_glow.dequantize.dequantize(IMAGES, 8, 0.5)
  np.testing.assert_array_equal(loaded.distribution.log_prob(values), model.distribution.log_prob(values))
  assert loaded.distribution.bijector.blocks[0].template.coupling.network.compute_dtype == "bfloat16"


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}])
def test_the_compilation_is_kept(options, tmp_path, recwarn):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(), name="mine"), **options)
  loaded = saved_and_loaded(model, tmp_path)
  of = lambda model: (model.run_eagerly, model.uses_xla, model.steps_per_execution, model.name)
  assert of(loaded) == of(model) and loaded.get_compile_config() == model.get_compile_config()
  assert not [w for w in recwarn if "keras" in str(w.message) or "optimizer" in str(w.message)]


def test_not_compiled(tmp_path):
  assert not saved_and_loaded(tfp_glow.FlowModel(small_models.gaussian()), tmp_path).compiled
  small_models.compiled(tfp_glow.FlowModel(small_models.gaussian())).save(tmp_path / "compiled.keras")
  assert not keras.models.load_model(tmp_path / "compiled.keras", compile=False).compiled


def test_a_frozen_model_stays_frozen(tmp_path):
  model = tfp_glow.FlowModel(small_models.gaussian())
  assert saved_and_loaded(model, tmp_path).trainable_variables
  model.trainable = False
  assert not saved_and_loaded(model, tmp_path).trainable_variables


@keras.saving.register_keras_serializable("tests")
def at_least_one(value):
  return tf.maximum(value, 1.)


@pytest.mark.parametrize("constraint", [at_least_one, keras.constraints.NonNeg()])
def test_constraints_of_variables(constraint, tmp_path):
  scale = tf.Variable(tf.ones([4]), constraint=constraint)
  loaded = saved_and_loaded(tfp_glow.FlowModel(tfd.Independent(tfd.Normal(variable(4), scale), 1)), tmp_path)
  found = loaded.distribution.distribution.scale.constraint
  np.testing.assert_array_equal(found(tf.constant([-1., 2.])), constraint(tf.constant([-1., 2.])))
  assert [v.constraint for v in loaded.trainable_variables].count(found) == 1


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


def test_the_file_holds_json_and_arrays(tmp_path):
  make_model(small_models.gaussian).save(tmp_path / "model.keras")
  with zipfile.ZipFile(tmp_path / "model.keras") as archive:
    assert sorted(archive.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]

"""`load_residual_flow_checkpoint`: four models of the authors' code, and files that it refuses."""

import functools
import types
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from residual_checkpoints import (
  FOLDER,
  NAMES,
  channels_last,
  contents,
  image_shape,
  layout,
  load_model,
  quick_flow,
  reference,
  values_of,
)

import tfp_glow
from tfp_glow.bijectors import log_det
from tfp_glow.checkpoints.residual_flows import architecture as architectures
from tfp_glow.checkpoints.residual_flows import load
from tfp_glow.checkpoints.residual_flows.power_iteration import norms_in_use
from tfp_glow.checkpoints.restricted_unpickler import Opaque

tfd = tfp.distributions
slow = pytest.mark.slow
COEFFICIENT = 0.98


@functools.cache
def loaded(name):
  """A model that no test may change. The norms of m7, which have learned orders, are measured as well."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ layers")
    return load_model(name, measures_norms=name == "m7")


def in_their_order(flow, z):
  """Latents, each part flattened channels first."""
  return np.concatenate([np.moveaxis(part.numpy(), -1, 1).reshape(len(z), -1) for part in flow.split_latent(z)], 1)


def from_their_order(flow, z):
  parts, start = [], 0
  for height, width, channels in (shape.as_list() for shape in flow._latent_shapes()):
    size = height * width * channels
    parts.append(channels_last(z[:, start:start + size].reshape(len(z), channels, height, width)))
    start += size
  return flow.join_latent(parts)


@slow
@pytest.mark.parametrize("name", NAMES)
def test_latents_and_samples_of_reference(name):
  model, expected = loaded(name), reference(name)
  flow = model.distribution.bijector
  assert flow.initialized
  np.testing.assert_allclose(in_their_order(flow, flow.inverse(values_of(name))), expected["A_z"], atol=1e-4)
  z = from_their_order(flow, expected["sample_z_T1"])
  np.testing.assert_allclose(flow.forward(z) + 0.5, channels_last(expected["sample_x_T1"]), atol=1e-4)


@pytest.fixture
def in_float64():
  keras.config.set_floatx("float64")
  yield
  keras.config.set_floatx("float32")


def put_vectors_of_reference(name, model):
  """Assigns the reference's vectors of the power iteration, whose rounding errors change norms by 1e-7."""
  for variable, keys, convert in layout(name, model):
    kinds = {key.rsplit(".", 1)[1] for key in keys}
    if kinds <= {"u", "v"}:
      values = [convert(reference(name)[f"A_{key[-1]}/{key[:-2]}"]) for key in keys]
      variable.assign(np.stack(values) if len(variable.shape) > values[0].ndim else values[0])


def jacobian_log_det(flow, values):
  """The log-det of `inverse` at one image, by automatic differentiation: each copy gives a row of the Jacobian."""
  copies = tf.repeat(values, values[0].size, axis=0)
  with tf.GradientTape() as tape:
    tape.watch(copies)
    latents = flow.inverse(copies)
  jacobian = tape.gradient(latents, copies, tf.eye(values[0].size, dtype=copies.dtype))
  return np.linalg.slogdet(np.reshape(jacobian, [1, values[0].size, -1]))[1]


@slow
@pytest.mark.parametrize("name", ["m1", "m3", "m7"])
@pytest.mark.usefixtures("in_float64")
def test_numbers_of_reference_in_float64(name):
  expected, values, model = reference(name), values_of(name, "float64"), load_model(name)
  flow = model.distribution.bijector
  np.testing.assert_allclose(in_their_order(flow, flow.inverse(values)), expected["A_z"], atol=2e-6)
  put_vectors_of_reference(name, model)
  z = flow.inverse(values)
  np.testing.assert_allclose(in_their_order(flow, z), expected["A_z"], atol=1e-10)
  found = jacobian_log_det(flow, values[:1])
  np.testing.assert_allclose(found, expected["A_logdet"][:1], atol=1e-9)
  log_prob = model.distribution.distribution.log_prob(z[:1]) + found
  bits = tfp_glow.dequantize.bits_per_dim(log_prob - 8. * np.log(2.) * values[0].size, values[0].size)
  np.testing.assert_allclose(bits, expected["A_bpd"][:1], atol=1e-10)


def loss_of_reference(model, values, labels):
  """Bits of images and labels, as in the reference."""
  z, exact_log_det, features = model.distribution.bijector.inverse_with_features(values)
  num_dims = values.shape[1:].num_elements()
  nats = model.distribution.distribution.log_prob(z) + exact_log_det - 8. * np.log(2.) * num_dims
  entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model.classifier(features))
  return tf.reduce_mean(entropies - nats) / np.log(2.)


@slow
@pytest.mark.usefixtures("in_float64")
def test_loss_and_gradients_of_a_hybrid_reference(monkeypatch):
  # An elimination of 192 rows takes minutes; tests/test_log_det.py has it.
  monkeypatch.setattr(log_det, "_log_det", lambda matrices: tf.linalg.slogdet(matrices)[1])
  expected, model = reference("m5"), load_model("m5", log_det="exact")
  put_vectors_of_reference("m5", model)
  compared = [row for row in layout("m5", model) if all(f"exact_grad/{key}" in expected for key in row[1])]
  assert len(compared) > 20
  with tf.GradientTape() as tape:
    loss = loss_of_reference(model, tf.constant(values_of("m5", "float64")), expected["labels"])
  gradients = tape.gradient(loss, [variable.value for variable, _, _ in compared])
  np.testing.assert_allclose(loss, expected["exact_loss"], rtol=1e-10)
  for (variable, keys, convert), gradient in zip(compared, gradients):
    theirs = [convert(expected[f"exact_grad/{key}"]) for key in keys]
    theirs = np.reshape(np.stack(theirs), variable.shape)
    np.testing.assert_allclose(gradient, theirs, rtol=1e-7, atol=1e-9 * np.abs(theirs).max(), err_msg=keys[0])


@slow
@pytest.mark.usefixtures("eagerly")
def test_a_loaded_hybrid_model_is_saved(tmp_path):
  model = loaded("m5")
  model.save(tmp_path / "model.keras")
  again = keras.models.load_model(tmp_path / "model.keras")
  images = channels_last(reference("m5")["in_uint8"])
  np.testing.assert_array_equal(again.encode(images), model.encode(images))
  np.testing.assert_array_equal(again.class_probabilities(images), model.class_probabilities(images))


@slow
def test_logits_and_weight_of_a_hybrid_model():
  model, expected = loaded("m5"), reference("m5")
  assert model.get_config()["likelihood_weight"] == 1.
  assert not model._needs_adapt()  # Otherwise training would begin with other heads.
  features = model.distribution.bijector.inverse_with_features(values_of("m5"))[2]
  np.testing.assert_allclose(model.classifier(features), expected["A_logits"], atol=1e-4)


@slow
@pytest.mark.usefixtures("unoptimized_graphs")
def test_training_goes_on_and_brings_norms_to_their_bound():
  model, images = load_model("m1", ema=False), channels_last(reference("m1")["in_uint8"])
  flow, values = model.distribution.bijector, values_of("m1")
  np.testing.assert_allclose(in_their_order(flow, flow.inverse(values)), reference("m1")["T_z"], atol=1e-4)
  before = norms_in_use(flow)
  assert len(before) == 30 and before.max() > COEFFICIENT + 0.05
  model.compile(keras.optimizers.Adam(1e-3))
  history = model.fit(np.repeat(images, 4, 0), batch_size=12, epochs=8, verbose=0).history["bits_per_dim"]
  assert np.isfinite(history).all()
  assert norms_in_use(flow).max() < COEFFICIENT + 1e-3


@slow
@pytest.mark.usefixtures("unoptimized_graphs")
def test_norms_above_their_bound_are_a_warning(monkeypatch):
  measured = []
  monkeypatch.setattr(load, "norms_in_use", lambda flow: measured.append(norms_in_use(flow)) or measured[0])
  with pytest.warns(UserWarning, match="6 of 24 layers of .* above their bound of 0.98, the largest by 0.07"):
    model = tfp_glow.load_residual_flow_checkpoint(FOLDER / "m3" / "model.pth", image_shape("m3"))
  flow = model.distribution.bijector
  true_norms = np.sort(reference("m3")["A_norm_after"])
  np.testing.assert_allclose(np.sort(measured[0])[-6:], true_norms[-6:], atol=3e-3)
  flow.after_update()
  assert norms_in_use(flow).max() < COEFFICIENT + 1e-3


@slow
def test_the_old_container_holds_the_same_model():
  old = load_model("m1", "model_legacy.pth")
  for a, b in zip(loaded("m1").get_weights(), old.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)


def options(**kwargs):
  return types.SimpleNamespace(**{**vars(contents("m1")[0]["args"]), **kwargs})


# Other models of theirs: images, options, architecture (see `ResidualFlowArchitecture`), and the shapes of the blocks
# of each scale.
OTHERS = {
    "mnist": ((20, 20, 1), {"data": "mnist"}, ((2, 2, 2), 16, 4, 12, False, False, "logit", False, None, None),
              [(20, 20, 1), (10, 10, 4), (5, 5, 16)]),
    "celebahq": ((32, 32, 3), {"data": "celebahq", "act": "elu", "n_exact_terms": 8},
                 ((2, 2, 2), 12, 0, None, True, True, "logit", False, None, None),
                 [(16, 16, 12), (8, 8, 24), (4, 4, 48)]),
    "svhn hybrid": ((8, 8, 3), {"data": "svhn", "task": "hybrid", "scale_dim": True},
                    ((2, 2), 16, 4, 16, False, True, "logit", False, 10, 24), [(8, 8, 3), (4, 4, 6)]),
    "classification": ((8, 8, 3), {"data": "cifar10", "task": "classification"},
                       ((2, 2), 16, 4, 16, False, False, "statistics", False, 10, 24), [(8, 8, 3), (4, 4, 12)]),
    "few dimensions": ((4, 4, 1), {"data": "mnist"}, ((1, 1), 8, 2, 128, False, False, "logit", True, None, None),
                       [(4, 4, 1), (2, 2, 4)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_architectures_of_other_models(name):
  image_shape, others, expected, scales = OTHERS[name]
  expected, recorded = architectures.ResidualFlowArchitecture(*expected), vars(options(**others))
  architectures.check_options(recorded)
  shapes = architectures.tensor_shapes(expected, recorded, image_shape)
  assert architectures.infer_architecture(shapes, image_shape) == expected
  assert architectures.scale_shapes(expected, image_shape)[0] == scales
  arguments = architectures.flow_arguments(expected, recorded)
  is_logit = expected.normalization == "logit"
  assert arguments["logit_alpha"] == ((1e-6 if others["data"] == "mnist" else 0.05) if is_logit else None)
  assert arguments["activation"] == others.get("act", "lip_swish") and arguments["num_dense_blocks"] == expected[2]
  assert arguments["num_terms"] == others.get("n_exact_terms", 2)
  weight = architectures.likelihood_weight(expected, recorded, 192)
  assert weight == {"svhn hybrid": 1 / 192, "classification": 0.}.get(name)
  assert load._sources(expected) == ([0, 0] if expected.factor_out and expected.num_classes else
                                     [0, 1, 1] if expected.factor_out else None)


def changed(monkeypatch, name="m1", remove=(), **entries):
  """Makes the loader find other contents: without some tensors, and with other entries."""
  found = dict(contents(name)[0])
  found["state_dict"] = {key: value for key, value in found["state_dict"].items() if key not in remove}
  for key, value in entries.items():
    found[key] = {**found[key], **value} if isinstance(found[key], dict) else value
  monkeypatch.setattr(load, "read_torch_file", lambda path: found)
  monkeypatch.setattr(load, "ResidualFlowBijector", quick_flow)


KERNEL, EXTRA = "transforms.0.chain.2.nnet.2.weight", "transforms.0.chain.9.nnet.0.bias"


@pytest.mark.parametrize("change, message", [
    (dict(remove=[KERNEL]), rf"missing: {KERNEL} \[16, 16, 1, 1\]"),
    (dict(state_dict={EXTRA: np.zeros([3])}), rf"unexpected: {EXTRA} \[3\]"),
    (dict(state_dict={KERNEL: np.zeros([16, 8, 1, 1])}), rf"of another shape: {KERNEL} \[16, 8, 1, 1\] instead of"),
    (dict(state_dict={KERNEL: np.full([16, 16, 1, 1], np.nan)}), "must be finite.*NaN"),
    (dict(args=options(block="coupling", dropout=0.1)), "block='resblock'.*Received: block='coupling', dropout=0.1"),
    (dict(args=options(act="lcube", coeff=1.2)), "a known act, a known coeff.*Received: act='lcube', coeff=1.2"),
    (dict(args=options(logit_transform=False)), "logit_transform=True.*Received: logit_transform=False"),
    (dict(state_dict={1: np.zeros([1])}), "names for keys"),
    (dict(state_dict={KERNEL: Opaque("torch._utils._rebuild_sparse_tensor", ())}),
     rf"plain tensors in `state_dict`.*{KERNEL} \(torch._utils._rebuild_sparse_tensor\)"),
    (dict(args=options(data="celebahq", nbits=5)), "`num_bits` must be 5.*celebahq. Received: 8"),
    (dict(args=types.SimpleNamespace(data="mnist")), "without coeff, n_exact_terms, n_dist"),
])
def test_files_that_do_not_fit(change, message, monkeypatch):
  changed(monkeypatch, **change)
  with pytest.raises(ValueError, match=message):
    tfp_glow.load_residual_flow_checkpoint("file.pth", (8, 8, 3), ema=False)


def test_files_of_something_else(monkeypatch, tmp_path):
  for found, message in (
      ({"model": {}}, "'args', 'ema', 'optimizer_state_dict', 'state_dict'.*which holds model"),
      ([1, 2], "which holds list")):
    monkeypatch.setattr(load, "read_torch_file", lambda path, found=found: found)
    with pytest.raises(ValueError, match=message):
      tfp_glow.load_residual_flow_checkpoint("file.pth", (8, 8, 3), ema=False)
  monkeypatch.undo()
  (tmp_path / "text.pth").write_text("no checkpoint")
  with pytest.raises(ValueError, match="`path` must.*Received"):
    tfp_glow.load_residual_flow_checkpoint(tmp_path / "text.pth", (8, 8, 3))
  with pytest.raises(FileNotFoundError, match="Received"):
    tfp_glow.load_residual_flow_checkpoint(tmp_path / "missing.pth", (8, 8, 3))


def test_moving_averages_that_are_missing(monkeypatch):
  found = dict(contents("m1")[0])
  del found["ema"]
  monkeypatch.setattr(load, "read_torch_file", lambda path: found)
  with pytest.raises(ValueError, match="'ema'"):
    tfp_glow.load_residual_flow_checkpoint("file.pth", (8, 8, 3))
  averages = dict(contents("m1")[0]["ema"].state["shadow_params"])
  del averages[KERNEL]
  found["ema"] = types.SimpleNamespace(state={"shadow_params": averages})
  with pytest.raises(ValueError, match=f"moving average of each weight.*without {KERNEL}"):
    tfp_glow.load_residual_flow_checkpoint("file.pth", (8, 8, 3))


@pytest.mark.parametrize("image_shape, message", [
    ((9, 8, 3), "`image_shape` must have a height and width divisible by 2.*Received: .9, 8, 3."),
    ((8, 8, 1), "of another shape|missing|unexpected"), ((16, 16, 3), "`image_shape`.*of another shape")])
def test_images_of_another_shape(image_shape, message):
  with pytest.raises(ValueError, match=message):
    tfp_glow.load_residual_flow_checkpoint(FOLDER / "m1" / "model.pth", image_shape)

"""SavedModels for TensorFlow Lite: converted with its built-in operations alone, they give the model's numbers."""

import pathlib
import re

import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "lite.md").read_text()
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")]


def convert(path):
  converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=["log_prob", "encode", "decode"])
  converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
  return converter.convert()


def with_other_weights(model):
  for v in model.distribution.trainable_variables:
    v.assign_add(0.05 * tf.random.stateless_normal(v.shape, [1, 2]))
  return model


def test_the_program_of_the_page(tmp_path, monkeypatch):
  program, = (code for code in re.findall(r"^```py\n(.*?)^```", PAGE, re.M | re.S) if "TFLiteConverter" in code)
  monkeypatch.chdir(tmp_path)
  names = {"__name__": "page"}
  exec(compile(program, "page", "exec"), names)
  model, images = names["model"], names["images"].numpy()
  np.testing.assert_allclose(names["latent"], model.encode(images), atol=1e-5)
  np.testing.assert_allclose(names["log_prob"], model.log_prob(images), rtol=1e-5)
  np.testing.assert_array_equal(names["decoded"], images // 16 * 16)


MODELS = {
    "classes, two levels": (8, {"num_glow_blocks": 2, "num_classes": 3}),
    "additive, reversed": (5, {"coupling": "additive", "permutation": "reverse"}),
    "16 bits": (16, {"gradient": "reversible"})}


@pytest.mark.parametrize("num_bits, kwargs", MODELS.values(), ids=MODELS)
def test_models(tmp_path, num_bits, kwargs):
  shape = (8, 8, 3)
  images = small_models.images(5, shape)
  if num_bits > 8:
    images = images.astype(np.uint16) * 257
  kwargs = {"num_glow_blocks": 1, "num_steps_per_block": 2, "num_hidden": 8, "seed": 0, **kwargs}
  model = tfp_glow.FlowModel(tfp_glow.GlowBijector(shape, **kwargs), num_bits)
  model.adapt(images)
  with_other_weights(model).export(tmp_path / "saved_model", for_lite=True)
  interpreter = tf.lite.Interpreter(model_content=convert(tmp_path / "saved_model"))
  labels = {} if model.num_classes is None else {"labels": np.arange(5, dtype=np.int32) % 3}
  call = lambda name, **inputs: interpreter.get_signature_runner(name)(**inputs, **labels)
  latent = call("encode", images=images)["latent"]
  np.testing.assert_allclose(latent, model.encode(images, **labels), atol=1e-4)
  np.testing.assert_allclose(call("log_prob", images=images)["log_prob"], model.log_prob(images, **labels), rtol=1e-5)
  np.testing.assert_array_equal(call("decode", latent=latent)["images"], model.decode(model.encode(images, **labels),
                                                                                     **labels))


@pytest.mark.parametrize("flow, shape", [(tfp_glow.VectorFlowBijector, (4,)), (tfp_glow.GlowBijector, (4, 4, 2))])
@pytest.mark.parametrize("context_shape", [None, (3,)])
def test_floating_data(tmp_path, flow, shape, context_shape):
  """Vectors in their own units, and contexts that are repeated at all positions."""
  rng = np.random.default_rng(0)
  units = np.float32([1e-2, 1e3, 1., 50.]) if len(shape) == 1 else np.float32(1.)
  data = (units * (5. + rng.standard_normal([100, *shape]))).astype(np.float32)
  sizes = {"num_glow_blocks": 1, "num_steps_per_block": 2} if len(shape) == 3 else {"num_steps": 2}
  model = tfp_glow.FlowModel(flow(shape, num_hidden=8, seed=0, context_shape=context_shape, **sizes), num_bits=None)
  context = {} if context_shape is None else {"context": rng.standard_normal([100, 3]).astype(np.float32)}
  model.adapt((data, context) if context else data)
  with_other_weights(model).export(tmp_path / "saved_model", for_lite=True)
  interpreter = tf.lite.Interpreter(model_content=convert(tmp_path / "saved_model"))
  call = lambda name, **inputs: interpreter.get_signature_runner(name)(**inputs, **context)
  latent = call("encode", images=data)["latent"]
  np.testing.assert_allclose(latent, model.encode(data, **context), atol=1e-4)
  np.testing.assert_allclose(call("log_prob", images=data)["log_prob"], model.log_prob(data, **context), rtol=1e-5)
  np.testing.assert_allclose(call("decode", latent=latent)["images"] / units, data / units, atol=1e-4)


@pytest.mark.parametrize("make, match", [
    (lambda: tfp_glow.VectorFlowBijector(4, 1, 4, dtype="float64"), "not in float32"),
    (small_models.residual_flow, "estimates log-dets")], ids=["float64", "estimated log-dets"])
def test_flows_that_need_other_operations(tmp_path, make, match):
  with pytest.raises(ValueError, match=f"`for_lite` must be False for a .*{match}.*Received: for_lite=True, "):
    tfp_glow.export.export_distribution(make(), tmp_path / "saved_model", None, for_lite=True)
  assert not (tmp_path / "saved_model").exists()


def test_wrong_option(tmp_path):
  with pytest.raises(ValueError, match="`for_lite` must be a `bool`. Received: 1"):
    tfp_glow.FlowModel(small_models.gaussian()).export(tmp_path / "saved_model", for_lite=1)

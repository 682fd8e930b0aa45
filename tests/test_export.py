"""The SavedModel, loaded by a fresh process in which neither `tfp_glow` nor TFP can be imported."""

import subprocess
import sys

import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow

IMAGES = small_models.images(6)

_SERVE = """
import sys
import numpy as np

class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("tfp_glow", "tensorflow_probability", "keras", "tf_keras"):
      raise ImportError(name + " must not be needed")

import tensorflow as tf
sys.meta_path.insert(0, Refuse())
assert "tfp_glow" not in sys.modules
path, inputs, outputs = sys.argv[1:]
inputs = dict(np.load(inputs))
labels = {"labels": tf.constant(inputs["labels"])} if "labels" in inputs else {}
model = tf.saved_model.load(path)
images = tf.constant(inputs["images"])
results = dict(model.signatures["log_prob"](images=images, **labels))
results.update(model.signatures["encode"](images=images, **labels))
results["decoded"] = model.signatures["decode"](latent=results["latent"], **labels)["images"]
results["samples"] = model.signatures["sample"](
    num_samples=tf.constant(len(inputs["images"])), temperature=tf.constant(.7), seed=tf.constant([1, 2]),
    **labels)["images"]
results["default"] = model.signatures["serving_default"](images=images, **labels)["log_prob"]
np.savez(outputs, **{key: value.numpy() for key, value in results.items()})
"""


def _serve(path, folder, **inputs):
  np.savez(folder / "inputs.npz", **inputs)
  subprocess.run([sys.executable, "-c", _SERVE, path, folder / "inputs.npz", folder / "outputs.npz"], check=True,
                 cwd=folder, env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""})
  return dict(np.load(folder / "outputs.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_process_with_tensorflow_alone_gets_equal_results(tmp_path, num_classes):
  model = tfp_glow.FlowModel(small_models.distribution(num_classes=num_classes), num_bits=8)
  model.adapt(IMAGES)
  for v in model.distribution.trainable_variables:
    v.assign_add(0.05 * tf.random.stateless_normal(v.shape, [1, 2]))
  model.export(tmp_path / "saved_model")
  labels = {} if num_classes is None else {"labels": np.arange(6, dtype=np.int32) % num_classes}
  served = _serve(tmp_path / "saved_model", tmp_path, images=IMAGES, **labels)
  log_prob = model.log_prob(IMAGES, **labels)
  np.testing.assert_allclose(served["log_prob"], log_prob, rtol=1e-5)
  np.testing.assert_allclose(served["default"], log_prob, rtol=1e-5)
  np.testing.assert_allclose(served["bits_per_dim"], -log_prob / (np.log(2.) * IMAGES[0].size), rtol=1e-5)
  np.testing.assert_allclose(served["latent"], model.encode(IMAGES, **labels), atol=1e-5)
  np.testing.assert_array_equal(served["decoded"], IMAGES)
  np.testing.assert_array_equal(served["samples"], model.sample(6, temperature=0.7, seed=(1, 2), **labels))


def test_any_batch_size_and_continuous_data(tmp_path):
  model = tfp_glow.FlowModel(small_models.gaussian(), num_bits=None)
  model.export(tmp_path / "saved_model")
  loaded = tf.saved_model.load(str(tmp_path / "saved_model"))
  for count in (1, 5):
    data = np.random.default_rng(0).normal(size=[count, *small_models.SHAPE]).astype(np.float32)
    answer = loaded.signatures["log_prob"](images=tf.constant(data))
    np.testing.assert_allclose(answer["log_prob"], model.distribution.log_prob(data), rtol=1e-5)
    assert loaded.signatures["encode"](images=tf.constant(data))["latent"].shape[0] == count


def test_weights_are_stored_once(tmp_path):
  model = tfp_glow.FlowModel(small_models.distribution(num_hidden=256))
  model.export(tmp_path / "saved_model")
  stored = sum(f.stat().st_size for f in (tmp_path / "saved_model" / "variables").iterdir())
  held = sum(v.numpy().nbytes for v in model.distribution.variables)
  assert held < stored < 1.1 * held

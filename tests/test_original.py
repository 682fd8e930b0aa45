"""Against numbers of the original TensorFlow 1 code, with the tolerances stated beside the numbers."""

import keras
import numpy as np
import pytest
import reference_models
import tensorflow as tf

from tfp_glow.checkpoints.openai_glow.layout import assign_original_variables, original_layout


@pytest.fixture(scope="module", params=["a", "b", "d"])
def model(request):
  reference = reference_models.load(request.param)
  glow = reference_models.make_glow(reference)
  return reference, glow, reference_models.labels_of(reference, glow)


def test_objective(model):
  reference, glow, labels = model
  log_prob = reference_models.make_distribution(glow).log_prob(reference["xz"], bijector_kwargs=labels)
  np.testing.assert_allclose(log_prob + reference["objective_const"], reference["objective"], rtol=1e-6)


def test_latents_of_every_level(model):
  reference, glow, labels = model
  parts = glow.split_latent(glow.inverse(reference["xz"], **labels))
  for level, part in enumerate(parts):
    np.testing.assert_allclose(part, reference[f"eps/{level}"], atol=1e-5)


def test_decoded_images(model):
  reference, glow, labels = model
  z = glow.join_latent([reference[f"given_eps/{level}"] for level in range(3)])
  np.testing.assert_allclose(glow.forward(z, **labels), reference["decoded"], atol=1e-5)


def test_squeeze_order(model):
  reference, glow, _ = model
  np.testing.assert_array_equal(glow._squeeze.inverse(reference["xz"]), reference["squeezed"])


def _loss_gradients(reference, glow, labels):
  """The classifier's part of the gradients of the original's loss, by variable."""
  model = reference_models.make_model(reference, glow)
  with tf.GradientTape() as tape:
    nats = model.distribution.log_prob(reference["xz"], bijector_kwargs=labels)
    loss = -tf.reduce_mean(nats) / (np.log(2.) * reference_models.NUM_DIMS)
    if model.classifier is not None:
      loss += reference_models.WEIGHT_Y * tf.reduce_mean(_bits_y(reference, model, labels))
  variables = [v.value for v in model.trainable_variables]
  # Gradients of class embeddings are slices.
  gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
  return {v.ref(): gradient for v, gradient in zip(variables, gradients)}, model.classifier


def _bits_y(reference, model, labels):
  glow = model.distribution.bijector
  logits = model.classifier(glow.class_features(glow.inverse(reference["xz"], **labels), **labels))
  return tf.nn.sparse_softmax_cross_entropy_with_logits(reference["y"], logits) / np.log(2.)


def test_bits_of_the_labels():
  reference = reference_models.load("d")
  glow = reference_models.make_glow(reference)
  labels = reference_models.labels_of(reference, glow)
  bits_y = _bits_y(reference, reference_models.make_model(reference, glow), labels)
  np.testing.assert_allclose(bits_y, reference["bits_y"], rtol=1e-5)


def test_gradients(model):
  reference, glow, labels = model
  gradients, classifier = _loss_gradients(reference, glow, labels)
  for variable, names, convert in original_layout(glow):
    if not variable.trainable:
      continue  # Signs and permutation of the 1x1 convolution.
    recorded = [reference[f"grad/{name}"] for name in names]
    if names[0].endswith("invconv/W"):
      expected = _through_lu(glow, variable, recorded)
    else:
      expected = np.stack([convert(part) for part in recorded]).reshape(variable.shape)
    actual = gradients[variable.value.ref()]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max() + 1e-8,
                               err_msg=variable.name)
  if classifier is not None:
    for name, variable in (("W", classifier.kernel), ("b", classifier.bias), ("logs", classifier.log_scale)):
      expected = reference[f"grad/model/classifier/{name}"].reshape(variable.shape)
      np.testing.assert_allclose(gradients[variable.value.ref()], expected, rtol=1e-4, atol=1e-8, err_msg=name)


def _through_lu(glow, variable, gradients_of_matrix):
  """The gradient by a parameter of W's factors, from the gradient by W, by autodiff of W alone."""
  scan = next(scan for scan in glow.blocks if any(scan.stacked(v) is variable for v in scan._template_variables))
  with tf.GradientTape() as tape:
    matrices, _ = scan.template.permutation.matrix(lambda v: scan.stacked(v).value)
    total = tf.reduce_sum(matrices * np.stack(gradients_of_matrix))
  return tape.gradient(total, variable.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "b", "d"])
def test_data_dependent_initialisation(name):
  reference = reference_models.load(name)
  glow = reference_models.make_glow(reference, "ddi/var/")
  expected = {v.ref(): v.numpy() for v in glow.variables}
  for scan in glow.blocks:
    network = scan.template.coupling.network
    for layer in (scan.template.actnorm, network.first, network.second):
      for variable in (layer.shift, layer.log_scale):
        stack = scan.stacked(variable)
        stack.assign(np.full(stack.shape, 7.))
  num_bins = 2.**8 if name != "b" else 2.**5
  images = np.floor(reference["ddi/x_uint8"] / (256. / num_bins)) / num_bins - .5
  glow.initialize((images + reference["ddi/noise"]).astype(np.float32))
  for variable in glow.variables:
    np.testing.assert_allclose(variable.numpy(), expected[variable.ref()], atol=3e-6, err_msg=variable.name)


def test_missing_variables_are_named():
  reference = reference_models.load("a")
  glow = reference_models.make_glow(reference)
  values = {key.removeprefix("var/"): value for key, value in reference.items() if key.startswith("var/")}
  del values["model/1/0/f1/l_2/W"]
  with pytest.raises(ValueError, match="model/1/0/f1/l_2/W"):
    assign_original_variables(glow, values)


@pytest.mark.slow
def test_float64_agrees_with_float32():
  reference = reference_models.load("a")
  glow = reference_models.make_glow(reference, dtype="float64")
  log_prob = reference_models.make_distribution(glow).log_prob(reference["xz"].astype(np.float64))
  assert log_prob.dtype == tf.float64
  np.testing.assert_allclose(log_prob + reference["objective_const"], reference["objective"], rtol=1e-6)
  assert keras.config.floatx() == "float32"

"""Tests of `tfp_glow.evaluation`."""

import math
import warnings

import keras
import numpy as np
import pytest
import scipy.stats
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow import evaluation
from tfp_glow.likelihood import dequantize

tfd = tfp.distributions
pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
IMAGES = small_models.images(24)
LABELS = np.arange(24) % 3
SMALL = (2, 2, 1)
NUM_BITS = 3  # Bins are 1/8 wide.


def bits_per_dim(*args, **kwargs):
  return evaluation.bits_per_dim(*args, **{"verbose": 0, **kwargs})


def few_levels(count, seed=0):
  """Images of all values that 3 bits have."""
  return np.random.default_rng(seed).integers(0, 256, [count, *SMALL]).astype(np.uint8)


def model_of(distribution, num_bits=NUM_BITS, **kwargs):
  return tfp_glow.FlowModel(tfd.Independent(distribution, 3), num_bits, **kwargs)


def uniform(low, high):
  return model_of(tfd.Uniform(tf.Variable(np.full(SMALL, low)), tf.Variable(np.full(SMALL, high))))


LOC = np.linspace(-0.4, 0.4, 4).reshape(SMALL)
SCALE = 0.06  # In a bin, neither density is nearly constant.
KNOWN = {
    "logistic": (tfd.Logistic, scipy.stats.logistic(LOC, SCALE).cdf),
    "normal": (tfd.Normal, scipy.stats.norm(LOC, 3. * SCALE).cdf),
}


def known(name):
  """A model in float64, and a function from images to their exact bits per dimension."""
  make, cdf = KNOWN[name]
  scale = SCALE if name == "logistic" else 3. * SCALE

  def exact(images):
    low = (images // 2**(8 - NUM_BITS)) / 2.**NUM_BITS - 0.5
    return -np.log2(cdf(low + 2.**-NUM_BITS) - cdf(low)).mean(axis=(1, 2, 3))

  return model_of(make(tf.Variable(LOC), tf.Variable(scale * np.ones(SMALL)))), exact


@pytest.fixture(scope="module")
def glow_model():
  model = tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1), seed=5)
  model.adapt(IMAGES)
  return model


@pytest.mark.slow
@pytest.mark.parametrize("importance_weighted", [False, True])
def test_one_draw_is_that_of_predict_and_evaluate(glow_model, importance_weighted):
  found = bits_per_dim(glow_model, IMAGES, seed=5, importance_weighted=importance_weighted)
  np.testing.assert_allclose(found.per_image, glow_model.predict(IMAGES, verbose=0), rtol=1e-6)
  small_models.compiled(glow_model)
  assert found.mean == pytest.approx(glow_model.evaluate(IMAGES, verbose=0, return_dict=True)["bits_per_dim"], rel=1e-6)


@pytest.mark.slow
def test_draws_are_those_of_as_many_models_with_noise_of_their_own(glow_model):
  singles = []
  for k in range(3):
    noise = tfp_glow.dequantize.image_noise(tf.constant(IMAGES), tf.constant([5, -1 - k]))
    nats = glow_model.distribution.log_prob((IMAGES + noise) / 256. - 0.5).numpy().astype(float) - 32 * np.log(256.)
    singles.append(nats)
  average = bits_per_dim(glow_model, IMAGES, num_noise_samples=3, seed=5).per_image
  np.testing.assert_allclose(average, -np.mean(singles, axis=0) / (32 * np.log(2.)), rtol=1e-5)
  weighted = bits_per_dim(glow_model, IMAGES, num_noise_samples=3, seed=5, importance_weighted=True).per_image
  largest = np.max(singles, axis=0)
  expected = -(largest + np.log(np.mean(np.exp(singles - largest), axis=0))) / (32 * np.log(2.))
  np.testing.assert_allclose(weighted, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_importance_weighted_bound_tends_to_the_exact_value(name):
  model, exact = known(name)
  images = few_levels(40)
  errors = {k: bits_per_dim(model, images, num_noise_samples=k, importance_weighted=True, batch_size=64).per_image -
               exact(images) for k in (10, 1000)}
  assert np.abs(errors[1000]).mean() < 0.015
  assert np.abs(errors[10]).mean() > 4. * np.abs(errors[1000]).mean()
  average = bits_per_dim(model, images, num_noise_samples=1000, batch_size=64).per_image - exact(images)
  assert (average > 0.).all() and average.mean() > 10. * np.abs(errors[1000]).mean()


@pytest.mark.parametrize("name", KNOWN)
def test_importance_weighted_bound_is_never_above_the_average(name):
  model, _ = known(name)
  images = few_levels(60)
  average, weighted = (bits_per_dim(model, images, num_noise_samples=5, importance_weighted=value).per_image
                       for value in (False, True))
  assert (weighted < average).all()


def test_importance_weighted_bound_falls_with_the_number_of_draws():
  model, _ = known("logistic")
  means = [bits_per_dim(model, few_levels(200), num_noise_samples=k, importance_weighted=True, batch_size=200).mean
           for k in (1, 3, 9, 27, 81)]
  assert (np.diff(means) < 0.).all()


def test_constant_density_needs_no_draws():
  for importance_weighted in (False, True):
    found = bits_per_dim(uniform(-0.5, 0.5), few_levels(7), num_noise_samples=3,
                         importance_weighted=importance_weighted)
    np.testing.assert_allclose(found.per_image, NUM_BITS, rtol=1e-12)
    assert found.standard_error < 1e-12


def test_images_of_probability_zero_take_infinitely_many_bits():
  images = np.stack([np.full(SMALL, value, np.uint8) for value in (0, 255)])
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = bits_per_dim(uniform(-0.25, 0.5), images)
  assert found.per_image[0] == math.inf and found.per_image[1] == pytest.approx(NUM_BITS + np.log2(0.75))
  assert found.mean == math.inf and math.isnan(found.standard_error)


@pytest.mark.slow
def test_draws_outside_of_the_support_count_as_zero():
  """The support ends within the first bin, so an average of logarithms would be infinite."""
  low = -0.5 + 2.**-NUM_BITS / 4.
  model, images = uniform(low, 0.5), np.zeros([1, *SMALL], np.uint8)
  assert bits_per_dim(model, images, num_noise_samples=50).mean == math.inf
  exact = -np.log2(0.75 * 2.**-NUM_BITS / (0.5 - low))
  found = bits_per_dim(model, images, num_noise_samples=500, importance_weighted=True).mean
  assert found == pytest.approx(exact, abs=0.1)


def test_summary():
  model, _ = known("logistic")
  found = bits_per_dim(model, few_levels(9))
  assert isinstance(found, evaluation.BitsPerDim)
  assert found.per_image.shape == (9,) and found.per_image.dtype == np.float64
  assert isinstance(found.mean, float) and isinstance(found.standard_error, float)
  assert found.mean == pytest.approx(sum(found.per_image) / 9)
  squares = sum((bits - found.mean)**2 for bits in found.per_image)
  assert found.standard_error == pytest.approx(math.sqrt(squares / 8 / 9))
  assert math.isnan(bits_per_dim(model, few_levels(1)).standard_error)


@pytest.mark.slow
def test_standard_error_is_that_of_the_mean_over_sets_of_images():
  model, _ = known("logistic")
  found = [bits_per_dim(model, few_levels(50, seed), batch_size=50) for seed in range(60)]
  assert np.std([one.mean for one in found]) == pytest.approx(np.mean([one.standard_error for one in found]), rel=0.3)


def test_noise_depends_on_seed_and_image_only():
  model, _ = known("logistic")
  images = few_levels(20)
  of_batches = [bits_per_dim(model, images, batch_size=size, num_noise_samples=3).per_image for size in (20, 7, 1, 20)]
  np.testing.assert_array_equal(of_batches[0], of_batches[3])
  for other in of_batches[1:3]:
    np.testing.assert_allclose(other, of_batches[0], rtol=1e-12)
  np.testing.assert_allclose(bits_per_dim(model, images[::-1], num_noise_samples=3).per_image[::-1], of_batches[0],
                             rtol=1e-12)
  assert (bits_per_dim(model, images, num_noise_samples=3, seed=1).per_image != of_batches[0]).all()


class _Sequence(keras.utils.PyDataset):

  def __len__(self):
    return 3

  def __getitem__(self, index):
    return IMAGES[8 * index:8 * index + 8], LABELS[8 * index:8 * index + 8]


def _forms():
  dataset = lambda data: tf.data.Dataset.from_tensor_slices(data).batch(7)
  pairs, dicts = (IMAGES, LABELS), {"image": IMAGES, "label": LABELS}
  empty = dataset(pairs).take(1).map(lambda images, labels: (images[:0], labels[:0]))
  return {
      "array": lambda: (IMAGES,), "tensor": lambda: (tf.constant(IMAGES),), "arrays": lambda: pairs,
      "dict": lambda: (dicts,), "dataset": lambda: (dataset(IMAGES),), "dataset of pairs": lambda: (dataset(pairs),),
      "dataset of dicts": lambda: (dataset(dicts),),
      "dataset of unknown length": lambda: (dataset(pairs).filter(lambda *_: True),),
      "generator": lambda: (((IMAGES[i:i + 5], LABELS[i:i + 5]) for i in range(0, 24, 5)),),
      "PyDataset": lambda: (_Sequence(),),
      "with an empty batch": lambda: (empty.concatenate(dataset(pairs)),),
  }


@pytest.mark.parametrize("form", _forms())
def test_every_form_of_input_gives_the_same(glow_model, form, capsys):
  with warnings.catch_warnings():
    warnings.simplefilter("error", RuntimeWarning)
    found = bits_per_dim(glow_model, *_forms()[form](), seed=5, batch_size=10, verbose=1)
  np.testing.assert_allclose(found.per_image, glow_model.predict(IMAGES, verbose=0), rtol=1e-5)
  assert f"bits_per_dim: {found.mean:.4f}"[:-1] in capsys.readouterr().out.splitlines()[-1]


def test_silent_if_asked(glow_model, capsys):
  bits_per_dim(glow_model, IMAGES)
  assert not capsys.readouterr().out


@pytest.mark.slow
def test_labels_of_a_class_conditional_model():
  model = tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1, num_classes=3))
  bijector = model.distribution.bijector
  bijector.top.class_kernel.assign(tf.random.stateless_normal(bijector.top.class_kernel.shape, [0, 1]))
  pairs = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(24)
  for data in ((IMAGES, LABELS), (pairs,)):
    np.testing.assert_allclose(bits_per_dim(model, *data).per_image, model.predict(pairs, verbose=0), rtol=1e-6)
  assert (bits_per_dim(model, IMAGES, LABELS[::-1]).per_image != model.predict(pairs, verbose=0)).any()
  with pytest.raises(ValueError, match="`labels` must be given"):
    bits_per_dim(model, IMAGES)


def test_continuous_data():
  model = tfp_glow.FlowModel(small_models.gaussian(), num_bits=None)
  data = np.random.default_rng(0).normal(size=[5, *small_models.SHAPE]).astype(np.float32)
  expected = -model.distribution.log_prob(data) / (np.log(2.) * 32)
  np.testing.assert_allclose(bits_per_dim(model, data).per_image, expected, rtol=1e-5)


def test_is_traced_once():
  model = tfp_glow.FlowModel(small_models.distribution(num_steps_per_block=1))
  for k in (1, 4, 1):
    bits_per_dim(model, IMAGES, batch_size=8, num_noise_samples=k, seed=k)
  assert model._log_prob.__wrapped__.experimental_get_tracing_count() == 1


_WITH_NAN = np.where(np.arange(32).reshape(1, *small_models.SHAPE) == 5, np.nan, np.zeros([2, *small_models.SHAPE]))


@pytest.mark.parametrize("args, kwargs, error, match", [
    ((IMAGES[:0],), {}, ValueError, "`x` must hold at least one image. Received: "),
    ((iter([]),), {}, ValueError, "`x` must hold at least one image. Received: "),
    ((tf.data.Dataset.from_tensors(IMAGES).repeat(),), {}, ValueError, "`x` must end. Received: "),
    (([[1]],), {}, TypeError, "`x` must be an array of images.*Received: list"),
    ((IMAGES[..., :1],), {}, ValueError, r"`images` must have shape \[None, 4, 4, 2\]. Received: "),
    ((iter([IMAGES[..., :1]]),), {}, ValueError, r"`images` must have shape \[None, 4, 4, 2\]. Received: "),
    ((IMAGES.astype(int),), {}, TypeError, "`images` must be uint8.*Received: int64"),
    ((IMAGES,), {"num_noise_samples": 0}, ValueError, "`num_noise_samples` must be an `int`.*Received: 0"),
    ((IMAGES,), {"num_noise_samples": 2.}, ValueError, "`num_noise_samples`.*Received: 2.0"),
    ((IMAGES,), {"batch_size": 0}, ValueError, "`batch_size` must be a positive `int`.*Received: 0"),
    ((IMAGES,), {"seed": -1}, ValueError, "`seed` must be an `int` of at least 0.*Received: -1"),
    ((IMAGES,), {"seed": None}, ValueError, "`seed`.*Received: None"),
])
def test_bad_input(glow_model, args, kwargs, error, match):
  with pytest.raises(error, match=match):
    bits_per_dim(glow_model, *args, **kwargs)


@pytest.mark.slow
def test_estimated_log_dets_have_no_importance_weighted_bound():
  flow = tfp_glow.ResidualFlowBijector(small_models.SHAPE, 1, 1, 4, 0)
  model = tfp_glow.FlowModel(small_models.of_standard_normal(flow))
  with pytest.raises(ValueError, match="`importance_weighted` must be False.*Received: True, with Russian roulette"):
    bits_per_dim(model, IMAGES, importance_weighted=True)


@pytest.mark.slow
def test_estimates_of_log_dets_have_an_error_of_their_own():
  flow = tfp_glow.ResidualFlowBijector(small_models.SHAPE, 1, 1, 4, 0, num_eval_terms=2, seed=0)
  model = tfp_glow.FlowModel(flow)
  # Norms at their bound; otherwise the terms would be almost 0.
  flow.parts[-2].block.network.layers[0].kernel.assign(
      3. * flow.parts[-2].block.network.layers[0].kernel.value)
  flow.after_update()
  before = [v.numpy() for v in flow.noise_seeds()]
  one = bits_per_dim(model, IMAGES, verbose=0)
  found = bits_per_dim(model, IMAGES, num_estimates=6, verbose=0)
  for variable, value in zip(flow.noise_seeds(), before, strict=True):
    np.testing.assert_array_equal(variable, value)
  np.testing.assert_array_equal(one.per_image, bits_per_dim(model, IMAGES, verbose=0).per_image)
  assert np.isnan(one.estimate_error)
  means = []
  for draw in range(6):
    for variable, value in zip(flow.noise_seeds(), before):
      variable.assign(value if draw == 0 else [value[0], -draw])
    means.append(bits_per_dim(model, IMAGES, verbose=0).mean)
  assert len(set(means)) == 6
  np.testing.assert_allclose(found.mean, np.mean(means), rtol=1e-6)
  np.testing.assert_allclose(found.estimate_error, np.std(means, ddof=1) / np.sqrt(6.), rtol=1e-4)
  exact = tfp_glow.ResidualFlowBijector(small_models.SHAPE, 1, 1, 4, 0, log_det="exact", seed=0)
  for variable, value in zip(exact.trainable_variables, flow.trainable_variables, strict=True):
    variable.assign(value)
  exact.after_update()
  of_exact = bits_per_dim(tfp_glow.FlowModel(exact), IMAGES, verbose=0)
  assert of_exact.estimate_error == 0.
  assert abs(found.mean - of_exact.mean) < 5. * found.estimate_error
  with pytest.raises(ValueError, match="`num_estimates` must be 1 where log-dets are exact.*Received: 2"):
    bits_per_dim(tfp_glow.FlowModel(exact), IMAGES, num_estimates=2)


class _Endless(keras.utils.PyDataset):
  num_batches = None

  def __getitem__(self, index):
    return IMAGES


def test_endless_batches():
  with pytest.raises(ValueError, match="`x` must end. Received: .*`num_batches` is None"):
    bits_per_dim(tfp_glow.FlowModel(small_models.gaussian()), _Endless())


@pytest.mark.slow
def test_draws_share_no_noise_with_training():
  """Nor with a model of another seed."""
  model, images = tfp_glow.FlowModel(small_models.gaussian(), seed=1), tf.constant(IMAGES)
  draws, original = [], dequantize.image_noise
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(dequantize, "image_noise", lambda images, seed, *args: (
        draws.append(tuple(np.array(seed))), original(images, seed, *args))[1])
    tf.config.run_functions_eagerly(True)
    try:
      bits_per_dim(model, images, num_noise_samples=3, seed=0)
      evaluated = set(draws)
      small_models.compiled(model, run_eagerly=True).fit(images, batch_size=8, epochs=2, verbose=0)
    finally:
      tf.config.run_functions_eagerly(False)
  assert len(evaluated) == 3 and len(set(draws)) > 6 and not evaluated & set(draws[len(evaluated):])


def test_bad_continuous_data():
  model = tfp_glow.FlowModel(small_models.gaussian(), num_bits=None)
  with pytest.raises(ValueError, match=r"`noise_seed` must be None for continuous data.*Received: \(0, 1\)"):
    model.log_prob(np.zeros([2, *small_models.SHAPE], np.float32), noise_seed=(0, 1))
  with pytest.raises(ValueError, match="`num_noise_samples` must be 1 for continuous data.*Received: 2"):
    bits_per_dim(model, np.zeros([2, *small_models.SHAPE], np.float32), num_noise_samples=2)
  with pytest.raises(ValueError, match="`images` must be finite. Received: "):
    bits_per_dim(model, _WITH_NAN.astype(np.float32))


def test_weights_that_are_nan():
  model = tfp_glow.FlowModel(small_models.gaussian())
  model.distribution.trainable_variables[0].assign(np.full(small_models.SHAPE, np.nan))
  with pytest.raises(FloatingPointError, match="Received: NaN for 10 of 10 images"):
    bits_per_dim(model, IMAGES, batch_size=10)


@pytest.mark.slow
def test_model_is_a_flow_model():
  with pytest.raises(TypeError, match="`model` must be a `FlowModel`. Received: "):
    bits_per_dim(small_models.distribution(), IMAGES)

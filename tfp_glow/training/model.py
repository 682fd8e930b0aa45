"""`FlowModel`: a distribution over images as a Keras model, and what it computes from images and latents."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import scipy.special
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow._core import _compat, precision, validation
from tfp_glow.likelihood.image_likelihood import ImageLikelihood
from tfp_glow.likelihood.standard_normal import with_standard_normal
from tfp_glow.networks.classifier import ScaleClassifier
from tfp_glow.storage import savedmodel
from tfp_glow.training import batches
from tfp_glow.training.model_training import TrainsWithKeras


@keras.saving.register_keras_serializable("tfp_glow")
class FlowModel(TrainsWithKeras):
  """A Keras model of any TFP distribution made of `tf.Variable`s, trained by maximum likelihood.

  The loss is the mean number of bits per dimension, which is also the metric `bits_per_dim`. A batch holds images
  `[N, H, W, C]` in uint8, or in uint16 if they have more than 8 bits. With `num_bits=None` it holds floating values,
  such as rows of a table. Labels and contexts may come with them:

  ```none
  images
  (images, labels)
  (images, {"label": labels, "context": context})
  {"image": images, "label": labels, "context": context}
  ```

  Only class-conditional distributions and classifiers use labels. Only conditional distributions use contexts: floating
  tensors `[N] + context_shape`, or dicts of them. Labels and contexts that the model does not take are ignored.

  The label -1 means that the class of an image is unknown. The density of the image is then the mean of its densities
  in all classes. A class-conditional distribution can thus be trained and evaluated on partly labelled data.

  uint8 and uint16 images are dequantized by noise that is uniform in each value's bin. The noise is a function of the
  seed, the step and the image, so runs are reproducible with any number of replicas. `evaluate` and `predict` use the
  same noise each time, and return the same numbers.

  With `weight_y` the top latent of a class-conditional Glow also predicts the class. The loss of an image is its bits
  per dimension plus `weight_y` times the bits of its label under a linear classifier. The metrics `bits_y` and
  `accuracy`, and `class_probabilities`, are those of this classifier. An image without a label adds no such bits to the
  loss, and does not count in these two metrics. The same holds in hybrid models.

  With a `classifier` the model is hybrid: the classifier predicts the class from the flow's features at each scale. The
  flow itself is not given the class. Batches must have labels. The loss of an image, in bits, is

  ```none
  likelihood_weight * (bits of the image, all of them) + cross-entropy of its label
  ```

  and `cross_entropy` (in nats) and `accuracy` are also metrics. With a weight of 0 the classifier alone is trained:
  `fit` then reports no `bits_per_dim`, but `evaluate` does.

  #### Example

  ```python
  import tfp_glow

  images = tfp_glow.data.load_images("digits", "train", batch_size=64)
  glow = tfp_glow.GlowBijector(output_shape=(8, 8, 1), num_glow_blocks=2, num_steps_per_block=4, num_hidden=32)
  model = tfp_glow.FlowModel(glow, num_bits=4)
  model.compile(optimizer="adam")
  model.fit(images, epochs=1)
  samples = model.sample(16, temperature=0.7, seed=0)     # uint8 [16, 8, 8, 1]
  ```

  References:
    Theis et al., "A note on the evaluation of generative models" (2015), on bits per dimension of discrete data.
    The original code of Kingma and Dhariwal, "Glow" (2018), on the classifier of the top latent.
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019), on hybrid models.
  """

  def __init__(self, distribution: tfp.distributions.Distribution | tfp.bijectors.Bijector, num_bits: int | None = 8,
               seed: int = 0, weight_y: float = 0., name: str = "flow_model", *,
               classifier: ScaleClassifier | None = None, likelihood_weight: float = 1.):
    """Creates the model; it shares the distribution's variables.

    Args:
      distribution: `tfd.Distribution` over one image, e.g. `tfd.TransformedDistribution(base, GlowBijector(...))`; or a
        `tfb.Bijector` that knows the shape of its latents, e.g. `GlowBijector(...)`. With a bijector, the latents are
        standard normal.
      num_bits: Python `int`. 1 .. 8: bits to keep of uint8 images with values 0 .. 255; fewer than 8 drop the lowest
        bits. 9 .. 16: bits of uint16 images with values `0 .. 2 ** num_bits - 1`. Larger values are an error: reduce
        16-bit images by `images >> (16 - num_bits)`. `None`: continuous data, not dequantized.
      seed: Python `int` of the dequantization noise.
      weight_y: Python `float` of at least 0, the weight of the classifier in the loss (0.01 in the original code); 0:
        no classifier. Needs a bijector that has `num_classes` and `class_features`, as `GlowBijector` does.
      name: Python `str`.
      classifier: `ScaleClassifier` of a hybrid model, which the model builds; `None`: the model is not hybrid. Needs a
        flow that is not class-conditional and has `feature_shapes`, as `GlowBijector` does, and `ResidualFlowBijector`
        of images.
      likelihood_weight: Python `float` of at least 0, with a `classifier`: the weight of an image's bits in the loss.
        1: the loss is the bits of image and label together. `1 / (H * W * C)`: bits per dimension count as much as the
        bits of the label. 0: the classifier alone is trained.

    Raises:
      TypeError: if `distribution` is neither a distribution nor a bijector of TFP, or `classifier` is something else.
      ValueError: if `distribution` is not over one event, the shape of its latents is unknown, it has no trainable
        variables, or another argument is not as above.
    """
    distribution = with_standard_normal(distribution)
    likelihood = ImageLikelihood(distribution, num_bits)
    validation.check_counts(least=0, below=2**31, seed=seed)
    weight_y = batches.checked_weight_y(weight_y, likelihood)
    likelihood_weight = batches.checked_likelihood_weight(likelihood_weight, classifier, weight_y, likelihood)
    likelihood.build()
    if not any(map(_compat.was_made_trainable, likelihood.variables)):
      raise ValueError("`distribution` must have trainable `tf.Variable`s among its parameters (a tensor made from a "
                       f"variable does not count). Received: {distribution!r}")
    super().__init__(likelihood, int(seed), weight_y, classifier, likelihood_weight, name)
    self._encode = _function(self._likelihood.encode)
    self._decode = _function(self._likelihood.decode)
    self._sample = _function(self._likelihood.sample)
    self._log_prob = _function(self._likelihood.log_prob)
    self._log_prob_of_classes = _function(self._likelihood.log_prob_of_classes)
    self._class_probabilities = _function(self._class_probabilities_of)
    self.built = True

  @property
  def distribution(self) -> tfp.distributions.Distribution:
    """The trained `tfd.Distribution`."""
    return self._likelihood.distribution

  @property
  def num_bits(self) -> int | None:
    """Number of bits kept of images; `None` for continuous data."""
    return self._likelihood.spec.num_bits

  @property
  def num_classes(self) -> int | None:
    """Number of classes of a class-conditional model; `None` if the distribution takes no labels."""
    return self._likelihood.spec.num_classes

  @property
  def context_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    """Shape of the context of one image, or a dict of shapes; `None` if the model takes no contexts."""
    return self._likelihood.spec.context_shape

  def log_prob(self, images: tf.Tensor | np.ndarray, labels: tf.Tensor | np.ndarray | None = None,
               noise_seed: int | tuple[int, int] | None = None,
               context: tf.Tensor | np.ndarray | dict[str, Any] | None = None) -> np.ndarray:
    """Log-probability of each image.

    Args:
      images: Tensor `[N, H, W, C]`, uint8 (uint16 if of more than 8 bits), or floating for continuous data.
      labels: Integer tensor `[N]` for class-conditional models. -1: the class is unknown, and the probability of the
        image is the mean of its probabilities in all classes.
      noise_seed: Python `int` of the dequantization noise, or a pair of them; `None`: no noise, images are taken at the
        midpoints of their bins, as in the SavedModel's `log_prob`.
      context: Floating tensor `[N] + context_shape` for conditional models, or a dict of them. One without the first
        dimension is used for all images.

    Returns:
      NumPy array `[N]`, nats.

    Raises:
      TypeError: if the dtype of `images`, `labels` or `context` does not fit.
      ValueError: if the shape of `images` does not fit, they are not finite, `labels` or `context` are missing,
        superfluous, or not as above, or `noise_seed` is not as above.
    """
    if noise_seed is not None:
      if self.num_bits is None:
        raise ValueError("`noise_seed` must be None for continuous data, which are not dequantized. "
                         f"Received: {noise_seed!r}")
      noise_seed = batches.seed_pair(noise_seed, "noise_seed")
    images, condition = self._checked_input(images, labels, context, may_be_unknown=True)
    return self._log_prob(images, condition, noise_seed)

  def class_posterior(self, images: tf.Tensor | np.ndarray, prior: Sequence[float] | np.ndarray | None = None,
                      context: tf.Tensor | np.ndarray | dict[str, Any] | None = None) -> np.ndarray:
    """Probabilities of the classes of images, by Bayes' rule from their densities in each class.

    ```none
    p(class | image) = p(image | class) prior(class) / sum over classes k of p(image | k) prior(k)
    ```

    Images are taken at the midpoints of their bins. A `GlowBijector` takes one pass for all classes, other bijectors
    take one for each class. No classifier takes part: `class_probabilities` is for classifiers.

    Args:
      images: Tensor `[N, H, W, C]`, uint8 (uint16 if of more than 8 bits), or floating for continuous data.
      prior: Probabilities `[num_classes]`; `None`: all classes are equally likely.
      context: As in `log_prob`.

    Returns:
      NumPy array `[N, num_classes]`.

    Raises:
      TypeError: if the dtype of `images` or `context` does not fit.
      ValueError: if the model has no classes, or `prior` does not hold their probabilities; or as `log_prob`.
    """
    if self.num_classes is None:
      raise ValueError("`distribution` must be class-conditional, with `num_classes`, to have densities in each class. "
                       f"Received: {self.distribution!r}")
    prior = batches.checked_prior(prior, self.num_classes)
    log_probs = self._log_prob_of_classes(*self._checked_input(images, 0, context)).astype(np.float64)
    with np.errstate(divide="ignore"):  # For a class with a prior of 0.
      return scipy.special.softmax(log_probs + np.log(prior), axis=-1).astype(self._likelihood.spec.dtype.name)

  def class_probabilities(self, images: tf.Tensor | np.ndarray,
                          context: tf.Tensor | np.ndarray | dict[str, Any] | None = None) -> np.ndarray:
    """Probabilities of the classes by the model's classifier, with images at the midpoints of their bins.

    Args:
      images: Tensor `[N, H, W, C]`, uint8 (uint16 if of more than 8 bits), or floating for continuous data.
      context: As in `log_prob`.

    Returns:
      NumPy array `[N, num_classes]`.

    Raises:
      TypeError: if the dtype of `images` or `context` does not fit.
      ValueError: if their shape does not fit, they are not finite, or the model was made without `weight_y` and
        `classifier`.
    """
    if self.classifier is None:
      raise ValueError("`weight_y` must be positive, or a `classifier` given, for a model that predicts classes. "
                       "Received: a model without a classifier")
    # Before it is whitened, the top latent does not depend on the labels: any will do.
    return self._class_probabilities(*self._checked_input(images, None if self._is_hybrid else 0, context))

  def _class_probabilities_of(self, images, condition=None):
    if self._is_hybrid:
      return tf.nn.softmax(self._logits_of_scales(self._likelihood.to_values(images), condition))
    return tf.nn.softmax(self.classifier(self._likelihood.log_prob_and_features(images, condition)[1]))

  def encode(self, images: tf.Tensor | np.ndarray, labels: tf.Tensor | np.ndarray | None = None,
             context: tf.Tensor | np.ndarray | dict[str, Any] | None = None) -> np.ndarray:
    """Latents of images, at the midpoints of their bins.

    Args:
      images: Tensor `[N, H, W, C]`, uint8 (uint16 if of more than 8 bits), or floating for continuous data.
      labels: Integer tensor `[N]` for class-conditional models.
      context: As in `log_prob`.

    Returns:
      NumPy array `[N, H * W * C]`.

    Raises:
      TypeError: if the dtype of `images`, `labels` or `context` does not fit, or the distribution has no latents.
      ValueError: if the shape of `images` does not fit, they are not finite, or `labels` or `context` are missing,
        superfluous, or not as above.
    """
    return self._encode(*self._checked_input(images, labels, context))

  def decode(self, z: tf.Tensor | np.ndarray, labels: tf.Tensor | np.ndarray | None = None,
             context: tf.Tensor | np.ndarray | dict[str, Any] | None = None) -> np.ndarray:
    """Images of latents.

    Args:
      z: Tensor `[N, H * W * C]`.
      labels: Integer tensor `[N]` for class-conditional models.
      context: As in `log_prob`.

    Returns:
      NumPy array `[N, H, W, C]`, uint8 (uint16 if of more than 8 bits), or floating for continuous data.

    Raises:
      TypeError: if the distribution has no latents, or the dtype of `z`, `labels` or `context` does not fit.
      ValueError: if the shape of `z` does not fit, it is not finite, or `labels` or `context` are missing,
        superfluous, or not as above.
    """
    z = validation.checked_tensor("z", z, self._likelihood.latents.dtype)
    latent_shape = tf.TensorShape([None]).concatenate(self.distribution.distribution.event_shape)
    if not z.shape.is_compatible_with(latent_shape):
      raise ValueError(f"`z` must have shape {latent_shape}. Received: {z.shape}")
    batches.check_finite("z", z)
    return self._decode(z, batches.checked_condition(self._likelihood.spec, labels, context, len(z)))

  def sample(self, num_samples: int, temperature: float | Sequence[float] = 1.,
             labels: int | tf.Tensor | np.ndarray | None = None,
             seed: int | tuple[int, int] | None = None,
             context: tf.Tensor | np.ndarray | dict[str, Any] | None = None) -> np.ndarray:
    """New images; before `adapt` or `fit`, those of an untrained flow, which is near the identity.

    Args:
      num_samples: Python `int`.
      temperature: Factor of the latents' deviation from their mean. Below 1, images are likelier and less varied. One
        number, or a list with one for each level of the latents, in the order of `GlowBijector.split_latent`: the level
        that leaves the flow first comes first, the top last.
      labels: For class-conditional models, an integer tensor `[num_samples]`, or one label for all.
      seed: Python `int` or a pair of them: the same seed gives the same images. `None`: other images each time.
      context: For conditional models, a floating tensor `[num_samples] + context_shape`, or a dict of them. One without
        the first dimension is used for all samples.

    Returns:
      NumPy array `[num_samples, H, W, C]`, uint8 (uint16 if of more than 8 bits), or floating for continuous data.

    Raises:
      TypeError: if the dtype of `labels` or `context` does not fit.
      ValueError: if an argument is not as above, or the distribution has no latents and `temperature` is not 1.
    """
    validation.check_counts(num_samples=num_samples)
    temperature = self._likelihood.checked_temperature(temperature)
    condition = batches.checked_condition(self._likelihood.spec, labels, context, num_samples)
    return self._sample(tf.constant(num_samples, tf.int32), temperature, batches.seed_pair(seed), condition)

  def _checked_input(self, images, labels, context, may_be_unknown=False):
    """Images as a tensor, and their labels and contexts as a dict."""
    spec = self._likelihood.spec
    images = batches.checked_images(spec, images)
    return images, batches.checked_condition(spec, labels, context, len(images), may_be_unknown)

  def export(self, path, warm_up_batch_sizes=(), *, for_lite=False):
    """Writes a SavedModel that only needs TensorFlow to serve, as `tfp_glow.export.export_distribution` does.

    A hybrid model has one more signature, `class_probabilities(images) -> class_probabilities`. It also takes a
    `context` if the model does.

    Args:
      path: Folder to write, by the rules of `tfp_glow.export.export_distribution`.
      warm_up_batch_sizes: Python `int`s, numbers of images. The first calls of a signature are slow: TensorFlow Serving
        makes calls of these sizes itself before it answers requests. Needs the package `tensorflow-serving-api`.
      for_lite: Python `bool`: whether to make the signatures of TensorFlow Lite's own operations only. This is an error
        for a flow in float64, or one that estimates log-dets.

    Raises:
      TypeError: if `path` is not a path.
      ValueError: if `warm_up_batch_sizes` or `for_lite` are not as above.
      FileExistsError: if something other than a SavedModel is at `path`.
      ImportError: if `warm_up_batch_sizes` are given without `tensorflow-serving-api`.
      OSError: if `path` cannot be written.
    """
    classifier = self._class_probabilities_of if self._is_hybrid else None
    variables = [v.value for v in self.classifier.variables] if self._is_hybrid else []
    savedmodel.export(self._likelihood, path, warm_up_batch_sizes, for_lite, classifier, variables)


def _function(function):
  """As `tf.function`, but evaluated in full precision; returns an array.

  Several models have the same function. TensorFlow identifies functions by their code and would warn that one is traced
  again and again. A `functools.partial` has no code.
  """
  in_a_graph = tf.function(functools.partial(function), reduce_retracing=True, autograph=False)

  def evaluate(*args):
    with precision.switched_off():
      return in_a_graph(*args).numpy()

  evaluate.__wrapped__ = in_a_graph
  return evaluate

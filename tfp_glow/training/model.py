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

  The loss is the mean number of bits per dimension, which is reported as the metric `bits_per_dim`, too. Batches are
  uint8 images `[N, H, W, C]`, uint16 ones of more than 8 bits, or with `num_bits=None` floating values, such as rows
  of a table, and what is known of them:

  ```none
  images
  (images, labels)
  (images, {"label": labels, "context": context})
  {"image": images, "label": labels, "context": context}
  ```

  Labels are used by class-conditional distributions and by classifiers only, contexts by conditional ones: floating
  tensors `[N] + context_shape`, or dicts of them. Data may hold more than the model takes.

  The label -1 says that the class of an image is unknown. A class-conditional distribution then gives it the mean of
  its densities in all classes, so that partly labelled data can be trained on, and evaluated.

  Such images are dequantized by noise that is uniform in each value's bin: a function of the seed, the step and the
  image, so that runs are reproducible, whatever the number of replicas. `evaluate` and `predict` always use the same
  noise, and give the same number twice.

  With `weight_y` the top latent of a class-conditional Glow is to tell the class as well: the loss of an image is its
  bits per dimension plus `weight_y` times the bits of its label under a linear classifier, the metrics `bits_y` and
  `accuracy` are those of this classifier, and `class_probabilities` asks it. An image without a label adds no such bits
  to the loss, and does not count in these two metrics; so in hybrid models.

  With a `classifier` it is a hybrid model: what the flow makes of an image at each scale is to tell the class as well,
  of which the flow itself knows nothing. Batches have labels then. The loss of an image, in bits, is

  ```none
  likelihood_weight * (bits of the image, all of them) + cross-entropy of its label
  ```

  and `cross_entropy` (in nats) and `accuracy` are metrics, too. A classifier alone, of weight 0, trains without
  `bits_per_dim`, which `evaluate` reports nevertheless.

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
        `tfb.Bijector` that knows the shape of its latents, e.g. `GlowBijector(...)`: these are standard normal then.
      num_bits: Python `int`. 1 .. 8: bits kept of uint8 images, values 0 .. 255, of which fewer than 8 leave out the
        lowest. 9 .. 16: bits of uint16 images, values `0 .. 2 ** num_bits - 1`; larger ones are an error, and 16-bit
        images lose their lowest bits by `images >> (16 - num_bits)`. `None`: continuous data, not dequantized.
      seed: Python `int` of the dequantization noise.
      weight_y: Python `float` of at least 0, the classifier's part in the loss (the original's is 0.01); 0: there is no
        classifier. Needs a bijector that has `num_classes` and `class_features`, as `GlowBijector` does.
      name: Python `str`.
      classifier: `ScaleClassifier` of a hybrid model, which the model builds; `None`: it is none. Needs a flow that is
        not class-conditional and has `feature_shapes`, as `GlowBijector`s and, of images, `ResidualFlowBijector`s have.
      likelihood_weight: Python `float` of at least 0, with a `classifier`: the part of an image's bits in the loss.
        1: that of image and label together. `1 / (H * W * C)`: bits per dimension count as much as those of the label.
        0: the classifier alone is trained.

    Raises:
      TypeError: if `distribution` is neither a distribution nor a bijector of TFP, or `classifier` is something else.
      ValueError: if `distribution` is not over one event, or of latents of unknown shape, if it has no variables, or
        another argument is not as above.
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
    """The `tfd.Distribution` that is trained."""
    return self._likelihood.distribution

  @property
  def num_bits(self) -> int | None:
    """Bits kept of images, `None` for continuous data."""
    return self._likelihood.spec.num_bits

  @property
  def num_classes(self) -> int | None:
    """Number of classes that labels tell apart, `None` where the model takes no labels."""
    return self._likelihood.spec.num_classes

  @property
  def context_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    """Shape of the context of one image, or a dict of them; `None` where the model takes no contexts."""
    return self._likelihood.spec.context_shape

  def log_prob(self, images: tf.Tensor | np.ndarray, labels: tf.Tensor | np.ndarray | None = None,
               noise_seed: int | tuple[int, int] | None = None,
               context: tf.Tensor | np.ndarray | dict[str, Any] | None = None) -> np.ndarray:
    """Log-probability of each image.

    Args:
      images: Tensor `[N, H, W, C]`, uint8 (uint16 of more than 8 bits), or floating for continuous data.
      labels: Integer tensor `[N]` for class-conditional models. Where it is -1 the class is unknown, and the
        probability of the image is the mean of those in all classes.
      noise_seed: Python `int` of the dequantization noise, or a pair of them; `None`: no noise, but the midpoints of
        the bins, as for the SavedModel's `log_prob`.
      context: Floating tensor `[N] + context_shape` for conditional models, or a dict of them; one without the first
        dimension is that of all images.

    Returns:
      NumPy array `[N]`, nats.

    Raises:
      TypeError: if the dtype of `images`, `labels` or `context` does not fit.
      ValueError: if the shape of `images` does not fit, they are not finite, `labels` or `context` are missing, too
        many, or not as above, or `noise_seed` is not as above.
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

    Images are taken at the midpoints of their bins. Of a `GlowBijector` it is one pass, of whatever number of classes;
    of others, one for each class. No classifier has a part in it: that is `class_probabilities`.

    Args:
      images: Tensor `[N, H, W, C]`, uint8 (uint16 of more than 8 bits), or floating for continuous data.
      prior: Probabilities `[num_classes]`; `None`: all classes are as likely.
      context: As in `log_prob`.

    Returns:
      NumPy array `[N, num_classes]`.

    Raises:
      TypeError: if the dtype of `images` or `context` does not fit.
      ValueError: if the model has no classes, or `prior` are no probabilities of them; or as `log_prob`.
    """
    if self.num_classes is None:
      raise ValueError("`distribution` must be class-conditional, with `num_classes`, to have densities in each class. "
                       f"Received: {self.distribution!r}")
    prior = batches.checked_prior(prior, self.num_classes)
    log_probs = self._log_prob_of_classes(*self._checked_input(images, 0, context)).astype(np.float64)
    with np.errstate(divide="ignore"):  # Of a class of no probability.
      return scipy.special.softmax(log_probs + np.log(prior), axis=-1).astype(self._likelihood.spec.dtype.name)

  def class_probabilities(self, images: tf.Tensor | np.ndarray,
                          context: tf.Tensor | np.ndarray | dict[str, Any] | None = None) -> np.ndarray:
    """What the classifier makes of images, at the midpoints of their bins.

    Args:
      images: Tensor `[N, H, W, C]`, uint8 (uint16 of more than 8 bits), or floating for continuous data.
      context: As in `log_prob`.

    Returns:
      NumPy array `[N, num_classes]`.

    Raises:
      TypeError: if the dtype of `images` or `context` does not fit.
      ValueError: if their shape does not fit, they are not finite, or the model was made without `weight_y` and
        `classifier`.
    """
    if self.classifier is None:
      raise ValueError("`weight_y` must be positive, or a `classifier` given, for a model that is to tell classes. "
                       "Received: a model without")
    # The top latent does not depend on the labels before it is whitened; any will do.
    return self._class_probabilities(*self._checked_input(images, None if self._is_hybrid else 0, context))

  def _class_probabilities_of(self, images, condition=None):
    if self._is_hybrid:
      return tf.nn.softmax(self._logits_of_scales(self._likelihood.to_values(images), condition))
    return tf.nn.softmax(self.classifier(self._likelihood.log_prob_and_features(images, condition)[1]))

  def encode(self, images: tf.Tensor | np.ndarray, labels: tf.Tensor | np.ndarray | None = None,
             context: tf.Tensor | np.ndarray | dict[str, Any] | None = None) -> np.ndarray:
    """Latents of images, at the midpoints of their bins.

    Args:
      images: Tensor `[N, H, W, C]`, uint8 (uint16 of more than 8 bits), or floating for continuous data.
      labels: Integer tensor `[N]` for class-conditional models.
      context: As in `log_prob`.

    Returns:
      NumPy array `[N, H * W * C]`.

    Raises:
      TypeError: if the dtype of `images`, `labels` or `context` does not fit, or the distribution has no latents.
      ValueError: if the shape of `images` does not fit, they are not finite, or `labels` or `context` are missing, too
        many, or not as above.
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
      NumPy array `[N, H, W, C]`, uint8 (uint16 of more than 8 bits), or floating for continuous data.

    Raises:
      TypeError: if the distribution has no latents, or the dtype of `labels` or `context` does not fit.
      ValueError: if the shape of `z` does not fit, it is not finite, or `labels` or `context` are missing, too many, or
        not as above.
    """
    z = tf.convert_to_tensor(z, self._likelihood.latents.dtype)
    latent_shape = tf.TensorShape([None]).concatenate(self.distribution.distribution.event_shape)
    if not z.shape.is_compatible_with(latent_shape):
      raise ValueError(f"`z` must have shape {latent_shape}. Received: {z.shape}")
    batches.check_finite("z", z)
    return self._decode(z, batches.checked_condition(self._likelihood.spec, labels, context, len(z)))

  def sample(self, num_samples: int, temperature: float | Sequence[float] = 1.,
             labels: int | tf.Tensor | np.ndarray | None = None,
             seed: int | tuple[int, int] | None = None,
             context: tf.Tensor | np.ndarray | dict[str, Any] | None = None) -> np.ndarray:
    """New images: before `adapt` or `fit`, those of a flow that has seen nothing, which is near the identity.

    Args:
      num_samples: Python `int`.
      temperature: The latents' deviation from their mean is multiplied by it: below 1, likelier and less varied images.
        One number, or a list of one for each level of the latents: the first to leave first, the top last, as
        `GlowBijector.split_latent` returns them.
      labels: For class-conditional models, an integer tensor `[num_samples]`, or one label for all.
      seed: Python `int` or a pair of them: same seed, same images. `None`: others each time.
      context: For conditional models, a floating tensor `[num_samples] + context_shape`, or a dict of them; one without
        the first dimension is that of all samples.

    Returns:
      NumPy array `[num_samples, H, W, C]`, uint8 (uint16 of more than 8 bits), or floating for continuous data.

    Raises:
      TypeError: if the dtype of `labels` or `context` does not fit.
      ValueError: if an argument is not as above, or the distribution has no latents and `temperature` is not 1.
    """
    validation.check_counts(num_samples=num_samples)
    temperature = self._likelihood.checked_temperature(temperature)
    condition = batches.checked_condition(self._likelihood.spec, labels, context, num_samples)
    return self._sample(tf.constant(num_samples, tf.int32), temperature, batches.seed_pair(seed), condition)

  def _checked_input(self, images, labels, context, may_be_unknown=False):
    """Images as a tensor, and what is known of them as a dict."""
    spec = self._likelihood.spec
    images = batches.checked_images(spec, images)
    return images, batches.checked_condition(spec, labels, context, len(images), may_be_unknown)

  def export(self, path, warm_up_batch_sizes=(), *, for_lite=False):
    """Writes a SavedModel that needs nothing but TensorFlow to serve, as `tfp_glow.export.export_distribution` does.

    That of a hybrid model has one signature more, `class_probabilities(images) -> class_probabilities`; also of a
    `context`, if it takes one.

    Args:
      path: Folder to write, by the rules of `tfp_glow.export.export_distribution`.
      warm_up_batch_sizes: Python `int`s: the first calls of a signature are slow. TensorFlow Serving makes them itself,
        with these numbers of images, before it answers requests. Needs the package `tensorflow-serving-api`.
      for_lite: Python `bool`: whether the signatures are made of operations that TensorFlow Lite has itself, which a
        flow in float64, or one that estimates log-dets, cannot be.

    Raises:
      TypeError: if `path` is no path.
      ValueError: if `warm_up_batch_sizes` or `for_lite` are not as above.
      FileExistsError: if there is something else than a SavedModel at `path`.
      ImportError: if `warm_up_batch_sizes` are given without `tensorflow-serving-api`.
      OSError: if `path` cannot be written.
    """
    classifier = self._class_probabilities_of if self._is_hybrid else None
    variables = [v.value for v in self.classifier.variables] if self._is_hybrid else []
    savedmodel.export(self._likelihood, path, warm_up_batch_sizes, for_lite, classifier, variables)


def _function(function):
  """As `tf.function`, of a function that each of several models has, evaluated in full precision; returns an array.

  TensorFlow, which knows functions by their code, would warn of one that is traced again and again. A
  `functools.partial` has none.
  """
  in_a_graph = tf.function(functools.partial(function), reduce_retracing=True, autograph=False)

  def evaluate(*args):
    with precision.switched_off():
      return in_a_graph(*args).numpy()

  evaluate.__wrapped__ = in_a_graph
  return evaluate

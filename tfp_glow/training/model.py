"""`FlowModel`: trains a distribution over images with Keras."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import scipy.special
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow._core import _compat, precision, validation
from tfp_glow.likelihood import dequantize
from tfp_glow.likelihood.image_likelihood import ImageLikelihood
from tfp_glow.likelihood.standard_normal import with_standard_normal
from tfp_glow.networks.classifier import ScaleClassifier
from tfp_glow.storage import savedmodel
from tfp_glow.training import batches, guard, replicas, summary
from tfp_glow.training.model_files import KeptInFiles

_DATASETS = (tf.data.Dataset, tf.distribute.DistributedDataset)


@keras.saving.register_keras_serializable("tfp_glow")
class FlowModel(KeptInFiles):
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
    # Keras trains `keras.Variable`s; these share the storage of the distribution's. Keras orders them by what may be
    # trained, and files hold them in that order: it must not depend on what is frozen at present.
    self._adopted = [keras.Variable(v, trainable=_compat.was_made_trainable(v), dtype=v.dtype.name,
                                    name=_keras_name(v)) for v in likelihood.variables]
    for adopted, variable in zip(self._adopted, likelihood.variables):
      adopted.constraint = variable.constraint  # The masks of an autoregressive network, say.
    likelihood.sync_trainable()
    self._are_trained = (True,) * len(self._adopted)
    self._take_trainable()
    self._were_trained_at_first = self._are_trained
    self._trained_as_compiled = frozenset()
    likelihood.on_trainable_changed(self._take_trainable)
    self._adapted = self.add_weight(name="adapted", shape=(), initializer="zeros", trainable=False)
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

  def compile(self, optimizer="adam", *, jit_compile="auto", **kwargs):
    """As `keras.Model.compile`; the loss is fixed. What the parts of flows now have as `trainable` takes effect.

    Args:
      optimizer: Keras optimizer, made under the scope of the model's `tf.distribute.Strategy`; or its name.
      jit_compile: Whether XLA compiles what each replica computes by itself: values, loss and gradients; on one device
        the optimizer's update, too. `"auto"`: no.
        On CPUs its convolutions are slower, and on GPUs it takes a minute to compile a deep flow (see docs/gpu.md).
      **kwargs: `run_eagerly`, `steps_per_execution` (one with several replicas) and `auto_scale_loss` of
        `keras.Model.compile`.

    Raises:
      ValueError: if a loss or metrics are given: the loss is bits per dimension; or of several replicas what they
        cannot do.
    """
    for key in ("loss", "loss_weights", "metrics", "weighted_metrics"):
      value = kwargs.pop(key, None)
      if value is not None:
        raise ValueError(f"`{key}` must not be given: the loss of a `FlowModel` is its bits per dimension. "
                         f"Received: {key}={value!r}")
    self._likelihood.check_trainable()
    self._sync_trainable()
    options = {"jit_compile": jit_compile, **kwargs}
    has_replicas = self._has_replicas()
    if jit_compile not in (True, False, "auto"):
      raise ValueError(f"`jit_compile` must be True, False or 'auto'. Received: {jit_compile!r}")
    for key, value in (("steps_per_execution", kwargs.get("steps_per_execution", 1)),
                       ("gradient_accumulation_steps", getattr(optimizer, "gradient_accumulation_steps", None))):
      if has_replicas and value not in (None, 1):
        raise ValueError(f"`{key}` must be 1 with several replicas: Keras cannot. Received: {key}={value!r}")
    with self.distribute_strategy.scope():  # Where Keras makes the optimizer of a name.
      self._means = self._make_means()
      super().compile(optimizer=optimizer, jit_compile=False, metrics=self._means.terms, **kwargs)
    self._trained_as_compiled = frozenset(map(id, self.trainable_variables))
    self.uses_xla = jit_compile != "auto" and bool(jit_compile)
    self._xla_functions = {}
    self._compile_options = options

  def _sync_trainable(self):
    self._likelihood.sync_trainable()
    self._take_trainable()

  def _take_trainable(self):
    """Trains what in the distribution has been unfrozen since the last time, and nothing that is frozen."""
    before, self._are_trained = self._are_trained, tuple(v.trainable for v in self._likelihood.variables)
    for adopted, was_trained, is_trained in zip(self._adopted, before, self._are_trained):
      if not (was_trained and is_trained):
        adopted.trainable = is_trained

  def _check_trains_as_compiled(self):
    self._sync_trainable()
    trained = frozenset(map(id, self.trainable_variables))
    changed = trained ^ self._trained_as_compiled
    if changed:
      changed = [f"{v.path} {'un' if id(v) in trained else ''}frozen" for v in self.variables if id(v) in changed]
      raise ValueError("`trainable` of a part of the model must not change after `compile`, which settles what is "
                       f"trained: compile the model again. Received: {', '.join(changed[:3])}"
                       + (f" and {len(changed) - 3} others" if len(changed) > 3 else ""))
    if not trained:
      raise ValueError("`trainable` must be True of a part of the model, or there is nothing to train. "
                       f"Received: {self.name!r}, of which all is frozen")

  def adapt(self, data: Any) -> None:
    """Data-dependent initialisation from one batch, of all flows in the distribution, wherever they are.

    They may be parts of compositions, lie one behind the other, or be components of a mixture, which all get the same
    data. A hybrid model's classifier is initialised as well.

    With several workers all must call it, each with a batch of its own or with the same one; the result is the chief's.

    Args:
      data: A batch, with its contexts if the model takes them, or a `tf.data.Dataset` whose first batch is used; or a
        `tf.distribute.DistributedDataset`, whose first batch is put together from the shares of all workers.

    Raises:
      TypeError: if `data` are not images, and contexts, of the dtypes that the model takes.
      ValueError: if `data` is empty, does not fit, or holds NaN or infinite values.
    """
    self._adapt(data, anew=True)

  def _adapt(self, data, anew):
    """As `adapt`; unless `anew`, a flow that is initialised stays as it is."""
    with self.distribute_strategy.scope():
      batch = batches.first_batch(data, "data") if isinstance(data, _DATASETS) else data
      images, condition = batches.unpack(batch)
      values = self._likelihood.to_values(images, self._noise_seed(dequantize.INITIALIZATION))
      spec = self._likelihood.spec
      context = batches.checked_context(spec, spec.taken(condition).get("context"), len(values))
      replicas.run_on_chief(lambda: self._initialize(values, context, anew), self.distribute_strategy)
      self._adapted.assign(1.)
    of_classifier = self.classifier.weights if self._is_hybrid else []
    replicas.take_from_chief([v.value for v in [*self._adopted, *of_classifier]], self.distribute_strategy)

  def _initialize(self, values, context, anew):
    batches.check_finite("data", values)
    with precision.switched_off():
      if anew or not self._likelihood.is_initialized:
        self._likelihood.initialize(values, context)
      if self._is_hybrid:
        self.classifier.initialize(self._likelihood.features_of_scales(values, {"context": context}))

  def fit(self, x=None, y=None, batch_size=None, epochs=1, **kwargs):
    """As `keras.Model.fit`; initialises from the first batch, if `adapt` has not been called.

    If `x` is an array of vectors, it initialises from 10,000 of them, or as many as there are: one drawn, by a fixed
    seed, from each of as many equal parts of the array.

    Args:
      x: Images, a `tf.data.Dataset` of batches, or any other input of `keras.Model.fit`; of several workers also what
        `strategy.distribute_datasets_from_function` makes of `load_images`, of which each reads its share.
      y: If `x` is an array, labels of a class-conditional or hybrid model; or a dict of them and contexts, as above.
      batch_size: Where `x` is an array.
      epochs: Python `int`.
      **kwargs: Of `keras.Model.fit`.

    Returns:
      `keras.callbacks.History`.

    Raises:
      FloatingPointError: if the loss or a gradient of a training step is not finite. The message names the step, the
        quantity and the layer where it began; weights and optimizer are left as they were before that step.
      ValueError: if `x` is empty or does not fit, the model is not compiled, or a part of it has been frozen or
        unfrozen since.
    """
    self._check_is_compiled("fit")
    self._check_trains_as_compiled()
    batches.check_data(self._data_spec, x, y, batch_size, kwargs)
    if kwargs.get("validation_data") is not None:
      validation_x, validation_y, _ = keras.utils.unpack_x_y_sample_weight(kwargs["validation_data"])
      batches.check_data(self._data_spec, validation_x, validation_y, kwargs.get("validation_batch_size"), {})
    if self._needs_adapt():
      with self.distribute_strategy.scope():
        batch, x = batches.batch_to_adapt(self._likelihood.spec, x, y, batch_size)
      self._adapt(batch, anew=False)
    self._build_optimizer()
    if isinstance(x, _DATASETS):
      kwargs.setdefault("shuffle", False)  # Keras would warn that it does not shuffle them.
    # Callbacks such as `StopOnInterrupt` and `StopOnPreemption` are not told of errors.
    with _signal_handlers_kept(signal.SIGINT, signal.SIGTERM), self._stop_unless_finite.failure_named():
      history = super().fit(x, y, batch_size=batch_size, epochs=epochs, **kwargs)
    # Keras has just put averages in the place of the weights, also where it scales the loss.
    if getattr(self.optimizer, "inner_optimizer", self.optimizer).use_ema:
      with self.distribute_strategy.scope():
        self._likelihood.after_update()
    return history

  def make_train_function(self, force=False):
    """As `keras.Model.make_train_function`; with several replicas, without its exchanges."""
    if not self._has_replicas():
      return super().make_train_function(force)
    if self.train_function is None or force:
      self.train_function = replicas.function_of_iterator(
          self.train_step, self.distribute_strategy, self.run_eagerly)
    return self.train_function

  def make_test_function(self, force=False):
    """As `make_train_function`, of `evaluate`."""
    if not self._has_replicas():
      return super().make_test_function(force)
    if self.test_function is None or force:
      self.test_function = replicas.function_of_iterator(
          self.test_step, self.distribute_strategy, self.run_eagerly)
    return self.test_function

  def train_on_batch(self, x, y=None, **kwargs):
    """As `keras.Model.train_on_batch`; initialises from the batch, as `fit` does.

    Args:
      x: Images.
      y: Labels, if the model is class-conditional or hybrid; or a dict of them and contexts, as in `fit`.
      **kwargs: Of `keras.Model.train_on_batch`.

    Returns:
      Loss and metrics, as `keras.Model.train_on_batch` does.

    Raises:
      FloatingPointError: as `fit`.
      ValueError: if `x` is empty or does not fit, or the model is not compiled.
    """
    self._check_is_compiled("train_on_batch")
    self._check_trains_as_compiled()
    batches.check_data(self._data_spec, x, y, None, kwargs)
    if self._needs_adapt():
      self._adapt(x if y is None else (x, y), anew=False)
    self._build_optimizer()
    with self._stop_unless_finite.failure_named():
      return super().train_on_batch(x, y, **kwargs)

  def evaluate(self, x=None, y=None, batch_size=None, **kwargs):
    """As `keras.Model.evaluate`; the noise is the same each time.

    Args:
      x: As in `fit`.
      y: As in `fit`.
      batch_size: As in `fit`.
      **kwargs: Of `keras.Model.evaluate`.

    Returns:
      Loss and metrics; with `return_dict=True` a dict, `"bits_per_dim"` in it.

    Raises:
      ValueError: if `x` is empty or does not fit, or the model is not compiled.
    """
    self._check_is_compiled("evaluate")
    batches.check_data(self._data_spec, x, y, batch_size, kwargs)
    with precision.switched_off(), guard.checks_told_first():
      return super().evaluate(x, y, batch_size=batch_size, **kwargs)

  def predict(self, x, batch_size=None, **kwargs):
    """As `keras.Model.predict`: bits per dimension of each image, `[N]`; their mean is what `evaluate` returns.

    (From batches of the same size, where log-dets are estimated.)

    Args:
      x: As in `fit`; class-conditional and conditional models take datasets, or dicts of arrays.
      batch_size: As in `fit`.
      **kwargs: Of `keras.Model.predict`.

    Returns:
      NumPy array `[N]`, bits per dimension.

    Raises:
      ValueError: if `x` is empty or does not fit.
    """
    batches.check_data(self._likelihood.spec, x, None, batch_size, kwargs)
    with precision.switched_off(), guard.checks_told_first():
      return super().predict(x, batch_size=batch_size, **kwargs)

  def test_on_batch(self, x, y=None, **kwargs):
    """As `keras.Model.test_on_batch`; see `evaluate`.

    Args:
      x: Images.
      y: Labels, if the model is class-conditional or hybrid; or a dict of them and contexts, as in `fit`.
      **kwargs: Of `keras.Model.test_on_batch`.

    Returns:
      Loss and metrics, as `keras.Model.test_on_batch` does.
    """
    with precision.switched_off(), guard.checks_told_first():
      return super().test_on_batch(x, y, **kwargs)

  def predict_on_batch(self, x):
    """As `keras.Model.predict_on_batch`; see `predict`.

    Args:
      x: Images.

    Returns:
      NumPy array `[N]`, bits per dimension.
    """
    with precision.switched_off(), guard.checks_told_first():
      return super().predict_on_batch(x)

  def summary(self, line_length=None, positions=None, print_fn=None, expand_nested=False, show_trainable=False,
              layer_range=None):
    """Prints levels and steps of the flow, shapes and numbers of parameters, in the order from images to latents.

    Parts of a step of a `Scan` stand for all of its steps. Shapes are those of what the `inverse` of a part returns.
    Where networks train in a lower precision than the flow has, a last line says so: `fit` reports bits per dimension
    in the lower one, `evaluate` in the flow's.

    Args:
      line_length: Python `int`, width of the table; `None`: as wide as it takes.
      positions: Ignored: the columns are as wide as they must be.
      print_fn: Callable, which gets each line; `None`: `print`.
      expand_nested: Python `bool`: whether each weight of a coupling's network has a line.
      show_trainable: Python `bool`: whether it is said which parts are trained.
      layer_range: Ignored: the parts of a flow are no layers of Keras.
    """
    del positions, layer_range
    self._sync_trainable()
    rows = summary.rows_of(self.distribution, [*self.layers, *self.weights], with_weights=expand_nested)
    optimizer_variables = self.optimizer.variables if self.compiled else []
    text = summary.text_of(f'Model: "{self.name}"', rows, summary.totals_of(self.weights, optimizer_variables),
                           line_length, show_trainable)
    for line in [*text.splitlines(), *summary.notes_on_precision(self.distribution)]:
      (print_fn or print)(line)

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

  def _has_replicas(self):
    return self.distribute_strategy.num_replicas_in_sync > 1

  def _check_is_compiled(self, method):
    if not self.compiled:
      raise ValueError(f"You must call `compile()` before calling `{method}()`.")

  def _needs_adapt(self):
    if self._adapted.numpy() > 0.:
      return False
    return not self._likelihood.is_initialized or self._is_hybrid and not self.classifier.initialized


@contextlib.contextmanager
def _signal_handlers_kept(*numbers):
  """Puts back the handlers of signals that were there before; in the main thread, which alone may set any."""
  handlers = {number: signal.getsignal(number) for number in numbers}
  try:
    yield
  finally:
    for number, handler in handlers.items():
      if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


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


def _keras_name(variable):
  return variable.name.split(":")[0].replace("/", "_")

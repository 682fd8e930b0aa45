"""What one step of `FlowModel` does: of training, of evaluation, of prediction."""

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat, precision
from tfp_glow.likelihood import dequantize
from tfp_glow.likelihood.image_spec import UNKNOWN, ImageSpec
from tfp_glow.networks.classifier import ScaleClassifier
from tfp_glow.networks.glow import ZeroDense
from tfp_glow.training import batches, divergence, guard, replicas, update
from tfp_glow.training.means import Mean, Means
from tfp_glow.training.notice import Notice


class FlowSteps(_compat.BuiltModel):
  """A Keras model whose loss is bits per dimension, and its steps; `FlowModel` is made of it."""

  def __init__(self, likelihood, seed, weight_y, classifier, likelihood_weight, name):
    """Creates it.

    Args:
      likelihood: `ImageLikelihood`.
      seed: Python `int` of the dequantization noise.
      weight_y: Python `float`, the part in the loss of a classifier of the top latent; 0: there is none.
      classifier: `ScaleClassifier`; `None`: there is none.
      likelihood_weight: Python `float`, with that classifier the part of the bits of an image.
      name: Python `str`.
    """
    # Whatever the global policy: it is for networks, the flow keeps its own precision.
    super().__init__(name=name, dtype="float32", autocast=False)
    # Classes that derive from this one read these attributes, and set none of them.
    self._likelihood = likelihood
    self._seed = seed
    self._weight_y = weight_y
    self._likelihood_weight = likelihood_weight
    # What batches hold, which may be more than the distribution is given: labels are for the classifier alone.
    self._data_spec = likelihood.spec
    self._stop_unless_finite = guard.StopUnlessFinite(likelihood)
    self.notice = Notice()
    self.classifier = classifier
    if self._is_hybrid:
      classifier.build_for(likelihood.feature_shapes, likelihood.spec.dtype)
      spec = likelihood.spec
      self._data_spec = ImageSpec(
          spec.event_shape, spec.dtype, spec.num_bits, classifier.num_classes, spec.context_shape)
    elif weight_y:
      self.classifier = ZeroDense(likelihood.spec.num_classes, dtype=likelihood.spec.dtype.name, name="classifier")
      self.classifier.build([None, likelihood.num_class_features])
    # Those of the steps alone. `_compile_steps` sets the first three.
    self._means = None
    self.uses_xla = False
    self._xla_functions = {}
    self._traced_once = replicas.TracedOnce()

  @property
  def _is_hybrid(self):
    return isinstance(self.classifier, ScaleClassifier)

  @property
  def _trains_classifier_alone(self):
    return self._is_hybrid and not self._likelihood_weight

  def _compile_steps(self, optimizer, uses_xla, **kwargs):
    """`keras.Model.compile` with the metrics of this model, and with XLA for parts of a step only.

    Args:
      optimizer: Keras optimizer or its name.
      uses_xla: Python `bool`: whether XLA compiles what `_compiled` is given.
      **kwargs: Of `keras.Model.compile`.
    """
    with self.distribute_strategy.scope():  # If `optimizer` is a name, Keras makes the optimizer here.
      self._means = self._make_means()
      super().compile(optimizer=optimizer, jit_compile=False, metrics=self._means.terms, **kwargs)
    self.uses_xla = uses_xla
    self._xla_functions = {}

  def call(self, images, labels=None, context=None):
    """Bits per dimension of each image, `[N]`."""
    return self._bits(images, {"labels": labels, "context": context}, self._noise_seed(dequantize.EVALUATION))

  def test_step(self, data):
    images, condition = self._unpacked(data)
    with precision.as_switched_off_elsewhere():  # By `evaluate`.
      terms = self._compiled(self._terms)(images, condition, self._noise_seed(dequantize.EVALUATION))
    losses = self._losses_of(terms)
    return self._update_metrics(losses, terms, tf.ones_like(losses))

  def predict_step(self, data):
    images, condition = self._unpacked(data)
    with precision.as_switched_off_elsewhere():
      return self._compiled(self._bits)(images, condition, self._noise_seed(dequantize.EVALUATION))

  def train_step(self, data):
    # `fit` has built it. In a `tf.function` of the caller's, this is within a graph.
    self._build_optimizer(replicas.outside)
    batch = guard.Batch(*self._unpacked(data), self._noise_seed(self.optimizer.iterations))
    step = self._step_of_replica if replicas.are_several() else self._step_of_one_device
    metrics = self._update_metrics(*step(batch))
    if self._trains_classifier_alone:
      del metrics["bits_per_dim"]  # `_terms` leaves them out.
    return metrics

  def _unpacked(self, data):
    """Images, and those parts of their condition that the model takes."""
    images, condition = batches.unpack(data)
    return images, self._data_spec.taken(condition)

  def _step_of_one_device(self, batch):
    """Trains on a batch.

    Returns:
      losses: Tensor `[N]`, see `_losses_of`.
      terms: See `_terms`.
      weights: Tensor `[N]`, ones.
    """
    losses, terms, gradients, largest = self._compiled(self._share)(*batch)
    are_finite = _are_finite(losses, largest)
    with self._checked(tf.cast(~tf.reduce_all(are_finite), terms.dtype), are_finite, batch):
      num_updates = self._num_updates()
      self._compiled(self._apply)(gradients, tf.reduce_sum(largest))
      self._follow(num_updates)
    return losses, terms, tf.ones_like(losses)

  def _num_updates(self):
    """The number of updates so far; `None` if each batch makes one."""
    inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
    return tf.convert_to_tensor(inner.iterations) if inner.gradient_accumulation_steps else None

  def _follow(self, num_updates_before):
    """Brings the bijectors' state up to date with the weights. Each batch of an update has noise of its own."""
    if num_updates_before is None:
      self._likelihood.after_update()
      return
    nothing = lambda function: lambda: (function(), ())[1]
    tf.cond(self._num_updates() > num_updates_before, nothing(self._likelihood.after_update),
            nothing(self._likelihood.draw_other_noise))

  def _step_of_replica(self, batch):
    """The same in one of several replicas: two functions, traced once for all of them, and what comes between.

    Returns:
      losses: Tensor `[1]`, the mean of the losses of all images.
      terms: Tensor `[1, K]`, that of the terms.
      weights: Tensor `[1]`, see `replicas.unpacked`.
    """
    once = self._traced_once if _compat.knows_replicas(self.optimizer, self.trainable_variables) else _as_it_is
    sums, are_finite, *like = once(self._summands, *batch)
    if replicas.has_workers(tf.distribute.get_strategy()):
      sums = self.notice.taken_from(replicas.sum_over_replicas(self.notice.with_sums(sums)))
    else:
      sums = replicas.sum_over_replicas(sums)
    num_replicas = tf.distribute.get_replica_context().num_replicas_in_sync

    def apply(sums):
      gradients, terms, weights = replicas.unpacked(sums, *like, num_replicas)
      self._apply(gradients, tf.reduce_sum(self._largest_entries(gradients)))
      self._likelihood.after_update()
      return self._losses_of(terms), terms, weights

    with self._checked(sums[-1], are_finite, batch):
      return once(apply, sums, trace=self._trace_update)

  def _summands(self, images, condition, noise_seed):
    """What a replica computes, to be summed over the replicas.

    Returns:
      sums: See `replicas.packed`.
      are_finite: See `_are_finite`.
      gradients_like: List of `tf.TensorSpec`s of the gradients, `None`s among them.
      terms_like: That of the terms.
    """
    losses, terms, gradients, largest = self._compiled(self._share)(images, condition, noise_seed)
    are_finite = _are_finite(losses, largest)
    sums = replicas.packed(gradients, terms, ~tf.reduce_all(are_finite))
    spec_of = lambda tensor: None if tensor is None else tf.TensorSpec(tensor.shape, tensor.dtype)
    return sums, are_finite, [spec_of(gradient) for gradient in gradients], spec_of(terms)

  def _trace_update(self, function, specs):
    """Traces a function that updates the first replica's variables, as if these were all."""

    def update(*args):
      with _compat.first_replica(self.optimizer, self.trainable_variables):
        return function(*args)

    return replicas.trace_outside(update, specs)

  def _checked(self, num_failed, are_finite, batch):
    """A context for what must happen only if all values are finite."""
    return tf.control_dependencies([
        self._stop_unless_finite.check(num_failed, are_finite, self.trainable_variables, batch)])

  def _share(self, images, condition, noise_seed):
    """The part of a training step that a replica computes by itself, and that XLA can compile.

    Returns:
      losses: Tensor `[N]`, see `_losses_of`.
      terms: See `_terms`.
      gradients: List of tensors: of the mean loss of these images, scaled as the optimizer asks; `None`s among them.
      largest: See `divergence.largest_entries`.
    """
    with tf.GradientTape() as tape:
      terms = self._terms(images, condition, noise_seed, training=True)
      losses = self._losses_of(terms)
      count = tf.cast(tf.shape(losses)[0], losses.dtype)
      loss = self.optimizer.scale_loss(tf.math.divide_no_nan(tf.reduce_sum(losses), count))
    gradients = tape.gradient(loss, [v.value for v in self.trainable_variables])
    gradients = [gradient if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
    return losses, terms, gradients, self._largest_entries(gradients)

  def _largest_entries(self, gradients):
    """As `divergence.largest_entries`."""
    # Keras decides what to do about a variable without a gradient.
    largest = divergence.largest_entries([tf.zeros([]) if gradient is None else gradient for gradient in gradients])
    if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
      # It lowers its scale when gradients overflow, until the scale is 1.
      largest = tf.where(self.optimizer.dynamic_scale > 1., tf.zeros_like(largest), largest)
    return largest

  def _compiled(self, function):
    """A step's function of tensors, compiled by XLA if `compile` asked for it.

    XLA cannot compile the guard and the exchange between replicas, so they stay outside; so does the optimizer of
    several replicas.
    """
    if not self.uses_xla or self.run_eagerly:
      return function
    name = function.__name__
    if name not in self._xla_functions:
      self._xla_functions[name] = tf.function(function, jit_compile=True, autograph=False, reduce_retracing=True)
    return self._xla_functions[name]

  def _apply(self, gradients, largest):
    """Takes a step of the optimizer."""
    gradients = divergence.shortened(gradients, largest)
    with update.in_few_operations(self.optimizer):
      _compat.apply_sums(self.optimizer, gradients, self.trainable_variables)

  def _bits(self, images, condition, noise_seed, training=False):
    condition = self._likelihood.spec.taken(condition)
    return self._likelihood.bits_per_dim(self._likelihood.log_prob(images, condition, noise_seed, training))

  def _noise_seed(self, step_or_purpose):
    return tf.stack([tf.constant(self._seed, tf.int32), tf.cast(step_or_purpose, tf.int32)])

  def _terms(self, images, condition, noise_seed, training=False):
    """The terms that the metrics average, one column each.

    The first is bits per dimension. With a classifier three more follow: the cross-entropy of the label, whether the
    label is the likeliest class, and whether there is a label. Without a label the two before are 0.

    The cross-entropy is in bits; in a hybrid model it is in nats, as its authors report it. Bits per dimension are 0
    when a classifier is trained alone, because they are not needed.
    """
    if self.classifier is None:
      return self._bits(images, condition, noise_seed, training)[:, tf.newaxis]
    evaluate = self._bits_and_logits_of_scales if self._is_hybrid else self._bits_and_logits_of_top
    bits, logits = evaluate(images, condition, noise_seed, training)
    labels = self._data_spec.checked_labels(condition.get("labels"))
    is_known = tf.cast(labels != UNKNOWN, logits.dtype)
    cross_entropy = is_known * tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.where(labels == UNKNOWN, 0, labels), logits)
    is_right = tf.cast(tf.argmax(logits, -1, tf.int32) == labels, logits.dtype)
    bits_or_nats = cross_entropy if self._is_hybrid else cross_entropy / np.log(2.)
    return tf.stack([bits, bits_or_nats, is_right, is_known], axis=1)

  def _bits_and_logits_of_top(self, images, condition, noise_seed, training):
    nats, features = self._likelihood.log_prob_and_features(images, condition, noise_seed, training)
    return self._likelihood.bits_per_dim(nats), self.classifier(features)

  def _bits_and_logits_of_scales(self, images, condition, noise_seed, training):
    condition = self._likelihood.spec.taken(condition)
    if training and self._trains_classifier_alone:
      values = self._likelihood.to_values(images, noise_seed)
      logits = self._logits_of_scales(values, condition, training)
      return tf.zeros_like(logits[:, 0]), logits
    nats, features = self._likelihood.log_prob_and_features_of_scales(images, condition, noise_seed, training)
    return self._likelihood.bits_per_dim(nats), self._logits_of(features, training)

  def _logits_of_scales(self, values, condition, training=False):
    """The classifier's logits for dequantized images."""
    return self._logits_of(self._likelihood.features_of_scales(values, condition, training), training)

  def _logits_of(self, features, training):
    with precision.of_evaluation(training):
      return self.classifier(features)

  def _losses_of(self, terms):
    """The loss of each image, `[N]`: in bits per dimension, in a hybrid model in bits per image."""
    bits, *others = tf.unstack(terms, axis=1)
    if self.classifier is None:
      return bits
    if not self._is_hybrid:
      return bits + self._weight_y * others[0]
    bits_y = others[0] / np.log(2.)
    if self._trains_classifier_alone:
      return bits_y
    return self._likelihood_weight * self._likelihood.num_dims * bits + bits_y

  def _update_metrics(self, losses, terms, weights):
    """Returns the means of this replica; `fit` and `evaluate` report those of all replicas at the end."""
    self._means.loss.update_state(losses, sample_weight=weights)
    return self.compute_metrics(None, weights, terms)  # Those of `compile`.

  @property
  def metrics(self):
    """The mean of the losses, in the place of Keras' own, and all others."""
    others = [metric for metric in super().metrics if metric.name != "loss"]
    return [self._means.loss, *others] if self.compiled else others

  def _make_means(self):
    """The means of the losses and of the columns of `_terms`."""
    means = [Mean("bits_per_dim", "down", 0)]
    if self.classifier is not None:
      means += [Mean("cross_entropy" if self._is_hybrid else "bits_y", "down", 1, 3), Mean("accuracy", "up", 2, 3)]
    return Means(means)

  def _build_optimizer(self, call=lambda function: function()):
    """Makes the variables of the optimizer, if it has none yet. While a step is traced, use `call=replicas.outside`.

    If variables were made within a step, TensorFlow would trace it twice.
    """

    def build():
      with self.distribute_strategy.scope():
        self.optimizer.build(self.trainable_variables)

    if not self.optimizer.built:
      call(build)


def _are_finite(losses, largest):
  """Bool tensor: of the sum of the losses, then of the gradients."""
  return tf.math.is_finite(tf.concat([[tf.reduce_sum(tf.cast(losses, tf.float64))], largest], axis=0))


def _as_it_is(function, *args, trace=None):
  """Calls a function in each replica, where it is traced anew."""
  del trace
  return function(*args)

"""What one step of `FlowModel` does: of training, of evaluation, of prediction."""

import contextlib
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfp_glow.likelihood import dequantize
from tfp_glow.networks.glow import ZeroDense
from tfp_glow.training import batches, divergence, replicas


class FlowSteps(keras.Model):
  """A Keras model whose loss is bits per dimension, and its steps; `FlowModel` is made of it."""

  def __init__(self, codec, seed, weight_y, name):
    """Creates it.

    Args:
      codec: `Codec`.
      seed: Python `int` of the dequantization noise.
      weight_y: Python `float`, the classifier's part in the loss; 0: there is none.
      name: Python `str`.
    """
    # Whatever the global policy: it is for networks, the flow keeps its own precision.
    super().__init__(name=name, dtype="float32", autocast=False)
    self._codec = codec
    self._seed = seed
    self._weight_y = weight_y
    self._failure = None
    self.classifier = None
    if weight_y:
      self.classifier = ZeroDense(codec.num_classes, dtype=codec.bijector.dtype.name, name="classifier")
      self.classifier.build([None, codec.num_class_features])

  def call(self, images, labels=None):
    """Bits per dimension of each image, `[N]`."""
    return self._bits(images, labels, self._noise_seed(dequantize.EVALUATION))

  def test_step(self, data):
    images, labels = batches.unpack(data)
    return self._update_metrics(self._terms(images, labels, self._noise_seed(dequantize.EVALUATION)))

  def predict_step(self, data):
    images, labels = batches.unpack(data)
    return self._bits(images, labels, self._noise_seed(dequantize.EVALUATION))

  def train_step(self, data):
    images, labels = batches.unpack(data)
    noise_seed = self._noise_seed(self.optimizer.iterations)
    with tf.GradientTape() as tape:
      terms = self._terms(images, labels, noise_seed, training=True)
      losses = self._loss_of(terms)
      # Over all replicas: they may have got unequal shares of the batch, which may be empty.
      num_images = replicas.sum_over_replicas(tf.shape(losses)[0])
      loss = tf.math.divide_no_nan(tf.reduce_sum(losses), tf.cast(num_images, losses.dtype))
      scaled_loss = self.optimizer.scale_loss(loss)
    variables = self.trainable_variables
    gradients = tape.gradient(scaled_loss, [v.value for v in variables])
    gradients = [gradient if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
    largest = self._largest_entries(gradients)
    gradients = divergence.shortened(gradients, replicas.sum_over_replicas(tf.reduce_sum(largest)))
    are_finite = tf.concat([[tf.reduce_all(tf.math.is_finite(losses))], tf.math.is_finite(largest)], axis=0)
    summed = iter(replicas.sum_over_replicas([g for g in gradients if g is not None]))
    gradients = [g if g is None else next(summed) for g in gradients]

    def apply():
      iterations = replicas.apply_summed(self.optimizer, gradients, variables)
      self._codec.after_update()
      return iterations

    if self.jit_compile:
      # Once this is so, it stays so to the end of the execution, which may be of several steps.
      is_finite = tf.reduce_all(are_finite) & tf.math.is_finite(self._loss_tracker.total)
      tf.cond(is_finite, apply, lambda: tf.identity(self.optimizer.iterations))
      return self._update_metrics(tf.where(is_finite, terms, np.nan))
    with tf.control_dependencies([self._stop_unless(are_finite, images, labels, noise_seed)]):
      apply()
    return self._update_metrics(terms)

  def _largest_entries(self, gradients):
    # A variable without a gradient is Keras' affair.
    largest = divergence.largest_entries([tf.zeros([]) if gradient is None else gradient for gradient in gradients])
    if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
      # It looks for gradients that overflow, and lowers its scale; that ends somewhere.
      largest = tf.where(self.optimizer.dynamic_scale > 1., tf.zeros_like(largest), largest)
    return largest

  def _stop_unless(self, are_finite, images, labels, noise_seed):
    """A tensor that is there only if all replicas have found all to be finite; else there is an error on each."""
    batch = [images] if self._codec.num_classes is None else [images, labels]
    # Known to all before any of them stops: it would leave others waiting.
    num_failed = replicas.sum_over_replicas(tf.cast(~tf.reduce_all(are_finite), tf.int32))
    stop = weakref.WeakMethod(self._stop)  # TensorFlow never lets go of the functions that it calls.
    is_sound = tf.cond(
        tf.equal(num_failed, 0), lambda: tf.constant(True),
        lambda: tf.py_function(lambda *args: stop()(*args), [are_finite, noise_seed, *batch], tf.bool))
    # Those of the same process leave it to the replica that has failed to say why, and never get beyond this.
    return replicas.sum_over_replicas(tf.cast(is_sound, tf.int32))

  def _stop(self, are_finite, noise_seed, images, labels=None):
    if not np.all(are_finite):
      what, received = divergence.first_non_finite(
          self._codec, images, labels, noise_seed, self.trainable_variables, are_finite[1:].numpy())
    elif replicas.has_workers(self.distribute_strategy):
      what, received = "a quantity of another replica", "finite ones here"
    else:
      return True
    self._failure = divergence.message(int(noise_seed[1]) + 1, what, received)
    raise FloatingPointError(self._failure)

  @contextlib.contextmanager
  def _failure_named(self):
    """Has TensorFlow's error of a training step that is not finite replaced by one that says what it was."""
    self._failure = None
    try:
      yield
      return
    except tf.errors.OpError:
      if self._failure is None:
        raise
    raise FloatingPointError(self._failure)  # Not from within, where it would drag TensorFlow's trace along.

  def _bits(self, images, labels, noise_seed, training=False):
    labels = None if self._codec.num_classes is None else labels
    return self._codec.bits_per_dim(self._codec.log_prob(images, labels, noise_seed, training))

  def _noise_seed(self, step_or_purpose):
    return tf.stack([tf.constant(self._seed, tf.int32), tf.cast(step_or_purpose, tf.int32)])

  def _terms(self, images, labels, noise_seed, training=False):
    """What the metrics are the means of, a column for each: bits per dimension and, with a classifier, the bits of the
    label and whether it is the likeliest one.
    """
    if self.classifier is None:
      return self._bits(images, labels, noise_seed, training)[:, tf.newaxis]
    nats, features = self._codec.log_prob_and_features(images, labels, noise_seed)
    logits = self.classifier(features)
    labels = tf.cast(labels, tf.int32)
    bits_y = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits) / np.log(2.)
    is_right = tf.cast(tf.argmax(logits, -1, tf.int32) == labels, logits.dtype)
    return tf.stack([self._codec.bits_per_dim(nats), bits_y, is_right], axis=1)

  def _loss_of(self, terms):
    """Of each image."""
    return terms[:, 0] if self.classifier is None else terms[:, 0] + self._weight_y * terms[:, 1]

  def _update_metrics(self, terms):
    self._loss_tracker.update_state(self._loss_of(terms))
    self._compile_metrics.update_state(terms, terms)
    # Keras would report the mean of the replicas' means, however many images each has seen.
    means = [self._loss_tracker, *self._compile_metrics.metrics]
    sums = replicas.sum_over_replicas([tf.stack([mean.total.value, mean.count.value]) for mean in means])
    values = [tf.math.divide_no_nan(total, count) for total, count in map(tf.unstack, sums)]
    if replicas.has_workers(self.distribute_strategy):
      # Keras averages over the workers by `strategy.reduce(..., axis=0)`: not a scalar.
      values = [value[tf.newaxis] for value in values]
    return {mean.name: value for mean, value in zip(means, values)}

  def _make_metrics(self):
    """Means of the columns of `_terms`. Of `compile`, not of the model: callbacks learn a direction from those only."""
    directions = {"bits_per_dim": "down"}
    if self.classifier is not None:
      directions |= {"bits_y": "down", "accuracy": "up"}
    metrics = []
    for column, (name, direction) in enumerate(directions.items()):
      metric = keras.metrics.MeanMetricWrapper(lambda _, terms, column: terms[:, column], name=name, column=column)
      metric._direction = direction
      metrics.append(metric)
    return metrics

  def _maybe_symbolic_build(self, iterator=None, data_batch=None):
    """Keras would build the model from a batch; there is nothing to build but the optimizer and the metric.

    Their variables must not be made while the step is traced: TensorFlow would trace it twice.
    """
    del iterator, data_batch
    self._build_optimizer()
    with self.distribute_strategy.scope():
      if self.compiled and not self._compile_metrics.built:
        terms = tf.zeros([1, 1 if self.classifier is None else 3])
        self._compile_metrics.build(terms, terms)

  def _build_optimizer(self):
    with self.distribute_strategy.scope():
      if self.compiled and not self.optimizer.built:
        self.optimizer.build(self.trainable_variables)

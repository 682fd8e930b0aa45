"""A Keras layer that classifies a flow's features on the way from images to latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core.numerics import (
  LOG_SCALE_FACTOR,
  activation_statistics,
  assign_unless_frozen,
  at_least_one,
  before_channels,
  generator,
  log_scale_of,
)
from tfp_glow._core.products import conv2d, matmul
from tfp_glow._core.validation import check_counts, check_positive, check_seed, is_int
from tfp_glow.networks.building import value_of


class _Head(NamedTuple):
  """The variables of the head of one scale."""
  kernel: keras.Variable
  bias: keras.Variable
  shift: keras.Variable
  log_scale: keras.Variable

  def sums(self, image):
    """The convolution alone, `[N, h, w, num_channels]`."""
    return tf.nn.bias_add(conv2d(image, value_of(self.kernel)), value_of(self.bias))

  def means(self, image, log_scale_factor):
    """`[N, num_channels]`."""
    # The actnorm is folded into the convolution: there are fewer weights than activations.
    scale = tf.exp(log_scale_of(value_of(self.log_scale), log_scale_factor))
    bias = (value_of(self.bias) + value_of(self.shift)) * scale
    sums = tf.nn.bias_add(conv2d(image, value_of(self.kernel) * before_channels(scale, 3)), bias)
    return tf.reduce_mean(tf.nn.relu(sums), axis=[1, 2])


@keras.saving.register_keras_serializable("tfp_glow")
class ScaleClassifier(keras.layers.Layer):
  """The classifier of a hybrid model. It sees features of every scale of a flow; see `FlowModel`.

  ```none
  head:    relu((conv3x3(features) + bias + shift) * exp(log_scale_factor * log_scale)), its mean over all positions
  logits:  linear map of the heads' means, concatenated
  ```

  Its slope is not bounded, because it is not part of the inverted map.

  #### Example

  ```python
  import tfp_glow

  images = tfp_glow.data.load_images("digits", "train", batch_size=64, with_labels=True)
  glow = tfp_glow.GlowBijector(output_shape=(8, 8, 1), num_glow_blocks=2, num_steps_per_block=4, num_hidden=32)
  classifier = tfp_glow.ScaleClassifier(num_classes=10, num_channels=32)
  model = tfp_glow.FlowModel(glow, num_bits=4, classifier=classifier, likelihood_weight=1 / 64)
  model.compile(optimizer="adam")
  model.fit(images, epochs=1)
  batch, _ = next(iter(images))
  model.class_probabilities(batch)    # [64, 10]
  ```

  References:
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019). The heads follow the authors' code.
  """

  def __init__(self, num_classes: int, num_channels: int = 256, sources: Sequence[int] | None = None,
               seed: int | None = None, *, log_scale_factor: float = LOG_SCALE_FACTOR, **kwargs: Any):
    """Creates the classifier.

    Args:
      num_classes: Python `int`.
      num_channels: Python `int`, channels of each head's convolution.
      sources: Sequence of Python `int`s, for each head the index of the features that it sees. `None`: each scale has
        a head. (In the authors' code, if channels leave at each scale, the last head sees the features of the
        second-last scale, and no head sees the last latent: for three scales `(0, 1, 1)`.)
      seed: Python `int` of the initial values. `None`: new ones each time (the same after
        `keras.utils.set_random_seed`).
      log_scale_factor: Python `float`, positive, as in `ActNorm`. The default is Glow's; the authors' code has 1.
      **kwargs: Arguments of `keras.layers.Layer`. A `FlowModel` makes it compute in the dtype of its flow.

    Raises:
      ValueError: if an argument is not as above.
    """
    check_counts(num_classes=num_classes, num_channels=num_channels)
    check_seed(seed)
    check_positive(log_scale_factor=log_scale_factor)
    if sources is not None and not (isinstance(sources, Sequence) and sources and all(is_int(s, 0) for s in sources)):
      raise ValueError("`sources` must be a sequence of indices of features, `int`s of at least 0, or None. "
                       f"Received: {sources!r}")
    super().__init__(**kwargs)
    self.num_classes = num_classes
    self.num_channels = num_channels
    self.sources = None if sources is None else tuple(map(int, sources))
    self.seed = seed
    self.log_scale_factor = float(log_scale_factor)

  def build(self, input_shape):
    num_inputs = self._num_inputs(input_shape)
    rng = generator(self.seed)
    self.heads = tuple(self._add_head(f"head{i}", rng, count) for i, count in enumerate(num_inputs))
    num_means = len(num_inputs) * self.num_channels
    self.kernel = self._add_uniform("kernel", rng, [num_means, self.num_classes], num_means)
    self.bias = self._add_uniform("bias", rng, [self.num_classes], num_means)
    self._initialized = self.add_weight(name="initialized", shape=(), initializer="zeros", trainable=False)

  def build_for(self, feature_shapes: Sequence[Sequence[int]], dtype: tf.DType) -> None:
    """Builds it for a flow's features, in whose dtype it will compute. If it is built, checks that it fits.

    Args:
      feature_shapes: Shapes `(h, w, c)`, one for each scale.
      dtype: float32 or float64.

    Raises:
      ValueError: if it was built for other features, or there are fewer features than `sources` names.
    """
    shapes = [(None, *shape) for shape in feature_shapes]
    if not self.built:
      self.dtype_policy = dtype.name
      self.build(shapes)
    found = [head.kernel.shape[2] for head in self.heads], self.dtype_policy.name
    expected = self._num_inputs(shapes), dtype.name
    if found != expected:
      raise ValueError(f"`{self.name}` must be built for heads that see {expected[0]} channels, in {expected[1]}. "
                       f"Received: one that was built for {found[0]}, in {found[1]}")

  def _num_inputs(self, shapes):
    """The number of channels that each head sees, for features `[N, h, w, c]` of these shapes."""
    sources = range(len(shapes)) if self.sources is None else self.sources
    if not sources or max(sources) >= len(shapes):
      raise ValueError(f"`sources` must be indices of the features, which have the shapes {list(shapes)}. "
                       f"Received: {self.sources!r}")
    return [shapes[source][-1] for source in sources]

  def call(self, features):
    images = self._seen(features)
    count, may_be_empty = tf.shape(images[0])[0], not images[0].shape[0]
    if may_be_empty:
      images = [at_least_one(image) for image in images]
    means = tf.concat([head.means(image, self.log_scale_factor) for head, image in zip(self.heads, images)], axis=-1)
    logits = matmul(means, value_of(self.kernel)) + value_of(self.bias)
    return logits[:count] if may_be_empty else logits

  def initialize(self, features: Sequence[tf.Tensor]) -> None:
    """Data-dependent initialisation from one batch: each head's actnorm then returns mean 0 and variance 1.

    Frozen variables keep their values.

    Args:
      features: List of tensors `[N, h, w, c]`, as in a call.
    """
    for head, image in zip(self.heads, self._seen(features)):
      shift, log_scale = activation_statistics(head.sums(image), self.log_scale_factor)
      assign_unless_frozen(head.shift, shift)
      assign_unless_frozen(head.log_scale, log_scale)
    self.mark_initialized()

  def _seen(self, features):
    """The features that each head sees."""
    return list(features) if self.sources is None else [features[source] for source in self.sources]

  def mark_initialized(self) -> None:
    """Marks it as initialised, after `initialize` or with weights from elsewhere."""
    self._initialized.assign(1.)

  @property
  def initialized(self) -> bool:
    """Whether `initialize` was called, or trained weights were restored."""
    return self.built and bool(self._initialized.numpy())

  def get_config(self):
    return {**super().get_config(), "num_classes": self.num_classes, "num_channels": self.num_channels,
            "sources": self.sources and list(self.sources), "seed": self.seed,
            "log_scale_factor": self.log_scale_factor}

  def _add_head(self, name, rng, num_inputs):
    fan_in, channels = 9 * num_inputs, [self.num_channels]
    return _Head(self._add_uniform(f"{name}_kernel", rng, [3, 3, num_inputs, *channels], fan_in),
                 self._add_uniform(f"{name}_bias", rng, channels, fan_in),
                 self.add_weight(name=f"{name}_shift", shape=channels, initializer="zeros"),
                 self.add_weight(name=f"{name}_log_scale", shape=channels, initializer="zeros"))

  def _add_uniform(self, name, rng, shape, fan_in):
    """A variable, uniform between plus and minus `1 / sqrt(fan_in)`, as in the authors' code."""
    values = rng.uniform(-1., 1., shape) / np.sqrt(fan_in)  # Drawn once, for any number of replicas.
    return self.add_weight(name=name, shape=shape, initializer=lambda shape, dtype: tf.constant(values, dtype))

"""What `FlowModel` is given: batches in their various shapes, and checks before any work."""

import random

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import is_int, is_number
from tfp_glow.networks.classifier import ScaleClassifier
from tfp_glow.training import divergence, sources


def unpack(batch):
  """Images and labels, `None` where there are none, of a batch.

  Args:
    batch: Images, `(images, labels)`, or `{"image": images, "label": labels}`; or the specs of one.

  Raises:
    ValueError: if the batch has weights, or is a dict without `"image"`.
  """
  x, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
  if sample_weight is not None:
    raise ValueError("`sample_weight` must be None: every image counts the same. Received: a batch with weights")
  if isinstance(x, dict):
    if "image" not in x:
      raise ValueError(f"A batch that is a dict must have the key 'image'. Received: {sorted(x)}")
    x, labels = x["image"], x.get("label", labels)
  return x, labels


def check_data(spec, x, y, batch_size, kwargs):
  """Checks what `fit` and its like are given, as far as that can be done without drawing from it.

  Args:
    spec: `ImageSpec`.
    x: As of `sources.source_of`.
    y: Labels, or `None`.
    batch_size: Positive `int`, or `None`.
    kwargs: Dict, the other arguments.

  Raises:
    TypeError: if `x` is something else, or images or labels have another dtype.
    ValueError: if `x` is empty, images or labels do not fit, or there are weights.
  """
  if batch_size is not None and not is_int(batch_size):
    raise ValueError(f"`batch_size` must be a positive `int`, or None. Received: {batch_size!r}")
  for key in ("sample_weight", "class_weight"):
    if kwargs.get(key) is not None:
      raise ValueError(f"`{key}` must be None: every image counts the same. Received: {key}={kwargs[key]!r}")
  source = sources.source_of(x, y, batch_size)
  specs = source.specs()
  if specs is None:
    return
  if source.is_empty():
    raise ValueError(f"`x` must hold at least one image. Received: {x!r}")
  images, labels = unpack(specs)
  spec.check_images(images)
  if spec.num_classes is None:
    return  # Images may come with labels, which are not used.
  spec.check_labels(labels)
  if isinstance(labels, np.ndarray):
    checked_labels(spec, labels, len(images))


def checked_images(spec, images, labels):
  """Images and labels as tensors; raises as the spec and `checked_labels`, or if images are not finite."""
  images = spec.checked_images(images)
  if images.dtype.is_floating:
    check_finite("images", images)
  return images, checked_labels(spec, labels, len(images))


def checked_labels(spec, labels, count):
  """Labels of so many images, int32 `[count]`, of one label for all, too; `None` where there are no classes.

  Raises:
    TypeError: if they are not integers.
    ValueError: if there are not `count` labels of the classes.
  """
  condition = spec.condition(labels)
  if not condition:
    return None
  labels = condition["labels"]
  if labels.shape.rank == 0:
    labels = tf.fill([count], labels)
  if labels.shape != [count] or bool(tf.reduce_any((labels < 0) | (labels >= spec.num_classes))):
    raise ValueError(f"`labels` must be {count} integers in 0 .. {spec.num_classes - 1}. Received: {labels}")
  return labels


def check_finite(name, values):
  """Raises `ValueError` if the argument called `name` holds NaN or infinite values."""
  if not bool(tf.reduce_all(tf.math.is_finite(values))):
    raise ValueError(f"`{name}` must be finite. Received: {divergence.describe(values)}")


def first_batch(x, y=None, batch_size=None, name="x"):
  """The first batch of what `fit` is given as the argument called `name`, and what `fit` must be given now.

  Raises:
    ValueError: if there is none.
  """
  source = sources.source_of(x, y, batch_size)
  batch = source.first_batch()
  if batch is None or any(len(part) == 0 for part in keras.tree.flatten(batch)):
    raise ValueError(f"`{name}` must hold at least one image. Received: {x!r}")
  return batch, source.x


def checked_weight_y(weight_y, likelihood):
  """A Python `float`; raises `ValueError` if it is negative, or the distribution has no classes that latents tell."""
  if not is_number(weight_y) or not 0. <= weight_y < np.inf:
    raise ValueError(f"`weight_y` must be a finite number of at least 0. Received: {weight_y!r}")
  if weight_y and likelihood.num_class_features is None:
    raise ValueError("`weight_y` must be 0 for a distribution whose bijector has no `num_classes` and "
                     f"`class_features`. Received: {weight_y!r}")
  return float(weight_y)


def checked_likelihood_weight(likelihood_weight, classifier, weight_y, likelihood):
  """A Python `float`; raises if it is no such weight, or the classifier no `ScaleClassifier` that suits the rest.

  Raises:
    TypeError: if `classifier` is something else than a `ScaleClassifier` or `None`.
    ValueError: if `likelihood_weight` is negative, or not 1 without a classifier; or with one if there is another by
      `weight_y`, or the flow knows the classes, or has no features.
  """
  if not is_number(likelihood_weight) or not 0. <= likelihood_weight < np.inf:
    raise ValueError(f"`likelihood_weight` must be a finite number of at least 0. Received: {likelihood_weight!r}")
  if classifier is None:
    if likelihood_weight != 1.:
      raise ValueError(f"`likelihood_weight` must be 1 without a `classifier`. Received: {likelihood_weight!r}")
    return 1.
  if not isinstance(classifier, ScaleClassifier):
    raise TypeError(f"`classifier` must be a `ScaleClassifier`, or None. Received: {classifier!r}")
  if weight_y:
    raise ValueError(f"`weight_y` must be 0 with a `classifier`: it asks for another one. Received: {weight_y!r}")
  if likelihood.spec.num_classes is not None:
    raise ValueError("`classifier` must be None for a class-conditional distribution, which is given the label that it "
                     f"would have to tell. Received: {likelihood.distribution!r}")
  if not likelihood.feature_shapes:
    raise ValueError("`classifier` must be None for a distribution whose bijector has no features of images, as "
                     f"`GlowBijector` and `ResidualFlowBijector` have. Received: {likelihood.distribution!r}")
  return float(likelihood_weight)


def seed_pair(seed, name="seed"):
  """An int32 tensor [2] of the argument called `name`: an `int`, a pair of them, or `None` for any.

  Raises:
    ValueError: if it is something else.
  """
  pair = [0, seed] if np.ndim(seed) == 0 else seed
  if seed is None:
    pair = [random.SystemRandom().randrange(2**31) for _ in range(2)]
  if np.shape(pair) != (2,) or not np.issubdtype(np.asarray(pair).dtype, np.integer) or not (
      -2**31 <= np.min(pair) and np.max(pair) < 2**31):
    raise ValueError(f"`{name}` must be an `int` of 32 bits, a pair of them, or None. Received: {seed!r}")
  return tf.constant(pair, tf.int32)

"""The input of `FlowModel`: batches in their various forms, and checks before any work."""

import random

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import is_int, is_number
from tfp_glow.likelihood.image_spec import UNKNOWN
from tfp_glow.networks.classifier import ScaleClassifier
from tfp_glow.training import divergence, sources

# Rows of a table are small, and tables may be sorted: their first batch says little about their columns.
NUM_ROWS_TO_ADAPT = 10_000

# Part of error messages: why there are no weights.
_WEIGHTS = "every image counts the same; draw images in proportion to their weights instead"


def unpack(batch):
  """Splits a batch into images and condition.

  Args:
    batch: Images, `(images, labels)`, `(images, {"label": labels, "context": context})`, or one dict
      `{"image": images, "label": labels, "context": context}`; or the specs of a batch. Dicts may hold other keys, and
      need only hold `"image"`.

  Returns:
    images: The images, unchanged.
    condition: Dict with `labels` and `context`, if given; see `ImageSpec`.

  Raises:
    ValueError: if the batch has weights, or is a dict without `"image"`.
  """
  x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
  given = y if isinstance(y, dict) else {"label": y}
  if isinstance(x, dict):
    if "image" not in x:
      raise ValueError(f"A batch that is a dict must have the key 'image'. Received: {sorted(x)}")
    x, given = x["image"], given | x
  if sample_weight is not None or "sample_weight" in given:
    raise ValueError(f"`sample_weight` must be None: {_WEIGHTS}. Received: a batch with weights")
  found = {"labels": given.get("label"), "context": given.get("context")}
  return x, {key: value for key, value in found.items() if value is not None}


def check_data(spec, x, y, batch_size, kwargs, must_be_finite=False):
  """Checks the data given to `fit` and its like, as far as possible without drawing from it.

  Args:
    spec: `ImageSpec`.
    x: As in `sources.source_of`.
    y: Labels, or a dict of labels and contexts, or `None`.
    batch_size: Positive `int`, or `None`.
    kwargs: Dict of the other arguments.
    must_be_finite: Python `bool`: whether arrays of images must be finite. Training checks it in each step.

  Raises:
    TypeError: if `x` is something else, or the dtype of images, labels or contexts does not fit.
    ValueError: if `x` is empty, images, labels or contexts do not fit, or there are weights.
  """
  if batch_size is not None and not is_int(batch_size):
    raise ValueError(f"`batch_size` must be a positive `int`, or None. Received: {batch_size!r}")
  for key in ("sample_weight", "class_weight"):
    if kwargs.get(key) is not None:
      received = f"shape {np.shape(kwargs[key])}" if np.ndim(kwargs[key]) else repr(kwargs[key])
      raise ValueError(f"`{key}` must be None: {_WEIGHTS}. Received: {key} of {received}")
  source = sources.source_of(x, y, batch_size)
  specs = source.specs()
  if specs is None:
    return
  if source.is_empty():
    raise ValueError(f"`x` must hold at least one image. Received: {x!r}")
  images, condition = unpack(specs)
  spec.check_images(images)
  if isinstance(images, np.ndarray):
    spec.check_values(images)
    # Extremes first: they are NaN or infinite if any value is, and take no memory.
    if must_be_finite and spec.num_bits is None and not np.isfinite([images.min(), images.max()]).all():
      check_finite("images", images)
  condition = spec.taken(condition)
  keys = [key for part in (specs if isinstance(specs, tuple) else [specs]) if isinstance(part, dict) for key in part]
  if keys and spec.context_shape is not None and "context" not in condition:
    raise ValueError(f"`context` must be given: a batch must have the key 'context'. Received: the keys {sorted(keys)}")
  labels, context = condition.get("labels"), condition.get("context")
  spec.check_labels(labels)
  spec.check_context(context)
  if isinstance(labels, np.ndarray):
    checked_labels(spec, labels, len(images), may_be_unknown=True)
  if any(isinstance(part, np.ndarray) for part in tf.nest.flatten(context)):
    checked_context(spec, context, len(images))


def check_ends(x, name, kwargs):
  """Raises `ValueError` if `x` repeats forever and the argument `name`, its number of steps, is not in `kwargs`."""
  value = kwargs.get(name)
  if not value and sources.source_of(x).is_endless():
    raise ValueError(f"`{name}` must be given for data that repeat forever. Received: {name}={value!r}, with {x!r}")


def checked_images(spec, images):
  """Images as a tensor; raises as `spec.checked_images` does, and `ValueError` if they are not finite."""
  images = spec.checked_images(images)
  if images.dtype.is_floating:
    check_finite("images", images)
  return images


def checked_condition(spec, labels, context, count, may_be_unknown=False):
  """The condition of `count` images: a dict of `checked_labels` and `checked_context`, if the model takes them."""
  labels, context = checked_labels(spec, labels, count, may_be_unknown), checked_context(spec, context, count)
  return ({} if labels is None else {"labels": labels}) | ({} if context is None else {"context": context})


def checked_labels(spec, labels, count, may_be_unknown=False):
  """Labels of `count` images, int32 `[count]`; `None` if there are no classes.

  Args:
    spec: `ImageSpec`.
    labels: Integers `[count]`, or one label for all images, or `None`.
    count: Python `int`.
    may_be_unknown: Python `bool`: whether labels may be `UNKNOWN`.

  Raises:
    TypeError: if they are not integers.
    ValueError: if they are not `count` labels of the classes.
  """
  labels = spec.checked_labels(labels)
  if labels is None:
    return None
  if labels.shape.rank == 0:
    labels = tf.fill([count], labels)
  least = UNKNOWN if may_be_unknown else 0
  if labels.shape != [count] or bool(tf.reduce_any((labels < least) | (labels >= spec.num_classes))):
    unknown = (f", or {UNKNOWN} for an image of unknown class" if may_be_unknown else
               f" ({UNKNOWN}, an unknown class, is for log-probabilities only)")
    raise ValueError(f"`labels` must be {count} integers in 0 .. {spec.num_classes - 1}{unknown}. Received: {labels}")
  return labels


def checked_context(spec, context, count):
  """Contexts of `count` images, `[count] + context_shape`; `None` if the model takes none.

  Args:
    spec: `ImageSpec`.
    context: Floating tensor of that shape, or without the first dimension one for all images; or a dict of them, or
      `None`.
    count: Python `int`.

  Raises:
    TypeError: if contexts are not floating.
    ValueError: if contexts are missing or superfluous, not `count` ones of the right shape, or not finite.
  """
  context = spec.checked_context(context, is_batch=False)
  if context is None:
    return None
  return tf.nest.pack_sequence_as(context, [_of_each_image(*part, count) for part in spec.context_parts(context)])


def _of_each_image(name, context, shape, count):
  if context.shape.rank == len(shape):
    context = tf.broadcast_to(context, [count, *shape])
  if context.shape[0] != count:
    raise ValueError(f"`{name}` must be {count} contexts, one for each image. Received: {context.shape[0]}")
  check_finite(name, context)
  return context


def checked_prior(prior, num_classes):
  """A NumPy float64 array, for `None` equal probabilities; raises `ValueError` if `prior` has no such probabilities."""
  if prior is None:
    return np.full([num_classes], 1. / num_classes)
  values = np.asarray(prior)
  is_right = values.shape == (num_classes,) and values.dtype.kind in "fiu" and bool(np.all(values >= 0.))
  if not is_right or not np.isclose(values.sum(dtype=np.float64), 1., rtol=0., atol=1e-5):
    raise ValueError(f"`prior` must be {num_classes} probabilities whose sum is 1, or None. Received: {prior!r}")
  return values.astype(np.float64)


def check_finite(name, values):
  """Raises `ValueError` if the argument called `name` holds NaN or infinite values."""
  if not bool(tf.reduce_all(tf.math.is_finite(values))):
    raise ValueError(f"`{name}` must be finite. Received: {divergence.describe(values)}")


def batch_to_adapt(spec, x, y, batch_size):
  """The batch from which `fit` initialises a flow, and the `x` with which `fit` then continues.

  The batch is the first one; from an array of vectors it has rows from the whole table.

  Args:
    spec: `ImageSpec`.
    x: As in `sources.source_of`.
    y: As in `sources.source_of`.
    batch_size: Python `int`, or `None` for the default of Keras.

  Raises:
    ValueError: if there is no batch.
  """
  source = sources.source_of(x, y, batch_size)
  if spec.event_shape.rank == 1:
    batch = source.spread_batch(max(batch_size or 0, NUM_ROWS_TO_ADAPT))
  else:
    batch = source.first_batch()
  return _checked_batch(batch, x, "x"), source.x


def first_batch(x, name):
  """The first batch of `x`, the argument called `name`; raises `ValueError` if there is none."""
  return _checked_batch(sources.source_of(x).first_batch(), x, name)


def _checked_batch(batch, x, name):
  if batch is None or any(len(part) == 0 for part in keras.tree.flatten(batch)):
    raise ValueError(f"`{name}` must hold at least one image. Received: {x!r}")
  return batch


def checked_weight_y(weight_y, likelihood):
  """A Python `float`; raises `ValueError` if it is negative, or the distribution has no classes or class features."""
  if not is_number(weight_y) or not 0. <= weight_y < np.inf:
    raise ValueError(f"`weight_y` must be a finite number of at least 0. Received: {weight_y!r}")
  if weight_y and likelihood.num_class_features is None:
    raise ValueError("`weight_y` must be 0 for a distribution whose bijector has no `num_classes` and "
                     f"`class_features`. Received: {weight_y!r}")
  return float(weight_y)


def checked_likelihood_weight(likelihood_weight, classifier, weight_y, likelihood):
  """The weight as a Python `float`; checks the classifier, too.

  Raises:
    TypeError: if `classifier` is neither a `ScaleClassifier` nor `None`.
    ValueError: if `likelihood_weight` is negative, or not 1 without a classifier; or if with a classifier `weight_y` is
      not 0, the flow is class-conditional, or it has no features.
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
    raise ValueError("`classifier` must be None for a class-conditional distribution, which is given the label that "
                     f"the classifier predicts. Received: {likelihood.distribution!r}")
  if not likelihood.feature_shapes:
    raise ValueError("`classifier` must be None for a distribution whose bijector has no features of images, as "
                     f"`GlowBijector` and `ResidualFlowBijector` have. Received: {likelihood.distribution!r}")
  return float(likelihood_weight)


def seed_pair(seed, name="seed"):
  """An int32 tensor `[2]`.

  Args:
    seed: Python `int`, a pair of them, or `None` for a random seed.
    name: Python `str`, the argument's name in error messages.

  Raises:
    ValueError: if `seed` is something else.
  """
  pair = [0, seed] if np.ndim(seed) == 0 else seed
  if seed is None:
    pair = [random.SystemRandom().randrange(2**31) for _ in range(2)]
  if np.shape(pair) != (2,) or not np.issubdtype(np.asarray(pair).dtype, np.integer) or not (
      -2**31 <= np.min(pair) and np.max(pair) < 2**31):
    raise ValueError(f"`{name}` must be an `int` of 32 bits, a pair of them, or None. Received: {seed!r}")
  return tf.constant(pair, tf.int32)

"""`Codec`: what a distribution says of images, and the images it makes."""

import numbers

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow.likelihood import dequantize

tfb = tfp.bijectors
tfd = tfp.distributions


class Codec:
  """Images in, log-probabilities and latents out, and back: pure functions of tensors.

  `FlowModel` and its SavedModel are both made of these, and so agree.
  """

  def __init__(self, distribution, num_bits):
    """Creates the codec.

    Args:
      distribution: `tfd.Distribution` over one image (or vector): fully defined event shape, no batch shape.
      num_bits: Python `int`, 1 .. 8, for uint8 images; `None` for continuous data.

    Raises:
      TypeError: if `distribution` is not a TFP distribution.
      ValueError: if it is not over one event, or `num_bits` is not as above.
    """
    if not isinstance(distribution, tfd.Distribution):
      raise TypeError(f"`distribution` must be a `tfp.distributions.Distribution`. Received: {distribution!r}")
    if not distribution.event_shape.is_fully_defined() or distribution.batch_shape.rank != 0:
      raise ValueError("`distribution` must have a fully defined event shape and no batch shape. Received: "
                       f"event_shape {distribution.event_shape}, batch_shape {distribution.batch_shape}")
    if num_bits is not None:
      dequantize.check_num_bits(num_bits)
    self.distribution = distribution
    self.num_bits = num_bits

  def build(self):
    """Has those bijectors make their variables that make them when they are first called."""
    if not getattr(getattr(self.distribution, "bijector", None), "built", False):
      self.log_density(tf.zeros([1] + self.event_shape.as_list(), self.distribution.dtype))

  @property
  def event_shape(self):
    """Shape of one image."""
    return self.distribution.event_shape

  @property
  def num_dims(self):
    """Number of values in an image."""
    return self.event_shape.num_elements()

  @property
  def image_dtype(self):
    """uint8, or the distribution's dtype for continuous data."""
    return tf.as_dtype(self.distribution.dtype) if self.num_bits is None else tf.uint8

  @property
  def bijector(self):
    """Between latents and images.

    Raises:
      TypeError: if the distribution has none.
    """
    if not hasattr(self.distribution, "bijector"):
      raise TypeError("`distribution` must be a `tfd.TransformedDistribution` to have latents. "
                      f"Received: {self.distribution!r}")
    return self.distribution.bijector

  @property
  def bijectors(self):
    """The distribution's bijectors, the parts of a `tfb.Chain` one by one, in the order from data to latents."""
    bijectors, distribution = [], self.distribution
    while hasattr(distribution, "bijector"):
      bijectors += _links(distribution.bijector)
      distribution = distribution.distribution
    return bijectors

  @property
  def log_det_estimator(self):
    """How its bijectors estimate log-dets, a Python `str`; `None` where none does."""
    ways = dict.fromkeys(getattr(part, "log_det_estimator", None) for part in self.distribution.submodules)
    return "; ".join(way for way in ways if way) or None

  @property
  def num_classes(self):
    """Number of classes, `None` where the images have none."""
    return getattr(getattr(self.distribution, "bijector", None), "num_classes", None)

  @property
  def num_levels(self):
    """Number of the latent's levels; `None` where the bijector does not split latents."""
    if not hasattr(getattr(self.distribution, "bijector", None), "split_latent"):
      return None
    return len(self._split_latent_of_ones())

  @property
  def num_class_features(self):
    """Number of the features that a classifier of latents sees; `None` where there are no classes, or no features."""
    if self.num_classes is None or not hasattr(self.distribution.bijector, "class_features"):
      return None
    return self.distribution.bijector.num_class_features

  def check_images(self, images):
    """Images as a tensor of the right dtype, with the static shape `[N] + event_shape`.

    Raises:
      TypeError: if the dtype does not fit `num_bits`.
      ValueError: if the shape is not `[N] + event_shape`.
    """
    if images is None:
      raise TypeError("`images` must be an array or tensor. Received: None")
    images = tf.convert_to_tensor(images)
    self.check_spec(images)
    return tf.ensure_shape(tf.cast(images, self.image_dtype), [None] + self.event_shape.as_list())

  def check_spec(self, images):
    """Checks anything with a `dtype` and a `shape`; raises as `check_images`."""
    dtype, shape = tf.as_dtype(images.dtype), tf.TensorShape(images.shape)
    if dtype != tf.uint8 if self.num_bits else not dtype.is_floating:
      wanted = ("uint8, values 0 .. 255, whatever `num_bits`" if self.num_bits else
                "floating, as the model was made with `num_bits=None`")
      raise TypeError(f"`images` must be {wanted}. Received: {dtype.name}")
    if not shape.is_compatible_with(tf.TensorShape([None]).concatenate(self.event_shape)):
      raise ValueError(f"`images` must have shape {[None] + self.event_shape.as_list()}. Received: {shape}")

  def to_values(self, images, noise_seed=None):
    """Dequantized images; continuous data as they are.

    Args:
      images: Tensor `[N] + event_shape`.
      noise_seed: Integer tensor `[2]` of the uniform noise; `None`: midpoints of the bins.
    """
    images = self.check_images(images)
    if self.num_bits is None:
      return images
    dtype = self.distribution.dtype
    noise = 0.5 if noise_seed is None else dequantize.image_noise(images, noise_seed, dtype)
    return dequantize.dequantize(images, self.num_bits, noise, dtype)

  def to_images(self, values):
    """The inverse of `to_values`, whatever the noise was; values for uint8 images must be finite."""
    if self.num_bits is None:
      return values
    # A NaN would become a black pixel, and nobody would know.
    num_odd = tf.math.count_nonzero(~tf.math.is_finite(values))
    message = ("Images must be finite to be uint8: weights, latents or temperature are not sound. "
               "Received: so many numbers that are not:")
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(num_odd, 0), [message, num_odd])]):
      return dequantize.quantize(values, self.num_bits)

  def log_prob(self, images, labels=None, noise_seed=None, training=False):
    """Log-probability of each image, `[N]`, in nats; see `dequantize.discrete_log_prob`."""
    return self._log_prob_of_values(self.to_values(images, noise_seed), labels, training)

  def log_prob_and_features(self, images, labels, noise_seed=None):
    """`log_prob`, and what a classifier of the latents sees of each image, `[N, num_class_features]`, in one pass."""
    values, condition = self.to_values(images, noise_seed), self.condition(labels)
    log_prob = self._log_prob_of_values(values, labels)
    # The bijector knows these latents: it has just computed them.
    return log_prob, self.bijector.class_features(self.bijector.inverse(values, **condition), **condition)

  def _log_prob_of_values(self, values, labels, training=False):
    return dequantize.discrete_log_prob(self.log_density(values, labels, training), self.num_dims, self.num_bits)

  def log_density(self, values, labels=None, training=False):
    """Log-density of dequantized images, `[N]`, in nats; with `training` a bijector may estimate it more coarsely."""
    kwargs = self.condition(labels)
    if training and hasattr(self.distribution, "bijector"):
      kwargs |= _training_arguments(self.distribution.bijector)
    return self.distribution.log_prob(values, **({"bijector_kwargs": kwargs} if kwargs else {}))

  def after_update(self):
    """Has bijectors follow an update of the weights, wherever they are in the distribution."""
    parts = [part for part in self.distribution.submodules if hasattr(part, "after_update")]
    nested = {id(part) for owner in parts for part in owner.submodules}
    for part in parts:
      if id(part) not in nested:
        part.after_update()

  def bits_per_dim(self, log_prob):
    """From `log_prob`'s nats."""
    return dequantize.bits_per_dim(log_prob, self.num_dims)

  def encode(self, images, labels=None):
    """Latents `[N, ...]` of images, at the midpoints of their bins."""
    return self.bijector.inverse(self.to_values(images), **self.condition(labels))

  def decode(self, z, labels=None):
    """Images `[N] + event_shape` of latents `z`."""
    return self.to_images(self.bijector.forward(z, **self.condition(labels)))

  def check_temperature(self, temperature):
    """Temperatures, for `sample`, as a tensor.

    Raises:
      ValueError: if they are not one finite number of at least 0 or, where the bijector has levels, one for each of
        them; or not 1 for a distribution without latents.
    """
    values = np.asarray(temperature, object)
    if values.ndim > 1 or not all(isinstance(value, numbers.Real) and 0. <= value < np.inf for value in values.flat):
      raise ValueError("`temperature` must be a finite number of at least 0, or a list of one for each level. "
                       f"Received: {temperature!r}")
    if values.ndim and len(values) != self.num_levels:
      levels = f"{self.num_levels} levels" if self.num_levels else "a bijector without levels"
      raise ValueError("`temperature` must be one number, or a list of one for each part that the bijector's "
                       f"`split_latent` returns. Received: {temperature!r} for {levels}")
    if not hasattr(self.distribution, "bijector") and values != 1.:
      raise ValueError("`temperature` must be 1 for a distribution without latents. "
                       f"Received: {temperature!r} for {self.distribution!r}")
    return tf.constant(values.astype(np.float32))

  def sample(self, num_samples, temperature, seed, labels=None):
    """New images `[num_samples] + event_shape`.

    Args:
      num_samples: Integer scalar.
      temperature: Floating scalar that the latents' deviation from their mean is multiplied by; or `[num_levels]`, one
        for each part that the bijector's `split_latent` returns.
      seed: Integer tensor `[2]`.
      labels: Integer tensor `[num_samples]`.
    """
    if not hasattr(self.distribution, "bijector"):
      return self.to_images(self.distribution.sample(num_samples, seed=seed))
    return self.decode(self.sample_latents(num_samples, temperature, seed), labels)

  def sample_latents(self, num_samples, temperature, seed):
    """The latents `[num_samples, ...]` of `sample`, which has the same arguments."""
    base = self.distribution.distribution
    z = base.sample(num_samples, seed=seed)
    temperature = self._temperature_of_latents(tf.cast(temperature, z.dtype))
    is_valid = tf.reduce_all(tf.math.is_finite(temperature) & (temperature >= 0.))
    checks = [tf.debugging.Assert(is_valid, ["`temperature` must be finite and at least 0. Received:", temperature])]
    as_drawn = tf.equal(temperature, 1.)
    try:
      mean = base.mean()
    except NotImplementedError:
      mean = tf.constant(np.nan, z.dtype)
    checks.append(tf.debugging.Assert(tf.reduce_all(as_drawn | tf.math.is_finite(mean)), [
        "`temperature` must be 1 for latents without a mean. Received:", temperature]))
    with tf.control_dependencies(checks):
      z = tf.where(as_drawn, z, mean + temperature * (z - mean))
    return tf.ensure_shape(z, [None] + base.event_shape.as_list())

  def _temperature_of_latents(self, temperature):
    """The temperature of each value of a latent, or of all."""
    if self.num_levels is None:
      return temperature
    by_level = tf.unstack(tf.broadcast_to(temperature, [self.num_levels]))
    return self.bijector.join_latent([value * ones for value, ones in zip(by_level, self._split_latent_of_ones())])

  def _split_latent_of_ones(self):
    return self.bijector.split_latent(tf.ones(self.distribution.distribution.event_shape, self.bijector.dtype))

  def condition(self, labels):
    """Keyword arguments of the bijector for these labels.

    Raises:
      ValueError: if labels are missing, given where there are no classes, or not of shape `[N]`.
      TypeError: if they are not integers.
    """
    if labels is not None and not hasattr(labels, "shape"):
      labels = tf.convert_to_tensor(labels)
    self.check_labels_spec(labels)
    if labels is None:
      return {}
    labels = tf.convert_to_tensor(labels)
    if labels.dtype.size > 4:  # Too large ones would come round to others.
      labels = tf.where(tf.cast(tf.cast(labels, tf.int32), labels.dtype) == labels, labels, tf.cast(-1, labels.dtype))
    return {"labels": tf.cast(labels, tf.int32)}

  def check_labels_spec(self, labels):
    """Checks `None` or anything with a `dtype` and a `shape`; raises as `condition`."""
    if (labels is None) != (self.num_classes is None):
      raise ValueError(
          f"`labels` must be given: the model has {self.num_classes} classes. Received: None" if labels is None else
          f"`labels` must be None: the model has no classes. Received: {labels!r}")
    if labels is None:
      return
    dtype, shape = tf.as_dtype(labels.dtype), tf.TensorShape(labels.shape)
    if not dtype.is_integer:
      raise TypeError(f"`labels` must be integers. Received: {dtype.name}")
    if shape.rank not in (None, 0, 1):
      raise ValueError(f"`labels` must be one integer for each image, shape [N]. Received: shape {shape}")


# `tfb.Chain` and `tfb.Invert` make instances of their base classes where a part of them is no `CompositeTensor`.
_CHAIN, _INVERT = tfb.Chain.__bases__[0], tfb.Invert.__bases__[0]


def _training_arguments(bijector):
  """Arguments of a bijector that ask those of its parts that estimate log-dets for the estimate meant for training."""
  if isinstance(bijector, _INVERT):
    return _training_arguments(bijector.bijector)
  if isinstance(bijector, _CHAIN):  # It hands to each part what is meant for its name.
    arguments = {part.name: _training_arguments(part) for part in bijector.bijectors}
    return {name: of_part for name, of_part in arguments.items() if of_part}
  return {"training": True} if getattr(bijector, "is_stochastic", False) else {}


def _links(bijector):
  if isinstance(bijector, _CHAIN):
    return [link for part in bijector.bijectors for link in _links(part)]
  return [bijector]

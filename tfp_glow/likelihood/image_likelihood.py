"""`ImageLikelihood`: the log-probabilities that a distribution gives to images, and the images that it draws."""

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow._core import gradients, precision
from tfp_glow.bijectors import batching
from tfp_glow.bijectors.composition import Sequence, latent_side_of
from tfp_glow.likelihood import classes, dequantize, flows, latents
from tfp_glow.likelihood.image_spec import ImageSpec

tfd = tfp.distributions


class ImageLikelihood:
  """Images in, log-probabilities and latents out, and back: pure functions of tensors.

  `FlowModel` and its SavedModel both use these functions, and so agree. A composition, of this package or of TFP, takes
  one pass. The argument `condition` of methods is a dict; see `ImageSpec`.
  """

  def __init__(self, distribution, num_bits):
    """Creates the likelihood.

    Args:
      distribution: `tfd.Distribution` over one image (or vector), with a fully defined event shape and no batch shape.
      num_bits: Python `int`, 1 .. 8 for uint8 images, 9 .. 16 for uint16 ones; `None` for continuous data.

    Raises:
      TypeError: if `distribution` is not a TFP distribution.
      ValueError: if its shapes or `num_bits` are not as above.
    """
    if not isinstance(distribution, tfd.Distribution):
      raise TypeError("`distribution` must be a `tfp.distributions.Distribution`, or a bijector that knows the shape "
                      f"of its latents. Received: {distribution!r}")
    if tf.nest.is_nested(distribution.dtype):
      raise TypeError(f"`distribution` must be over one tensor, not over several. Received: {distribution!r}")
    if not distribution.event_shape.is_fully_defined() or distribution.batch_shape.rank != 0:
      raise ValueError("`distribution` must have a fully defined event shape and no batch shape. Received: "
                       f"event_shape {distribution.event_shape}, batch_shape {distribution.batch_shape}")
    self.distribution = distribution
    self._flow = flows.flow_of(distribution)
    self._owners = flows.owners_of(distribution)  # Found once: walking a distribution takes longer than a small batch.
    self.variables = ()  # Until `build`.
    self.spec = ImageSpec(distribution.event_shape, distribution.dtype, num_bits,
                          None if self._flow is None else self._flow.num_classes,
                          None if self._flow is None else self._flow.context_shape)

  def build(self):
    """Makes the variables that bijectors make in their first call. Then `variables` lists all variables."""
    if not getattr(getattr(self.distribution, "bijector", None), "built", False):
      values = tf.zeros([1] + self.spec.event_shape.as_list(), self.spec.dtype)
      self.log_density(values, None if self._flow is None else self._flow.any_condition(values))
    self.variables = tuple(self.distribution.variables)

  @property
  def num_dims(self):
    """Number of values in an image."""
    return self.spec.event_shape.num_elements()

  @property
  def has_latents(self):
    """Whether the distribution is a `tfd.TransformedDistribution`."""
    return self._flow is not None

  @property
  def latents(self):
    """`Latents` of the images.

    Raises:
      TypeError: if the distribution has none.
    """
    return latents.Latents(self.distribution.distribution, self._checked_flow())

  @property
  def log_det_estimator(self):
    """How the bijectors estimate log-dets, a Python `str`; `None` if none does."""
    ways = dict.fromkeys(getattr(part, "log_det_estimator", None) for part in self.distribution.submodules)
    return "; ".join(way for way in ways if way) or None

  @property
  def num_class_features(self):
    """Number of features that a classifier of latents sees; `None` without classes or without features."""
    if self.spec.num_classes is None or not hasattr(latent_side_of(self._flow), "class_features"):
      return None
    return latent_side_of(self._flow).num_class_features

  @property
  def feature_shapes(self):
    """Shapes `(h, w, c)` of the `features_of_scales`; an empty list for flows without these features."""
    flow = self._parts_to_whole_flow()[-1]
    # If one event is several to the flow, each of them would have its own features.
    is_one_event = getattr(flow, "inverse_min_event_ndims", None) == self.spec.event_shape.rank
    return flow.feature_shapes if is_one_event and hasattr(flow, "feature_shapes") else []

  def to_values(self, images, noise_seed=None):
    """Dequantized images; continuous data unchanged.

    Args:
      images: Tensor `[N] + event_shape`.
      noise_seed: Integer tensor `[2]`, seed of the uniform noise; `None`: midpoints of the bins.
    """
    images, spec = self.spec.checked_images(images), self.spec
    if spec.num_bits is None:
      return images
    noise = 0.5 if noise_seed is None else dequantize.image_noise(
        images, noise_seed, spec.dtype, spec.num_bits)
    return dequantize.dequantize(images, spec.num_bits, noise, spec.dtype)

  def to_images(self, values):
    """The inverse of `to_values`, whatever the noise was. Values for uint8 or uint16 images must be finite."""
    if self.spec.num_bits is None:
      return values
    # Otherwise a NaN would silently become a black pixel.
    num_odd = tf.math.count_nonzero(~tf.math.is_finite(values))
    message = (f"Images must be finite to be {self.spec.image_dtype.name}: check weights, latents and temperature. "
               "Received: NaN or infinite numbers, this many:")
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(num_odd, 0), [message, num_odd])]):
      return dequantize.quantize(values, self.spec.num_bits)

  def log_prob(self, images, condition=None, noise_seed=None, training=False, labels_are_known=False):
    """Log-probability of each image, `[N]`, in nats; see `dequantize.discrete_log_prob`.

    For an image with the label `UNKNOWN`, its probability is the mean over all classes, unless `labels_are_known`.
    """
    values = self.to_values(images, noise_seed)
    return self._discrete(self.log_density(values, condition, training, labels_are_known))

  def log_prob_of_classes(self, images, condition):
    """`log_prob` of each image in each class, `[N, num_classes]`, whatever labels the condition has."""
    values, condition = self.to_values(images), classes.with_known_labels(self.spec.condition(condition))
    z, log_det = self._pass(values, condition)
    return self._discrete(self._log_density_of_classes(values, z, log_det, condition, tf.constant(True)))

  def log_prob_and_features(self, images, condition, noise_seed=None, training=False):
    """`log_prob`, and each image's features for a classifier of latents, `[N, num_class_features]`, in one pass."""
    z, log_density = self._latents_and_log_density(self.to_values(images, noise_seed), condition, training)
    flow = latent_side_of(self._flow)
    known = classes.with_known_labels(self.spec.condition(condition))
    features = flow.class_features(z, **_taken_by(flow, known))
    return self._discrete(log_density), features

  def log_prob_and_features_of_scales(self, images, condition=None, noise_seed=None, training=False):
    """`log_prob`, and `features_of_scales`, in one pass."""
    log_density, features = self._log_density_and_features(self.to_values(images, noise_seed), condition, training)
    return self._discrete(log_density), features

  def features_of_scales(self, values, condition=None, training=False):
    """Features of dequantized images for a classifier of all scales: a list of tensors `[N, h, w, c]`."""
    return self._log_density_and_features(values, condition, training, needs_log_det=False)[1]

  def log_density(self, values, condition=None, training=False, labels_are_known=False):
    """Log-density of dequantized images, `[N]`, in nats; with `training` a bijector may estimate it more coarsely."""
    if self._flow is None:
      self.spec.condition(condition)
      with precision.of_evaluation(training):
        return self.distribution.log_prob(values)
    return self._latents_and_log_density(values, condition, training, labels_are_known)[1]

  def _latents_and_log_density(self, values, condition, training=False, labels_are_known=False):
    condition = self.spec.condition(condition)
    known = condition if labels_are_known else classes.with_known_labels(condition)
    z, log_det = self._pass(values, known, training)
    with precision.of_evaluation(training):  # The distribution of the latents may have flows, too.
      log_density = self.distribution.distribution.log_prob(z) + log_det
    if "labels" not in condition or labels_are_known:
      return z, log_density
    of_classes = lambda are_needed: self._log_density_of_classes(values, z, log_det, known, are_needed, training)
    return z, classes.with_means_where_unknown(condition["labels"], log_density, of_classes)

  def _log_density_of_classes(self, values, z, log_det, condition, are_needed, training=False):
    """From a pass with known labels to the log-densities `[N, num_classes]` in all classes.

    If they are not needed, they are zeros and take no time.
    """
    base, num_classes, count = self.distribution.distribution, self.spec.num_classes, tf.shape(values)[0]
    context = {key: condition[key] for key in condition.keys() & {"context"}}
    with_context = lambda parts: condition | tf.nest.pack_sequence_as(context, parts)

    def by_latents(z, log_det, *parts):
      flow = latent_side_of(self._flow)
      z, more = classes.relabelled(flow, z, _taken_by(flow, with_context(parts)), num_classes)
      return tf.ensure_shape(base.log_prob(z) + more + log_det[:, tf.newaxis], [None, num_classes])

    def of_class(label, values, *parts):
      z, log_det = self._pass(values, with_context(parts) | {"labels": tf.fill([count], label)}, training)
      return base.log_prob(z) + log_det

    # All these get gradients: users may want those of images, or make contexts by a network of their own.
    parts = tf.nest.flatten(context)
    with precision.of_evaluation(training):
      if classes.act_on_latents_alone(self._flow, z.shape.rank - 1):
        none = tf.zeros([count, num_classes], values.dtype)
        return gradients.only_if(are_needed, by_latents, none, z, log_det, *parts)
      none = tf.zeros([num_classes, count], values.dtype)
      return tf.transpose(gradients.stacked_if(are_needed, of_class, none, values, *parts))

  def _pass(self, values, condition, training=False):
    """Latents of dequantized images, and the log-det `[N]` of each event."""
    with precision.of_evaluation(training):
      z, log_det = self._flow.inverse_and_log_det(values, **_arguments_of(self._flow, values, condition, training))
    return z, tf.reduce_sum(log_det, list(range(1, log_det.shape.rank)))

  def _log_density_and_features(self, values, condition, training, needs_log_det=True):
    *before, flow = self._parts_to_whole_flow()
    condition = self.spec.condition(condition)
    total = 0.
    with precision.of_evaluation(training):
      for part in before:
        arguments = _arguments_of(part, values, _taken_by(part, condition), training)
        values, log_det = part.inverse_and_log_det(values, **arguments)
        total += tf.reduce_sum(log_det, list(range(1, log_det.shape.rank)))
      arguments = _arguments_of(flow, values, _taken_by(flow, condition), training)
      z, log_det, features = flow.inverse_with_features(values, needs_log_det, **arguments)
      return self.distribution.distribution.log_prob(z) + log_det + total, features

  def _parts_to_whole_flow(self):
    """The parts of the flow, from the data to the one that latents enter first, which may be a whole flow."""
    parts = [self._flow]
    while isinstance(parts[-1], Sequence) and not hasattr(parts[-1], "feature_shapes"):
      parts[-1:] = parts[-1].parts
    return parts

  def _discrete(self, log_density):
    return dequantize.discrete_log_prob(log_density, self.num_dims, self.spec.num_bits)

  def bits_per_dim(self, log_prob):
    """Bits per dimension from the nats of `log_prob`."""
    return dequantize.bits_per_dim(log_prob, self.num_dims)

  def encode(self, images, condition=None):
    """Latents `[N, ...]` of images, at the midpoints of their bins."""
    flow, values = self._checked_flow(), self.to_values(images)
    return flow.inverse_and_log_det(values, **_arguments_of(flow, values, self.spec.condition(condition)))[0]

  def decode(self, z, condition=None):
    """Images `[N] + event_shape` of latents `z`."""
    flow = self._checked_flow()
    return self.to_images(flow.forward(z, **_arguments_of(flow, z, self.spec.condition(condition), inverse=False)))

  def _checked_flow(self):
    if self._flow is None:
      raise TypeError("`distribution` must be a `tfd.TransformedDistribution` to have latents. "
                      f"Received: {self.distribution!r}")
    return self._flow

  def checked_temperature(self, temperature):
    """Temperatures, for `sample`, as a tensor.

    Raises:
      ValueError: if they are not as in `Latents.checked_temperature`, or not 1 although there are no latents.
    """
    if self._flow is None:
      return latents.temperature_of_none(temperature, self.distribution)
    return self.latents.checked_temperature(temperature)

  def sample(self, num_samples, temperature, seed, condition=None):
    """New images `[num_samples] + event_shape`. Arguments as in `Latents.sample`, and the condition of each image."""
    if self._flow is None:
      return self.to_images(self.distribution.sample(num_samples, seed=seed))
    return self.decode(self.latents.sample(num_samples, temperature, seed), condition)

  def initialize(self, values, context=None):
    """Data-dependent initialisation of all flows in the distribution, from dequantized images and their contexts."""
    condition = {} if context is None else _arguments_of(self._flow, values, {"context": context})
    flows.initialize(self.distribution, values, condition)

  def sync_trainable(self):
    """Copies the `trainable` of the networks' layers to the variables of all flows."""
    flows.sync_trainable(self._owners)

  def on_trainable_changed(self, follower):
    """Registers a method to be called whenever a variable of a flow in the distribution is frozen or unfrozen."""
    flows.on_trainable_changed(self._owners, follower)

  def check_trainable(self):
    """Raises `ValueError` if `trainable` was set on something of TFP, where it has no effect."""
    flows.check_is_heeded(self.distribution)

  def frozen_indices(self):
    """Indices in `variables` of what is frozen, for a file."""
    frozen = set(map(id, flows.frozen_variables(self._owners, self.variables)))
    return [index for index, variable in enumerate(self.variables) if id(variable) in frozen]

  def freeze(self, indices):
    """Freezes what `frozen_indices` returned."""
    flows.freeze(self._owners, [self.variables[index] for index in indices])

  @property
  def is_initialized(self):
    """Whether all flows have been initialised, as far as they remember."""
    return flows.are_initialized(self.distribution)

  def after_update(self):
    """Brings the state of all bijectors in the distribution up to date after an update of the weights."""
    flows.after_update(self._owners)

  def draw_other_noise(self):
    """Moves estimates of log-dets on to new noise, as after an update."""
    flows.draw_other_noise(self._owners)

  def walk(self, values, condition=None):
    """`OnePassBijector.walk` of dequantized images, through all flows down to the innermost latents.

    It computes in the precision of training, which may be the reason for a failure.
    """
    condition = classes.with_known_labels(self.spec.condition(condition)) | {"training": True}
    distribution = self.distribution
    flow = self._flow
    while flow is not None:
      for name, values, log_det in flow.walk(values, **condition):
        yield name, values, log_det
      distribution, condition = distribution.distribution, {"training": True}
      flow = flows.flow_of(distribution)


def _arguments_of(flow, values, condition, training=False, inverse=True):
  """The arguments of a pass. If one event is several to the flow, they all have the same condition."""
  extra = values.shape.rank - 1 - flow.event_shape_of(inverse).rank
  if extra:
    condition = {key: batching.with_extra_dims(value, extra) for key, value in condition.items()}
  return condition | ({"training": True} if training else {})


def _taken_by(bijector, condition):
  """The entries of a condition that a part of a composition takes, as far as it says so."""
  names = getattr(bijector, "argument_names", condition)
  return {key: value for key, value in condition.items() if key in names}

"""The signatures of a SavedModel: graphs that check their inputs."""

import re

import tensorflow as tf


def signatures(likelihood, class_probabilities=None):
  """The signatures, a `dict` from names to `tf.function`s; see `export_distribution`.

  They call each other, because a pass through the flow is most of a graph and takes time to load.

  Args:
    likelihood: `ImageLikelihood`, built.
    class_probabilities: Callable, from images and a condition to a tensor `[N, num_classes]`; `None`: no such
      signature.
  """
  made = _Signatures(likelihood)
  made.add("log_prob", made.log_prob, made.images("images"))
  if likelihood.has_latents:
    latents = likelihood.latents
    made.add("encode", made.of_images(likelihood.encode, "latent"), made.images("images"))
    made.add("decode", made.decode, tf.TensorSpec([None] + latents.event_shape.as_list(), latents.dtype, "latent"))
    made.add("interpolate", made.interpolate, made.images("first"), made.images("second"),
             tf.TensorSpec([], tf.int32, "num_steps"))
  made.add("sample", made.sample, tf.TensorSpec([], tf.int32, "num_samples"),
           tf.TensorSpec([], tf.float32, "temperature"), tf.TensorSpec([2], tf.int32, "seed"))
  if class_probabilities is not None:
    made.add("class_probabilities", made.of_images(class_probabilities, "class_probabilities"), made.images("images"))
  if likelihood.log_det_estimator is not None:
    made.functions["log_det_estimator"] = tf.function(
        lambda: {"log_det_estimator": tf.constant(likelihood.log_det_estimator)}, input_signature=[], autograph=False)
  return made.functions


class _Signatures:
  """What each signature computes, and the signatures made so far."""

  def __init__(self, likelihood):
    self._likelihood = likelihood
    self._event_shape = likelihood.spec.event_shape.as_list()
    self._condition = _condition_specs(likelihood.spec)
    self.functions = {}

  def images(self, name):
    """The `tf.TensorSpec` of images."""
    return tf.TensorSpec([None] + self._event_shape, self._likelihood.spec.image_dtype, name)

  def add(self, name, function, *specs):
    """Makes a signature of a function of tensors of these specs, and of a condition if the model takes one."""
    of_condition = tf.nest.flatten(self._condition)

    def signature(*tensors):
      own, condition = tensors[:len(specs)], tensors[len(specs):]
      return function(*own, tf.nest.pack_sequence_as(self._condition, condition))

    self.functions[name] = tf.function(signature, input_signature=[*specs, *of_condition], autograph=False)

  def log_prob(self, images, condition):
    condition = self._checked(condition, images)
    nats = self._likelihood.log_prob(images, condition, labels_are_known=True)
    return {"log_prob": nats, "bits_per_dim": self._likelihood.bits_per_dim(nats)}

  def of_images(self, function, name):
    """A function of images and their condition, with its result as the output of that name."""
    return lambda images, condition: {name: function(images, self._checked(condition, images))}

  def decode(self, latent, condition):
    return {"images": self._likelihood.decode(latent, self._checked(condition, latent))}

  def sample(self, num_samples, temperature, seed, condition):
    num_samples = _at_least(0, "num_samples", num_samples)
    if "decode" not in self.functions:
      return {"images": self._likelihood.sample(num_samples, temperature, seed)}
    latent = self._likelihood.latents.sample(num_samples, temperature, seed)
    return {"images": self._call("decode", latent, condition)}

  def interpolate(self, first, second, num_steps, condition):
    num_steps = _at_least(2, "num_steps", num_steps)
    z0, z1 = self._call("encode", first, condition), self._call("encode", second, condition)
    # Without this check, a single image would be paired with all others.
    z0 = _after([tf.debugging.assert_equal(
        tf.shape(z0)[0], tf.shape(z1)[0], "`first` and `second` must have the same number of images.")], z0)
    lines = _lines(z0, z1, num_steps)
    flat = tf.reshape(lines, tf.concat([[-1], tf.shape(lines)[2:]], axis=0))
    repeated = tf.nest.map_structure(lambda tensor: tf.repeat(tensor, num_steps, axis=0), condition)
    images = self._call("decode", flat, repeated)
    return {"images": tf.reshape(images, tf.concat([tf.shape(lines)[:2], self._event_shape], axis=0))}

  def _call(self, name, tensor, condition):
    outputs, = self.functions[name](tensor, *tf.nest.flatten(condition)).values()
    return outputs

  def _checked(self, condition, events):
    """The condition, after a check that there is one for each event: a single one would be used for all."""
    check = lambda tensor, message: _after(
        [tf.debugging.assert_equal(tf.shape(tensor)[:1], tf.shape(events)[:1], message)], tensor)
    messages = {"labels": "`labels` must be one integer for each image.",
                "context": "`context` must be one for each image."}
    return {key: tf.nest.map_structure(lambda tensor, key=key: check(tensor, messages[key]), value)
            for key, value in condition.items()}


def _condition_specs(spec):
  """The condition that a model takes, as `tf.TensorSpec`s."""
  specs = {} if spec.num_classes is None else {"labels": tf.TensorSpec([None], tf.int32, "labels")}
  of_context = lambda shape, name: tf.TensorSpec([None, *shape], spec.dtype, name)
  if isinstance(spec.context_shape, dict):
    # TensorFlow allows only such names for inputs.
    name = lambda key: "context_" + re.sub("[^A-Za-z0-9_]", "_", key)
    specs["context"] = {key: of_context(shape, name(key)) for key, shape in spec.context_shape.items()}
  elif spec.context_shape is not None:
    specs["context"] = of_context(spec.context_shape, "context")
  return specs


def _at_least(minimum, name, number):
  """The number, checked. If it is not a scalar, TensorFlow raises an error where it is first used."""
  is_right = tf.reduce_all(tf.reshape(number, [-1]) >= minimum)
  return _after([tf.debugging.Assert(is_right, [f"`{name}` must be at least {minimum}. Received:", number])], number)


def _after(checks, tensor):
  """The tensor after the checks. What is computed from it cannot fail before them, with another message."""
  with tf.control_dependencies(checks):
    return tf.identity(tensor)


def _lines(z0, z1, num_steps):
  """As `latent.interpolate`, from latents `[N, ...]` to `[N, num_steps, ...]`."""
  steps = tf.reshape(tf.range(num_steps), [-1] + [1] * (z0.shape.rank - 1))
  z0, z1 = tf.expand_dims(z0, 1), tf.expand_dims(z1, 1)
  lines = z0 + tf.cast(steps, z0.dtype) * ((z1 - z0) / tf.cast(num_steps - 1, z0.dtype))
  return tf.where(tf.equal(steps, num_steps - 1), z1, lines)  # The ends are exact to the last bit.

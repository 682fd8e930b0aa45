"""SavedModels: distributions that need nothing but TensorFlow to serve."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow._core import files, gradients
from tfp_glow._core.validation import is_int
from tfp_glow.likelihood.image_likelihood import ImageLikelihood
from tfp_glow.likelihood.standard_normal import with_standard_normal

# What a folder may hold that is taken for a SavedModel, and replaced.
_FILES = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"}
# Where TensorFlow Serving looks for them.
_WARM_UP_REQUESTS = ("assets.extra", "tf_serving_warmup_requests")


def export_distribution(distribution: tfp.distributions.Distribution | tfp.bijectors.Bijector,
                        path: str | os.PathLike, num_bits: int | None = 8,
                        warm_up_batch_sizes: Sequence[int] = ()) -> None:
  """Writes a SavedModel of a distribution over images; `FlowModel.export` does, too.

  Its signatures, and the tensors that they take and return:

  ```none
  log_prob(images) -> log_prob, bits_per_dim            images [N, H, W, C], uint8 (floating for continuous data)
  encode(images) -> latent                              latent [N, H * W * C]
  decode(latent) -> images
  sample(num_samples, temperature, seed) -> images      int32 [], float32 [], int32 [2]
  interpolate(first, second, num_steps) -> images       first, second [N, H, W, C]; int32 [], at least 2;
                                                        images [N, num_steps, H, W, C]
  ```

  `N` may be anything. A class-conditional model takes `labels`, int32 [N], as well; in `interpolate` they are those of
  both images of a pair. `serving_default` is `log_prob`. Images are dequantized at the midpoints of their bins, so that
  answers are deterministic; `log_prob` is in nats per image. `interpolate` goes on the straight lines between latents,
  at equal distances. A distribution without latents (no `tfd.TransformedDistribution`) has `log_prob` and `sample`
  only. One whose bijector estimates log-dets has `log_det_estimator() -> log_det_estimator`, too: a string, says how.

  #### Example

  ```python
  import tempfile
  import tensorflow as tf
  import tfp_glow

  glow = tfp_glow.GlowBijector(output_shape=(8, 8, 1), num_glow_blocks=1, num_steps_per_block=2, num_hidden=8)
  path = tempfile.mkdtemp()
  tfp_glow.export.export_distribution(glow, path)
  signatures = tf.saved_model.load(path).signatures
  signatures["log_prob"](images=tf.zeros([3, 8, 8, 1], tf.uint8))["bits_per_dim"]  # [3]
  ```

  Args:
    distribution: `tfd.Distribution` over one image, e.g. `tfd.TransformedDistribution(base, GlowBijector(...))`; or a
      `tfb.Bijector` that knows the shape of its latents, e.g. `GlowBijector(...)`: these are standard normal then.
    path: Folder to write, `~` for the home folder. It is there when all of it has been written; a SavedModel that was
      there before is replaced.
    num_bits: Python `int`, 1 .. 8, bits kept of the uint8 images; `None`: continuous data.
    warm_up_batch_sizes: Python `int`s: TensorFlow Serving, before it answers anybody, will call each signature with so
      many images, for it is slow at first. Needs the package `tensorflow-serving-api`.

  Raises:
    TypeError: if `path` is no path, or `distribution` is neither a distribution nor a bijector of TFP.
    ValueError: if `distribution` is not over one event, or of latents of unknown shape, or `num_bits` or
      `warm_up_batch_sizes` are not as above.
    FileExistsError: if there is something else than a SavedModel at `path`.
    ImportError: if `warm_up_batch_sizes` are given without `tensorflow-serving-api`.
    OSError: if `path` cannot be written.
  """
  likelihood = ImageLikelihood(with_standard_normal(distribution), num_bits)
  path = _checked_path(path)
  sizes = list(warm_up_batch_sizes) if np.iterable(warm_up_batch_sizes) else [None]
  if not all(map(is_int, sizes)):
    raise ValueError(f"`warm_up_batch_sizes` must be positive `int`s. Received: {warm_up_batch_sizes!r}")
  apis = _import_serving_apis() if sizes else None
  likelihood.build()
  functions = _functions(likelihood)
  try:
    with files.written_as_a_whole(path) as folder:
      tf.io.gfile.makedirs(folder)  # Now, not when all has been traced, if it cannot be.
      _save(likelihood, functions, folder)
      if sizes:
        _write_warm_up_requests(apis, functions, sizes, folder)
  except (tf.errors.OpError, OSError) as error:
    raise OSError(
        f"`path` must be a folder that can be written, but writing it failed: {error}. Received: {path}") from error


def _save(likelihood, functions, folder):
  module = tf.Module()
  # The whole distribution, so that its variables are saved.
  module.variables_ = list(likelihood.distribution.variables)
  with gradients.left_out():  # Here the functions are traced.
    tf.saved_model.save(module, folder, signatures=dict(functions, serving_default=functions["log_prob"]))


def _functions(likelihood):
  """The signatures, by their names. They call each other: a way through the flow is most of a graph, which takes time
  to load.
  """
  event_shape = likelihood.spec.event_shape.as_list()
  spec = lambda shape, dtype, name: tf.TensorSpec(shape, dtype, name=name)
  images_spec = lambda name: spec([None] + event_shape, likelihood.spec.image_dtype, name)
  labels_spec = [] if likelihood.spec.num_classes is None else [spec([None], tf.int32, "labels")]
  functions = {}

  def call(name, tensor, labels):
    outputs, = functions[name](tensor, *[] if labels is None else [labels]).values()
    return outputs

  def log_prob(images, labels=None):
    labels = _checked_labels(labels, images)
    nats = likelihood.log_prob(images, labels)
    return {"log_prob": nats, "bits_per_dim": likelihood.bits_per_dim(nats)}

  def encode(images, labels=None):
    labels = _checked_labels(labels, images)
    return {"latent": likelihood.encode(images, labels)}

  def decode(latent, labels=None):
    labels = _checked_labels(labels, latent)
    return {"images": likelihood.decode(latent, labels)}

  def sample(num_samples, temperature, seed, labels=None):
    num_samples = _at_least(0, "num_samples", num_samples)
    if "decode" not in functions:
      return {"images": likelihood.sample(num_samples, temperature, seed)}
    return {"images": call("decode", likelihood.latents.sample(num_samples, temperature, seed), labels)}

  def interpolate(first, second, num_steps, labels=None):
    num_steps = _at_least(2, "num_steps", num_steps)
    z0, z1 = call("encode", first, labels), call("encode", second, labels)
    # One image would be paired with all of the others.
    z0 = _after([tf.debugging.assert_equal(
        tf.shape(z0)[0], tf.shape(z1)[0], "`first` and `second` must be as many images.")], z0)
    lines = _lines(z0, z1, num_steps)
    flat = tf.reshape(lines, tf.concat([[-1], tf.shape(lines)[2:]], axis=0))
    images = call("decode", flat, None if labels is None else tf.repeat(labels, num_steps))
    return {"images": tf.reshape(images, tf.concat([tf.shape(lines)[:2], event_shape], axis=0))}

  make = lambda function, *specs: tf.function(
      function, input_signature=list(specs) + labels_spec, autograph=False)
  functions["log_prob"] = make(log_prob, images_spec("images"))
  if likelihood.has_latents:
    latents = likelihood.latents
    functions.update(
        encode=make(encode, images_spec("images")),
        decode=make(decode, spec([None] + latents.event_shape.as_list(), latents.dtype, "latent")),
        interpolate=make(interpolate, images_spec("first"), images_spec("second"), spec([], tf.int32, "num_steps")))
  functions["sample"] = make(sample, spec([], tf.int32, "num_samples"), spec([], tf.float32, "temperature"),
                             spec([2], tf.int32, "seed"))
  if likelihood.log_det_estimator is not None:
    functions["log_det_estimator"] = tf.function(
        lambda: {"log_det_estimator": tf.constant(likelihood.log_det_estimator)}, input_signature=[], autograph=False)
  return functions


def _checked_labels(labels, events):
  """Labels that are there only if there are as many as events: elsewhere one would do for all."""
  if labels is None:
    return None
  return _after([tf.debugging.assert_equal(
      tf.shape(labels), tf.shape(events)[:1], "`labels` must be one integer for each image.")], labels)


def _at_least(minimum, name, number):
  """The number, checked; one that is no scalar is left to TensorFlow, which says so of the first thing made of it."""
  is_right = tf.reduce_all(tf.reshape(number, [-1]) >= minimum)
  return _after([tf.debugging.Assert(is_right, [f"`{name}` must be at least {minimum}. Received:", number])], number)


def _after(checks, tensor):
  """The tensor once the checks have passed: what is made of it cannot fail before them, with a message of its own."""
  with tf.control_dependencies(checks):
    return tf.identity(tensor)


def _lines(z0, z1, num_steps):
  """As `latent.interpolate`, from latents `[N, ...]` to `[N, num_steps, ...]`."""
  steps = tf.reshape(tf.range(num_steps), [-1] + [1] * (z0.shape.rank - 1))
  z0, z1 = tf.expand_dims(z0, 1), tf.expand_dims(z1, 1)
  lines = z0 + tf.cast(steps, z0.dtype) * ((z1 - z0) / tf.cast(num_steps - 1, z0.dtype))
  return tf.where(tf.equal(steps, num_steps - 1), z1, lines)  # They end where they should, to the last bit.


def _checked_path(path):
  path, gfile = files.checked_path("path", path), tf.io.gfile
  if gfile.exists(path) and not (
      gfile.isdir(path) and {name.rstrip("/") for name in gfile.listdir(path)} <= _FILES):
    raise FileExistsError("`path` must be a new folder, or an empty one, or a SavedModel with nothing else in its "
                          f"folder, which is then replaced. Received: {path}")
  return path


def _import_serving_apis():
  try:
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
  except ImportError as error:
    raise ImportError('`warm_up_batch_sizes` needs the package tensorflow-serving-api: pip install '
                      f'"tfp_glow[warm_up]". Received: {error}') from error
  return predict_pb2, prediction_log_pb2


def _write_warm_up_requests(apis, functions, sizes, folder):
  """A request to each signature for each number of images; what is in the images does not matter."""
  predict, prediction_log = apis
  numbers = lambda size: {"num_samples": size, "temperature": 1., "num_steps": 2}
  path = os.path.join(folder, *_WARM_UP_REQUESTS)
  tf.io.gfile.makedirs(os.path.dirname(path))
  with tf.io.TFRecordWriter(path) as writer:
    for size in sizes:
      for name, function in functions.items():
        request = predict.PredictRequest()
        request.model_spec.signature_name = name
        for spec in function.input_signature:
          shape = [size if length is None else length for length in spec.shape]
          value = np.full(shape, numbers(size).get(spec.name, 0), spec.dtype.as_numpy_dtype)
          request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(value))
        log = prediction_log.PredictionLog(predict_log=prediction_log.PredictLog(request=request))
        writer.write(log.SerializeToString())

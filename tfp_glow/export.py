"""SavedModel signatures: a trained distribution that needs nothing but TensorFlow to serve."""

import tensorflow as tf


def save_signatures(codec, path):
  """Writes a SavedModel with the signatures `log_prob`, `encode`, `decode` and `sample`.

  ```none
  log_prob(images) -> log_prob, bits_per_dim      images [N, H, W, C], uint8 (floating for continuous data)
  encode(images) -> latent                        latent [N, H * W * C]
  decode(latent) -> images
  sample(num_samples, temperature, seed) -> images     int32 [], float32 [], int32 [2]
  ```

  A class-conditional model takes `labels`, int32 [N], as well. `serving_default` is `log_prob`. Images are dequantized
  at the midpoints of their bins, so that answers are deterministic; `log_prob` is in nats per image.

  Args:
    codec: `Codec`.
    path: Folder to write.
  """
  module = tf.Module()
  # The whole distribution, so that its variables are saved; it holds no reference to the functions.
  module.variables_ = list(codec.distribution.variables)
  functions = _functions(codec)
  module.functions = functions
  signatures = dict(functions, serving_default=functions["log_prob"])
  tf.saved_model.save(module, str(path), signatures=signatures)


def _functions(codec):
  spec = lambda shape, dtype, name: tf.TensorSpec(shape, dtype, name=name)
  images_spec = spec([None] + codec.event_shape.as_list(), codec.image_dtype, "images")
  labels_spec = [] if codec.num_classes is None else [spec([None], tf.int32, "labels")]

  def log_prob(images, labels=None):
    nats = codec.log_prob(images, labels)
    return {"log_prob": nats, "bits_per_dim": codec.bits_per_dim(nats)}

  def encode(images, labels=None):
    return {"latent": codec.encode(images, labels)}

  def decode(latent, labels=None):
    return {"images": codec.decode(latent, labels)}

  def sample(num_samples, temperature, seed, labels=None):
    return {"images": codec.sample(num_samples, temperature, seed, labels)}

  make = lambda function, *specs: tf.function(
      function, input_signature=list(specs) + labels_spec, autograph=False)
  functions = {"log_prob": make(log_prob, images_spec)}
  if hasattr(codec.distribution, "bijector"):
    base = codec.distribution.distribution
    latent_spec = spec([None] + base.event_shape.as_list(), base.dtype, "latent")
    functions.update(encode=make(encode, images_spec), decode=make(decode, latent_spec))
  functions["sample"] = make(sample, spec([], tf.int32, "num_samples"), spec([], tf.float32, "temperature"),
                             spec([2], tf.int32, "seed"))
  return functions

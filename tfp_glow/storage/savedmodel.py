"""SavedModels: distributions that need nothing but TensorFlow to serve."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow._core import files, gradients, precision
from tfp_glow._core.validation import check_bools, is_int
from tfp_glow.likelihood.image_likelihood import ImageLikelihood
from tfp_glow.likelihood.standard_normal import with_standard_normal
from tfp_glow.storage import warm_up
from tfp_glow.storage.signatures import signatures

# What a folder may hold that is taken for a SavedModel, and replaced.
_FILES = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"}


def export_distribution(distribution: tfp.distributions.Distribution | tfp.bijectors.Bijector,
                        path: str | os.PathLike, num_bits: int | None = 8,
                        warm_up_batch_sizes: Sequence[int] = (), *, for_lite: bool = False) -> None:
  """Writes a SavedModel of a distribution over images; `FlowModel.export` does, too.

  Its signatures, and the tensors that they take and return:

  ```none
  log_prob(images) -> log_prob, bits_per_dim            images [N, H, W, C], uint8; of more than 8 bits uint16,
                                                        for continuous data floating
  encode(images) -> latent                              latent [N, H * W * C]
  decode(latent) -> images
  sample(num_samples, temperature, seed) -> images      int32 [], float32 [], int32 [2]
  interpolate(first, second, num_steps) -> images       first, second [N, H, W, C]; int32 [], at least 2;
                                                        images [N, num_steps, H, W, C]
  ```

  `N` may be anything. A class-conditional model takes `labels`, int32 [N], as well, a conditional one `context`, of the
  dtype of its flow, [N] + context_shape; of a dict of contexts each is an input, `context_` and its name, with `_` for
  all that is no letter or digit. In `interpolate` they are those of both images of a pair, in `sample` there is one for
  each sample. `serving_default` is `log_prob`. Images are dequantized at the midpoints of their bins, so that answers
  are deterministic; `log_prob` is in nats per image. `interpolate` goes on the straight lines between latents, at equal
  distances. A distribution without latents (no `tfd.TransformedDistribution`) has `log_prob` and `sample` only. One
  whose bijector estimates log-dets has `log_det_estimator() -> log_det_estimator`, too: a string, says how.

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
    num_bits: Python `int`, 1 .. 8, bits kept of uint8 images, or 9 .. 16, those of uint16 images; `None`: continuous
      data. As of `FlowModel`.
    warm_up_batch_sizes: Python `int`s: the first calls of a signature are slow. TensorFlow Serving makes them itself,
      with these numbers of images, before it answers requests. Needs the package `tensorflow-serving-api`.
    for_lite: Python `bool`: whether `log_prob`, `encode` and `decode` of a float32 Glow, of images or of vectors, or of
      a composition of its layers, are made of operations that TensorFlow Lite has itself, so that its converter needs
      no others. What depends on data is in float32 throughout; else the flow's own products are in float64.
      docs/serving.md has the conversion, and says which flows it takes.

  Raises:
    TypeError: if `path` is no path, or `distribution` is neither a distribution nor a bijector of TFP.
    ValueError: if `distribution` is not over one event, or of latents of unknown shape, or `num_bits`,
      `warm_up_batch_sizes` or `for_lite` are not as above, or `for_lite` is given with a flow of which TensorFlow Lite
      has no operations: one in float64, or one that estimates log-dets.
    FileExistsError: if there is something else than a SavedModel at `path`.
    ImportError: if `warm_up_batch_sizes` are given without `tensorflow-serving-api`.
    OSError: if `path` cannot be written.
  """
  export(ImageLikelihood(with_standard_normal(distribution), num_bits), path, warm_up_batch_sizes, for_lite)


def export(likelihood, path, warm_up_batch_sizes, for_lite, class_probabilities=None, variables=()):
  """As `export_distribution`, of an `ImageLikelihood`, and of a classifier if there is one.

  Args:
    likelihood: `ImageLikelihood`.
    path: As of `export_distribution`.
    warm_up_batch_sizes: As of `export_distribution`.
    for_lite: As of `export_distribution`.
    class_probabilities: Callable, from images and a condition to a tensor `[N, num_classes]`; `None`: there is no
      classifier.
    variables: List of `tf.Variable`s of the classifier.
  """
  path = _checked_path(path)
  check_bools(for_lite=for_lite)
  if for_lite:
    _check_has_lite_operations(likelihood)
  sizes = list(warm_up_batch_sizes) if np.iterable(warm_up_batch_sizes) else [None]
  if not all(map(is_int, sizes)):
    raise ValueError(f"`warm_up_batch_sizes` must be positive `int`s. Received: {warm_up_batch_sizes!r}")
  apis = warm_up.import_serving_apis() if sizes else None
  likelihood.build()
  functions = signatures(likelihood, class_probabilities)
  try:
    with files.written_as_a_whole(path) as folder:
      tf.io.gfile.makedirs(folder)  # Now, not when all has been traced, if it cannot be.
      _save([*likelihood.distribution.variables, *variables], functions, folder, for_lite)
      if sizes:
        warm_up.write_requests(apis, functions, sizes, folder)
  except (tf.errors.OpError, OSError) as error:
    raise OSError(
        f"`path` must be a folder that can be written, but writing it failed: {error}. Received: {path}") from error


def _save(variables, functions, folder, for_lite):
  module = tf.Module()
  module.variables_ = variables
  with gradients.left_out(), precision.for_other_processes(for_lite):  # Here the functions are traced.
    tf.saved_model.save(module, folder, signatures=dict(functions, serving_default=functions["log_prob"]))


def _check_has_lite_operations(likelihood):
  if likelihood.spec.dtype != tf.float32:
    raise ValueError("`for_lite` must be False for a distribution that is not in float32: TensorFlow Lite has no "
                     f"products in others. Received: for_lite=True, {likelihood.distribution!r}")
  estimated = [part for part in likelihood.distribution.submodules if getattr(part, "is_stochastic", False)]
  if estimated:
    raise ValueError("`for_lite` must be False for a bijector that estimates log-dets, as residual flows do: "
                     f"TensorFlow Lite does not have its random numbers. Received: for_lite=True, {estimated[0]!r}")


def _checked_path(path):
  path, gfile = files.checked_path("path", path), tf.io.gfile
  if gfile.exists(path) and not (
      gfile.isdir(path) and {name.rstrip("/") for name in gfile.listdir(path)} <= _FILES):
    raise FileExistsError("`path` must be a new folder, or an empty one, or a SavedModel with nothing else in its "
                          f"folder, which is then replaced. Received: {path}")
  return path

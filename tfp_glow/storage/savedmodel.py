"""SavedModels: distributions that only need TensorFlow to serve."""

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

# A folder that holds nothing else counts as a SavedModel, and is replaced.
_FILES = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"}


def export_distribution(distribution: tfp.distributions.Distribution | tfp.bijectors.Bijector,
                        path: str | os.PathLike, num_bits: int | None = 8,
                        warm_up_batch_sizes: Sequence[int] = (), *, for_lite: bool = False) -> None:
  """Writes a SavedModel of a distribution over images, as `FlowModel.export` does.

  Its signatures, with the tensors that they take and return:

  ```none
  log_prob(images) -> log_prob, bits_per_dim            images [N, H, W, C], uint8; uint16 if of more than 8 bits,
                                                        floating for continuous data
  encode(images) -> latent                              latent [N, H * W * C]
  decode(latent) -> images
  sample(num_samples, temperature, seed) -> images      int32 [], float32 [], int32 [2]
  interpolate(first, second, num_steps) -> images       first, second [N, H, W, C]; int32 [], at least 2;
                                                        images [N, num_steps, H, W, C]
  ```

  `N` may be any number. A class-conditional model also takes `labels`, int32 [N]. A conditional model also takes
  `context`, [N] + context_shape, in the dtype of its flow. If contexts are a dict, each is an input with the name
  `context_` and the key, with `_` for every character that is not a letter or digit. In `interpolate`, labels and
  contexts apply to both images of a pair; in `sample`, there is one for each sample.

  `serving_default` is `log_prob`, in nats per image. Images are dequantized at the midpoints of their bins, so results
  are deterministic. `interpolate` follows straight lines between latents, in equal steps. A distribution without
  latents (not a `tfd.TransformedDistribution`) has `log_prob` and `sample` only. If the bijector estimates log-dets,
  there is also `log_det_estimator() -> log_det_estimator`, a string that names the estimator.

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
      `tfb.Bijector` that knows the shape of its latents, e.g. `GlowBijector(...)`. With a bijector, the latents are
      standard normal.
    path: Folder to write; `~` is the home folder. It appears when all files have been written, and then replaces an
      earlier SavedModel.
    num_bits: Python `int`, as in `FlowModel`. 1 .. 8: bits to keep of uint8 images. 9 .. 16: bits of uint16 images.
      `None`: continuous data.
    warm_up_batch_sizes: Python `int`s, numbers of images. The first calls of a signature are slow: TensorFlow Serving
      makes calls of these sizes itself before it answers requests. Needs the package `tensorflow-serving-api`.
    for_lite: Python `bool`: whether to make `log_prob`, `encode` and `decode` of TensorFlow Lite's own operations only,
      so that its converter needs no others. The flow must be a float32 Glow of images or vectors, or a composition of
      its layers. All that depends on data is then computed in float32; otherwise the flow's own products are in
      float64. docs/lite.md shows the conversion, and says which flows it supports.

  Raises:
    TypeError: if `path` is not a path, or `distribution` is neither a distribution nor a bijector of TFP.
    ValueError: if `distribution` is not over one event, the shape of its latents is unknown, `num_bits`,
      `warm_up_batch_sizes` or `for_lite` are not as above, or `for_lite` is given with a flow for which TensorFlow Lite
      lacks operations: one in float64, or one that estimates log-dets.
    FileExistsError: if something other than a SavedModel is at `path`.
    ImportError: if `warm_up_batch_sizes` are given without `tensorflow-serving-api`.
    OSError: if `path` cannot be written.
  """
  export(ImageLikelihood(with_standard_normal(distribution), num_bits), path, warm_up_batch_sizes, for_lite)


def export(likelihood, path, warm_up_batch_sizes, for_lite, class_probabilities=None, variables=()):
  """As `export_distribution`, for an `ImageLikelihood`, and a classifier if there is one.

  Args:
    likelihood: `ImageLikelihood`.
    path: As in `export_distribution`.
    warm_up_batch_sizes: As in `export_distribution`.
    for_lite: As in `export_distribution`.
    class_probabilities: Callable, from images and a condition to a tensor `[N, num_classes]`; `None`: no classifier.
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
      tf.io.gfile.makedirs(folder)  # If this fails, it fails now, not after tracing.
      _save([*likelihood.distribution.variables, *variables], functions, folder, for_lite)
      if sizes:
        warm_up.write_requests(apis, functions, sizes, folder)
  except (tf.errors.OpError, OSError) as error:
    raise OSError(
        f"`path` must be a folder that can be written, but writing it failed: {error}. Received: {path}") from error


def _save(variables, functions, folder, for_lite):
  module = tf.Module()
  module.variables_ = variables
  with gradients.left_out(), precision.for_other_processes(for_lite):  # The functions are traced here.
    tf.saved_model.save(module, folder, signatures=dict(functions, serving_default=functions["log_prob"]))


def _check_has_lite_operations(likelihood):
  if likelihood.spec.dtype != tf.float32:
    raise ValueError("`for_lite` must be False for a distribution that is not in float32: TensorFlow Lite has no "
                     f"products in other dtypes. Received: for_lite=True, {likelihood.distribution!r}")
  estimated = [part for part in likelihood.distribution.submodules if getattr(part, "is_stochastic", False)]
  if estimated:
    raise ValueError("`for_lite` must be False for a bijector that estimates log-dets, as residual flows do: "
                     f"TensorFlow Lite does not have their random numbers. Received: for_lite=True, {estimated[0]!r}")


def _checked_path(path):
  path, gfile = files.checked_path("path", path), tf.io.gfile
  if gfile.exists(path) and not (
      gfile.isdir(path) and {name.rstrip("/") for name in gfile.listdir(path)} <= _FILES):
    raise FileExistsError("`path` must be a new or empty folder, or one with a SavedModel and nothing else in it, "
                          f"which is then replaced. Received: {path}")
  return path

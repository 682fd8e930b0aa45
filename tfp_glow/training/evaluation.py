"""Bits per dimension, more exact than those of `FlowModel.evaluate`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import scipy.special
import tensorflow as tf

from tfp_glow._core.validation import is_int
from tfp_glow.likelihood import dequantize, flows
from tfp_glow.likelihood.image_likelihood import ImageLikelihood
from tfp_glow.training import batches, sources
from tfp_glow.training.model import FlowModel


class BitsPerDim(NamedTuple):
  """The result of `bits_per_dim`.

  Attributes:
    per_image: NumPy float64 array `[N]`, in the order of the data.
    mean: Python `float`, over the images.
    standard_error: Python `float`, of that mean as an estimate for other images from the same source:
      `std(per_image, ddof=1) / sqrt(N)`. NaN for a single image.
    estimate_error: Python `float`, the standard error of the mean for these images because log-dets are estimated:
      `std(means, ddof=1) / sqrt(num_estimates)`, where each draw has one of the `means`. 0 if log-dets are exact, NaN
      for a single draw.
  """
  per_image: np.ndarray
  mean: float
  standard_error: float
  estimate_error: float


def bits_per_dim(model: FlowModel, x: Any, y: tf.Tensor | np.ndarray | None = None, batch_size: int | None = None, *,
                 num_noise_samples: int = 1, importance_weighted: bool = False, seed: int = 0, verbose: int = 1,
                 num_estimates: int = 1) -> BitsPerDim:
  """Upper bounds of the bits per dimension of discrete images.

  The probability of a uint8 or uint16 image is the integral of the model's density over the image's bin. That is the
  expectation of `p(u) = density(image + u)` over uniform noise `u` (in units in which a bin has volume 1). With `K`
  draws of the noise,

  ```none
  average:               -1/K sum_k log2 p(u_k) / D                 what `evaluate` computes, with less noise
  importance-weighted:   -log2 (1/K sum_k p(u_k)) / D
  ```

  both are bounds in expectation. The second is never above the first, falls as `K` grows, and tends to the exact value.

  If log-dets are estimated, as in residual flows, the average is also such a bound over the noise of the estimates.
  That noise is fixed until the next update of the weights. All batches share it, and the standard error over images
  hardly shows it. With `num_estimates` it is drawn anew; the result is the mean over the draws, with its error.

  #### Example

  ```python
  import tfp_glow

  images = tfp_glow.data.load_images("digits", "test", batch_size=64)
  glow = tfp_glow.GlowBijector(output_shape=(8, 8, 1), num_glow_blocks=2, num_steps_per_block=4, num_hidden=32)
  model = tfp_glow.FlowModel(glow, num_bits=4)
  found = tfp_glow.evaluation.bits_per_dim(model, images, num_noise_samples=4, importance_weighted=True)
  print(f"{found.mean:.3f} +- {found.standard_error:.3f} bits per dimension")
  ```

  Args:
    model: `FlowModel`; it need not be compiled.
    x: As in `FlowModel.evaluate`: images, or a dict of images, labels and contexts, as arrays or in a `tf.data.Dataset`
      of batches. A label of -1 means an unknown class.
    y: As in `FlowModel.evaluate`: labels, if `x` is an array and the model is class-conditional, or a dict of labels
      and contexts.
    batch_size: Python `int`, if `x` holds arrays; `None`: 32. It changes only time, memory, and the noise of estimated
      log-dets.
    num_noise_samples: Python `int`, the draws `K` of the dequantization noise; 1 for continuous data, which get none.
    importance_weighted: Python `bool`: whether to compute the second bound. It must be `False` if log-dets are
      estimated: the second bound would count their noise as probability.
    seed: Python `int` of the noise, which is a function of the seed and the image. With the model's seed, the first
      draw is that of `evaluate` and `predict`.
    verbose: 0 (silent), 1 (progress bar), or 2 (one line), as in `evaluate`.
    num_estimates: Python `int`, draws of the noise of estimated log-dets; the first is that of `evaluate` and
      `predict`. 1 if log-dets are exact.

  Returns:
    `BitsPerDim`. An image with zero probability takes infinitely many bits.

  Raises:
    TypeError: if `model` is not a `FlowModel`, or the dtype of images, labels or contexts does not fit.
    ValueError: if `x` is empty, endless or does not fit, or another argument is not as above.
    FloatingPointError: if a bound is NaN.

  References:
    Theis et al., "A note on the evaluation of generative models" (2015), on dequantization.
    Burda et al., "Importance weighted autoencoders" (2015), on the tighter bound.
  """
  if not isinstance(model, FlowModel):
    raise TypeError(f"`model` must be a `FlowModel`. Received: {model!r}")
  likelihood = ImageLikelihood(model.distribution, model.num_bits)
  _check_arguments(likelihood, num_noise_samples, importance_weighted, seed, num_estimates)
  batches.check_data(likelihood.spec, x, y, batch_size, {})
  drawn, num_batches = sources.source_of(x, y, batch_size).batches()
  is_noisy = likelihood.spec.num_bits is not None
  seeds = [(seed, dequantize.EVALUATION - k) if is_noisy else None for k in range(num_noise_samples)]
  progress = keras.utils.Progbar(num_batches, verbose=verbose, stateful_metrics=["bits_per_dim"])
  bounds = []
  for batch in drawn:
    images, condition = batches.unpack(batch)
    condition = likelihood.spec.taken(condition)
    of_each = [_bounds(model, likelihood, images, condition, seeds, importance_weighted, draw)
               for draw in range(num_estimates)]
    bounds.append(np.stack(of_each))
    progress.add(1, [("bits_per_dim", np.concatenate(bounds, 1).mean())] if len(images) else [])
  if num_batches is None:
    progress.update(len(bounds), finalize=True)
  bounds = np.concatenate(bounds or [np.zeros([1, 0])], axis=1)
  return _summary(bounds.mean(axis=0), _estimate_error(bounds.mean(axis=1), likelihood) if bounds.size else 0., x)


def _bounds(model, likelihood, images, condition, seeds, importance_weighted, draw):
  """Bounds of each image of a batch, `[N]`, from one draw of the estimates' noise."""
  with flows.other_estimates(model.distribution, draw):
    log_probs = np.stack([model.log_prob(images, noise_seed=seed, **condition) for seed in seeds]).astype(np.float64)
  log_prob = _log_mean_exp(log_probs) if importance_weighted else log_probs.mean(axis=0)
  return _checked(dequantize.bits_per_dim(log_prob, likelihood.num_dims))


def _estimate_error(means, likelihood):
  """Standard error of the mean of `means`, which has one entry for each draw."""
  if _is_exact(likelihood):
    return 0.
  return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan


def _is_exact(likelihood):
  return likelihood.log_det_estimator in (None, "exact")


def _log_mean_exp(log_probs):
  return scipy.special.logsumexp(log_probs, axis=0) - math.log(len(log_probs))


def _checked(bounds):
  is_nan = np.isnan(bounds)
  if is_nan.any():
    raise FloatingPointError("Bits per dimension must not be NaN. Training may have diverged. "
                             f"Received: NaN for {np.count_nonzero(is_nan)} of {len(bounds)} images")
  return bounds


def _summary(per_image, estimate_error, x):
  if not len(per_image):
    raise ValueError(f"`x` must hold at least one image. Received: {x!r}")
  num_images = len(per_image)
  if num_images < 2:
    return BitsPerDim(per_image, float(per_image.mean()), math.nan, estimate_error)
  with np.errstate(invalid="ignore"):  # It is NaN if there are infinite values.
    standard_error = float(per_image.std(ddof=1) / math.sqrt(num_images))
  return BitsPerDim(per_image, float(per_image.mean()), standard_error, estimate_error)


def _check_arguments(likelihood, num_noise_samples, importance_weighted, seed, num_estimates):
  if importance_weighted and not _is_exact(likelihood):
    raise ValueError("`importance_weighted` must be False where log-dets are estimated: their noise would count as "
                     f"probability. Received: True, with {likelihood.log_det_estimator}")
  for name, value, minimum in (("num_noise_samples", num_noise_samples, 1), ("seed", seed, 0),
                               ("num_estimates", num_estimates, 1)):
    if not is_int(value, minimum, 2**31):
      raise ValueError(f"`{name}` must be an `int` of at least {minimum} and below 2**31. Received: {value!r}")
  if likelihood.spec.num_bits is None and num_noise_samples != 1:
    raise ValueError("`num_noise_samples` must be 1 for continuous data, which are not dequantized. "
                     f"Received: {num_noise_samples}")
  if _is_exact(likelihood) and num_estimates != 1:
    raise ValueError("`num_estimates` must be 1 where log-dets are exact: there is nothing to draw. "
                     f"Received: {num_estimates}")

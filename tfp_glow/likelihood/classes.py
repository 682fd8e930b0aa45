"""Images of unknown class: their density is the mean of the densities under all classes."""

import math

import tensorflow as tf

from tfp_glow.bijectors.composition import Sequence, latent_side_of
from tfp_glow.likelihood.image_spec import UNKNOWN


def with_known_labels(condition):
  """A condition (see `ImageSpec.condition`) with class 0 in place of unknown classes, for a first pass."""
  if "labels" not in condition:
    return condition
  labels = condition["labels"]
  return condition | {"labels": tf.where(tf.equal(labels, UNKNOWN), 0, labels)}


def with_means_where_unknown(labels, log_density, of_classes):
  """Replaces the log-densities of images of unknown class by `logsumexp_k(of_classes) - log(num_classes)`.

  Args:
    labels: int32 tensor `[N]`, or a scalar for all images.
    log_density: Tensor `[N]`, with these labels.
    of_classes: Callable, from a bool scalar (whether the result is needed) to a tensor `[N, num_classes]`.

  Returns:
    Tensor `[N]`.
  """
  is_unknown = tf.equal(labels, UNKNOWN)
  found = of_classes(tf.reduce_any(is_unknown))
  means = tf.reduce_logsumexp(found, axis=-1) - math.log(found.shape[-1])
  return tf.where(is_unknown, means, log_density)


def act_on_latents_alone(flow, latent_rank):
  """Whether classes act only on the latents, in the last part of `inverse`, so that no class needs another pass.

  Args:
    flow: `OnePassBijector`, class-conditional.
    latent_rank: Python `int`, the rank of one latent.
  """
  last = latent_side_of(flow)
  return (hasattr(last, "relabelled") and last.forward_min_event_ndims == latent_rank
          and all(part.num_classes is None for part in _before_latent_side(flow)))


def _before_latent_side(flow):
  """The parts of a composition other than the one that latents enter first."""
  if not isinstance(flow, Sequence) or hasattr(flow, "split_latent"):
    return []
  *before, last = flow.parts
  return before + _before_latent_side(last)


def relabelled(flow, z, condition, num_classes):
  """Latents of the same images in each class, and the change of the log-det.

  Args:
    flow: Bijector with a method `relabelled`.
    z: Tensor `[N] + event_shape`, the latents under the condition.
    condition: See `ImageSpec.condition`; its labels are known.
    num_classes: Python `int`.

  Returns:
    z: Tensor `[N, num_classes] + event_shape`.
    log_det: Tensor `[N, num_classes]`.
  """
  count = tf.shape(z)[0]
  condition = condition | {"labels": tf.broadcast_to(condition["labels"], [count])}
  return flow.relabelled(z, new_labels=tf.broadcast_to(tf.range(num_classes), [count, num_classes]), **condition)

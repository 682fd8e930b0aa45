"""`WholeFlow`, the base class of whole flows from latents to data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat
from tfp_glow._core.numerics import at_least_one
from tfp_glow.bijectors import contexts
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.networks import elsewhere


class WholeFlow(OnePassBijector):
  """A flow that makes all its variables at the start, and remembers whether it was initialised.

  Its latent is one vector of the parts that left on the way, one after the other. `_latent_shapes` of a subclass has
  their shapes.
  """

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self._initialized = self._add_variable("initialized", tf.constant(False), trainable=False)

  # Until `_take_context`.
  _own_context_shapes = None
  _context_features = None

  def _take_context(self, shapes, features):
    """Makes calls take a context.

    Args:
      shapes: From `contexts.checked_context_shape`, not `None`.
      features: `ContextFeatures`.
    """
    self._own_context_shapes = _compat.untracked(self, shapes)
    self._context_features = _compat.untracked(self, features)
    self._adopt(features.variables)

  def _layers(self):
    network = None if self._context_features is None else self._context_features.network
    return super()._layers() + ([] if network is None else [network])

  @property
  def context_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    return contexts.as_public(self._own_context_shapes)

  @property
  def argument_names(self) -> frozenset[str]:
    return super().argument_names | ({"context"} if self._own_context_shapes is not None else set())

  def _depends_on_variables_only(self):
    network = None if self._context_features is None else self._context_features.network
    return super()._depends_on_variables_only() and (network is None or not elsewhere.is_read_by(network))

  def mark_initialized(self) -> None:
    self._initialized.assign(True)

  def __repr__(self):
    """Shows the architecture: arguments that differ from their defaults, shapes, and number of parameters."""
    signature = inspect.signature(type(self).__init__).parameters
    given = [f"{key}={value!r}" for key, value in self.parameters.items()
             if key in signature and key not in ("name", "dtype") and value is not signature[key].default]
    count = sum(math.prod(v.shape) for v in self.variables if _compat.was_made_trainable(v))
    shapes = [tuple(self.event_shape_of(inverse)) for inverse in (True, False)]
    return (f"<{type(self).__name__} {self.name!r}: {', '.join(given)}; {shapes[0]} to {shapes[1]}, "
            f"{count:,} parameters, {self.dtype.name}>")

  @property
  def built(self) -> bool:
    """`True`: all variables exist from the start, unlike those of a single coupling, which its first call makes."""
    return True

  @property
  def initialized(self) -> bool:
    """Whether `initialize` was called, or trained weights were restored: a Python `bool`, saved in checkpoints."""
    return bool(self._initialized.numpy())

  def split_latent(self, z: tf.Tensor | np.ndarray) -> list[tf.Tensor]:
    """Splits the latent vector into its parts, which are images if the data are images.

    Args:
      z: Tensor `[..., H * W * C]`.

    Returns:
      List of tensors `[..., h, w, c]`, in the order in which they leave; the last is the top latent.

    Raises:
      ValueError: if the shape of `z` does not fit.
    """
    z = self._convert(z, "z", inverse=False)
    shapes = self._latent_shapes()
    parts = tf.split(z, [shape.num_elements() for shape in shapes], axis=-1)
    return [tf.reshape(part, tf.concat([tf.shape(z)[:-1], shape], axis=0)) for part, shape in zip(parts, shapes)]

  def join_latent(self, parts: Sequence[tf.Tensor | np.ndarray]) -> tf.Tensor:
    """The inverse of `split_latent`.

    Args:
      parts: List of tensors `[..., h, w, c]`, as `split_latent` returns it.

    Returns:
      z: Tensor `[..., H * W * C]`.

    Raises:
      ValueError: if the number or the shapes of `parts` do not fit.
    """
    shapes = self._latent_shapes()
    parts = [tf.convert_to_tensor(part, self.dtype) for part in parts]
    if len(parts) != len(shapes) or any(not shape.is_compatible_with(part.shape[-shape.rank:])
                                        for part, shape in zip(parts, shapes)):
      raise ValueError(f"`parts` must have the shapes {[[...] + shape.as_list() for shape in shapes]}. "
                       f"Received: {[part.shape for part in parts]}")
    return tf.concat([tf.reshape(part, tf.concat([tf.shape(part)[:-shape.rank], [shape.num_elements()]], axis=0))
                      for part, shape in zip(parts, shapes)], axis=-1)

  @property
  def feature_shapes(self) -> list[tuple[int, int, int]]:
    """Shapes `(h, w, c)` of the features of `inverse_with_features`, one for each scale; empty for flows of vectors."""
    return [tuple(shape) for shape in self._feature_shapes() if shape.rank == 3]

  def inverse_with_features(self, y: tf.Tensor | np.ndarray, needs_log_det: bool = True,
                            **kwargs: Any) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """`inverse_and_log_det`, and features for a classifier, in one pass.

    Args:
      y: Tensor `[N] + event_shape`.
      needs_log_det: Python `bool`; `False`: log-dets that take longer than the values are left out, and the returned
        `log_det` is meaningless.
      **kwargs: As in `inverse_and_log_det`.

    Returns:
      x: Tensor `[N, D]`, the latent.
      log_det: `log |det dx/dy|` in nats, `[N]`.
      features: List of tensors `[N, h, w, c]`, one for each scale, of the shapes `feature_shapes`: the latents that
        leave there, or, if nothing leaves before the end, the activations after each scale.

    Raises:
      ValueError: if the shape of `y`, or that of an argument, does not fit.
      TypeError: if `y` is a tensor whose dtype is not the bijector's.
    """
    y = self._convert(y, "y", inverse=True)
    if y.shape.rank != 1 + self.inverse_min_event_ndims:
      raise ValueError(f"`y` of `{self.name}.inverse_with_features` must have one batch dimension. Received: {y.shape}")
    arguments = self._flat_arguments(y, kwargs)
    if not needs_log_det and self.has_costly_log_det:
      arguments["needs_log_det"] = False
    arguments = {key: value if isinstance(value, bool) else tf.nest.map_structure(at_least_one, value)
                 for key, value in arguments.items()}
    with self._scope_of("inverse_with_features"), self._precision_of(kwargs):
      x, log_det, features = self._inverse_with_features(at_least_one(y), **arguments)
      log_det = tf.broadcast_to(log_det, tf.shape(x)[:1])
      return (x, log_det, features) if y.shape[0] else tf.nest.map_structure(
          lambda tensor: tensor[:tf.shape(y)[0]], (x, log_det, features))

  def _inverse_with_features(self, y, **kwargs):
    x, log_det = self._inverse_and_log_det(y, **kwargs)
    return x, log_det, self.split_latent(x)

  def _latent_shapes(self) -> list[tf.TensorShape]:
    """The shapes of the parts that `split_latent` returns."""
    raise NotImplementedError

  def _feature_shapes(self):
    return self._latent_shapes()

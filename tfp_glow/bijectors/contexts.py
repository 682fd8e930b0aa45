"""Checks and conversions of `context`, what a conditional flow is given besides its inputs."""

from __future__ import annotations

from collections import abc

import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import is_int


def checked_context_shape(context_shape):
  """The shape of one context, or a dict of them, as `tf.TensorShape`s; `None` for `None`.

  Args:
    context_shape: `None`, `(D,)`, `(h, w, c)`, or a dict from names to such shapes.

  Raises:
    ValueError: if it is something else.
  """
  if context_shape is None:
    return None
  parts = dict(context_shape) if isinstance(context_shape, abc.Mapping) else {"": context_shape}
  shapes = {name: _shape_of(shape) for name, shape in parts.items()}
  if not shapes or not all(isinstance(name, str) for name in shapes) or None in shapes.values():
    raise ValueError("`context_shape` must be (D,) or (h, w, c), positive `int`s, or a dict from names to such shapes. "
                     f"Received: {context_shape!r}")
  return shapes if isinstance(context_shape, abc.Mapping) else shapes[""]


def _shape_of(shape):
  sizes = shape.as_list() if isinstance(shape, tf.TensorShape) and shape.rank is not None else shape
  is_shape = isinstance(sizes, (abc.Sequence, np.ndarray)) and len(sizes) in (1, 3) and all(map(is_int, sizes))
  return tf.TensorShape([int(size) for size in sizes]) if is_shape else None


def as_public(shapes):
  """The result of `checked_context_shape` with tuples of Python `int`s instead of `tf.TensorShape`s."""
  if isinstance(shapes, abc.Mapping):
    return {name: tuple(shape) for name, shape in shapes.items()}
  return None if shapes is None else tuple(shapes)


def converted(context, shapes, dtype, name):
  """The argument `context` as a tensor of dtype `dtype`, or a dict of them.

  Args:
    context: Tensor, array or the like, or a dict of them.
    shapes: From `checked_context_shape`, not `None`.
    dtype: `tf.DType`.
    name: Python `str`, the name of the bijector.

  Raises:
    TypeError: if it holds a tensor of another dtype.
    ValueError: if it is `None`, or not a dict with the keys of `shapes`, or a dict although `shapes` is one shape.
  """
  if context is None:
    raise ValueError(
        f"`context` of `{name}` must be given, as `bijector_kwargs={{'context': context}}` (in a `tfb.Chain`, "
        f"`{{'{name}': {{'context': context}}}}`), and have shape [..., *{as_public(shapes)}]. Received: None")
  is_dict = isinstance(context, dict)
  if is_dict != isinstance(shapes, abc.Mapping) or is_dict and context.keys() != shapes.keys():
    expected = f"a dict with the keys {sorted(shapes)}" if isinstance(shapes, abc.Mapping) else "one tensor"
    raise ValueError(f"`context` of `{name}` must be {expected}. "
                     f"Received: {f'a dict with the keys {sorted(context)}' if is_dict else type(context).__name__}")
  convert = lambda part: _tensor(part, dtype, name)
  return {key: convert(context[key]) for key in shapes} if is_dict else convert(context)


def _tensor(context, dtype, name):
  if tf.is_tensor(context) and context.dtype != dtype:
    raise TypeError(f"`context` of `{name}` must be of dtype {dtype.name}. Received: {context.dtype.name}")
  return tf.convert_to_tensor(context, dtype, name="context")


def of_size(context, shape):
  """Selects, from the features that a flow gives to all its parts, those of the size of a batch's events.

  Args:
    context: List of tensors `[N, ..., F]`, one of which has the size of the events. Anything but a list is returned
      unchanged.
    shape: `tf.TensorShape` of the batch, `[N, ..., C]`.
  """
  if not isinstance(context, list):
    return context
  return next(features for features in context if features.shape[1:-1] == shape[1:-1])

"""What a source of images gives to the pipeline of `load_images`, and code that sources share."""

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfp_glow.data import crop, decoded_once

_PIECE = 1000  # Images resized at once.
# A split by content assigns each image to one of ten parts.
SPLIT_OF_TENTH = ("test", "validation", *["train"] * 8)


class Held(NamedTuple):
  """The images of one split, by numbers; a worker holds its share of them."""

  num_images: int
  hold: Callable[[np.ndarray], tf.data.Dataset]  # increasing numbers -> an element, `(held,)` or `(held, labels)`
  decode: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor]  # `held` and places of crops -> images [B, H, W, C]


class Stream(NamedTuple):
  """The images of one split, not decoded and too many to hold: each pass reads all of them."""

  num_images: int
  examples: tf.data.Dataset  # of `(encoded,)` or `(encoded, label)`, cheap to shuffle
  shuffle_buffer: int
  decode: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor]  # `encoded` and places of crops -> as for `Held`


def held_arrays(images, labels, image_size, shorter_side, cut_at_random):
  """The `Held` of images in memory.

  Args:
    images: uint8 or uint16 array `[N, H, W, C]`.
    labels: int64 array `[N]`, or `None`.
    image_size: See `load_images`.
    shorter_side: See `load_images`.
    cut_at_random: Python `bool`, whether squares are cut out at random.
  """
  resize = functools.partial(crop.fit, image_size=image_size, shorter_side=shorter_side)
  num_images, *image_shape = images.shape
  # Padding takes no time.
  is_reduced = image_size is not None and (shorter_side or image_size) < min(image_shape[:2]) and not cut_at_random
  num_bytes = images.itemsize * image_shape[-1] * (image_size or 0)**2
  is_kept = is_reduced and decoded_once.is_room_for(num_images * num_bytes)

  def hold(numbers):
    own = tuple(part if len(numbers) == num_images else part[numbers] for part in (images, labels) if part is not None)
    if not is_kept:
      return tf.data.Dataset.from_tensors(own)
    pieces = tf.data.Dataset.from_tensor_slices(own).batch(_PIECE).map(
        lambda piece, *label: (resize(piece, place=None), *label), num_parallel_calls=tf.data.AUTOTUNE)
    return decoded_once.held(pieces.unbatch(), len(numbers), num_bytes)

  def decode(held, places):
    if cut_at_random:
      return tf.map_fn(lambda pair: resize(pair[0], place=pair[1]), (held, places),
                       fn_output_signature=images.dtype)
    return held if is_kept else resize(held, place=None)

  return Held(num_images, hold, decode)


def or_validation(split, available):
  """Lets the validation split stand in for a missing test split."""
  return "validation" if split == "test" and "test" not in available and "validation" in available else split


def require(module, purpose, name_or_folder):
  """Imports an optional library; the error says how to install it."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(f"`name_or_folder`: {purpose} needs the Python module {module} ({error}); install it with: "
                      f"pip install tfp_glow[data]. Received: name_or_folder={str(name_or_folder)!r}") from error

"""What a source of images gives to the pipeline of `load_images`, and what sources share."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

# What is split by content goes to one of ten parts.
SPLIT_OF_TENTH = ("test", "validation", *["train"] * 8)


class Source(NamedTuple):
  """The images of one split, not decoded yet."""

  examples: tf.data.Dataset  # of `(encoded,)` or `(encoded, label)`, cheap to shuffle
  decode: Callable[[Any, tf.Tensor | None], tf.Tensor]  # `encoded` and place of the crop -> uint8 image [H, W, C]
  shuffle_buffer: int


def or_validation(split, available):
  """Lets the validation split stand in for a missing test split."""
  return "validation" if split == "test" and "test" not in available and "validation" in available else split


def require(module, purpose, name_or_folder):
  """Imports an optional library, or says how to install it."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(f"`name_or_folder`: {purpose} needs the Python module {module} ({error}); install it with: "
                      f"pip install tfp_glow[data]. Received: name_or_folder={str(name_or_folder)!r}") from error

"""The 8x8 digits inside scikit-learn as a source of images."""

import hashlib

import numpy as np

from tfp_glow.data.source import SPLIT_OF_TENTH, held_arrays, require

NUM_CLASSES = 10


def source(split, image_size, shorter_side, with_labels, cut_at_random):
  """The digits of scikit-learn; see `load_images`."""
  digits = require("sklearn.datasets", "'digits'", "digits").load_digits()
  images = np.minimum(16 * digits.images, 255).astype(np.uint8)[..., np.newaxis]
  splits = _splits(images, digits.target)
  if split not in splits:
    raise ValueError(f"`split` must be 'train', 'validation' or 'test' for 'digits'. Received: split={split!r}")
  chosen = splits == split
  labels = digits.target[chosen].astype(np.int64) if with_labels else None
  return held_arrays(images[chosen], labels, image_size, shorter_side, cut_at_random)


def _splits(images, labels):
  """Assigns a tenth of each class to test, a tenth to validation; returns the names of the splits, [N]."""
  # A hash orders each class. In the file the digits of a writer are neighbours. No two digits are equal.
  digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
  splits = np.empty(len(images), dtype=object)
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    members = members[np.argsort(digests[members])]
    splits[members] = [SPLIT_OF_TENTH[10 * rank // len(members)] for rank in range(len(members))]
  return splits

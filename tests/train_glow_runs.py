"""Runs of `examples/train_glow.py` in this process, and checks of what they leave."""

import json
import math
import sys

import example_runs
import numpy as np
import tensorflow as tf
import train_glow
from PIL import Image

from tfp_glow import data


def call(monkeypatch, *options):
  """Runs the script's `main` in this process; returns the exit code."""
  monkeypatch.setattr(sys, "argv", ["train_glow.py", *example_runs.TINY, *map(str, options)])
  return train_glow.main()


def results(folder):
  return json.loads((folder / "results.json").read_text())


def check_outputs(folder, is_finished=True):
  expected = set(train_glow.OUTPUTS) | (set() if is_finished else {train_glow.STATE, train_glow.BEST_UNTIL_NOW})
  assert {path.name for path in folder.iterdir()} == expected
  margin, gap, tile = 100, 4, 68
  sizes = {"samples.png": (margin + gap + 16 * tile, gap + 5 * tile),
           "interpolations.png": (gap + 16 * tile, gap + 8 * tile),
           "reconstructions.png": (margin + gap + 16 * tile, gap + 4 * tile),
           "training_curve.png": (800, 500)}
  for name, size in sizes.items():
    with Image.open(folder / name) as picture:
      picture.load()
      assert (picture.format, picture.size) == ("PNG", size), name
  files = sorted((folder / "test_images").iterdir())
  images = np.stack([np.asarray(Image.open(file))[..., np.newaxis] for file in files])
  (expected,) = data.load_images("digits", "test", batch_size=1000)
  np.testing.assert_array_equal(images, expected[:32])
  assert math.isfinite(results(folder)["bits_per_dim"])
  signatures = tf.saved_model.load(folder / "saved_model").signatures
  images = signatures["sample"](num_samples=tf.constant(2), temperature=tf.constant(1.), seed=tf.constant([0, 1]))
  assert images["images"].shape == (2, 8, 8, 1) and images["images"].dtype == tf.uint8

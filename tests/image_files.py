"""Images in memory and in files, for the tests of `tfp_glow.data`."""

import numpy as np
from PIL import Image

SPLITS = ("train", "validation", "test")


def arrays(dataset):
  """All images of a dataset in one array."""
  return np.concatenate([batch.numpy() for batch in dataset])


def pixels(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(path, image, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path, **options)
  return path


def fill(folder, count, size=8, channels=(3,), start=0):
  """Writes `count` different PNG files."""
  for index in range(start, start + count):
    save(folder / f"{index:03}.png", pixels(size, size, *channels, seed=index))
  return folder


def keys(images):
  return {image.tobytes() for image in images}

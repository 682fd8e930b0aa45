"""The pictures of `train_glow.py`: samples, interpolations, reconstructions, the training curve.

Other examples take `plt`, in the style of all pictures, from here.
"""

import keras
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfp_glow import latent, pictures

matplotlib.use("Agg")  # Pictures go to files: no display is needed.
from matplotlib import font_manager
from matplotlib import pyplot as plt

matplotlib.rcParams.update(pictures.STYLE)

SAMPLES, INTERPOLATIONS, RECONSTRUCTIONS = "samples.png", "interpolations.png", "reconstructions.png"
TEST_IMAGES, CURVE = "test_images", "training_curve.png"
FILES = (SAMPLES, INTERPOLATIONS, RECONSTRUCTIONS, TEST_IMAGES, CURVE)

TEMPERATURES = (0., .5, .7, .8, 1.)
TEMPERATURE_OF_CLASSES = .7
MAX_CLASSES = 10
NUM_COLUMNS = 16
NUM_INTERPOLATIONS = 8
LABEL_WIDTH = 100


def save_pictures(model, test_images, history, test_bits_per_dim, folder, seed):
  """Writes all pictures of a trained model.

  Args:
    model: `FlowModel`.
    test_images: Dataset of batches of images, or of pairs of images and labels if the model is class-conditional.
    history: Dict from names of metrics to their values after each epoch.
    test_bits_per_dim: Python `float`.
    folder: `pathlib.Path`.
    seed: Python `int` of the samples.
  """
  num_classes = model.num_classes
  save_grid(folder / SAMPLES, *_samples(model, num_classes, seed))
  examples = list(test_images.unbatch().take(2 * NUM_COLUMNS).as_numpy_iterator())
  images, labels = (np.stack(examples), None) if num_classes is None else map(np.stack, zip(*examples))
  of_labels = lambda part: None if labels is None else labels[part]
  some = slice(NUM_INTERPOLATIONS)
  save_grid(folder / INTERPOLATIONS, _interpolations(model, images[some], of_labels(some)))
  rows = []
  for part in (slice(NUM_COLUMNS), slice(NUM_COLUMNS, None)):
    if len(images[part]):
      z = model.encode(images[part], of_labels(part))
      rows += [images[part], model.decode(z, of_labels(part))]
  save_grid(folder / RECONSTRUCTIONS, rows, ["original", "decoded"] * (len(rows) // 2))
  _save_files(folder / TEST_IMAGES, images)
  save_curve(folder / CURVE, history, test_bits_per_dim)


def _samples(model, num_classes, seed):
  """Rows of samples and their labels: one row for each temperature, or for each of the first classes."""
  if num_classes is None:
    rows = [model.sample(NUM_COLUMNS, temperature, seed=seed) for temperature in TEMPERATURES]
    return rows, [f"T = {temperature:g}" for temperature in TEMPERATURES]
  classes = range(min(num_classes, MAX_CLASSES))
  rows = [model.sample(NUM_COLUMNS, TEMPERATURE_OF_CLASSES, labels=label, seed=seed) for label in classes]
  return rows, [f"class {label}" for label in classes]


def _interpolations(model, images, labels):
  """Rows of images, each from one of `images` to the next (from the last to the first), with the class of the start."""
  ends = (model.encode(part, labels) for part in (images, np.roll(images, -1, axis=0)))
  lines = latent.interpolate(*ends, NUM_COLUMNS)
  decoded = model.decode(lines.reshape(-1, lines.shape[-1]), None if labels is None else np.tile(labels, NUM_COLUMNS))
  return np.swapaxes(decoded.reshape(lines.shape[:2] + images.shape[1:]), 0, 1)


def save_grid(path, rows, labels=None):
  """Writes rows of images, enlarged pixel by pixel, with labels before the rows."""
  grid = keras.utils.array_to_img(pictures.tile(rows), scale=False)
  margin = LABEL_WIDTH if labels else 0
  picture = Image.new("RGB", (margin + grid.width, grid.height), "white")
  picture.paste(grid, (margin, 0))
  for i, label in enumerate(labels or ()):
    place = margin - pictures.GAP, grid.height * (2 * i + 1) // (2 * len(rows))
    ImageDraw.Draw(picture).text(place, label, fill=pictures.TEXT, anchor="rm", font=_font())
  picture.save(path)


def _font():
  """That of the figures."""
  style = pictures.STYLE
  path = font_manager.findfont(style["font.family"])
  return ImageFont.truetype(path, style["font.size"] / 72. * style["figure.dpi"])


def _save_files(folder, images):
  """Writes images to the files 00.png, 01.png, ... of a new folder."""
  folder.mkdir()
  for i, image in enumerate(images):
    keras.utils.array_to_img(image, scale=False).save(folder / f"{i:02}.png")


def save_curve(path, history, test_bits_per_dim):
  """Draws bits per dimension of each finished epoch."""
  figure, axes = plt.subplots()
  for key, label in (("bits_per_dim", "training"), ("val_bits_per_dim", "validation")):
    values = history.get(key, [])
    axes.plot(range(1, len(values) + 1), values, marker=".", label=label)
  label = f"test, best epoch: {test_bits_per_dim:.3f}"
  axes.axhline(test_bits_per_dim, color=pictures.TEXT, linestyle=":", label=label)
  axes.set(xlabel="epoch", ylabel="bits per dimension")
  axes.legend()
  figure.savefig(path)
  plt.close(figure)

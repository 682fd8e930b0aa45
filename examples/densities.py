"""Densities in the plane for `train_residual_flow.py`, with pictures and measures of them."""

import math
import pathlib

import numpy as np
import tensorflow as tf
from run_pictures import plt, save_curve
from sklearn import datasets

from tfp_glow import pictures

DENSITIES_PICTURE, CURVE = "densities.png", "training_curve.png"
GRID = "density.npy"  # The density on the picture's grid, for the picture of another run.
FILES = (DENSITIES_PICTURE, CURVE, GRID)

SIDE = 4.  # The pictures show the square from -SIDE to SIDE.
NUM_CELLS = 200  # Along a side of the picture.
NUM_POINTS = 20_000  # Points of an epoch, test points, and samples to measure.
NUM_VALIDATION_POINTS = 5_000
NUM_PICTURE_POINTS = 2_000_000
_TEST, _VALIDATION, _PICTURE, _FIRST_EPOCH = range(4)  # The purpose of a draw, for its seed.


def _checkerboard(rng, count):
  """Uniform on every other square, of side 2."""
  row, column = rng.integers(0, 4, count), rng.integers(0, 2, count)
  corner = 2. * np.stack([2 * column + row % 2, row], 1) - SIDE
  return corner + 2. * rng.random((count, 2))


def _eight_gaussians(rng, count):
  """Round Gaussians, in a circle."""
  angle = 2. * math.pi / 8. * rng.integers(0, 8, count)
  return 3. * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.3 * rng.standard_normal((count, 2))


def _two_spirals(rng, count):
  """Two spirals of one and a half turns, from the middle outwards."""
  angle = 3. * math.pi * np.sqrt(rng.random(count))
  arm = angle / 3. * rng.choice([-1., 1.], count)
  return np.stack([arm * np.cos(angle), arm * np.sin(angle)], 1) + 0.1 * rng.standard_normal((count, 2))


def _moons(rng, count):
  points, _ = datasets.make_moons(count, noise=0.05, random_state=int(rng.integers(2**31)))
  return 2. * (points - [0.5, 0.25])


DENSITIES = {"checkerboard": _checkerboard, "eight_gaussians": _eight_gaussians, "two_spirals": _two_spirals,
             "moons": _moons}


def draw(name, count, *seed):
  """Points of a density, float32 `[count, 2]`. The same seed gives the same points."""
  return DENSITIES[name](np.random.default_rng(seed), count).astype(np.float32)


def load_splits(args):
  """As `training_data.load_splits`; each epoch has its own points."""
  for folder in map(pathlib.Path, args.beside):
    if not (folder / GRID).exists():
      raise ValueError(f"--beside must be folders of runs with a density that have finished. Received: {folder}")
  points = lambda *what: draw(args.data, NUM_POINTS, args.seed, *what)
  batches = lambda array: [array[i:i + args.batch_size] for i in range(0, len(array), args.batch_size)]

  def epochs_of(epochs, skip_batches):
    dataset = tf.data.Dataset.from_generator(
        lambda: (batch for epoch in epochs for batch in batches(points(_FIRST_EPOCH + epoch))),
        output_signature=tf.TensorSpec([None, 2], tf.float32))
    return dataset.skip(skip_batches)

  load = lambda array: tf.data.Dataset.from_tensor_slices(array).batch(args.batch_size)
  return {"train": load(points(_FIRST_EPOCH)), "train_epochs": epochs_of,
          "validation": load(points(_VALIDATION)[:NUM_VALIDATION_POINTS]), "test": load(points(_TEST))}


def measures(model, name, seed):
  """The numbers in `results.json` besides bits per dimension.

  Args:
    model: `FlowModel`.
    name: One of `DENSITIES`.
    seed: Python `int`.

  Returns:
    Dict: `"nats"`, the mean log-density of test points. For the checkerboard also the optimum, `"best_nats"`, and
    `"share_on_squares"`, the share of samples on its squares; uniform samples would have half.
  """
  found = {"nats": float(np.mean(model.log_prob(draw(name, NUM_POINTS, seed, _TEST))))}
  if name == "checkerboard":
    found |= {"best_nats": -math.log(32.), "share_on_squares": share_on_squares(model.sample(NUM_POINTS, seed=seed))}
  return found


def share_on_squares(points):
  """The share of points that lie on the squares of the checkerboard."""
  column, row = np.floor((points.T + SIDE) / 2.)
  is_inside = np.max(np.abs(points), 1) < SIDE
  return float(np.mean(is_inside & ((column + row) % 2 == 0)))


def save_pictures(name, beside, model, test_points, history, test_bits_per_dim, folder, seed):
  """As `run_pictures.save_pictures`.

  Args:
    name: One of `DENSITIES`.
    beside: List of folders of other runs, whose densities the picture also shows.
    model: As in `run_pictures.save_pictures`.
    test_points: The points of the test split.
    history: As in `run_pictures.save_pictures`.
    test_bits_per_dim: As in `run_pictures.save_pictures`.
    folder: As in `run_pictures.save_pictures`.
    seed: As in `run_pictures.save_pictures`.
  """
  del test_points
  grid = density_on_grid(model)
  np.save(folder / GRID, grid)
  panels = {"data": _histogram(draw(name, NUM_PICTURE_POINTS, seed, _PICTURE)), folder.name: grid,
            **{other.name: np.load(other / GRID) for other in map(pathlib.Path, beside)}}
  side = pictures.PAGE_WIDTH / 3.
  figure, axes = plt.subplots(1, len(panels), figsize=(side * len(panels), side + 0.25), squeeze=False)
  # A flow has sharp ridges. A scale up to their height would leave everything else dark.
  brightest = 1.2 * np.quantile(panels["data"], 0.98)
  for axis, (title, density) in zip(axes[0], panels.items()):
    axis.imshow(density, origin="lower", extent=[-SIDE, SIDE] * 2, vmin=0., vmax=brightest)
    axis.set(title=title.replace("_", " "), xticks=[], yticks=[])
  figure.savefig(folder / DENSITIES_PICTURE)
  plt.close(figure)
  save_curve(folder / CURVE, history, test_bits_per_dim)


def density_on_grid(model):
  """`[NUM_CELLS, NUM_CELLS]`, at the centre of each cell, the rows upwards."""
  middles = (np.arange(NUM_CELLS) + 0.5) / NUM_CELLS * 2. * SIDE - SIDE
  x, y = np.meshgrid(middles, middles)
  return np.exp(model.log_prob(np.stack([x, y], -1).reshape(-1, 2).astype(np.float32))).reshape(x.shape)


def _histogram(points):
  counts, _, _ = np.histogram2d(*points.T, NUM_CELLS, [[-SIDE, SIDE]] * 2)
  return counts.T / len(points) / (2. * SIDE / NUM_CELLS)**2

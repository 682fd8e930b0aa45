"""Edits images by moving their latents, with a Glow trained by examples/train_glow.py, and measures the change.

First train a model, then edit with it; the argument is the model's folder:

  python examples/train_glow.py
  python examples/edit_latents.py output

The folder output/edits then holds:

  edits.png               images of the test split on the way to another class: the mean latent of the other class's
                          training images minus that of their own class's is added to theirs, at several strengths
  interpolations.png      images between two of the test split, along straight lines and along arcs in latent space
  temperatures.png        samples, a row for each temperature
  level_temperatures.png  samples that vary in only one level of the latents
  directions.npz          the added directions: `examples/serve.py --directions` makes sliders of them
  edits.json              the numbers: a classifier's results for all of these, and for many more images than are drawn

The classifier is a small neural network of scikit-learn that has seen only real images of the training split.
"""

import argparse
import json
import math
import pathlib
import sys
from typing import NamedTuple

import keras
import numpy as np
import options
import run_pictures
import train_glow
import training_data
from run_pictures import plt
from sklearn.neural_network import MLPClassifier

from tfp_glow import latent, pictures

EDITS, INTERPOLATIONS, TEMPERATURES = "edits.png", "interpolations.png", "temperatures.png"
LEVEL_TEMPERATURES, DIRECTIONS, NUMBERS = "level_temperatures.png", "directions.npz", "edits.json"
OUTPUTS = (EDITS, INTERPOLATIONS, TEMPERATURES, LEVEL_TEMPERATURES, DIRECTIONS, NUMBERS)

# For other data the names of the classes are their numbers, and class 0 becomes class 1.
CLASS_NAMES = {"fashion_mnist": (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")}
DEFAULT_EDITS = {"digits": [[3, 8], [4, 9]], "fashion_mnist": [[5, 7], [0, 2]]}

DEFAULT_STRENGTHS = (0., 0.25, 0.5, 0.75, 1., 1.25, 1.5)
SAMPLE_TEMPERATURES = (0., 0.25, 0.6, 0.7, 0.8, 0.9, 1.)  # As in figure 8 of the paper.
NUM_INTERPOLATION_STEPS = 9

BATCH_SIZE = 100
NUM_IMAGES = 10_000  # At most, from each split: for the classifier, the directions, the moves.
NUM_MOVED = 200  # At most, from each class.
NUM_SAMPLES = 200  # At each temperature.
NUM_COLUMNS = 16  # Samples in a row.
NUM_ROWS = 4  # Rows in the picture of an edit. In that of an interpolation, each pair of images has two.


class Images(NamedTuple):
  """Real images and their classes."""
  images: np.ndarray  # uint8 [N, H, W, C]
  labels: np.ndarray  # int [N]

  def of_class(self, label):
    """The images of a class that are moved."""
    return self.images[self.labels == label][:NUM_MOVED]


class Panel(NamedTuple):
  """Rows of images, and curves of the measurements from left to right."""
  title: str
  name_of_positions: str
  positions: list  # Python numbers, one for each column
  rows: list  # of arrays [number of columns, H, W, C]
  row_names: list
  curves: dict  # from names to lists of numbers, one for each column


def main():
  """Parses the command line, moves latents, saves; returns the exit code."""
  args = parse_args()
  keras.utils.set_random_seed(args.seed)
  try:
    settings = load_settings(args.run)
    train, test = load_images(settings)
    edits = checked_edits(args.edit or DEFAULT_EDITS.get(settings.data, [[0, 1]]), train, test)
    model = load_model(args.run, settings, train.images.shape[1:])
    args.output.mkdir(parents=True, exist_ok=True)
  except (ValueError, OSError, ImportError, RuntimeError) as error:
    print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
    return train_glow.EXIT_USAGE
  names = CLASS_NAMES.get(settings.data, [str(label) for label in range(max(train.labels) + 1)])
  classifier = fit_classifier(train, args.seed)
  accuracy = float(classifier.score(flat(test.images), test.labels))
  print(f"The classifier is right for {accuracy:.1%} of the images of the test split.")
  results = {"run": str(args.run), "seed": args.seed, "classifier_accuracy": accuracy}
  directions = [class_direction(model, train, edit) for edit in edits]
  np.savez(args.output / DIRECTIONS, **{name_of(edit, names): array for edit, array in zip(edits, directions)})
  results["edits"] = save_edits(args.output / EDITS, model, classifier, test, edits, names, directions, args.strengths)
  results["interpolations"] = save_interpolations(args.output / INTERPOLATIONS, model, classifier, test, edits, names)
  temperatures = {f"T = {value:g}": value for value in SAMPLE_TEMPERATURES}
  results["temperatures"] = save_samples(args.output / TEMPERATURES, model, classifier, temperatures, args.seed)
  results["level_temperatures"] = save_samples(
      args.output / LEVEL_TEMPERATURES, model, classifier, temperatures_of_levels(model), args.seed)
  (args.output / NUMBERS).write_text(json.dumps(results, indent=2) + "\n")
  print(f"In {args.output}: {', '.join(OUTPUTS)}")
  return 0


def parse_args():
  """The settings; argparse ends the program with a message if one of them is invalid."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("run", type=pathlib.Path, nargs="?", default=pathlib.Path("output"),
      help="output folder of a finished run of examples/train_glow.py (%(default)s)")
  add("--edit", type=options.non_negative_int, nargs=2, action="append", metavar=("FROM", "TO"),
      help="numbers of two classes of the data; may be given again (3 8 and 4 9 for the digits, 5 7 and 0 2 for "
      "fashion_mnist, else 0 1)")
  add("--strengths", type=options.finite_float, nargs="+", default=list(DEFAULT_STRENGTHS), metavar="STRENGTH",
      help="multiples of the difference of the means that are added (0 to 1.5 in steps of 0.25)")
  add("--seed", type=options.non_negative_int, default=0, help="seed of the classifier and the samples (%(default)s)")
  add("--output", type=pathlib.Path, help="folder of the results, where earlier ones are replaced (RUN/edits)")
  args = parser.parse_args()
  args.output = args.output or args.run / "edits"
  return args


def load_settings(run):
  """The settings of a trained model."""
  try:
    return argparse.Namespace(**json.loads((run / train_glow.RESULTS).read_text())["settings"])
  except (OSError, ValueError, KeyError) as error:
    raise ValueError("the run must be the output folder of a finished run of examples/train_glow.py "
                     f"({type(error).__name__}: {error}). Received: {run}") from error


def load_images(settings):
  """Images of the training and test splits of a trained model."""
  settings = {**vars(settings), "conditional": True, "batch_size": BATCH_SIZE}
  splits = training_data.load_splits(argparse.Namespace(**settings))
  return _first_images(splits["train"]), _first_images(splits["test"])


def _first_images(batches):
  batches = batches.take(math.ceil(NUM_IMAGES / BATCH_SIZE))
  return Images(*(np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator())))


def checked_edits(edits, train, test):
  """Raises `ValueError` unless there are images of all classes."""
  classes = np.intersect1d(train.labels, test.labels)
  for edit in edits:
    if edit[0] == edit[1] or not set(edit) <= set(classes.tolist()):
      raise ValueError(f"--edit must be two different classes of {classes.tolist()}. Received: {edit[0]} {edit[1]}")
  return edits


def load_model(run, settings, image_shape):
  """The trained model."""
  model = train_glow.make_model(settings, image_shape)
  if model.num_classes is not None:
    raise ValueError("the run must be one without --conditional, because latents must hold the class, too. "
                     f"Received: {run}")
  model.load_weights(run / train_glow.WEIGHTS)
  return model


def fit_classifier(train, seed):
  """A classifier of real images. It stops when its score on a held-out tenth no longer improves."""
  classifier = MLPClassifier((128,), early_stopping=True, n_iter_no_change=20, random_state=seed)
  return classifier.fit(flat(train.images), train.labels)


def flat(images):
  """Images `[..., H, W, C]` as the classifier's inputs, `[N, H * W * C]`."""
  return images.reshape(-1, math.prod(images.shape[-3:])) / np.float32(255.)


def classify(classifier, images):
  """Probabilities of the classes, `[..., number of classes]`, of images `[..., H, W, C]`."""
  return classifier.predict_proba(flat(images)).reshape(*images.shape[:-3], -1)


def encode(model, images):
  """Latents `[N, D]` of images `[N, H, W, C]`."""
  return _in_batches(model.encode, images)


def decode(model, z):
  """Images `[..., H, W, C]` of latents `[..., D]`."""
  images = _in_batches(model.decode, z.reshape(-1, z.shape[-1]))
  return images.reshape(z.shape[:-1] + images.shape[1:])


def _in_batches(function, values):
  return np.concatenate([function(values[i:i + BATCH_SIZE]) for i in range(0, len(values), BATCH_SIZE)])


def along_path(classifier, images, edit):
  """The classifier's results along the way from one class to another.

  Args:
    classifier: Of scikit-learn.
    images: uint8 array `[S, N, H, W, C]`: `N` images at each of `S` positions.
    edit: Numbers of the two classes.

  Returns:
    Dict of lists of `S` numbers, over the `N` images: the mean probability of the second class, and the shares of
    images classified as the second and as the first class.
  """
  probabilities = classify(classifier, images)
  taken_for = classifier.classes_[probabilities.argmax(axis=-1)]
  numbers = {"probability_of_to": probabilities[..., list(classifier.classes_).index(edit[1])],
             "share_of_to": taken_for == edit[1], "share_of_from": taken_for == edit[0]}
  return {key: values.mean(axis=1).tolist() for key, values in numbers.items()}


def name_of(edit, names):
  """A readable name."""
  return " to ".join(names[label] for label in edit)


def class_direction(model, train, edit):
  """The latent direction `[D]` from training images of the first class to those of the second."""
  of_both = np.isin(train.labels, edit)
  return latent.attribute_direction(encode(model, train.images[of_both]), train.labels[of_both] == edit[1])


def moved(z, direction, strengths):
  """Latents `[S, N, D]`: `z` `[N, D]` moved by multiples `[S]` of a direction `[D]`."""
  return z + np.multiply.outer(np.asarray(strengths, z.dtype), direction)[:, np.newaxis]


def save_edits(path, model, classifier, test, edits, names, directions, strengths):
  """Moves images of the test split towards another class; draws, prints and returns the results."""
  panels, measured = [], []
  for edit, direction in zip(edits, directions):
    images = decode(model, moved(encode(model, test.of_class(edit[0])), direction, strengths))
    title = name_of(edit, names)
    numbers = {"strength": list(strengths), **along_path(classifier, images, edit)}
    real = along_path(classifier, test.of_class(edit[1])[np.newaxis], edit)["share_of_to"][0]
    measured.append({"from": names[edit[0]], "to": names[edit[1]], "num_images": images.shape[1],
                     "share_of_real_to": real, **numbers})
    named = with_names(numbers, edit, names)
    print_table(f"{title}: {images.shape[1]} images of the test split ({real:.3f} of the real images "
                f"of {names[edit[1]]} are classified as such)", named)
    rows = list(np.swapaxes(images[:, :NUM_ROWS], 0, 1))
    curves = {name: named[name] for name in named if name.startswith("taken")}
    panels.append(Panel(title, "strength", list(strengths), rows, [""] * len(rows), curves))
  save_panels(path, panels)
  return measured


def save_interpolations(path, model, classifier, test, edits, names):
  """Interpolates between test images of two classes; draws, prints and returns the results."""
  panels, measured = [], []
  shares = np.linspace(0., 1., NUM_INTERPOLATION_STEPS).tolist()
  for edit in edits:
    title = name_of(edit, names)
    ends = [test.of_class(label) for label in edit]
    ends = [encode(model, images[:min(map(len, ends))]) for images in ends]
    rows, curves, numbers = {}, {}, {}
    for way in ("line", "arc"):
      z = latent.interpolate(*ends, NUM_INTERPOLATION_STEPS, spherical=way == "arc")
      images = decode(model, z)
      # For standard normal latents this would be about 1.
      norm = np.linalg.norm(z, axis=-1).mean(axis=1) / math.sqrt(z.shape[-1])
      numbers[way] = {"share": shares, **along_path(classifier, images, edit), "norm": norm.tolist()}
      print_table(f"{title}, {way}: {z.shape[1]} pairs of images of the test split",
                  with_names(numbers[way], edit, names))
      rows[way] = np.swapaxes(images[:, :NUM_ROWS // 2], 0, 1)
      curves[f"probability of {names[edit[1]]}, {way}"] = numbers[way]["probability_of_to"]
    measured.append({"from": names[edit[0]], "to": names[edit[1]], "num_pairs": len(ends[0]), **numbers})
    pairs = [(way, row) for pair in zip(*rows.values()) for way, row in zip(rows, pair)]
    rows, row_names = [row for _, row in pairs], [way for way, _ in pairs]
    panels.append(Panel(title, "share of the way", shares, rows, row_names, curves))
  save_panels(path, panels)
  return measured


def temperatures_of_levels(model):
  """One level at a time at temperature 1, the others at 0; then all."""
  num_levels = len(model.distribution.bijector.blocks)
  names = [f"level {level + 1}" for level in range(num_levels)]
  return {**dict(zip(names, np.eye(num_levels).tolist())), "all levels": [1.] * num_levels}


def save_samples(path, model, classifier, temperatures, seed):
  """Draws samples of the model, a row for each temperature; prints and returns the classifier's results.

  Args:
    path: File to write.
    model: `FlowModel`.
    classifier: Of scikit-learn.
    temperatures: Dict, from names of the rows to values for `FlowModel.sample`.
    seed: Python `int`.

  Returns:
    Dict of lists, a number for each row: `confidence` is the mean probability of each sample's likeliest class;
    `num_classes` is the effective number of classes: `exp(entropy)` of the shares of samples assigned to each.
  """
  samples = np.stack([model.sample(NUM_SAMPLES, temperature, seed=seed) for temperature in temperatures.values()])
  run_pictures.save_grid(path, samples[:, :NUM_COLUMNS], list(temperatures))
  probabilities = classify(classifier, samples)
  shares = np.eye(probabilities.shape[-1])[probabilities.argmax(axis=-1)].mean(axis=1)
  numbers = {"temperature": list(temperatures),
             "confidence": probabilities.max(axis=-1).mean(axis=1).tolist(),
             "num_classes": [math.exp(-sum(share * math.log(share) for share in row if share)) for row in shares]}
  print_table(f"{NUM_SAMPLES} samples at each temperature", numbers)
  return {**numbers, "temperature": list(temperatures.values())}


def with_names(numbers, edit, names):
  """The result of `along_path`, and other numbers, with readable names."""
  source, target = (names[label] for label in edit)
  headings = {"probability_of_to": f"probability of {target}", "share_of_to": f"taken for {target}",
              "share_of_from": f"taken for {source}"}
  return {headings.get(key, key): values for key, values in numbers.items()}


def print_table(title, columns):
  """Prints lists of numbers, or names, side by side."""
  as_text = lambda value: value if isinstance(value, str) else f"{value:.3f}"
  rows = [list(columns), *([as_text(value) for value in row] for row in zip(*columns.values()))]
  widths = [max(map(len, column)) for column in zip(*rows)]
  print(f"\n{title}")
  for row in rows:
    print("  ".join(text.rjust(width) for text, width in zip(row, widths)))


def save_panels(path, panels):
  """Draws rows of images, and beside them the curves of the measurements."""
  num_columns = max(len(panel.positions) for panel in panels)
  num_rows = [len(panel.rows) for panel in panels]
  side = pictures.PAGE_WIDTH / (num_columns + 5)  # Inches of an image; the curves are as wide as five of them.
  figure, axes = plt.subplots(len(panels), 2, squeeze=False, width_ratios=(num_columns, 5), height_ratios=num_rows,
                              figsize=(pictures.PAGE_WIDTH, side * sum(num_rows) + 0.65 * len(panels)))
  for (left, right), panel in zip(axes, panels):
    picture = pictures.tile(panel.rows)
    left.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    left.set_xticks(middles(picture.shape[1], len(panel.positions)), [f"{position:g}" for position in panel.positions])
    left.set_yticks(middles(picture.shape[0], len(panel.rows)), panel.row_names)
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    left.set(title=panel.title, xlabel=panel.name_of_positions)
    for name, values in panel.curves.items():
      right.plot(panel.positions, values, marker=".", label=name)
    right.set(xlabel=panel.name_of_positions, ylim=(-0.03, 1.35), yticks=np.linspace(0., 1., 6))
    right.set_box_aspect(picture.shape[0] / picture.shape[1] * num_columns / 5)  # As high as the rows.
    right.legend(loc="upper left")
  figure.savefig(path)
  plt.close(figure)


def middles(length, count):
  """The middles of `count` images in a picture of `pictures.tile`, in pixels."""
  return [pictures.GAP / 2 + (length - pictures.GAP) * (index + 0.5) / count for index in range(count)]


if __name__ == "__main__":
  sys.exit(main())

"""Tests by a classifier of real images whether samples look like their class; prints a table of docs/conditioning.md.

  python examples/train_glow.py --conditional --weight-y 0.01 --output by_class
  python benchmarks/class_samples.py by_class

A support vector machine of scikit-learn is fitted on the run's training images, with as many bits as the run keeps. The
table has its accuracy on the real test images, and on samples of the run's SavedModel at several temperatures, with as
many samples of each class.
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np
import results
import tensorflow as tf
from sklearn import svm

sys.path.append(str(pathlib.Path(__file__).parent.parent / "examples"))
import training_data

TEMPERATURES = (0.5, 0.7, 0.8, 1.)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("run", type=pathlib.Path, help="folder of a finished run with --conditional")
  parser.add_argument("--samples", type=int, default=100, help="samples of each class (%(default)s)")
  parser.add_argument("--images", type=int, default=10_000,
                      help="most real images to fit the classifier on (%(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="seed of the samples (%(default)s)")
  results.add_save(parser)
  args = parser.parse_args()
  path = args.run / "results.json"
  if not path.exists():
    parser.error(f"`run` must be the output folder of examples/train_glow.py. Received: {args.run}")
  found = json.loads(path.read_text())
  settings = found["settings"]
  if not settings.get("conditional"):
    parser.error(f"`run` must have been trained with --conditional. Received: {args.run}")
  splits = training_data.load_splits(argparse.Namespace(**settings))
  train, test = (_arrays(splits[split], settings, args.images) for split in ("train", "test"))
  classifier = svm.SVC(C=10.).fit(*train)
  num_classes = 1 + int(train[1].max())
  sample = tf.saved_model.load(str(args.run / "saved_model")).signatures["sample"]
  table = results.Table("images", "named rightly")
  table.add("real test images", f"{classifier.score(*test):.1%}")
  for temperature in TEMPERATURES:
    features, labels = _samples(sample, num_classes, args.samples, temperature, args.seed)
    table.add(f"samples at temperature {temperature:g}", f"{classifier.score(features, labels):.1%}")
  if args.save:
    _save_row(args, found, [share for _, share in table.rows])


def _save_row(args, found, shares):
  """Saves the row of this run; the page shows a row for each of several runs."""
  settings = found["settings"]
  data, weight = pathlib.Path(settings["data"]).stem, f"{settings['weight_y']:g}"
  columns = (f"{data}, {settings['num_bits']} bits", "test bits per dim", "real test images",
             *(f"samples, T = {temperature:g}" for temperature in TEMPERATURES))
  row = [f"`--weight-y {weight}`", f"{found['bits_per_dim']:.2f}", *shares]
  results.save(args, f"class_samples_{data}_{weight}", columns, [row])


def _arrays(batches, settings, limit):
  """Features of images with the bits of the run, `[N, D]`, and labels."""
  batches = batches.take(math.ceil(limit / settings["batch_size"]))
  images, labels = (np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator()))
  kept = 2**(8 - settings["num_bits"])
  return _features(images // kept * kept)[:limit], labels[:limit]


def _samples(sample, num_classes, count, temperature, seed):
  """Features `[N, D]` of samples, the same number of each class, and their labels."""
  features, labels = [], []
  for label in range(num_classes):
    images = sample(num_samples=tf.constant(count), temperature=tf.constant(temperature),
                    seed=tf.constant([seed, label]), labels=tf.fill([count], label))["images"]
    features.append(_features(images.numpy()))
    labels += [label] * count
  return np.concatenate(features), np.array(labels)


def _features(images):
  return images.reshape(len(images), -1) / 255.


if __name__ == "__main__":
  main()

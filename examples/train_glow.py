"""Trains a class-free Glow on images; leaves its weights, a SavedModel, pictures and numbers in a folder.

The 8x8 digits of scikit-learn, with the default settings; then a folder of one's own photographs:

  python examples/train_glow.py
  python examples/train_glow.py --data ~/photographs --image-size 32 --num-blocks 3 --output photographs

The folder then holds:

  model.weights.h5      the weights with the best bits per dimension of the validation split
  saved_model/          a SavedModel that needs nothing but TensorFlow
  samples.png           samples, a row for each temperature
  interpolations.png    straight lines in latent space between images of the test split
  reconstructions.png   images of the test split, encoded and decoded
  test_images/          these images, each in a file, as examples/serve.py can show them
  training_curve.png    bits per dimension, epoch by epoch
  results.json          bits per dimension of the test split, settings, number of parameters, seconds, versions

Ctrl-C ends the training, and all of these are made of what has been learned until then; a second Ctrl-C ends at once.

Until it has finished, the folder also holds training_state/, written after each epoch, and best_until_now.weights.h5:
the same command goes on from there, however the run was ended, and comes to the same weights as if it had not been.
"""

import argparse
import atexit
import functools
import json
import math
import os
import pathlib
import platform
import shutil
import signal
import sys
import tempfile
import time

import keras
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow import callbacks, data, latent, replicas

matplotlib.use("Agg")  # Pictures go to files: no display is needed.
from matplotlib import pyplot as plt  # pylint: disable=wrong-import-position

tfd = tfp.distributions

WEIGHTS, SAVED_MODEL, RESULTS = "model.weights.h5", "saved_model", "results.json"
SAMPLES, INTERPOLATIONS, RECONSTRUCTIONS = "samples.png", "interpolations.png", "reconstructions.png"
TEST_IMAGES, CURVE = "test_images", "training_curve.png"
OUTPUTS = (WEIGHTS, SAVED_MODEL, SAMPLES, INTERPOLATIONS, RECONSTRUCTIONS, TEST_IMAGES, CURVE, RESULTS)
STATE, BEST_UNTIL_NOW = "training_state", "best_until_now.weights.h5"  # Until the run has finished.

# What may change when a run goes on.
NOT_OF_THE_RUN = ("output", "overwrite", "time_limit", "data_dir", "strategy")

TEMPERATURES = (0., .5, .7, .8, 1.)
NUM_COLUMNS = 16
NUM_INTERPOLATIONS = 8
TILE_SIZE = 64  # Images are enlarged to about this many pixels, so that a person sees those of 8x8.
GAP = 4  # Pixels between them.

# A rare batch that a half-trained flow finds absurd has a gradient 10,000 times as long as others, and would ruin it.
MAX_GRADIENT_NORM = 100.

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main():
  """Parses the command line, trains, saves; returns the exit code."""
  start = time.monotonic()
  args = parse_args()
  keras.utils.set_random_seed(args.seed)
  try:
    strategy = make_strategy(args)
    splits = load_splits(args)
    with strategy.scope():
      model = make_model(args, splits["train"].element_spec.shape[1:])
      compile_model(model, args, len(splits["train"]))
    state = training_state(args)
    if args.overwrite:
      state.delete()
    first_epoch, best_is_there = state.restore(model), False
    if first_epoch:
      # Now, not when all epochs have been trained, if it cannot be read.
      best_is_there = replicas.run_on_chief(lambda: is_loaded(model, args.output / BEST_UNTIL_NOW), strategy)
      state.restore(model)
    prepare_output(args, keep_best_until_now=first_epoch > 0)
  except (ValueError, OSError, ImportError, RuntimeError) as error:
    print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
    return EXIT_USAGE
  try:
    bits_per_dim, interrupted = train(model, splits, state, first_epoch, best_is_there, args)
  except FloatingPointError as error:
    print(f"{error}\nThe best weights until then, if an epoch was finished, are in {args.output / BEST_UNTIL_NOW}. "
          "Another --learning-rate is another run: give it another --output, or --overwrite.", file=sys.stderr)
    return EXIT_FAILED
  results = {"validation_bits_per_dim": bits_per_dim, "epochs": len(state.history["bits_per_dim"]),
             "training_seconds": round(state.seconds, 1), "interrupted": interrupted}
  save_results(model, splits["test"], state.history, results, start, args)
  if not interrupted or not state.exists():
    state.delete()
    (args.output / BEST_UNTIL_NOW).unlink(missing_ok=True)
  else:
    print("The same command goes on from the last epoch that was finished; with --overwrite it starts anew.")
  return EXIT_INTERRUPTED if interrupted else 0


def make_strategy(args):
  """Where to train. Of several workers all but the chief print nothing, and leave nothing in their output folders."""
  if args.strategy == "none":
    return tf.distribute.get_strategy()
  if args.strategy == "mirrored":
    return tf.distribute.MirroredStrategy()
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  if not strategy.extended.should_checkpoint:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")
    args.output = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, args.output)
  return strategy


def parse_args():
  """The settings; argparse ends the program with a message if one of them cannot be."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("--data", default="digits", help="'digits', the name of a TFDS data set, or a folder of images (%(default)s)")
  add("--data-dir", help="where TFDS keeps its data sets (TFDS's default)")
  add("--image-size", type=positive_int, help="height and width of the images (as they are)")
  add("--num-bits", type=int, choices=range(1, 9), help="bits kept of each pixel (4 for the digits, else 8)")
  add("--num-blocks", type=positive_int, default=2, help="scales, each half as high and wide (%(default)s)")
  add("--num-steps", type=positive_int, default=8, help="steps of flow at each scale (%(default)s)")
  add("--num-hidden", type=positive_int, default=64, help="channels inside the coupling networks (%(default)s)")
  add("--coupling", choices=("affine", "additive"), default="affine", help="(%(default)s)")
  add("--permutation", choices=("conv1x1", "reverse", "shuffle"), default="conv1x1", help="(%(default)s)")
  add("--epochs", type=positive_int, default=45, help="the learning rate falls to 0 at the last (%(default)s)")
  add("--batch-size", type=positive_int, default=64, help="(%(default)s)")
  add("--learning-rate", type=positive_float, default=4e-3, help="the highest, after a warm-up (%(default)s)")
  add("--max-shift", type=non_negative_float,
      help="training images are shifted at random by up to so many pixels, rounded: by up to 0.75, two thirds stay in "
      "their column and two thirds in their row (0.75 for the digits, else 0)")
  add("--flip", action="store_true", help="training images are mirrored at random")
  add("--time-limit", type=positive_float, help="minutes after which training ends, whatever --epochs (none)")
  add("--strategy", choices=("none", "mirrored", "multiworker"), default="none",
      help="train on one device, on all GPUs of this machine, or on all machines of TF_CONFIG (%(default)s)")
  add("--seed", type=non_negative_int, default=0, help="the same seed gives the same result (%(default)s)")
  add("--output", type=pathlib.Path, default=pathlib.Path("output"), help="folder of the results (%(default)s)")
  add("--overwrite", action="store_true",
      help="whether results of an earlier run in --output may be lost, and an unfinished one begins anew")
  args = parser.parse_args()
  if args.num_bits is None:
    args.num_bits = 4 if args.data == "digits" else 8
  if args.max_shift is None:
    args.max_shift = 0.75 if args.data == "digits" else 0.
  if args.image_size and args.image_size % 2**args.num_blocks:
    parser.error(f"--image-size must be divisible by 2 ** num_blocks = {2**args.num_blocks}, as every block halves it. "
                 f"Received: {args.image_size}")
  if args.time_limit and args.strategy == "multiworker":
    parser.error("--time-limit must not be given with --strategy=multiworker: each worker has a clock of its own. "
                 f"Received: {args.time_limit:g}")
  if args.output.exists() and not args.output.is_dir():
    parser.error(f"--output must be a folder. Received: {args.output}")
  has_results = any((args.output / name).exists() for name in OUTPUTS)
  if has_results and not args.overwrite and not training_state(args).exists():
    parser.error("--output must be a folder without the results of an earlier run; --overwrite replaces them. "
                 f"Received: {args.output}")
  return args


def positive_int(text):
  """An argparse type."""
  return _number(text, int, lambda value: value > 0, "a positive whole number")


def non_negative_int(text):
  """An argparse type."""
  return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def positive_float(text):
  """An argparse type."""
  return _number(text, float, lambda value: 0. < value < math.inf, "a positive number")


def non_negative_float(text):
  """An argparse type."""
  return _number(text, float, lambda value: 0. <= value < math.inf, "a number of at least 0")


def _number(text, number_type, is_valid, description):
  try:
    value = number_type(text)
  except ValueError:
    value = None
  if value is None or not is_valid(value):
    raise argparse.ArgumentTypeError(f"must be {description}. Received: {text!r}")
  return value


def load_splits(args):
  """Batches of images to train, to choose the best epoch (validation), and to report (test).

  `"train"` is one epoch; `"train_epochs"` is a function from a `range` of epochs to the dataset of them.
  """
  load = functools.partial(data.load_images, args.data, batch_size=args.batch_size, image_size=args.image_size,
                           seed=args.seed, data_dir=args.data_dir)
  train_split, test_images = "train", load("test")
  height, width = test_images.element_spec.shape[1:3]
  if args.max_shift > min(height, width):
    raise ValueError(f"--max-shift must not be larger than the images, {height}x{width}. Received: {args.max_shift:g}")
  try:
    validation_images = load("validation")
  except ValueError as error:
    try:  # Many a data set of TFDS has none.
      train_split, validation_images = "train[:95%]", load("train[95%:]")
    except ValueError:
      raise error from None
  return {"train": load(train_split), "train_epochs": functools.partial(load, train_split),
          "validation": validation_images, "test": test_images}


def augment(images, args, first_step):
  """Random shifts and mirror images of a dataset of batches, which depend on the step at which a batch comes alone."""

  def augment_batch(batch, step):
    seeds = tf.random.experimental.stateless_split([args.seed, step], 2)
    if args.max_shift:
      batch = shift_randomly(batch, args.max_shift, seeds[0])
    if args.flip:
      is_mirrored = tf.random.stateless_uniform(tf.shape(batch)[:1], seeds[1]) < 0.5
      batch = tf.where(is_mirrored[:, tf.newaxis, tf.newaxis, tf.newaxis], tf.reverse(batch, [2]), batch)
    return batch

  steps = tf.data.Dataset.counter(first_step)
  images = tf.data.Dataset.zip(images, steps).map(augment_batch, num_parallel_calls=tf.data.AUTOTUNE)
  return images.prefetch(tf.data.AUTOTUNE)


def shift_randomly(batch, max_shift, seed):
  """Shifts each image by amounts uniform up to `max_shift` in both directions, rounded to pixels; zeros move in."""
  _, height, width, _ = batch.shape
  margin = round(max_shift)
  offsets = tf.random.stateless_uniform([tf.shape(batch)[0], 2], seed, -max_shift, max_shift)
  rows, columns = (tf.range(size) + tf.cast(tf.round(offsets[:, i:i + 1]), tf.int32) + margin
                   for i, size in enumerate((height, width)))
  padded = tf.pad(batch, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
  return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def make_model(args, image_shape):
  """A compiled `FlowModel` of a Glow for images of this shape."""
  glow = tfp_glow.GlowBijector(
      output_shape=image_shape, num_glow_blocks=args.num_blocks, num_steps_per_block=args.num_steps,
      num_hidden=args.num_hidden, coupling=args.coupling, permutation=args.permutation, seed=args.seed)
  base = tfd.Sample(tfd.Normal(0., 1.), glow.inverse_event_shape(image_shape))
  return tfp_glow.FlowModel(tfd.TransformedDistribution(base, glow), num_bits=args.num_bits, seed=args.seed)


def compile_model(model, args, steps_per_epoch):
  """Chooses the optimizer."""
  model.compile(keras.optimizers.Adam(learning_rate_schedule(args, steps_per_epoch), global_clipnorm=MAX_GRADIENT_NORM))


def training_state(args):
  """The callback that keeps the state of the run."""
  settings = {key: value for key, value in vars(args).items() if key not in NOT_OF_THE_RUN}
  return callbacks.TrainingState(args.output / STATE, settings)


def prepare_output(args, keep_best_until_now):
  """Makes the folder, and clears it of the results of an earlier run, lest those of two lie side by side."""
  (args.output / STATE).mkdir(parents=True, exist_ok=True)  # Now, not after an epoch, if that cannot be.
  for name in (*OUTPUTS, BEST_UNTIL_NOW):
    path = args.output / name
    if path.is_dir():
      shutil.rmtree(path)
    elif name != BEST_UNTIL_NOW or not keep_best_until_now:
      path.unlink(missing_ok=True)


class BestWeights(keras.callbacks.ModelCheckpoint):
  """Keeps the best weights of the epochs that have been finished; `keep_best` sees to the last one."""

  def on_train_batch_end(self, batch, logs=None):
    super().on_train_batch_end(batch, logs)
    self._is_finished = batch + 1 >= self.params["steps"]

  def on_epoch_end(self, epoch, logs=None):
    if self._is_finished:
      super().on_epoch_end(epoch, logs)


def is_loaded(model, path):
  """Whether there are weights to load."""
  if not path.exists():
    return False
  try:
    model.load_weights(path)
    return True
  except (OSError, KeyError) as error:
    print(f"{path} cannot be read ({error}): the best weights of the epochs before are lost.", file=sys.stderr)
    return False


def train(model, splits, state, first_epoch, best_is_there, args):
  """Trains until the last epoch, the time limit or Ctrl-C, and leaves the best weights in the model and in its file.

  Returns:
    bits_per_dim: Of the validation split.
    interrupted: Whether Ctrl-C was pressed.

  Raises:
    FloatingPointError: if training diverges.
  """
  history = state.history.get("val_bits_per_dim", []) if best_is_there else []
  best = min(filter(math.isfinite, history), default=math.inf)
  checkpoint = BestWeights(args.output / BEST_UNTIL_NOW, monitor="val_bits_per_dim", mode="min", save_best_only=True,
                           save_weights_only=True, initial_value_threshold=best)
  # As long as is left of it, when the run goes on.
  limit = [callbacks.TimeLimit(max(60. * args.time_limit - state.seconds, 1e-3))] if args.time_limit else []
  interrupt = callbacks.StopOnInterrupt()
  # One worker cannot stop by itself: Ctrl-C ends it at once, and its death the others.
  own = [] if args.strategy == "multiworker" else [interrupt]
  if first_epoch:
    print(f"Going on after epoch {first_epoch} of {args.epochs}.")
  else:
    model.adapt(splits["train"])
  epochs = range(first_epoch, args.epochs)
  if epochs:
    steps_per_epoch = len(splits["train"])
    images = augment(splits["train_epochs"](epochs=epochs), args, first_epoch * steps_per_epoch)
    model.fit(images, validation_data=splits["validation"], steps_per_epoch=steps_per_epoch, initial_epoch=epochs.start,
              epochs=epochs.stop, callbacks=[checkpoint, state, *own, *limit])
  bits_per_dim = keep_best(model, splits["validation"], checkpoint)
  model.save_weights(args.output / WEIGHTS)
  return bits_per_dim, interrupt.interrupted


def end_at_once(*_):
  """A signal handler."""
  print("\nInterrupted: the results are not complete.", file=sys.stderr, flush=True)
  os._exit(EXIT_INTERRUPTED)


def learning_rate_schedule(args, steps_per_epoch):
  """A short warm-up, then half a cosine down to 0 at the last step."""
  num_steps = args.epochs * steps_per_epoch
  num_warmup_steps = num_steps // 20
  return keras.optimizers.schedules.CosineDecay(
      0., num_steps - num_warmup_steps, warmup_target=args.learning_rate, warmup_steps=num_warmup_steps)


def keep_best(model, validation_images, checkpoint):
  """Chooses between the weights at hand, which may be those of an unfinished epoch, and the best saved ones.

  Returns:
    Bits per dimension of the validation split.

  Raises:
    FloatingPointError: if there are neither.
  """
  strategy, bits_per_dim = model.distribute_strategy, evaluate(model, validation_images)
  if math.isfinite(checkpoint.best) and not bits_per_dim < checkpoint.best:
    if replicas.is_chief(strategy):  # Of a run that has been resumed the others may not have the file.
      model.load_weights(checkpoint.filepath)
    replicas.take_from_chief([v.value for v in model.weights], strategy)
    return float(checkpoint.best)
  if not math.isfinite(bits_per_dim):
    raise FloatingPointError(f"Bits per dimension of the validation split must be finite. Received: {bits_per_dim}")
  return bits_per_dim


def save_results(model, test_images, history, results, start, args):
  """Writes pictures, SavedModel and, last, the numbers: `results` and what is added to them here."""
  results = {
      "bits_per_dim": evaluate(model, test_images),
      **results,
      "num_parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
      "settings": {**vars(args), "output": str(args.output)},
      "versions": versions(),
  }
  save_pictures(model, test_images, history, results["bits_per_dim"], args)
  model.export(args.output / SAVED_MODEL)
  results["seconds"] = round(time.monotonic() - start, 1)
  (args.output / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
  print(f"Test bits per dim: {results['bits_per_dim']:.4f}, after {results['seconds']:.0f} s. In {args.output}: "
        f"{', '.join(OUTPUTS)}")


def evaluate(model, images):
  """Bits per dimension, a Python `float`."""
  return float(model.evaluate(images, return_dict=True, verbose=0)["bits_per_dim"])


def save_pictures(model, test_images, history, test_bits_per_dim, args):
  """Writes all pictures of a trained model to the output folder."""
  samples = [model.sample(NUM_COLUMNS, temperature, seed=args.seed) for temperature in TEMPERATURES]
  save_grid(args.output / SAMPLES, samples, [f"T = {temperature:g}" for temperature in TEMPERATURES])
  images = np.stack(list(test_images.unbatch().take(2 * NUM_COLUMNS).as_numpy_iterator()))
  save_grid(args.output / INTERPOLATIONS, interpolations(model, images[:NUM_INTERPOLATIONS]))
  first, second = np.split(images, [NUM_COLUMNS])
  rows = [row for part in (first, second) if len(part) for row in (part, model.decode(model.encode(part)))]
  save_grid(args.output / RECONSTRUCTIONS, rows, ["original", "decoded"] * (len(rows) // 2))
  save_files(args.output / TEST_IMAGES, images)
  save_curve(args.output / CURVE, history, test_bits_per_dim)


def interpolations(model, images):
  """Rows of images, each from one of `images` to the next and the last to the first."""
  z = model.encode(images)
  lines = latent.interpolate(z, np.roll(z, -1, axis=0), NUM_COLUMNS)
  decoded = model.decode(lines.reshape(-1, z.shape[-1]))
  return np.swapaxes(decoded.reshape(lines.shape[:2] + images.shape[1:]), 0, 1)


def save_grid(path, rows, labels=None):
  """Writes rows of images, enlarged pixel by pixel, with labels before the rows."""
  height, width = rows[0].shape[1:3]
  zoom = max(1, TILE_SIZE // height)
  height, width, margin = zoom * height + GAP, zoom * width + GAP, 100 if labels else 0
  picture = Image.new("RGB", (margin + GAP + width * max(map(len, rows)), GAP + height * len(rows)), "white")
  for i, row in enumerate(rows):
    for j, image in enumerate(row):
      tile = keras.utils.array_to_img(image, scale=False)
      tile = tile.resize((width - GAP, height - GAP), Image.Resampling.NEAREST)
      picture.paste(tile, (margin + GAP + j * width, GAP + i * height))
    if labels:
      place = margin - GAP, GAP + i * height + (height - GAP) // 2
      ImageDraw.Draw(picture).text(place, labels[i], fill="black", anchor="rm", font=ImageFont.load_default(18))
  picture.save(path)


def save_files(folder, images):
  """Writes images to the files 00.png, 01.png, ... of a new folder."""
  folder.mkdir()
  for i, image in enumerate(images):
    keras.utils.array_to_img(image, scale=False).save(folder / f"{i:02}.png")


def save_curve(path, history, test_bits_per_dim):
  """Draws bits per dimension of each finished epoch."""
  figure, axes = plt.subplots(figsize=(8, 5))
  for key, label in (("bits_per_dim", "training"), ("val_bits_per_dim", "validation")):
    values = history.get(key, [])
    axes.plot(range(1, len(values) + 1), values, marker=".", label=label)
  axes.axhline(test_bits_per_dim, color="black", linestyle=":", label=f"test, best epoch: {test_bits_per_dim:.3f}")
  axes.set(xlabel="epoch", ylabel="bits per dimension")
  axes.legend()
  figure.savefig(path)
  plt.close(figure)


def versions():
  """Of what the numbers may depend on."""
  modules = (tf, tfp, keras, np)
  return {"python": platform.python_version(), **{module.__name__: module.__version__ for module in modules}}


if __name__ == "__main__":
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # As in a background job of a shell.
    # But in training, Ctrl-C ends the program wherever it is: as an exception it may be lost in a library, or crash it.
    signal.signal(signal.SIGINT, end_at_once)
  sys.exit(main())

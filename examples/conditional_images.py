"""Images given a part of their contents: enlarged from a few pixels, or completed from their upper half.

The 8x8 digits of scikit-learn, with the default settings; MNIST from Keras' file:

  python examples/conditional_images.py
  python examples/conditional_images.py --task inpainting --output inpainting
  python examples/conditional_images.py --data ~/.keras/datasets/mnist.npz --epochs 4 --output mnist

  super-resolution   the context is the reduced image: each of its pixels is the mean of a square of --factor times
                     --factor; the density is that of the whole image
  inpainting         the context is the upper half, upside down, so that pixels that meet at the middle have the same
                     place; the density is that of the lower half alone

The script also trains a Glow of the same size without the context, and a small classifier on real images. The table
has, for the test split,

  bits per dim   of the generated part
  right class    the share of samples that the classifier assigns to the class of the true image
  error          of the mean of a context's samples: the root of its mean squared difference to the true image
  spread         the root of the mean squared deviation of a context's samples from their mean. If samples are
                 distributed like the truth, the error is sqrt(1 + 1 / number of samples) times as large
  reduced        the error of samples, reduced as the image was, to their context (super-resolution)

The last three are shares of the range from black to white. The folder then holds:

  model.weights.h5   the weights of the conditional Glow
  samples.png        contexts, true images, samples
  results.json       the table, settings, numbers of parameters, seconds, versions
"""

import sys
import time

import keras
import numpy as np
import options
import output_folder
import run_pictures
import tensorflow as tf
import train_glow
import training_data

import tfp_glow

WEIGHTS, SAMPLES = "model.weights.h5", "samples.png"
OUTPUTS = (WEIGHTS, SAMPLES, output_folder.RESULTS)

NUM_SAMPLES, NUM_SHOWN, NUM_COLUMNS = 8, 4, 12
CLASSIFIER_STEPS = 600


class SuperResolution:
  """Images from their means over squares."""

  def __init__(self, image_shape, factor):
    height, width, channels = image_shape
    if height % factor or width % factor:
      raise ValueError(f"--factor must divide the height and width of the images, {height}x{width}. Received: {factor}")
    self.factor = factor
    self.event_shape, self.context_shape = image_shape, (height // factor, width // factor, channels)

  def context_of(self, images):
    """Contexts of uint8 images `[N, H, W, C]`: float32, between -1 and 1."""
    return scaled(tf.nn.avg_pool2d(tf.cast(images, tf.float32), self.factor, self.factor, "VALID"))

  def event_of(self, images):
    """The generated part."""
    return images

  def whole(self, events, images):
    """Whole images; parts that are not generated come from `images`."""
    del images
    return events

  def shown(self, images):
    """The context as images of the same size."""
    levels = (self.context_of(images).numpy() + 1.) * 127.5
    return np.round(levels).astype(np.uint8).repeat(self.factor, 1).repeat(self.factor, 2)


class Inpainting:
  """The lower half from the upper one."""

  def __init__(self, image_shape, factor):
    del factor
    height, width, channels = image_shape
    self.half = height // 2
    self.event_shape = self.context_shape = (self.half, width, channels)

  def context_of(self, images):
    """As in `SuperResolution`."""
    return scaled(tf.cast(images[:, :self.half][:, ::-1], tf.float32))

  def event_of(self, images):
    """As in `SuperResolution`."""
    return images[:, self.half:]

  def whole(self, events, images):
    """As in `SuperResolution`."""
    return np.concatenate([images[:, :self.half], events], axis=1)

  def shown(self, images):
    """As in `SuperResolution`."""
    return self.whole(np.full_like(self.event_of(images), 128), images)


TASKS = {"super-resolution": SuperResolution, "inpainting": Inpainting}


def main():
  """Parses the command line, trains, measures; returns the exit code."""
  start = time.monotonic()
  args = parse_args()
  keras.utils.set_random_seed(args.seed)
  try:
    splits = training_data.load_splits(args)
    task = TASKS[args.task](training_data.image_shape(splits["train"]), args.factor)
    model, without = (make_model(task, args, has_context) for has_context in (True, False))
    output_folder.prepare(args, OUTPUTS)
  except (ValueError, OSError, ImportError) as error:
    print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
    return train_glow.EXIT_USAGE
  for name, one in (("given the context", model), ("without context", without)):
    print(f"A Glow {name}:")
    fit(one, splits, task, args)
  model.save_weights(args.output / WEIGHTS)
  classifier = fit_classifier(splits)
  test = splits["test"].map(lambda *batch: as_pair(task, *batch))
  images, labels = (np.stack(part) for part in zip(*splits["test"].unbatch().take(args.num_images).as_numpy_iterator()))
  results = {"classifier_accuracy": float(np.mean(classes_of(classifier, images) == labels)),
             "given_context": measures(model, test, images, labels, task, classifier, args.seed),
             "without_context": measures(without, test, images, labels, task, classifier, args.seed),
             "num_parameters": output_folder.num_parameters(model),
             "num_parameters_without": output_folder.num_parameters(without)}
  save_samples(args.output / SAMPLES, model, images[:NUM_COLUMNS], task, args.seed)
  output_folder.write_results(results, start, args)
  show(results)
  print(f"After {time.monotonic() - start:.0f} s. In {args.output}: {', '.join(OUTPUTS)}")
  return 0


def parse_args():
  """The settings; argparse ends the program with a message if one of them is invalid."""
  parser = options.empty_parser(__doc__)
  add = parser.add_argument
  add("--task", choices=TASKS, default="super-resolution", help="(%(default)s)")
  add("--factor", type=options.positive_int, help="reduction of images, a power of two (2 for the digits, else 4)")
  options.add_data_options(parser, "'digits', the name of a TFDS data set, a folder of images, or an .npz file")
  add("--num-blocks", type=options.positive_int, default=2, help="scales, each half as high and wide (%(default)s)")
  add("--num-steps", type=options.positive_int, default=4, help="steps of flow at each scale (%(default)s)")
  add("--num-hidden", type=options.positive_int, default=64, help="channels inside the coupling networks (%(default)s)")
  add("--num-features", type=options.positive_int, default=8,
      help="channels that the network computes from the context (%(default)s)")
  add("--epochs", type=options.positive_int, default=45, help="(%(default)s)")
  add("--batch-size", type=options.positive_int, default=64, help="(%(default)s)")
  add("--learning-rate", type=options.positive_float, default=2e-3,
      help="the highest rate, after a warm-up; it falls to 0 at the last step (%(default)s)")
  add("--num-images", type=options.positive_int, default=200, help="test images to sample for (%(default)s)")
  add("--seed", type=options.non_negative_int, default=0, help="the same seed gives the same result (%(default)s)")
  output_folder.add_options(parser, "conditional")
  # Settings that functions of the longer examples need.
  parser.set_defaults(conditional=True, schedule="cosine", warm_up_steps=None, strategy="none", time_limit=None)
  args = parser.parse_args()
  if args.factor is None:
    args.factor = 2 if args.data == "digits" else 4
  if args.task == "inpainting":
    options.check(parser, args, args.num_blocks + 1, "2 ** (num_blocks + 1)", "every block, and the cut in the middle,")
  else:
    options.check(parser, args, args.num_blocks, "2 ** num_blocks", "every block")
  output_folder.check(parser, args, OUTPUTS)
  return args


def scaled(levels):
  """Scales to between -1 and 1."""
  return levels / 127.5 - 1.


def as_pair(task, images, labels):
  """A batch as `FlowModel` takes it."""
  return task.event_of(images), {"context": task.context_of(images), "label": labels}


def make_model(task, args, has_context):
  """A `FlowModel` of the task's generated part."""
  condition = {"context_shape": task.context_shape,
               "context_network": make_context_network(task.context_shape, args.num_features)} if has_context else {}
  glow = tfp_glow.GlowBijector(
      task.event_shape, args.num_blocks, args.num_steps, args.num_hidden, seed=args.seed, **condition)
  return tfp_glow.FlowModel(glow, num_bits=args.num_bits, seed=args.seed)


def make_context_network(shape, num_features):
  """A network that gives the flow features of the surroundings at each position, and of the whole image everywhere."""
  conv = lambda filters: keras.layers.Conv2D(filters, 3, padding="same", activation="gelu")
  context = keras.Input(shape)
  around = conv(num_features)(conv(4 * num_features)(context))
  whole = keras.layers.Dense(2 * num_features, "gelu")(keras.layers.Flatten()(around))
  return keras.Model(context, {"around": around, "whole": whole})


def fit(model, splits, task, args):
  """Trains the model."""
  num_steps = len(splits["train"])
  model.compile(keras.optimizers.Adam(train_glow.learning_rate_schedule(args, num_steps), global_clipnorm=100.))
  pairs = lambda dataset: dataset.map(lambda *batch: as_pair(task, *batch), num_parallel_calls=tf.data.AUTOTUNE)
  train = training_data.to_train(splits, model.distribute_strategy, args, range(args.epochs), 0)
  model.fit(pairs(train), validation_data=pairs(splits["validation"]), epochs=args.epochs, steps_per_epoch=num_steps)


def fit_classifier(splits):
  """A small convolutional network, trained on real images."""
  layers = keras.layers
  conv = lambda filters: layers.Conv2D(filters, 3, padding="same", activation="relu")
  classifier = keras.Sequential([
      layers.Rescaling(1. / 127.5, -1.), conv(16), layers.MaxPooling2D(), conv(32), layers.MaxPooling2D(),
      layers.Flatten(), layers.Dense(64, "relu"), layers.Dense(num_classes(splits))])
  classifier.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
  classifier.fit(splits["train"].repeat(), steps_per_epoch=CLASSIFIER_STEPS, shuffle=False, verbose=0)
  return classifier


def num_classes(splits):
  """One more than the largest label of the test split."""
  return 1 + max(int(np.max(labels)) for _, labels in splits["test"])


def classes_of(classifier, images):
  """Labels, integers `[N]`."""
  return np.argmax(classifier.predict(images, verbose=0), axis=-1)


def measures(model, test, images, labels, task, classifier, seed):
  """The numbers of the table.

  Args:
    model: `FlowModel`, with a context or without.
    test: Dataset of batches of the test split, from `as_pair`.
    images: uint8 array `[N, H, W, C]`.
    labels: Integer array `[N]`.
    task: One of `TASKS`.
    classifier: The result of `fit_classifier`.
    seed: Python `int`.

  Returns:
    Dict from names to Python `float`s.
  """
  truth, context = task.event_of(images), task.context_of(images)
  samples = np.stack([draw(model, context, seed + i) for i in range(NUM_SAMPLES)])
  wholes = [task.whole(events, images) for events in samples]
  found = {
      "bits_per_dim": train_glow.evaluate(model, test),
      "right_class": np.mean([classes_of(classifier, whole) == labels for whole in wholes]),
      "error": root_mean_square(np.mean(samples, axis=0) - truth),
      "spread": np.sqrt(np.mean(np.var(samples / 255., axis=0, ddof=1))),
  }
  if isinstance(task, SuperResolution):
    found["reduced"] = np.mean([root_mean_square(127.5 * (task.context_of(whole) - context)) for whole in wholes])
  return {name: float(value) for name, value in found.items()}


def draw(model, context, seed):
  """A sample for each context, which is passed only to a conditional model."""
  condition = {} if model.context_shape is None else {"context": context}
  return model.sample(len(context), seed=seed, **condition)


def root_mean_square(differences):
  """Root mean square of grey levels, as a share of their range."""
  return np.sqrt(np.mean(np.square(differences))) / 255.


def show(results):
  """Prints the table."""
  rows = {"given the context": results["given_context"], "without context": results["without_context"]}
  names = list(results["given_context"])
  print(f"\n{'':<18}" + "".join(f"{name.replace('_', ' '):>14}" for name in names))
  for label, row in rows.items():
    print(f"{label:<18}" + "".join(f"{row[name]:14.3f}" for name in names))
  print(f"The classifier is right for {results['classifier_accuracy']:.1%} of the true images.")


def save_samples(path, model, images, task, seed):
  """Writes contexts, true images and samples, column by column."""
  context = task.context_of(images)
  samples = [task.whole(draw(model, context, seed + i), images) for i in range(NUM_SHOWN)]
  run_pictures.save_grid(path, [task.shown(images), images, *samples],
                         ["context", "truth", *(f"sample {i + 1}" for i in range(NUM_SHOWN))])


if __name__ == "__main__":
  sys.exit(main())

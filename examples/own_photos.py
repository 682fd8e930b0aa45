"""A Glow of your own folder of photos.

  python examples/own_photos.py ~/photographs --image-size 32 --output photos
  python examples/own_photos.py

Without a folder, the second command cuts the two photographs in scikit-learn into squares, to try it out; it ends at
1.51 bits per dim. Photos may have any sizes: each is cropped to its central square and reduced. By content, a tenth of
them is kept for validation, and another tenth for the test. The output folder then holds:

  pictures/samples_0010.png            samples after 10 epochs, from the same noise each time
  pictures/interpolations_0010.png     paths through latent space between four photos of the test split
  pictures/bits_per_dim.png            the curve of training
  model.weights.h5, saved_model/       the weights, and a SavedModel

The same command resumes a run that was ended. A few hundred photos are enough to try it. For samples that look like
photos, use tens of thousands of one kind (such as faces in one place), the settings of the paper, and a GPU.
"""

import argparse
import functools
import pathlib
import tempfile

import keras
import tensorflow as tf
from options import non_negative_int, positive_float, positive_int

import tfp_glow
from tfp_glow import callbacks, data


def main():
  """Trains, leaves everything in the output folder, and returns bits per dimension of the test split."""
  args = parse_args()
  keras.utils.set_random_seed(args.seed)
  with tempfile.TemporaryDirectory() as crops:
    folder = args.folder or write_crops(pathlib.Path(crops), args.image_size)
    load = functools.partial(data.load_images, folder, batch_size=args.batch_size, image_size=args.image_size,
                             seed=args.seed)
    test = load("test")
    photos = next(iter(test.rebatch(16)))
    if len(photos) < 2:
      raise ValueError("`folder` must hold some dozens of photos, so that two or more are kept for the test. "
                       f"Received: {folder}, with {len(photos)} for the test")
    model = make_model(test.element_spec.shape[1:], args)
    train(model, load, photos[::max(1, len(photos) // 4)][:4], args)
    bits_per_dim = model.evaluate(test, return_dict=True, verbose=0)["bits_per_dim"]
  model.save_weights(args.output / "model.weights.h5")
  model.export(args.output / "saved_model")
  print(f"Test bits per dim: {bits_per_dim:.3f}. In {args.output}: pictures, model.weights.h5, saved_model")
  return bits_per_dim


def parse_args():
  """The settings."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("folder", nargs="?", type=pathlib.Path, help="jpg, jpeg, png, bmp and gif files, also in sub-folders")
  add("--image-size", type=positive_int, default=32,
      help="height and width, divisible by 2 ** num_blocks (%(default)s)")
  add("--num-bits", type=int, choices=range(1, 9), default=5,
      help="bits kept of each pixel: with 5 samples look best (%(default)s)")
  add("--num-blocks", type=positive_int, default=3, help="scales, each half as high and wide (%(default)s)")
  add("--num-steps", type=positive_int, default=8, help="steps of flow at each scale; the paper's: 32 (%(default)s)")
  add("--num-hidden", type=positive_int, default=64,
      help="channels in the coupling networks; the paper's: 512 (%(default)s)")
  add("--epochs", type=positive_int, default=30, help="(%(default)s)")
  add("--batch-size", type=positive_int, default=16, help="(%(default)s)")
  add("--learning-rate", type=positive_float, default=1e-3, help="(%(default)s)")
  add("--seed", type=non_negative_int, default=0, help="the same seed gives the same result (%(default)s)")
  add("--output", type=pathlib.Path, default=pathlib.Path("photos"), help="folder of the results (%(default)s)")
  return parser.parse_args()


def write_crops(folder, size):
  """Cuts scikit-learn's photographs (China's Summer Palace, a flower) into squares; returns their folder."""
  from sklearn import datasets
  for index, photo in enumerate(datasets.load_sample_images().images):
    height, width, _ = photo.shape
    for top in range(0, height - size + 1, size):
      for left in range(0, width - size + 1, size):
        crop = tf.io.encode_png(photo[top:top + size, left:left + size])
        tf.io.write_file(str(folder / f"{index}_{top}_{left}.png"), crop)
  return folder


def make_model(image_shape, args):
  """A compiled `FlowModel`. Its memory does not grow with the number of steps."""
  glow = tfp_glow.GlowBijector(image_shape, args.num_blocks, args.num_steps, args.num_hidden, gradient="reversible",
                               seed=args.seed)
  model = tfp_glow.FlowModel(glow, num_bits=args.num_bits, seed=args.seed)
  model.compile(keras.optimizers.Adam(args.learning_rate, global_clipnorm=100.))
  return model


def train(model, load, photos, args):
  """Trains from the last finished epoch, if any, and draws pictures meanwhile."""
  pictures = args.output / "pictures"
  settings = {key: str(value) for key, value in vars(args).items() if key not in ("output", "epochs")}
  state = callbacks.TrainingState(args.output / "training_state", settings)
  first_epoch = state.restore(model)
  epochs = range(first_epoch, max(args.epochs, first_epoch))
  if not epochs:
    return
  images = load("train", epochs=epochs)
  model.fit(images, validation_data=load("validation"), steps_per_epoch=len(images) // len(epochs),
            initial_epoch=epochs.start, epochs=epochs.stop, callbacks=[
                callbacks.SampleGrid(pictures),
                callbacks.LatentInterpolation(pictures, photos),
                callbacks.BitsPerDimCurve(pictures),
                state,
            ])


if __name__ == "__main__":
  main()

"""Measures the CPU time of drawing pictures during training; prints a table of docs/training.md.

  python benchmarks/callbacks.py
  python benchmarks/callbacks.py --data fashion_mnist --image-size 32 --num-blocks 3 --steps 20

The callbacks of "Pictures while it trains" on that page draw after each of some short epochs of a Glow with 8 steps of
flow in each level, 64 wide, in batches of 64. The medians omit the first epoch, in which TensorFlow builds its graphs.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import keras
import results
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow import callbacks, data

_BATCH_SIZE = 64


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", default="digits", help="(%(default)s)")
  parser.add_argument("--image-size", type=int, help="height and width of the images (as they are)")
  parser.add_argument("--num-blocks", type=int, default=2, help="levels (%(default)s)")
  parser.add_argument("--steps", type=int, default=23, help="training steps of an epoch (%(default)s)")
  parser.add_argument("--epochs", type=int, default=6, help="2 or more (%(default)s)")
  results.add_save(parser)
  args = parser.parse_args()
  images = data.load_images(args.data, "train", _BATCH_SIZE, args.image_size, seed=0, drop_remainder=True)
  test_images = next(iter(data.load_images(args.data, "test", 5, args.image_size, seed=0)))
  model = _make_model(tuple(images.element_spec.shape[1:]), args.num_blocks)
  with tempfile.TemporaryDirectory() as folder:
    timed = {callback: Times(callback) for callback in (
        callbacks.SampleGrid(folder), callbacks.LatentInterpolation(folder, test_images),
        callbacks.BitsPerDimCurve(folder))}
    clock = _Clock()
    model.fit(images.repeat(), steps_per_epoch=args.steps, epochs=args.epochs, verbose=0, callbacks=[clock, *timed])
  step = statistics.median(clock.epochs[1:]) / args.steps
  table = results.Table(f"a training step: {step:.3f} s of CPU time", "before training, s", "after an epoch, s",
                        "as many steps as")
  for callback, times in timed.items():
    picture = statistics.median(times.after[1:])
    table.add(f"`{type(callback).__name__}`", f"{sum(times.before):.2f}", f"{picture:.3f}", f"{picture / step:.2f}")
  table.save(args, f"callbacks_{pathlib.Path(args.data).stem}")


def _make_model(image_shape, num_blocks):
  glow = tfp_glow.GlowBijector(image_shape, num_blocks, num_steps_per_block=8, num_hidden=64, seed=0)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), glow.inverse_event_shape(image_shape))
  model = tfp_glow.FlowModel(tfp.distributions.TransformedDistribution(base, glow))
  model.compile(keras.optimizers.Adam(1e-3))
  return model


class Times:
  """CPU seconds of the calls of a callback at the beginning and at the end of each epoch."""

  def __init__(self, callback):
    self.before, self.after = [], []
    callback.on_epoch_begin = self._timed(callback.on_epoch_begin, self.before)
    callback.on_epoch_end = self._timed(callback.on_epoch_end, self.after)

  def _timed(self, function, seconds):
    def call(*args, **kwargs):
      start = time.process_time()
      function(*args, **kwargs)
      seconds.append(time.process_time() - start)

    return call


class _Clock(keras.callbacks.Callback):
  """CPU seconds of epochs. It must be the first callback, so that the seconds of the others are not included."""

  def __init__(self):
    super().__init__()
    self.epochs = []
    self._start = None

  def on_epoch_begin(self, epoch, logs=None):
    self._start = time.process_time()

  def on_epoch_end(self, epoch, logs=None):
    self.epochs.append(time.process_time() - self._start)


if __name__ == "__main__":
  main()

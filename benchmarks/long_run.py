"""Whether the memory of a long training grows. Prints a line each minute, then a table of docs/speed.md.

  python benchmarks/long_run.py                  an hour
  python benchmarks/long_run.py --minutes 10

A small Glow learns scikit-learn's digits. Each epoch has validation, a checkpoint of the best weights, the state of
training and pictures. The first minutes, in which TensorFlow builds its graphs and the C library's allocator settles,
do not count. From `--begin` (5 minutes) on, the median of the first tenth of the epochs is compared with that of the
last tenth.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import keras
import results

import tfp_glow
from tfp_glow import callbacks, data


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--minutes", type=float, default=60., help="(%(default)s)")
  parser.add_argument("--begin", type=float, default=5., help="minutes that do not count (%(default)s)")
  results.add_save(parser)
  args = parser.parse_args()
  memory = _Memory(60. * args.begin)
  _train(60. * args.minutes, memory)
  if len(memory.megabytes) < 2:
    parser.error(f"--minutes must leave two epochs or more after --begin. Received: {args.minutes:g}")
  count = max(len(memory.megabytes) // 10, 1)
  first, last = (statistics.median(part) for part in (memory.megabytes[:count], memory.megabytes[-count:]))
  table = results.Table("epochs", f"resident memory after {args.begin:g} minutes, MiB", "at the end, MiB", "ratio")
  table.add(memory.num_epochs, f"{first:.0f}", f"{last:.0f}", f"{last / first:.3f}")
  table.save(args, "long_run")


def _train(seconds, memory):
  train, test = (data.load_images("digits", split, 64, seed=0) for split in ("train", "test"))
  glow = tfp_glow.GlowBijector((8, 8, 1), num_glow_blocks=2, num_steps_per_block=4, num_hidden=16, seed=0)
  model = tfp_glow.FlowModel(glow, num_bits=4)
  model.compile(keras.optimizers.Adam(1e-3))
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    best = keras.callbacks.ModelCheckpoint(folder / "best.weights.h5", monitor="val_bits_per_dim", mode="min",
                                           save_best_only=True, save_weights_only=True)
    pictures = [callbacks.SampleGrid(folder), callbacks.LatentInterpolation(folder, next(iter(test))[:2]),
                callbacks.BitsPerDimCurve(folder)]
    model.fit(train, validation_data=test, epochs=10**9, verbose=0, callbacks=[
        best, *pictures, callbacks.TrainingState(folder / "state"), callbacks.TimeLimit(seconds), memory])


class _Memory(keras.callbacks.Callback):
  """Records the resident memory of the process after each epoch.

  Attributes:
    megabytes: List of Python `float`s, one for each epoch that counts.
    num_epochs: Python `int`, number of all epochs.
  """

  def __init__(self, begin):
    super().__init__()
    self.megabytes, self.num_epochs = [], 0
    self._begin, self._minutes = begin, 0

  def on_train_begin(self, logs=None):
    self._start = time.monotonic()

  def on_epoch_end(self, epoch, logs=None):
    seconds = time.monotonic() - self._start
    megabytes = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) / 256.  # Pages of 4 kB.
    self.num_epochs = epoch + 1
    if seconds >= self._begin:
      self.megabytes.append(megabytes)
    if seconds >= 60. * self._minutes:
      print(f"after {seconds / 60.:.0f} minutes, {self.num_epochs} epochs: {megabytes:.0f} MiB, "
            f"{logs['bits_per_dim']:.3f} bits per dim", flush=True)
      self._minutes += 1


if __name__ == "__main__":
  main()

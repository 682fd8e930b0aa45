"""The paper's ablation, scaled down: 3 permutations x 2 couplings; prints and draws what docs/experiments.md shows.

  python benchmarks/ablation.py                          about half an hour on two cores
  python benchmarks/ablation.py --seeds 1 --epochs 2

Each training is a small Glow (2 levels of 8 steps, 64 wide) on Fashion-MNIST reduced to 16x16, in a process with one
thread. All take the same number of steps of Adamax at 0.001, as in the paper's code, after a warm-up of one epoch. Bits
per dimension are those of the first 4,096 of the 10,000 images of the test split, after each epoch. The figure omits
the epoch of the warm-up, if there are others, because its bits are far above theirs. The numbers are written after each
training; if it diverges, they are NaN from there on.
"""

import argparse
import concurrent.futures
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import sys

import results

PERMUTATIONS = ("reverse", "shuffle", "conv1x1")
COUPLINGS = ("additive", "affine")
ARCHITECTURE = {"num_glow_blocks": 2, "num_steps_per_block": 8, "num_hidden": 64}
STEPS_PER_EPOCH = 100
_BATCH_SIZE = 64
NUM_TEST_BATCHES = 64


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", type=int, default=3, help="trainings of each combination (%(default)s)")
  parser.add_argument("--epochs", type=int, default=20, help=f"epochs of {STEPS_PER_EPOCH} steps (%(default)s)")
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("ablation"),
                      help="folder of the figure and of the numbers (%(default)s)")
  results.add_save(parser)
  args = parser.parse_args()
  args.output.mkdir(parents=True, exist_ok=True)
  curves = train_all(range(args.seeds), args.epochs, args.output / "ablation.json")
  _show_table(curves).save(args, "ablation")
  _draw(curves, args.output / "ablation.png")


def train_all(seeds, num_epochs, path):
  """Curves of bits per dimension, one for each seed, by permutation and coupling; each is written once it is done."""
  settings = list(itertools.product(PERMUTATIONS, COUPLINGS, seeds))
  os.environ.update(OMP_NUM_THREADS="1", TF_NUM_INTRAOP_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")
  workers = len(os.sched_getaffinity(0))
  context = multiprocessing.get_context("spawn")
  found = {}
  with concurrent.futures.ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
    futures = {pool.submit(train, *setting, num_epochs): setting for setting in settings}
    for future in concurrent.futures.as_completed(futures):
      setting = futures[future]
      found[setting] = future.result()
      _write(path, {setting: found[setting] for setting in settings if setting in found})
      permutation, coupling, seed = setting
      end = "diverged" if math.isnan(found[setting][-1]) else f"{found[setting][-1]:.3f}"
      print(f"  {len(found)} of {len(settings)}: {permutation}, {coupling}, seed {seed}: {end}", file=sys.stderr,
            flush=True)
  return {key: [found[(*key, seed)] for seed in seeds] for key in itertools.product(PERMUTATIONS, COUPLINGS)}


def _write(path, found):
  new = path.with_suffix(".new")  # A program that is ended while it writes keeps the earlier numbers.
  new.write_text(json.dumps([
      {"permutation": permutation, "coupling": coupling, "seed": seed, "bits_per_dim": curve}
      for (permutation, coupling, seed), curve in found.items()], indent=1) + "\n")
  new.replace(path)


def train(permutation, coupling, seed, num_epochs):
  """Bits per dimension of test images after each epoch; NaN once the training has diverged."""
  import keras
  import tensorflow_probability as tfp

  import tfp_glow
  load = lambda split, **kwargs: tfp_glow.data.load_images(
      "fashion_mnist", split, batch_size=_BATCH_SIZE, image_size=16, seed=seed, **kwargs)
  glow = tfp_glow.GlowBijector((16, 16, 1), coupling=coupling, permutation=permutation, seed=seed, **ARCHITECTURE)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [16 * 16])
  model = tfp_glow.FlowModel(tfp.distributions.TransformedDistribution(base, glow), seed=seed)
  num_steps = num_epochs * STEPS_PER_EPOCH
  rate = keras.optimizers.schedules.PolynomialDecay(1e-5, STEPS_PER_EPOCH, end_learning_rate=1e-3)
  model.compile(keras.optimizers.Adamax(rate))
  images = load("train", drop_remainder=True).repeat().take(num_steps)
  try:
    model.fit(images, steps_per_epoch=STEPS_PER_EPOCH, epochs=num_epochs, verbose=0,
              validation_data=load("test").take(NUM_TEST_BATCHES))
  except FloatingPointError as error:
    print(f"  {permutation}, {coupling}, seed {seed}: {error}", file=sys.stderr, flush=True)
  curve = model.history.history.get("val_bits_per_dim", [])
  return curve + [math.nan] * (num_epochs - len(curve))


def _show_table(curves):
  table = results.Table("test bits per dim, mean of the seeds (range)", *COUPLINGS)
  for permutation in PERMUTATIONS:
    table.add(permutation, *(_cell([curve[-1] for curve in curves[permutation, coupling]]) for coupling in COUPLINGS))
  return table


def _cell(ends):
  finite = [end for end in ends if math.isfinite(end)]
  spread = [f"{statistics.mean(finite):.3f} ({min(finite):.3f} to {max(finite):.3f})"] if finite else []
  diverged = [f"{len(ends) - len(finite)} of {len(ends)} diverged"] if len(finite) < len(ends) else []
  return ", ".join(spread + diverged)


def _draw(curves, path):
  import matplotlib
  matplotlib.use("Agg")  # The figure goes to a file: no display is needed.
  from matplotlib import pyplot as plt

  from tfp_glow import pictures
  matplotlib.rcParams.update(pictures.STYLE)
  figure, panels = plt.subplots(1, 2, sharey=True, figsize=(pictures.PAGE_WIDTH, pictures.PAGE_WIDTH * 3. / 8.))
  for axes, coupling in zip(panels, COUPLINGS):
    for color, permutation in zip(pictures.COLORS, PERMUTATIONS):
      for index, curve in enumerate(curves[permutation, coupling]):
        first = min(1, len(curve) - 1)
        steps = [(epoch + 1) * STEPS_PER_EPOCH for epoch in range(len(curve))]
        axes.plot(steps[first:], curve[first:], color=color, marker=".", label=None if index else permutation)
    axes.set(title=f"{coupling} coupling", xlabel="training steps")
  panels[0].set_ylabel("test bits per dimension")
  panels[0].legend()
  figure.savefig(path)
  plt.close(figure)


if __name__ == "__main__":
  main()

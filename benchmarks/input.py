"""Measures images per second of `load_images` and of code without it; prints tables of docs/data.md.

  python benchmarks/input.py
  python benchmarks/input.py --only folder --images 5000
  python benchmarks/input.py --tiny                     at a tiny size, to test the program

  arrays    grey 28x28 images in memory (an .npz file): unchanged, padded, reduced; compared with a bare `tf.data`
            pipeline
  tfds      the same for Fashion-MNIST, which Debian's package `dataset-fashion-mnist` installs
  folder    small PNG and JPEG files of various sizes; compared with a bare `tf.data` pipeline, which decodes in each
            epoch or has a `cache()`, and with PyTorch's `ImageFolder` with a process for each CPU core
  workers   the first epoch of one of several workers, which reads its share of that folder, compared with one process
  needed    images per second that a training step of `benchmarks/gpu.py` takes, without XLA, on this machine's device

All take turns, round after round, and start again in each round. The first epoch opens files and decodes them, the
second uses what is kept. The tables have medians and ranges; ratios are taken within a round.
"""

import functools
import gc
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import gpu_common
import numpy as np
import results
import run
import tensorflow as tf

from tfp_glow import data

_DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
_TORCH = pathlib.Path(__file__).parent / "input_torch.py"
OURS, BARE, TORCHS = "`load_images`", "bare `tf.data`", "PyTorch's `ImageFolder`"
CACHED = f"{BARE} with `cache()`"
PAGE_COLUMNS = ("", "first epoch", "second epoch", f"{BARE}, first and second", TORCHS)
_FOLDER_SIZE = 32


def main():
  run.run_sections(__doc__, SECTIONS, _add_arguments)


def _add_arguments(parser):
  parser.add_argument("--images", type=int, help="images of the folder (4000); five times as many in memory")
  parser.add_argument("--batch-size", type=int, default=64, help="(%(default)s)")
  parser.add_argument("--rounds", type=int, help="rounds of each measurement (3)")
  parser.add_argument("--data-dir", help="where TFDS keeps its data sets (a folder that is deleted at the end)")
  parser.add_argument("--tiny", action="store_true", help="everything at a tiny size")


def _count(args):
  return args.images or (30 if args.tiny else 4000)


def _arrays(args):
  """The bare pipeline shuffles images, and then pads or reduces them batch by batch."""
  images, rows = _noise(5 * _count(args), 28)[..., 0], []
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "images.npz"
    np.savez(path, x_train=images)
    for size in (None, 32, 16):
      rows.append(compare(f"{len(images)} images in memory", args, size, {
          OURS: lambda size=size: data.load_images(path, "train", args.batch_size, size),
          BARE: lambda size=size: _bare(tf.data.Dataset.from_tensor_slices(images[..., np.newaxis]).shuffle(
              len(images)).batch(args.batch_size), size)}))
  results.save(args, "input_arrays", PAGE_COLUMNS, rows)


def _tfds(args):
  if not _DEBIAN.is_dir():
    print("Left out: Fashion-MNIST is missing (Debian's package `dataset-fashion-mnist`).")
    return
  import tensorflow_datasets as tfds
  with tempfile.TemporaryDirectory() as folder:
    data_dir = args.data_dir or folder
    split = f"train[:{5 * _count(args)}]"
    data.load_images("fashion_mnist", split, args.batch_size, data_dir=data_dir)  # Prepares it.

    def bare(size):
      examples = tfds.load("fashion_mnist", split=split, data_dir=data_dir, shuffle_files=True)
      batches = examples.map(lambda example: example["image"], num_parallel_calls=tf.data.AUTOTUNE)
      return _bare(batches.shuffle(10_000).batch(args.batch_size), size)

    rows = [compare(f"Fashion-MNIST of TFDS, {split}", args, size, {
        OURS: lambda size=size: data.load_images("fashion_mnist", split, args.batch_size, size, data_dir=data_dir),
        BARE: functools.partial(bare, size)}) for size in (None, 32, 16)]
  results.save(args, "input_tfds", PAGE_COLUMNS, rows)


def _bare(batches, size):
  """Pads or reduces squares to another size."""
  def resize(images):
    side = images.shape[1]
    if size > side:
      return tf.image.resize_with_crop_or_pad(images, size, size)
    return tf.saturate_cast(tf.round(tf.image.resize(images, [size, size], antialias=True)), tf.uint8)

  if size is not None:
    batches = batches.map(resize, num_parallel_calls=tf.data.AUTOTUNE)
  return batches.prefetch(tf.data.AUTOTUNE)


def _folder(args):
  with tempfile.TemporaryDirectory() as folder:
    _write_files(folder, _count(args))
    contestants = {
        OURS: lambda: data.load_images(folder, "train", args.batch_size, _FOLDER_SIZE),
        BARE: lambda: _bare_files(folder, args, is_cached=False),
        CACHED: lambda: _bare_files(folder, args, is_cached=True)}
    if importlib.util.find_spec("torchvision") is not None:
      contestants[TORCHS] = lambda: functools.partial(_torch, folder, args)
    else:
      print(f"{TORCHS} is left out: torchvision is not installed.\n")
    row = compare(f"{_count(args)} PNG and JPEG files", args, _FOLDER_SIZE, contestants)
  results.save(args, "input_folder", PAGE_COLUMNS, [row])


def _bare_files(folder, args, is_cached):
  """Decodes and reduces images one by one, because they differ in size."""
  def read(path):
    image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    side = tf.reduce_min(tf.shape(image)[:2])
    image = tf.image.resize_with_crop_or_pad(image, side, side)
    return tf.saturate_cast(tf.round(tf.image.resize(image, [_FOLDER_SIZE] * 2, antialias=True)), tf.uint8)

  paths = tf.data.Dataset.list_files(f"{folder}/train/*/*", shuffle=not is_cached)
  images = paths.map(read, num_parallel_calls=tf.data.AUTOTUNE)
  if is_cached:
    images = images.cache().shuffle(_count(args))
  return images.batch(args.batch_size).prefetch(tf.data.AUTOTUNE)


def _torch(folder, args):
  """Images per second of its epochs, in a separate process."""
  command = [sys.executable, _TORCH, f"{folder}/train", str(_FOLDER_SIZE), str(args.batch_size)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def _write_files(folder, count):
  """Half of them PNG, half JPEG, of 48 to 128 pixels; smooth, as photographs are."""
  rng = np.random.default_rng(0)
  for i in range(count):
    size = rng.integers(48, 129, 2)
    values = tf.image.resize(rng.uniform(0., 255., (6, 6, 3)), size, "bicubic").numpy() + rng.normal(0., 4., (*size, 3))
    image = np.clip(values, 0, 255).astype(np.uint8)
    path = pathlib.Path(folder) / "train" / f"class_{i % 4 // 2}" / f"{i:06}.{('png', 'jpg')[i % 2]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = (tf.io.encode_png, tf.io.encode_jpeg)[i % 2]
    path.write_bytes(encode(image).numpy())


def _workers(args):
  """Compares a worker, which decodes its share of each batch, with one process, which decodes all."""
  with tempfile.TemporaryDirectory() as folder:
    _write_files(folder, _count(args))
    load = functools.partial(data.load_images, folder, "train", args.batch_size, _FOLDER_SIZE)
    rounds = []
    for _ in run.progress(args.rounds or (1 if args.tiny else 3)):
      of_all = _seconds(load())
      rounds.append({num_workers: _seconds(load(input_context=tf.distribute.InputContext(num_workers, 0, num_workers)))
                     / of_all for num_workers in (2, 4)})
  table = results.Table("workers", "first epoch of a worker's share, times that of all images")
  for num_workers in rounds[0]:
    table.add(num_workers, run.spread([r[num_workers] for r in rounds]))
  table.save(args, "input_workers")


def _needed(args):
  """Median seconds of steps of `FlowModel.fit`, without the first."""
  has_gpu = gpu_common.has_gpu()
  named = {"paper's": gpu_common.PAPER, "small": gpu_common.SMALL} if has_gpu else {"small": gpu_common.SMALL}
  if not has_gpu:
    print("There is no GPU. The CPU needs fewer images, and the paper's model is left out.\n")
  table = results.Table("model of `benchmarks/gpu.py`", "step, ms", "images/s")
  for name, architecture in ({"tiny": gpu_common.TINY} if args.tiny else named).items():
    model = gpu_common.make_model(gpu_common.make_glow(architecture), architecture.num_dims)
    images = gpu_common.noise_images(architecture)
    model.train_on_batch(images)
    seconds = statistics.median(_time(lambda model=model, images=images: model.train_on_batch(images))
                                for _ in range(2 if args.tiny else 10))
    table.add(f"{name}: {architecture}, batch {architecture.batch_size}", f"{1e3 * seconds:.0f}",
              f"{architecture.batch_size / seconds:.0f}")


def compare(what, args, size, contestants):
  """Prints a table of images per second: the first epoch, the second epoch, and the latter's ratio to ours.

  Returns:
    A row of `PAGE_COLUMNS`.
  """
  rounds = []
  for _ in run.progress(args.rounds or (1 if args.tiny else 3)):
    found = {}
    for name, make in contestants.items():
      gc.collect()  # Frees what an earlier round kept.
      made = make()
      found[name] = made() if callable(made) else [images_per_second(made), images_per_second(made)]
    rounds.append(found)
  ours = next(iter(contestants))
  size = "as they are" if size is None else f"{size}x{size}"
  table = results.Table(f"{what}, {size}", "first epoch, images/s", "second epoch, images/s",
                        f"times that of {OURS}")
  medians = {}
  for name in contestants:
    first, second = ([r[name][epoch] for r in rounds] for epoch in range(2))
    ratios = [r[name][1] / r[ours][1] for r in rounds]
    table.add(name, _thousands(first), _thousands(second), run.spread(ratios))
    medians[name] = [_rounded(statistics.median(rates)) for rates in (first, second)]
  print(flush=True)
  bare, torch = (" and ".join(medians.get(name, [])) for name in (BARE, TORCHS))
  cached = f"; with `cache()` {medians[CACHED][1]}" if CACHED in medians else ""
  return [table.columns[0], *medians[ours], bare + cached, torch]


def _rounded(value):
  """A number to two digits, or to thousands."""
  return f"{round(value, -min(3, max(0, len(str(int(value))) - 2))):,.0f}"


def _thousands(values):
  return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def images_per_second(dataset):
  """Images per second of a pass."""
  start = time.perf_counter()
  count = sum(len(batch) for batch in dataset)
  return count / (time.perf_counter() - start)


def _seconds(dataset):
  return _time(lambda: list(dataset))


def _time(function):
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def _noise(count, size):
  return np.random.default_rng(0).integers(0, 256, (count, size, size, 1), np.uint8)


SECTIONS = {"arrays": _arrays, "tfds": _tfds, "folder": _folder, "workers": _workers, "needed": _needed}

if __name__ == "__main__":
  main()

"""Folders of image files as sources of images."""

import concurrent.futures
import functools
import glob
import os

import numpy as np
import tensorflow as tf

from tfp_glow.data import image_file
from tfp_glow.data.decoded_once import DecodedOnce
from tfp_glow.data.source import Held, or_validation, require

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff")


def source(folder, split, image_size, shorter_side, with_labels, cut_at_random, *, dtype):
  """The image files of a folder; see `load_images`."""
  require("PIL.Image", "a folder of images", folder)
  files = _scan(folder)
  if dtype == np.uint16:
    _check_are_deep(files)
  splits = {file.split for file in files}
  if _split_folders(folder):
    split = or_validation(split, splits)
  if split not in splits:
    raise ValueError(f"`split` must be one of {sorted(splits)} for {str(folder)!r}, whose {len(files)} images are "
                     f"assigned by sub-folders named like the splits, or else by a hash. Received: split={split!r}")
  chosen = [file for file in files if file.split == split]
  labels = _labels(files, chosen) if with_labels else None
  num_channels = 1 if all(file.is_grey for file in files) else 3
  size = _single_size(files) if image_size is None else (image_size, image_size)

  def hold(numbers):
    return tf.data.Dataset.from_tensors((numbers,) if labels is None else (numbers, labels[numbers]))

  def read(number, place=None):
    return image_file.read(chosen[number].path, image_size, shorter_side, place, num_channels, dtype)

  read_once = DecodedOnce(read)

  def read_batch(numbers, *places):
    images = np.empty([len(numbers), *size, num_channels], dtype)
    for i, number in enumerate(numbers):
      images[i] = read(number, places[0][i]) if places else read_once(number)
    return images

  def decode(numbers, places):
    # Not stateful, so they may run in parallel even if TensorFlow is asked to be deterministic.
    inputs = [numbers, places] if cut_at_random else [numbers]
    images = tf.numpy_function(read_batch, inputs, dtype, stateful=False)
    return tf.ensure_shape(images, [*numbers.shape, *size, num_channels])

  return Held(len(chosen), hold, decode)


def num_classes(folder):
  """Number of classes of a folder."""
  return len(_class_names(_scan(folder)))


def _scan(folder):
  """Checks and describes every image of a folder, in all splits, in an order that depends only on names."""
  received = f"Received: name_or_folder={str(folder)!r}"
  if not folder.is_dir():
    error = NotADirectoryError if folder.exists() else FileNotFoundError
    raise error(f"`name_or_folder` must be 'digits', the name of a TFDS data set, or an existing folder. {received}")
  roots = _split_folders(folder) or [(folder, None)]
  places = [(path, root, split) for root, split in roots for path in _image_paths(root)]
  if not places:
    raise ValueError(f"`name_or_folder` must contain image files ({', '.join(_SUFFIXES)}). {received}")
  with concurrent.futures.ThreadPoolExecutor() as pool:
    files = list(pool.map(_inspect, places))
  _check_readable(files, received)
  _check_splits(files, received)
  return files


def _inspect(place):
  try:
    status = os.stat(place[0])
  except OSError:
    return image_file.inspect(*place)  # It reports the error.
  return _inspect_once(place, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.cache
def _inspect_once(place, *_):
  """A run asks for several splits several times. Without the cache each request would read the whole file."""
  return image_file.inspect(*place)


def _check_readable(files, received):
  broken = [str(file) for file in files if isinstance(file, Exception)]
  if broken:
    raise ValueError(f"`name_or_folder` must contain only readable images, but {len(broken)} of {len(files)} are not: "
                     f"{'; '.join(broken[:10])}. {received}")


def _check_are_deep(files):
  """Checks that each file can give 16 bits."""
  shallow = [file.path for file in files if not file.is_deep]
  if shallow:
    raise ValueError("`dtype` must be 'uint8' for a folder with files that are neither PNG files of 16 bits nor TIFF "
                     f"files of 16 bits and one channel, but {len(shallow)} of {len(files)} are not: "
                     f"{', '.join(shallow[:10])}; uint16 images from elsewhere are read from an `.npz` file. "
                     "Received: dtype='uint16'")


def _check_splits(files, received):
  """Checks that no image is in two splits."""
  first_with = {}
  for file in files:
    other = first_with.setdefault(file.digest, file)
    if other.split != file.split:
      raise ValueError(f"`name_or_folder` must not have an image in two splits, but {other.path} and {file.path} are "
                       f"equal. {received}")


def _split_folders(folder):
  """Pairs of sub-folder and split; none if the files are to be split by content."""
  folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
  named = [(path, _SPLITS[path.name.lower()]) for path in folders if path.name.lower() in _SPLITS]
  # A single sub-folder `train` among others may be the class of the trains.
  return named if len(named) >= 2 or len(named) == len(folders) else []


def _image_paths(root):
  names = glob.glob("**/*", root_dir=root, recursive=True)  # Without hidden files.
  return sorted(os.path.join(root, name) for name in names if name.lower().endswith(_SUFFIXES))


def _single_size(files):
  examples = {file.size: file.path for file in files}
  if len(examples) > 1:
    (size, path), (other_size, other_path) = list(examples.items())[:2]
    raise ValueError("`image_size` must be given for a folder whose images differ in size, as "
                     f"{path} {size} and {other_path} {other_size} do. Received: image_size=None")
  return next(iter(examples))


def _class_names(files):
  """Names of the classes in all splits of a folder, in the order of their labels."""
  for file in files:
    if file.class_name is None:
      raise ValueError(f"`with_labels` needs a folder with one sub-folder per class, but {file.path} is in none. "
                       "Received: with_labels=True")
  return sorted({file.class_name for file in files})


def _labels(files, chosen):
  labels = {name: label for label, name in enumerate(_class_names(files))}
  return np.array([labels[file.class_name] for file in chosen], np.int64)

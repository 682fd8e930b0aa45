"""Images of an `.npz` file in Keras' layout: `x_train`, `y_train`, `x_test`, `y_test`."""

import re
import zipfile

import numpy as np

from tfp_glow.data.source import held_arrays

SUFFIX = ".npz"
_SPLITS = ("train", "test")
_PART = re.compile(r"(\w+)(?:\[(\d*)(%?):(\d*)(%?)\])?")


def source(path, split, image_size, shorter_side, with_labels, cut_at_random, *, dtype):
  """The images of a file; see `load_images`."""
  return held_arrays(*load(path, split, with_labels, dtype), image_size, shorter_side, cut_at_random)


def load(path, split, with_labels, dtype=None):
  """Reads the images of a split, or of part of one.

  Args:
    path: `pathlib.Path`.
    split: Python `str`: `"train"` or `"test"`, or a part of them as in TFDS: `"train[:90%]"`, `"train[1000:]"`.
    with_labels: Python `bool`.
    dtype: NumPy dtype that the images must have, uint8 or uint16; `None`: either.

  Returns:
    images: uint8 or uint16 array `[N, H, W, C]`.
    labels: int64 array `[N]`, or `None`.

  Raises:
    ValueError: if there is no such split, it is empty, images are of another dtype, or the file is not as above.
    FileNotFoundError: if there is no file.
  """
  part = _PART.fullmatch(split)
  name = part[1] if part else None
  arrays = _read(path, [f"x_{name}"] + [f"y_{name}"] * with_labels if name in _SPLITS else [])
  images, labels = arrays.get(f"x_{name}"), arrays.get(f"y_{name}")
  if images is None:
    raise ValueError(f"`split` must be 'train' or 'test' for {str(path)!r}, or a part: 'train[90%:]' to validate or "
                     f"test, with 'train[:90%]' to train. Received: split={split!r}")
  if images.ndim == 3:
    images = images[..., np.newaxis]
  images = images.astype(images.dtype.newbyteorder("="), copy=False)  # TensorFlow needs native byte order.
  if images.dtype not in (np.uint8, np.uint16) or images.ndim != 4:
    raise ValueError("`name_or_folder` must hold uint8 images (or uint16 ones) [N, H, W] or [N, H, W, C] as "
                     f"'x_{name}'. Received: {images.dtype}, shape {images.shape}, in {str(path)!r}")
  if dtype is not None and images.dtype != dtype:
    raise ValueError(f"`dtype` must be None or {images.dtype.name!r} for {str(path)!r}, the dtype of 'x_{name}'. "
                     f"Received: dtype={np.dtype(dtype).name!r}")
  if with_labels:
    labels = _checked_labels(labels, len(images), path)
  places = slice(*(_place(part[i], part[i + 1], len(images)) for i in (2, 4)))
  if not len(images[places]):
    raise ValueError(f"`split` must not be empty; there are {len(images)} images in 'x_{name}' of {str(path)!r}. "
                     f"Received: split={split!r}")
  return images[places], labels if labels is None else labels[places]


def num_classes(path):
  """Number of classes: one more than the largest label of both splits.

  Args:
    path: `pathlib.Path`.

  Raises:
    ValueError, FileNotFoundError: as `load` with labels.
  """
  labels = _read(path, [f"y_{name}" for name in _SPLITS])
  return 1 + max(int(np.max(_checked_labels(y, y.size, path))) for y in labels.values())


def _read(path, names):
  """A dict of the named arrays that exist; raises an error if labels are wanted and missing."""
  if not path.exists():
    raise FileNotFoundError("`name_or_folder` must be 'digits', the name of a TFDS data set, an existing folder or "
                            f"{SUFFIX} file. Received: name_or_folder={str(path)!r}")
  try:
    with np.load(path) as file:
      found = {name: file[name] for name in names if name in file}
      names_there = list(file)
  except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
    reason = "it is not a zip file" if not zipfile.is_zipfile(path) else error  # NumPy's error would mention a pickle.
    raise ValueError(f"`name_or_folder` must be a readable {SUFFIX} file of arrays ({reason}). "
                     f"Received: name_or_folder={str(path)!r}") from error
  without = [name for name in names if name.startswith("x_") and name not in found]
  if without:
    raise ValueError(f"`split` must be one whose images are in {str(path)!r}, but the arrays there are {names_there}, "
                     f"without {without[0]!r}. Received: split={without[0].removeprefix('x_')!r}")
  missing = [name for name in names if name.startswith("y_") and not np.size(found.get(name, ()))]
  if missing:
    raise ValueError(f"`with_labels` needs a file with labels {missing}; the arrays of {str(path)!r} are "
                     f"{names_there}. Received: with_labels=True")
  return found


def _checked_labels(labels, num_images, path):
  if not np.issubdtype(labels.dtype, np.integer) or labels.size != num_images or labels.shape[0] != num_images or (
      np.min(labels) < 0):
    raise ValueError("`with_labels` needs a file with an integer label of at least 0 for each image. "
                     f"Received: {labels.dtype}, shape {labels.shape} for {num_images} images, in {str(path)!r}")
  return labels.reshape(-1).astype(np.int64)


def _place(number, percent, num_images):
  """From one side of `[:90%]` to an index, `None` if it is empty."""
  if not number:
    return None
  return min(round(int(number) * num_images / 100.) if percent else int(number), num_images)

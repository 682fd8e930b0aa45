"""`load_images`, and `num_classes` of its sources.

`load_images` returns a `tf.data.Dataset` of uint8 or uint16 images `[B, H, W, C]`, which `FlowModel.fit` takes
directly. Optional libraries (scikit-learn, tensorflow-datasets, Pillow) are imported when a source needs them.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import is_int
from tfp_glow.data import batches, digits, folder, npz, order, tfds


def load_images(name_or_folder: str | os.PathLike, split: str, batch_size: int, image_size: int | None = None, *,
                shorter_side: int | None = None, with_labels: bool = False, seed: int = 0,
                data_dir: str | os.PathLike | None = None, shuffle: bool | None = None, drop_remainder: bool = False,
                epochs: range | None = None, skip_batches: int = 0,
                input_context: tf.distribute.InputContext | None = None,
                dtype: str | type | np.dtype | tf.DType | None = None) -> tf.data.Dataset:
  """Loads images as a shuffled, batched and prefetched `tf.data.Dataset`.

  There are four kinds of sources:

  * `"digits"`: the 1,797 grey 8x8 digits inside scikit-learn; no network. Their 17 levels v = 0..16 become
    min(16 v, 255): at 5 bits and more all levels stay distinct, at 4 bits level 16 shares the bin of level 15. The
    splits (80/10/10, every class in proportion) are fixed, whatever the seed. Sizes: as for TFDS.
  * A folder: any `pathlib.Path`; a string that names an existing path (which wins over a TFDS name) or starts with
    `"."`, `"~"` or `"/"`. Its jpg, jpeg, png, bmp, gif, tif and tiff files are found recursively, except hidden ones.
    They are checked before anything is returned, and decoded only when the pipeline needs them.
    - Splits: sub-folders `train`, `validation` (or `val`) and `test` are used if there are two of them or nothing else.
      Otherwise a hash of its bytes assigns each file (80/10/10), so copies of an image share a split and new files move
      no others. An image in two split sub-folders is an error.
    - Labels: the sub-folders of the folder (or of its split sub-folders), sorted by name, are classes 0, 1, ....
    - Sizes: cropped centrally to a square, then resized up or down with antialiasing. Without `image_size` all images
      must have one size.
    - Channels: 3, or 1 if every image of the folder is stored as grey. A palette becomes its colours. CMYK becomes RGB
      without a colour profile, `(255 - C) (255 - K) / 255` and so on. Transparency of a channel, a palette or one
      colour is composited on white. The orientation stored in a JPEG or TIFF file is applied. The first frame or page
      of an animation or a TIFF file is used.
    - Bits: files of 16 bits keep their upper 8, unless `dtype` is uint16. Then all files must be PNG files of 16 bits,
      or TIFF files of 16 bits and one channel, and keep all bits. TIFF files of floats, of signed, 12-bit or 32-bit
      numbers, and of more than four bands are errors: put such images into an `.npz` file.
  * An `.npz` file in Keras' layout, by a path with this ending: uint8 or uint16 `x_train`, `x_test` `[N, H, W, C]` (any
    number of channels) or `[N, H, W]` (one channel), and integer `y_train`, `y_test` if there are labels. Splits:
    `"train"` and `"test"`, or parts of them as for TFDS (`"train[:90%]"`). Sizes: as for TFDS.
  * Any other string: a TFDS name such as `"cifar10"`, downloaded and prepared under `data_dir` on first use.
    `"fashion_mnist"` needs no network if Debian's package `dataset-fashion-mnist` is installed.
    - Sizes: larger images are cropped centrally to a square and resized down with antialiasing. Smaller ones are padded
      with zeros on all sides, not resized up (28x28 to 32x32: two pixels each).

  Decoded and resized images are kept in memory, unless squares are cut out at random. Images of a folder are kept one
  by one, as they come, up to 2 GiB per process; the rest is decoded in each pass. A split of TFDS is decoded as a whole
  at the first batch, which takes twice its memory for a moment. If it has more than 2 GiB of images, they are read and
  decoded in each pass.

  Shuffled batches have one image from each of `batch_size` equal parts of the split, in any order. TFDS data sets that
  are not kept are drawn from a buffer of 10,000 images instead.

  Args:
    name_or_folder: Source of the images: `"digits"`, a folder, an `.npz` file, or a TFDS name.
    split: `"train"`, `"validation"` or `"test"`; for TFDS also any expression of its split API, such as
      `"train[:90%]"`. `"test"` is the validation split if TFDS or the sub-folders have no test split. `"train"` is
      always the whole train split of TFDS.
    batch_size: Number of images in a batch.
    image_size: Height and width of the returned images. None: those of the source.
    shorter_side: Length to which the shorter side of an image is reduced, at least `image_size`, before a square of
      that size is cut out: at random if images are shuffled, otherwise in the middle. 96 with `image_size=64` gives the
      LSUN images of Dinh et al. (2016). None: the largest central square is cut out first and then reduced.
    with_labels: Whether to return pairs `(images, labels)`, with int64 labels `[B]`.
    seed: Seed of the shuffling, which (as always in TensorFlow) also depends on the global seed if one is set.
    data_dir: Folder of TFDS's prepared data. None: the default of TFDS.
    shuffle: Whether to shuffle, anew on each pass. None: only `"train"` and parts of it; others have a fixed order.
    drop_remainder: Whether to drop a last batch with fewer images.
    epochs: `range` of the epochs that the dataset holds, one after the other, for a run that may be resumed. Order and
      random squares of each epoch depend only on the seed and its number. See `callbacks.TrainingState`. None: one
      pass, and a new order each time the dataset is iterated.
    skip_batches: Number of batches to skip, without decoding them, at the start of the first of `epochs`: those that
      a run had seen when it was ended within an epoch.
    input_context: The argument that `strategy.distribute_datasets_from_function` gives to its function, for the share
      of one of several workers: the images of its replicas in each batch of `batch_size` images, one replica after the
      other. Together the workers get the batches of one process, each image once. Each worker decodes only its share.
      Of shuffled TFDS data it reads only its own records, except a few where two shares meet, and all of data sets that
      are not kept. It reads the whole of an `.npz` file, and every file of a folder once, to check it. None: all
      images.
    dtype: uint8 or uint16, of the images. uint16 values are those of the files, 0 .. 65535 for a model with
      `num_bits=16`. None: uint8, or the dtype of an `.npz` file.

  Returns:
    A `tf.data.Dataset` of batches `[B, H, W, C]`, uint8 or uint16, with static height, width and channels, or of pairs
    of these and labels. Its length is known, except for a share of several replicas.

  Raises:
    ValueError: If an argument is not as above, the split does not exist or is empty, a file is not a readable image,
      images differ in size and `image_size` is None, or there are no labels and `with_labels` is True.
    FileNotFoundError, NotADirectoryError: If the folder does not exist, or is a file.
    ImportError: If the library that reads the source is not installed.
    ConnectionError, RuntimeError: If TFDS would have to download and no host answers, or if it fails otherwise.
  """
  _check_sizes(batch_size, image_size, shorter_side)
  if epochs is not None and not (isinstance(epochs, range) and epochs and epochs.step == 1 and epochs.start >= 0):
    raise ValueError("`epochs` must be a `range` such as range(3, 10), not empty, or None. "
                     f"Received: epochs={epochs!r}")
  if not is_int(skip_batches, least=0) or skip_batches and epochs is None:
    raise ValueError("`skip_batches` must be an integer of at least 0, and 0 without `epochs`. "
                     f"Received: skip_batches={skip_batches!r}, epochs={epochs!r}")
  if not isinstance(split, str) or not split:
    raise ValueError(f"`split` must be a string such as 'train', 'validation' or 'test'. Received: split={split!r}")
  if shuffle is None:
    shuffle = split.startswith("train")
  for name, value in (("with_labels", with_labels), ("shuffle", shuffle), ("drop_remainder", drop_remainder)):
    if not isinstance(value, (bool, np.bool_)):
      raise ValueError(f"`{name}` must be a `bool`{', or None' * (name == 'shuffle')}. Received: {name}={value!r}")
  if not is_int(seed, least=0, below=2**31):
    raise ValueError(f"`seed` must be an integer of at least 0 and below 2**31. Received: seed={seed!r}")
  if input_context is not None and not (isinstance(input_context, tf.distribute.InputContext)
                                        and input_context.input_pipeline_id < input_context.num_input_pipelines):
    raise ValueError("`input_context` must be a `tf.distribute.InputContext` of one of its pipelines, or None. "
                     f"Received: input_context={input_context!r}")
  dtype = _checked_dtype(dtype)
  share = order.share_of(batch_size, input_context)
  cut_at_random = shuffle and shorter_side is not None
  how = split, image_size, shorter_side, with_labels, cut_at_random
  if _is_npz(name_or_folder):
    source = npz.source(_expanded(name_or_folder), *how, dtype=dtype)
  elif _is_folder(name_or_folder):
    source = folder.source(_expanded(name_or_folder), *how, dtype=dtype or np.uint8)
  elif dtype == np.uint16:
    raise ValueError(f"`dtype` must be 'uint8' or None for {name_or_folder!r}: images of 16 bits come from folders and "
                     "`.npz` files. Received: dtype='uint16'")
  elif name_or_folder == "digits":
    source = digits.source(*how)
  else:
    source = tfds.source(name_or_folder, *how, shuffle=shuffle, seed=seed, data_dir=data_dir, reshuffle=epochs is None)
  passes = batches.Passes(shuffle, cut_at_random, seed, drop_remainder, epochs, skip_batches)
  return batches.of_source(source, share, passes)


def num_classes(name_or_folder: str | os.PathLike, data_dir: str | os.PathLike | None = None) -> int:
  """Number of classes of the labels of `load_images`.

  Args:
    name_or_folder: As in `load_images`.
    data_dir: As in `load_images`.

  Returns:
    Python `int`: the labels are 0 .. `num_classes - 1`.

  Raises:
    ValueError, FileNotFoundError, NotADirectoryError, ImportError: As `load_images` with `with_labels=True`.
  """
  if _is_npz(name_or_folder):
    return npz.num_classes(_expanded(name_or_folder))
  if _is_folder(name_or_folder):
    return folder.num_classes(_expanded(name_or_folder))
  return digits.NUM_CLASSES if name_or_folder == "digits" else tfds.num_classes(name_or_folder, data_dir)


def _check_sizes(batch_size, image_size, shorter_side):
  for name, value in (("batch_size", batch_size), ("image_size", image_size), ("shorter_side", shorter_side)):
    if value is None and name != "batch_size":
      continue
    if not is_int(value):
      raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
  if shorter_side is not None and (image_size is None or shorter_side < image_size):
    raise ValueError("`shorter_side` must be at least `image_size`, which must be given with it, or None. "
                     f"Received: image_size={image_size!r}, shorter_side={shorter_side!r}")


def _checked_dtype(dtype):
  """NumPy's uint8 or uint16, or `None`."""
  if dtype is None:
    return None
  try:
    found = tf.as_dtype(dtype).as_numpy_dtype
  except TypeError:
    found = None
  if found not in (np.uint8, np.uint16):
    raise ValueError(f"`dtype` must be 'uint8', 'uint16' or None. Received: dtype={dtype!r}")
  return found


def _is_npz(name_or_folder):
  """Whether it is an `.npz` file; folders may have such names, too."""
  return (isinstance(name_or_folder, (str, os.PathLike)) and str(name_or_folder).endswith(npz.SUFFIX)
          and not os.path.isdir(os.path.expanduser(name_or_folder)))


def _is_folder(name_or_folder):
  """Whether the argument means a folder, whether or not the folder exists."""
  if isinstance(name_or_folder, os.PathLike):
    return True
  if not isinstance(name_or_folder, str) or not name_or_folder:
    raise ValueError("`name_or_folder` must be 'digits', the name of a TFDS data set, a folder, or an `.npz` file. "
                     f"Received: name_or_folder={name_or_folder!r}")
  return name_or_folder != "digits" and (
      name_or_folder.startswith((".", "~")) or os.path.isabs(name_or_folder) or os.path.exists(name_or_folder))


def _expanded(path):
  return pathlib.Path(path).expanduser()

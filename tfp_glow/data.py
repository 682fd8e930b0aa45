"""Input pipelines: batches of uint8 images from scikit-learn, TFDS, a folder or an `.npz` file.

`load_images` returns a `tf.data.Dataset` of uint8 images `[B, H, W, C]`, which `FlowModel.fit` takes as it is. The
optional libraries (scikit-learn, tensorflow-datasets, Pillow) are imported when a source needs them.
"""

import concurrent.futures
import difflib
import glob
import hashlib
import io
import numbers
import os
import pathlib
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_glow import data_npz, preparation

_SPLIT_OF_TENTH = ("test", "validation", *["train"] * 8)
_FOLDER_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
_PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "GIF")
_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: what cameras write, with more pictures behind the first.
_EXIF_ORIENTATION, _EXIF_QUARTER_TURNS = 0x0112, (5, 6, 7, 8)

# TFDS has already shuffled its records on disk, so a part of them at a time is enough.
_TFDS_SHUFFLE_BUFFER = 10_000


class _Source(NamedTuple):
  examples: tf.data.Dataset  # of `(encoded,)` or `(encoded, label)`, cheap to shuffle
  decode: Callable[[Any, tf.Tensor | None], tf.Tensor]  # `encoded` and place of the crop -> uint8 image [H, W, C]
  shuffle_buffer: int


class _ImageFile(NamedTuple):
  path: str
  split: str
  class_name: str | None  # None: the file is in no sub-folder
  digest: bytes
  size: tuple[int, int]  # height, width
  is_grey: bool


def load_images(name_or_folder, split, batch_size, image_size=None, *, shorter_side=None, with_labels=False, seed=0,
                data_dir=None, shuffle=None, drop_remainder=False, epochs=None):
  """Loads images as a shuffled, batched and prefetched `tf.data.Dataset`.

  There are four kinds of sources:

  * `"digits"`: the 1,797 grey 8x8 digits inside scikit-learn; no network. Their 17 levels v = 0..16 become
    min(16 v, 255): at 5 bits and more all levels stay distinct, at 4 bits level 16 shares the bin of level 15. The
    splits (80/10/10, every class in proportion) are fixed, whatever the seed. Sizes: as for TFDS.
  * A folder: any `pathlib.Path`; a string that names an existing path (which wins over a TFDS name) or starts with
    `"."`, `"~"` or `"/"`. Its jpg, jpeg, png, bmp and gif files are found recursively, except hidden ones, checked
    before anything is returned, and decoded only when the pipeline needs them.
    - Splits: sub-folders `train`, `validation` (or `val`) and `test` are used where there are two of them or nothing
      else. Otherwise a hash of its bytes assigns each file (80/10/10), so that copies of an image share a split and
      new files move no others. An image in two split sub-folders is an error.
    - Labels: the sub-folders of the folder (or of its split sub-folders), sorted by name, are classes 0, 1, ....
    - Sizes: cropped centrally to a square, then resized up or down with antialiasing. Without `image_size` all images
      must have one size.
    - Channels: 3; but 1 if every image of the folder is stored as grey. Transparency is composited on white, 16-bit
      grey keeps its upper 8 bits, the EXIF orientation of a JPEG is applied, of an animation the first frame is used.
  * An `.npz` file in Keras' layout, by a path that ends so: uint8 `x_train`, `x_test` `[N, H, W, C]` or `[N, H, W]`
    (one channel), and integer `y_train`, `y_test`, where there are labels. Splits: `"train"` and `"test"`, or parts of
    them as of TFDS (`"train[:90%]"`). Sizes: as for TFDS.
  * Any other string: a TFDS name such as `"cifar10"`, downloaded and prepared under `data_dir` on first use;
    `"fashion_mnist"` without network where Debian's package `dataset-fashion-mnist` is installed.
    - Sizes: larger images are cropped centrally to a square and resized down with antialiasing; smaller ones are not
      resized up but padded with zeros on all sides (28x28 to 32x32: two pixels each).

  Args:
    name_or_folder: Source of the images: `"digits"`, a folder, an `.npz` file, or a TFDS name.
    split: `"train"`, `"validation"` or `"test"`; for TFDS also any expression of its split API, such as
      `"train[:90%]"`. `"test"` is the validation split where TFDS or the sub-folders have no test split. `"train"` is
      always the whole of TFDS's train split.
    batch_size: Number of images in a batch.
    image_size: Height and width of the returned images. None: those of the source.
    shorter_side: What the shorter side of an image is reduced to, at least `image_size`, before a square of that size
      is cut out: at random where images are shuffled, else in the middle. With 96 and `image_size=64` these are the
      LSUN images of Dinh et al. (2016). None: the largest central square is cut out first, and then reduced.
    with_labels: Whether to return pairs `(images, labels)`, with int64 labels `[B]`.
    seed: Seed of the shuffling, which (as always in TensorFlow) also depends on the global seed if one is set.
    data_dir: Where TFDS keeps its prepared data. None: the default of TFDS.
    shuffle: Whether to shuffle, anew on each pass. None: only `"train"` and parts of it; others have a fixed order.
    drop_remainder: Whether to drop a last batch with fewer images.
    epochs: `range` of the epochs that the dataset is to hold, one after the other, as a run needs that may be resumed:
      order and random squares of each depend on nothing but the seed and its number. See `callbacks.TrainingState`.
      None: one pass, and another order each time the dataset is iterated.

  Returns:
    A `tf.data.Dataset` of known length, of uint8 batches `[B, H, W, C]` with static height, width and channels, or of
    pairs of these and labels.

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
  if not isinstance(split, str) or not split:
    raise ValueError(f"`split` must be a string such as 'train', 'validation' or 'test'. Received: split={split!r}")
  if shuffle is None:
    shuffle = split.startswith("train")
  if _is_npz(name_or_folder):
    source = _npz_source(pathlib.Path(name_or_folder).expanduser(), split, image_size, shorter_side, with_labels)
  elif isinstance(name_or_folder, os.PathLike) or _is_path(name_or_folder):
    source = _folder_source(pathlib.Path(name_or_folder).expanduser(), split, image_size, shorter_side,
                            with_labels)
  elif name_or_folder == "digits":
    source = _digits_source(split, image_size, shorter_side, with_labels)
  else:
    source = _tfds_source(name_or_folder, split, image_size, shorter_side, with_labels, shuffle, seed, data_dir,
                          reshuffle=epochs is None)
  return _batches(source, batch_size, shuffle, shuffle and shorter_side is not None, seed, drop_remainder, epochs)


def num_classes(name_or_folder, data_dir=None):
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
    return data_npz.num_classes(pathlib.Path(name_or_folder).expanduser())
  if isinstance(name_or_folder, os.PathLike) or _is_path(name_or_folder):
    return len(_class_names(_scan_folder(pathlib.Path(name_or_folder).expanduser())))
  if name_or_folder == "digits":
    return 10
  tfds = _import_tfds(name_or_folder)
  builder = _tfds_builder(tfds, name_or_folder, data_dir)
  _, label_key = _tfds_features(tfds, builder, name_or_folder, with_labels=True)
  return builder.info.features[label_key].num_classes


def _check_sizes(batch_size, image_size, shorter_side):
  for name, value in (("batch_size", batch_size), ("image_size", image_size), ("shorter_side", shorter_side)):
    if value is None and name != "batch_size":
      continue
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
      raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
  if shorter_side is not None and (image_size is None or shorter_side < image_size):
    raise ValueError("`shorter_side` must be at least `image_size`, which must be given with it, or None. "
                     f"Received: image_size={image_size!r}, shorter_side={shorter_side!r}")


def _batches(source, batch_size, shuffle, cut_at_random, seed, drop_remainder, epochs):
  num_images = int(source.examples.cardinality())
  if drop_remainder and 0 <= num_images < batch_size:
    raise ValueError(f"`batch_size` must be at most the number of images ({num_images}) where `drop_remainder` is "
                     f"True. Received: batch_size={batch_size}")

  def one_pass(seed):

    def decode(index, example):
      encoded, *label = example
      # A function of the pass and the place in it, as the order is.
      place = tf.random.stateless_uniform([2], tf.stack([seed, index])) if cut_at_random else None
      image = source.decode(encoded, place)
      return (image, *label) if label else image

    dataset = source.examples
    if shuffle:
      # Before decoding: the buffer then holds paths or compressed images.
      dataset = dataset.shuffle(source.shuffle_buffer, seed=seed, reshuffle_each_iteration=epochs is None)
    dataset = dataset.enumerate().map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size, drop_remainder=drop_remainder)

  # Several workers share each batch. By files, TensorFlow's first choice, their batches would be others than one
  # process'.
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
  if epochs is None:
    return one_pass(seed).with_options(options).prefetch(tf.data.AUTOTUNE)

  def epoch_of(number):
    # In the graph of this function: `shuffle` compares a global seed of 0 with a seed that is a tensor, and fails.
    tf.compat.v1.set_random_seed(1)
    return one_pass(tf.random.stateless_uniform([], [seed, number], maxval=2**31, dtype=tf.int64))

  dataset = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(epoch_of)
  num_batches = len(epochs) * int(one_pass(seed).cardinality())
  dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
  return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


def _is_npz(name_or_folder):
  """Folders may have such names as well."""
  return (isinstance(name_or_folder, (str, os.PathLike)) and str(name_or_folder).endswith(data_npz.SUFFIX)
          and not os.path.isdir(os.path.expanduser(name_or_folder)))


def _is_path(name_or_folder):
  if not isinstance(name_or_folder, str) or not name_or_folder:
    raise ValueError("`name_or_folder` must be 'digits', the name of a TFDS data set, or a folder. "
                     f"Received: name_or_folder={name_or_folder!r}")
  return name_or_folder != "digits" and (
      name_or_folder.startswith((".", "~")) or os.path.isabs(name_or_folder) or os.path.exists(name_or_folder))


def _or_validation(split, available):
  """Lets the validation split stand in for a missing test split."""
  return "validation" if split == "test" and "test" not in available and "validation" in available else split


def _fit(image, image_size, shorter_side, place):
  """Shrinks, cuts out a square, zero-pads to `image_size`; see `load_images`.

  Args:
    image: uint8 tensor `[H, W, C]`.
    image_size: Python `int`; None: the image stays as it is.
    shorter_side: Python `int` or None.
    place: Tensor `[2]` of numbers in [0, 1), from top and left to bottom and right; None: the middle.
  """
  if image_size is None:
    return image
  if shorter_side is not None:
    image = _cut(_shrink(image, shorter_side), image_size, place)
  return tf.ensure_shape(_crop_and_fit(image, image_size), [image_size, image_size, image.shape[-1]])


def _shrink(image, shorter_side):
  """Reduces an image to this shorter side; smaller ones stay as they are."""
  size = tf.shape(image)[:2]
  shorter = tf.reduce_min(size)
  size = (size * tf.minimum(shorter, shorter_side) + shorter // 2) // shorter
  return tf.saturate_cast(tf.round(tf.image.resize(image, size, antialias=True)), tf.uint8)


def _cut(image, image_size, place):
  """Cuts a square out, or less where the image is smaller."""
  size = tf.minimum(tf.shape(image)[:2], image_size)
  free = tf.shape(image)[:2] - size
  start = free // 2 if place is None else tf.cast(place * tf.cast(free + 1, tf.float32), tf.int32)
  (top, left), (bottom, right) = tf.unstack(start), tf.unstack(start + size)
  return image[top:bottom, left:right]


def _crop_and_fit(image, image_size):
  """Crops to the central square, then shrinks or zero-pads to `image_size`."""
  is_static = image.shape.is_fully_defined()
  height, width, _ = image.shape if is_static else tf.unstack(tf.shape(image))
  minimum = min if is_static else tf.minimum
  side = minimum(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  image = image[top:top + side, left:left + side]
  shrunk = minimum(side, image_size)
  # To an equal size (padding follows) the resize returns the values unchanged.
  image = tf.image.resize(image, [shrunk, shrunk], antialias=True)
  image = tf.saturate_cast(tf.round(image), tf.uint8)
  before = (image_size - shrunk) // 2
  after = image_size - shrunk - before
  return tf.pad(image, [[before, after], [before, after], [0, 0]])


def _digits_source(split, image_size, shorter_side, with_labels):
  digits = preparation.require("sklearn.datasets", "'digits'", "digits").load_digits()
  images = np.minimum(16 * digits.images, 255).astype(np.uint8)[..., np.newaxis]
  splits = _digits_splits(images, digits.target)
  if split not in splits:
    raise ValueError(f"`split` must be 'train', 'validation' or 'test' for 'digits'. Received: split={split!r}")
  chosen = splits == split
  images, labels = images[chosen], digits.target[chosen].astype(np.int64)
  examples = tf.data.Dataset.from_tensor_slices((images, labels) if with_labels else (images,))

  def decode(image, place):
    return _fit(image, image_size, shorter_side, place)

  return _Source(examples, decode, shuffle_buffer=len(images))


def _digits_splits(images, labels):
  """Assigns a tenth of each class to test, a tenth to validation; returns the names of the splits, [N]."""
  # A class is ordered by a hash, not as in the file, where the digits of a writer are neighbours. No two are equal.
  digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
  splits = np.empty(len(images), dtype=object)
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    members = members[np.argsort(digests[members])]
    splits[members] = [_SPLIT_OF_TENTH[10 * rank // len(members)] for rank in range(len(members))]
  return splits


def _npz_source(path, split, image_size, shorter_side, with_labels):
  images, labels = data_npz.load(path, split, with_labels)
  examples = tf.data.Dataset.from_tensor_slices((images, labels) if with_labels else (images,))

  def decode(image, place):
    return _fit(image, image_size, shorter_side, place)

  return _Source(examples, decode, shuffle_buffer=len(images))


def _folder_source(folder, split, image_size, shorter_side, with_labels):
  preparation.require("PIL.Image", "a folder of images", folder)
  files = _scan_folder(folder)
  splits = {file.split for file in files}
  if _split_folders(folder):
    split = _or_validation(split, splits)
  if split not in splits:
    raise ValueError(f"`split` must be one of {sorted(splits)} for {str(folder)!r}, whose {len(files)} images are "
                     f"assigned by sub-folders named like the splits, or else by a hash. Received: split={split!r}")
  chosen = [file for file in files if file.split == split]
  paths = [os.fsencode(file.path) for file in chosen]
  examples = tf.data.Dataset.from_tensor_slices(
      (paths, _folder_labels(files, chosen)) if with_labels else (paths,))
  num_channels = 1 if all(file.is_grey for file in files) else 3
  size = _single_size(files) if image_size is None else (image_size, image_size)

  def read(path, place=None):
    return _read_image(os.fsdecode(path), image_size, shorter_side, place, num_channels)

  def decode(path, place):
    # Not stateful: it may run in parallel even where TensorFlow is asked to be deterministic.
    image = tf.numpy_function(read, [path] if place is None else [path, place], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [*size, num_channels])

  return _Source(examples, decode, shuffle_buffer=len(chosen))


def _scan_folder(folder):
  """Checks and describes every image of a folder, all splits of it, in an order that depends only on names."""
  received = f"Received: name_or_folder={str(folder)!r}"
  if not folder.is_dir():
    error = NotADirectoryError if folder.exists() else FileNotFoundError
    raise error(f"`name_or_folder` must be 'digits', the name of a TFDS data set, or an existing folder. {received}")
  roots = _split_folders(folder) or [(folder, None)]
  places = [(path, root, split) for root, split in roots for path in _image_paths(root)]
  if not places:
    raise ValueError(f"`name_or_folder` must contain image files ({', '.join(_IMAGE_SUFFIXES)}). {received}")
  with concurrent.futures.ThreadPoolExecutor() as pool:
    files = list(pool.map(lambda place: _inspect(*place), places))
  broken = [str(file) for file in files if isinstance(file, Exception)]
  if broken:
    raise ValueError(f"`name_or_folder` must contain only readable images, but {len(broken)} of {len(files)} are not: "
                     f"{'; '.join(broken[:10])}. {received}")
  first_with = {}
  for file in files:
    other = first_with.setdefault(file.digest, file)
    if other.split != file.split:
      raise ValueError(f"`name_or_folder` must not have an image in two splits, but {other.path} and {file.path} are "
                       f"equal. {received}")
  return files


def _split_folders(folder):
  """Pairs of sub-folder and split; none if the files are to be split by content."""
  folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
  named = [(path, _FOLDER_SPLITS[path.name.lower()]) for path in folders if path.name.lower() in _FOLDER_SPLITS]
  # A single sub-folder `train` among others may be the class of the trains.
  return named if len(named) >= 2 or len(named) == len(folders) else []


def _image_paths(root):
  names = glob.glob("**/*", root_dir=root, recursive=True)  # Without hidden ones.
  return sorted(os.path.join(root, name) for name in names if name.lower().endswith(_IMAGE_SUFFIXES))


def _inspect(path, root, split):
  """Describes an image file, or returns the error if it is not readable; without a split the bytes decide it."""
  from PIL import Image
  try:
    content = pathlib.Path(path).read_bytes()
    with Image.open(io.BytesIO(content), formats=_PILLOW_FORMATS) as image:
      width, height = image.size
      if image.format in _JPEG_FORMATS and image.getexif().get(_EXIF_ORIENTATION) in _EXIF_QUARTER_TURNS:
        width, height = height, width
      is_grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
      if image.format == "PNG":
        image.verify()  # Its checksums, without decoding.
      elif not content.endswith(b"\xff\xd9"):  # A JPEG with its end marker is complete.
        image.load()
  except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others.
    return ValueError(f"{path} ({type(error).__name__}: {str(error).partition(' <_io.BytesIO')[0]})")
  digest = hashlib.sha256(content).digest()
  if split is None:
    split = _SPLIT_OF_TENTH[int.from_bytes(digest[:8], "big") % 10]
  parts = pathlib.Path(path).relative_to(root).parts
  return _ImageFile(path, split, parts[0] if len(parts) > 1 else None, digest, (height, width), is_grey)


def _single_size(files):
  examples = {file.size: file.path for file in files}
  if len(examples) > 1:
    (size, path), (other_size, other_path) = list(examples.items())[:2]
    raise ValueError("`image_size` must be given for a folder whose images differ in size, as "
                     f"{path} {size} and {other_path} {other_size} do. Received: image_size=None")
  return next(iter(examples))


def _class_names(files):
  """Names of the classes of a folder, those of all splits, in the order of their labels."""
  for file in files:
    if file.class_name is None:
      raise ValueError(f"`with_labels` needs a folder with one sub-folder per class, but {file.path} is in none. "
                       "Received: with_labels=True")
  return sorted({file.class_name for file in files})


def _folder_labels(files, chosen):
  labels = {name: label for label, name in enumerate(_class_names(files))}
  return np.array([labels[file.class_name] for file in chosen], np.int64)


def _read_image(path, image_size, shorter_side, place, num_channels):
  """Decodes an image file to a uint8 array [H, W, C]; arguments as in `_fit`."""
  from PIL import Image, ImageOps
  try:
    with Image.open(path, formats=_PILLOW_FORMATS) as image:
      if image_size is not None:  # Lets libjpeg skip detail far below a pixel of the result.
        image.draft(None, (2 * (shorter_side or image_size),) * 2)
      if image.format in _JPEG_FORMATS:
        image = ImageOps.exif_transpose(image)
      if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
      image = image.convert("L" if num_channels == 1 else "RGB")
  except Exception as error:  # As in `_inspect`.
    raise ValueError(f"`name_or_folder` has an image that cannot be decoded ({error}). Received: {path}") from error
  if image_size is not None:
    side = min(image.size)
    if shorter_side is not None:
      side = round(side * image_size / shorter_side)
    free = image.width - side, image.height - side
    left, top = (n // 2 for n in free) if place is None else (int(p * (n + 1)) for p, n in zip(place[::-1], free))
    image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
  return np.asarray(image).reshape(image.height, image.width, num_channels)


def _tfds_source(name, split, image_size, shorter_side, with_labels, shuffle, seed, data_dir, reshuffle):
  """A data set of TFDS, prepared on first use."""
  tfds = _import_tfds(name)
  builder = _tfds_builder(tfds, name, data_dir)
  keys = _tfds_features(tfds, builder, name, with_labels)
  feature = builder.info.features[keys[0]]
  if image_size is None and None in feature.shape:
    raise ValueError(f"`image_size` must be given for {name!r}, whose images differ in size. Received: image_size=None")
  preparation.prepare(builder, name)
  splits = builder.info.splits
  # Images stay compressed until they have been shuffled.
  decoders = tfds.decode.PartialDecoding({key: True for key in keys}, decoders={keys[0]: tfds.decode.SkipDecoding()})
  try:
    examples = builder.as_dataset(split=_or_validation(split, splits), shuffle_files=shuffle, decoders=decoders,
                                  read_config=tfds.ReadConfig(
                                      shuffle_seed=seed, shuffle_reshuffle_each_iteration=reshuffle))
  except ValueError as error:
    raise ValueError(f"`split` must be one of {[str(key) for key in splits]} for {name!r}, or a part: 'train[90%:]' to "
                     f"validate or test, with 'train[:90%]' to train ({error}). Received: split={split!r}") from error
  except AssertionError as error:  # There are no files: `prepare` left it at that.
    raise ConnectionError(f"`name_or_folder`: TFDS has not prepared {name!r} in {builder.data_dir} yet, and no host of "
                          "its files answers; prepare it once where there is a network, or put its files into "
                          f"{preparation.manual_folder(builder)}. "
                          f"Received: name_or_folder={name!r}") from error

  def decode(encoded, place):
    image = tf.ensure_shape(feature.decode_example(encoded), feature.shape)
    return _fit(image, image_size, shorter_side, place)

  examples = examples.map(lambda example: tuple(example[key] for key in keys))
  return _Source(examples, decode, _TFDS_SHUFFLE_BUFFER)


def _import_tfds(name):
  return preparation.require("tensorflow_datasets", "a string that is not an existing folder", name)


def _tfds_builder(tfds, name, data_dir):
  try:
    return tfds.builder(name, data_dir=data_dir)
  except (ValueError, AssertionError) as error:  # An unknown name, configuration or version.
    names = tfds.list_builders(with_community_datasets=False)
    base_name = name.partition("/")[0].partition(":")[0]
    if base_name in names:
      names = [f"{base_name}/{config}" for config in tfds.builder_cls(base_name).builder_configs]
    close = ", ".join(difflib.get_close_matches(name, ["digits", *names])) or "none"
    raise ValueError("`name_or_folder` must be 'digits', the name of a TFDS data set, or an existing folder (close "
                     f"names: {close}; {str(error).splitlines()[0]}). Received: name_or_folder={name!r}") from error


def _tfds_features(tfds, builder, name, with_labels):
  """Names of the image feature and, if wanted, of the label feature."""
  features = builder.info.features

  def find(feature_type, usual_key):
    keys = [key for key in features if isinstance(features[key], feature_type)]
    candidates = (usual_key, *(builder.info.supervised_keys or ()), *(keys if len(keys) == 1 else ()))
    return next((key for key in candidates if key in keys), None)

  image_key, label_key = find(tfds.features.Image, "image"), find(tfds.features.ClassLabel, "label")
  if image_key is None or features[image_key].np_dtype != np.uint8:
    raise ValueError(f"`name_or_folder` must be a data set with a feature of uint8 images; those of {name!r} are "
                     f"{list(features)}. Received: name_or_folder={name!r}")
  if with_labels and label_key is None:
    raise ValueError(f"`with_labels` needs a data set with a class label; the features of {name!r} are "
                     f"{list(features)}. Received: with_labels=True")
  return (image_key, label_key) if with_labels else (image_key,)

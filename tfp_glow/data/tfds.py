"""Data sets of TFDS as sources of images."""

import difflib
import functools
import math
import operator
import weakref

import numpy as np
import tensorflow as tf

from tfp_glow.data import crop, decoded_once, preparation
from tfp_glow.data.source import Held, Stream, or_validation, require

# TFDS has already shuffled its records on disk, so shuffling a part of them at a time is enough.
_SHUFFLE_BUFFER = 10_000
# Held data sets, shared by all datasets made of the same images.
_held = weakref.WeakValueDictionary()


def source(name, split, image_size, shorter_side, with_labels, cut_at_random, *, shuffle, seed, data_dir, reshuffle):
  """A data set of TFDS, prepared on first use."""
  tfds = _import_tfds(name)
  builder = _builder(tfds, name, data_dir)
  keys = _feature_keys(tfds, builder, name, with_labels)
  feature = builder.info.features[keys[0]]
  if image_size is None and None in feature.shape:
    raise ValueError(f"`image_size` must be given for {name!r}, whose images differ in size. Received: image_size=None")
  preparation.prepare(builder, name)
  splits = builder.info.splits
  split = or_validation(split, splits)
  # Images stay compressed until they are known to be needed.
  decoders = tfds.decode.PartialDecoding({key: True for key in keys}, decoders={keys[0]: tfds.decode.SkipDecoding()})

  def read(part, **options):
    examples = builder.as_dataset(split=part, decoders=decoders, read_config=tfds.ReadConfig(**options),
                                  shuffle_files=bool(options))
    return examples.map(lambda example: tuple(example[key] for key in keys))

  def decode(encoded, place=None):
    image = tf.ensure_shape(feature.decode_example(encoded), feature.shape)
    return crop.fit(image, image_size, shorter_side, place)

  try:
    num_images = int(read(split).cardinality())
  except ValueError as error:
    raise ValueError(f"`split` must be one of {[str(key) for key in splits]} for {name!r}, or a part: 'train[90%:]' to "
                     f"validate or test, with 'train[:90%]' to train ({error}). Received: split={split!r}") from error
  except AssertionError as error:  # There are no files, because `prepare` could do nothing.
    raise ConnectionError(f"`name_or_folder`: TFDS has not prepared {name!r} in {builder.data_dir} yet, and no host of "
                          "its files answers; prepare it once where there is a network, or put its files into "
                          f"{preparation.manual_folder(builder)}. "
                          f"Received: name_or_folder={name!r}") from error
  image_shape = feature.shape if image_size is None else (image_size, image_size, feature.shape[-1])
  # Whatever room is left: the order depends on this, and must be the same on other workers and in a resumed run.
  if cut_at_random or num_images * math.prod(image_shape) > decoded_once.MAX_BYTES:
    options = {"shuffle_seed": seed, "shuffle_reshuffle_each_iteration": reshuffle} if shuffle else {}
    decode_all = lambda encoded, places: tf.map_fn(
        lambda pair: decode(*pair), (encoded,) if places is None else (encoded, places), fn_output_signature=tf.uint8)
    return Stream(num_images, read(split, **options), _SHUFFLE_BUFFER, decode_all)

  def hold(numbers):
    key = (str(builder.data_dir), split, tuple(keys), image_size, shorter_side, numbers.tobytes())
    found = _held.get(key)
    if found is None:
      first, is_own = _interval(numbers, num_images)
      part = split if len(is_own) == num_images else _part(tfds, splits, split, first, first + len(is_own))
      own = read(part).enumerate().filter(lambda index, _: tf.gather(is_own, index))
      own = own.map(lambda _, example: (decode(example[0]), *example[1:]), num_parallel_calls=tf.data.AUTOTUNE)
      _held[key] = found = decoded_once.held(own, len(numbers), math.prod(image_shape))
    return found

  return Held(num_images, hold, lambda held, places: held)


def _interval(numbers, num_images):
  """The first number, and for each number from there to the last, whether it is among them."""
  if not len(numbers):
    return 0, np.zeros(num_images, bool)
  return numbers[0], np.isin(np.arange(numbers[0], numbers[-1] + 1), numbers)


def _part(tfds, splits, split, first, end):
  """What TFDS reads for the images numbered `first .. end - 1` of a split: files without any are not opened."""
  parts, position = [], 0
  for whole in tfds.core.ReadInstruction.from_spec(split).to_absolute(splits):
    from_ = whole.from_ or 0
    count = (splits[whole.splitname].num_examples if whole.to is None else whole.to) - from_
    start, stop = max(first - position, 0), min(end - position, count)
    if start < stop:
      parts.append(tfds.core.ReadInstruction(
          whole.splitname, from_=int(from_ + start), to=int(from_ + stop), unit="abs"))
    position += count
  return functools.reduce(operator.add, parts)


def num_classes(name, data_dir):
  """Number of classes of a data set."""
  tfds = _import_tfds(name)
  builder = _builder(tfds, name, data_dir)
  _, label_key = _feature_keys(tfds, builder, name, with_labels=True)
  return builder.info.features[label_key].num_classes


def _import_tfds(name):
  return require("tensorflow_datasets", "a string that is not an existing folder", name)


def _builder(tfds, name, data_dir):
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


def _feature_keys(tfds, builder, name, with_labels):
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

"""Data sets of TFDS as sources of images."""

import difflib

import numpy as np
import tensorflow as tf

from tfp_glow.data import crop, preparation
from tfp_glow.data.source import Source, or_validation, require

# TFDS has already shuffled its records on disk, so a part of them at a time is enough.
_SHUFFLE_BUFFER = 10_000


def source(name, split, image_size, shorter_side, with_labels, shuffle, seed, data_dir, reshuffle):
  """A data set of TFDS, prepared on first use."""
  tfds = _import_tfds(name)
  builder = _builder(tfds, name, data_dir)
  keys = _feature_keys(tfds, builder, name, with_labels)
  feature = builder.info.features[keys[0]]
  if image_size is None and None in feature.shape:
    raise ValueError(f"`image_size` must be given for {name!r}, whose images differ in size. Received: image_size=None")
  preparation.prepare(builder, name)
  splits = builder.info.splits
  # Images stay compressed until they have been shuffled.
  decoders = tfds.decode.PartialDecoding({key: True for key in keys}, decoders={keys[0]: tfds.decode.SkipDecoding()})
  try:
    examples = builder.as_dataset(split=or_validation(split, splits), shuffle_files=shuffle, decoders=decoders,
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
    return crop.fit(image, image_size, shorter_side, place)

  examples = examples.map(lambda example: tuple(example[key] for key in keys))
  return Source(examples, decode, _SHUFFLE_BUFFER)


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

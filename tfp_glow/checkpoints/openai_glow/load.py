"""Reads checkpoints of the original TensorFlow 1 code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import tensorflow as tf

from tfp_glow._core.validation import check_bools, checked_event_shape
from tfp_glow.bijectors.glow import GlowBijector
from tfp_glow.checkpoints.contents import differences, listed
from tfp_glow.checkpoints.openai_glow.architecture import infer_architecture, variable_shapes
from tfp_glow.checkpoints.openai_glow.layout import assign_original_classifier, assign_original_variables
from tfp_glow.likelihood import dequantize
from tfp_glow.training.model import FlowModel

_SCOPE, _SHADOW = "model/", "/ExponentialMovingAverage"
_INDICES = "/shuffle/indices"  # Not trained, so without a moving average.
_INVERSE_INDICES = "/shuffle/indices_inverse"  # In the checkpoint, too, but they follow from the indices.
# Not in the checkpoint: the weight in the original's README for class-conditional models.
_WEIGHT_Y = 0.01


def load_original_checkpoint(path: str | os.PathLike, image_shape: Sequence[int], num_bits: int = 8,
                             ema: bool = False) -> FlowModel:
  """Reads a checkpoint of the original code (https://github.com/openai/glow) as it stands.

  The names and shapes of its variables give the number of levels, depth, width, coupling, permutation, whether the top
  is learned, and the classes. The optimizer's state is not read.

  The model counts as initialised: `fit` continues from these weights. If the checkpoint holds a classifier, so does the
  model, with `weight_y=0.01`. The checkpoint does not hold the original's weight; this is the one in its README.

  Args:
    path: Prefix of the checkpoint's files, such as `"logs/model_best_loss.ckpt"`, its file `.index`, or a folder that
      holds one checkpoint (or several, if its file `checkpoint` names the last). `~` is the home folder.
    image_shape: `(H, W, C)` of an image; `H` and `W` must be divisible by `2 ** num_levels`.
    num_bits: Python `int`, as in `FlowModel`: the bits of images in training, the original's `n_bits_x`.
    ema: Python `bool`: whether to read the exponential moving averages of the weights instead of the weights.

  Returns:
    `FlowModel`; its distribution's bijector is a `GlowBijector`.

  Raises:
    FileNotFoundError: if there is no checkpoint at `path`.
    TypeError: if `path` is neither a string nor an `os.PathLike`.
    ValueError: if `path` is a folder of several checkpoints, a file is damaged, variables of the model are missing or
      unexpected, weights are not finite or not invertible, `image_shape` does not fit the model, `num_bits` or `ema` is
      not as above, or there are no moving averages for `ema`.

  References:
    Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018).
  """
  image_shape = checked_event_shape("image_shape", image_shape)
  dequantize.check_num_bits(num_bits)
  check_bools(ema=ema)
  prefix = _checkpoint_prefix(path)
  values, architecture = _read(prefix, image_shape, ema)
  glow = GlowBijector(
      image_shape, architecture.num_levels, architecture.depth, architecture.width, architecture.coupling,
      architecture.permutation, num_classes=architecture.num_classes, learn_top=architecture.learn_top, seed=0)
  model = FlowModel(glow, num_bits, weight_y=_WEIGHT_Y if architecture.has_classifier else 0.)
  try:
    assign_original_variables(glow, values)
    if architecture.has_classifier:
      assign_original_classifier(model.classifier, values)
  except ValueError as error:
    raise ValueError(f"`path` must hold weights that a model can have: {error} Received: {prefix}") from error
  return model


def _checkpoint_prefix(path):
  """The file prefix of the one checkpoint that `path` means."""
  if not isinstance(path, (str, os.PathLike)):
    raise TypeError(f"`path` must be a string or an `os.PathLike`. Received: {path!r}")
  prefix = os.path.expanduser(os.fspath(path)).removesuffix(".index")
  if tf.io.gfile.exists(prefix + ".index"):
    return prefix
  if not tf.io.gfile.isdir(prefix):
    raise FileNotFoundError("`path` must be what comes before `.index` in the name of a checkpoint's file, or the "
                            f"folder of that file. Received: {path!r}, where there is neither")
  latest = tf.train.latest_checkpoint(prefix)
  if latest is not None:
    return latest
  found = sorted(name for name in tf.io.gfile.listdir(prefix) if name.endswith(".index"))
  if not found:
    raise FileNotFoundError(f"`path` must be a folder with a checkpoint, or its prefix. Received: {path!r}, a folder "
                            "without any file whose name ends in `.index`")
  if len(found) > 1:
    raise ValueError("`path` must name one checkpoint, because the folder holds several. Received: "
                     f"{path!r}, with {', '.join(found)}")
  return os.path.join(prefix, found[0].removesuffix(".index"))


def _read(prefix, image_shape, ema):
  """The values of the model's variables by name, and its architecture."""
  with _damage_named(prefix):
    reader = tf.train.load_checkpoint(prefix)
    shapes = {key: tuple(shape) for key, shape in reader.get_variable_to_shape_map().items()}
  keys, architecture = _checked_keys(shapes, image_shape, ema, prefix)
  with _damage_named(prefix):
    return {name: reader.get_tensor(key) for name, key in keys.items()}, architecture


@contextlib.contextmanager
def _damage_named(prefix):
  try:
    yield
  except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:  # The reader raises all of them.
    raise ValueError("`path` must be a whole checkpoint, but a file of it is damaged or missing: "
                     f"{error}. Received: {prefix}") from error


def _checked_keys(shapes, image_shape, ema, prefix):
  """The checkpoint's key for each variable of the model, by name, and the architecture."""
  named = {key.removesuffix(_SHADOW): shape for key, shape in shapes.items()
           if key.startswith(_SCOPE) and not key.endswith(_INVERSE_INDICES)}
  architecture = infer_architecture(named, image_shape[-1])
  if architecture is None:
    raise ValueError("`path` must be a checkpoint of the original Glow code, with variables such as "
                     f"model/0/0/f1/l_1/W. Received: {prefix}, which holds {listed(sorted(shapes), 5)}")
  if ema and not any(key.endswith(_SHADOW) for key in shapes):
    raise ValueError(f"`ema` must be False for a checkpoint without moving averages (variables ...{_SHADOW}). "
                     f"Received: ema={ema!r}, {prefix}")
  _check_image_shape_fits(image_shape, architecture)
  expected = variable_shapes(architecture)
  keys = {name: name + _SHADOW if ema and not name.endswith(_INDICES) else name for name in expected}
  _check_variables(shapes, named, expected, keys, architecture, prefix)
  return keys, architecture


def _check_image_shape_fits(image_shape, architecture):
  height, width, num_channels = image_shape
  if num_channels != architecture.num_channels:
    raise ValueError(f"`image_shape` must have {architecture.num_channels} channels, as the images of the checkpoint's "
                     f"model. Received: {image_shape}")
  factor = 2**architecture.num_levels
  if height % factor or width % factor:
    raise ValueError(f"`image_shape` must have a height and width divisible by {factor}, because each of the "
                     f"{architecture.num_levels} levels of the checkpoint's model halves them. Received: {image_shape}")


def _check_variables(shapes, named, expected, keys, architecture, prefix):
  """Checks that a whole model is there, and nothing else except optimizer state and the like."""
  unexpected = sorted(name for name in named if name not in expected)
  found = {**shapes, **{name: named[name] for name in unexpected}}
  lists = differences({key: expected[name] for name, key in keys.items()}, found, unexpected)
  if not lists:
    return
  missing = [name for name, key in keys.items() if key not in shapes]
  has_averages = missing and all(name + _SHADOW in shapes for name in missing)
  hint = " Moving averages of all that is missing are there, for `ema=True`." if has_averages else ""
  raise ValueError("`path` must be a checkpoint of the original Glow code with all variables of a model, and no others "
                   f"of one. Compared with {architecture}: {lists}.{hint} Received: {prefix}")

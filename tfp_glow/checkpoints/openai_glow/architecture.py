"""Infers the architecture of a model of the original TensorFlow 1 code from the names and shapes of its variables."""

import collections
import re
from typing import NamedTuple

# More digits than any model has would make endless lists of missing variables.
_STEP = re.compile(r"model/(\d{1,2})/(\d{1,3})/(.+)")
_SPLIT = re.compile(r"model/pool(\d{1,2})/.+")
_UNKNOWN = "?"


class OriginalArchitecture(NamedTuple):
  """The original's `n_levels`, `depth`, `width`, `flow_coupling`, `flow_permutation`, `learntop` and `n_y`."""

  num_channels: int  # of the image
  num_levels: int
  depth: int
  width: int
  coupling: str
  permutation: str
  learn_top: bool
  num_classes: int | str | None  # "?": there are classes, but their number is unknown
  has_classifier: bool

  def __str__(self):
    top = "learned top" if self.learn_top else "fixed top"
    classes = "no classes" if self.num_classes is None else f"{self.num_classes} classes"
    return (f"{self.num_levels} levels, depth {self.depth}, width {self.width}, {self.coupling} coupling, "
            f"{self.permutation} permutation, {top}, {classes}")


def infer_architecture(shapes, num_channels):
  """The architecture that fits most of the variables, so that a few odd ones stand out.

  Args:
    shapes: Dict from the original's variable names, such as `"model/0/1/actnorm_center/b"`, to shapes.
    num_channels: Python `int`, of the image, used if the variables do not show it.

  Returns:
    `OriginalArchitecture`, or `None` if there is no coupling network among the variables.
  """
  steps = [(int(match[1]), int(match[2]), match[3], shape)
           for match, shape in ((_STEP.fullmatch(name), shape) for name, shape in shapes.items()) if match]
  sizes = lambda *parts: [(level, shape[-1]) for level, _, part, shape in steps if part.startswith(parts) and shape]
  width = _most_common([size for _, size in sizes("f1/l_1/", "f1/l_2/")], None)
  if width is None:
    return None
  # `_channels(level, 1)` for each channel of the image.
  num_channels = _most_common([size // _channels(level, 1) for level, size in sizes("actnorm_")
                               if size and size % _channels(level, 1) == 0], num_channels)
  couplings = ["additive" if 2 * size == _channels(level, num_channels) else "affine"
               for level, size in sizes("f1/l_last/")]
  splits = [int(match[1]) for match in map(_SPLIT.fullmatch, shapes) if match]
  has = lambda scope: any(name.startswith(f"model/{scope}/") for name in shapes)
  return OriginalArchitecture(
      num_channels=num_channels,
      num_levels=1 + max([level for level, *_ in steps] + [split + 1 for split in splits]),
      depth=1 + max(k for _, k, *_ in steps), width=width, coupling=_most_common(couplings, "affine"),
      permutation=_permutation({part.split("/")[0] for _, _, part, _ in steps}), learn_top=has("prior/p"),
      num_classes=_num_classes(shapes) if has("prior/y_emb") or has("classifier") else None,
      has_classifier=has("classifier"))


def variable_shapes(architecture):
  """Names and shapes of all variables of a model of the original code, in the order of the flow.

  Args:
    architecture: `OriginalArchitecture`.

  Returns:
    Dict from names to tuples.
  """
  shapes, last = {}, architecture.num_levels - 1
  for level in range(architecture.num_levels):
    channels = _channels(level, architecture.num_channels)
    step = _step_shapes(channels, architecture)
    for k in range(architecture.depth):
      shapes.update(_within(f"model/{level}/{k}", step))
    if level < last:
      shapes.update(_within(f"model/pool{level}/conv", _zero_conv_shapes(channels // 2, channels)))
  channels, num_classes = _channels(last, architecture.num_channels), architecture.num_classes
  if architecture.learn_top:
    shapes.update(_within("model/prior/p", _zero_conv_shapes(2 * channels, 2 * channels)))
  if num_classes is not None:
    shapes.update(_within("model/prior/y_emb", _zero_linear_shapes(num_classes, 2 * channels)))
  if architecture.has_classifier:
    shapes.update(_within("model/classifier", _zero_linear_shapes(channels, num_classes)))
  return shapes


def _channels(level, num_channels):
  """Channels of the steps of a level: every squeeze multiplies them by four, every split halves them."""
  return 4 * 2**level * num_channels


def _most_common(values, default):
  return collections.Counter(values).most_common(1)[0][0] if values else default


def _permutation(parts):
  return "conv1x1" if "invconv" in parts else "shuffle" if "shuffle" in parts else "reverse"


def _num_classes(shapes):
  rows = [shape[0] for name, shape in shapes.items() if name == "model/prior/y_emb/W" and shape]
  columns = [shape[-1] for name, shape in shapes.items() if name.startswith("model/classifier/") and shape]
  return _most_common(rows + columns, _UNKNOWN)


def _within(scope, shapes):
  return {f"{scope}/{name}": shape for name, shape in shapes.items()}


def _step_shapes(channels, architecture):
  width, outputs = architecture.width, channels if architecture.coupling == "affine" else channels // 2
  permutation = {"conv1x1": {"invconv/W": (channels, channels)}, "shuffle": {"shuffle/indices": (channels,)},
                 "reverse": {}}
  network = {"l_1/W": (3, 3, channels // 2 + 1, width), **_within("l_1", _actnorm_shapes(width)),
             "l_2/W": (1, 1, width, width), **_within("l_2", _actnorm_shapes(width)),
             **_within("l_last", _zero_conv_shapes(width, outputs))}
  return {**_actnorm_shapes(channels), **permutation[architecture.permutation], **_within("f1", network)}


def _actnorm_shapes(channels):
  return {"actnorm_center/b": (1, 1, 1, channels), "actnorm_scale/logs": (1, 1, 1, channels)}


def _zero_conv_shapes(inputs, outputs):
  """Includes the channel that shows the border, as in `f1/l_1/W`."""
  return {"W": (3, 3, inputs + 1, outputs), "b": (1, 1, 1, outputs), "logs": (1, outputs)}


def _zero_linear_shapes(inputs, outputs):
  return {"W": (inputs, outputs), "b": (1, outputs), "logs": (1, outputs)}

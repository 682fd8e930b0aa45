"""The architecture of a model of the authors' code: from names and shapes of its tensors, and its recorded options."""

import collections
import math
import re
from typing import NamedTuple

from tfp_glow._core.validation import is_int, is_number
from tfp_glow.bijectors.log_det import ROULETTES

_CHAIN = re.compile(r"transforms\.(\d{1,2})\.chain\.(\d{1,4})\.(.+)")
_FIRST_OF_DENSE = ("nnet.nnet.0.weight", "nnet.nnet.1.weight")  # Without or with an activation before it.
_HEAD = re.compile(r"classification_heads\.(\d{1,2})\.0\.weight")

# The authors' activations, by the names of Keras where there are any.
_ACTIVATIONS = {"swish": "lip_swish", "elu": "elu", "softplus": "softplus", "relu": "relu", "identity": "linear"}
# Of the logit; the authors' colour images have another.
_ALPHA_OF_DATA, _ALPHA = {"mnist": 1e-6}, 0.05
# The authors' other options. Other values make models that are not in the paper.
_ONLY = {"block": "resblock", "fc": False, "fc_actnorm": False, "batchnorm": False, "quadratic": False, "padding": 0,
         "preact": True, "first_resblock": True, "actnorm": True, "kernels": "3-1-3", "vnorms": "2222", "dropout": 0.,
         "n_samples": 1, "logit_transform": True, "add_noise": True}
_PLAIN = (bool, int, float, str, type(None))


class ResidualFlowArchitecture(NamedTuple):
  """A model of the authors' code."""
  num_blocks: tuple  # One entry per scale.
  num_hidden: int
  num_dense_blocks: int
  num_dense_hidden: int | None
  squeeze_first: bool
  factor_out: bool
  normalization: str  # "logit" or "statistics"
  learn_orders: bool
  num_classes: int | None
  num_class_channels: int | None

  def __str__(self):
    blocks = "-".join(map(str, self.num_blocks))
    dense = f"{self.num_dense_blocks} fully connected ones"
    extras = [name for name in ("squeeze_first", "factor_out", "learn_orders") if getattr(self, name)]
    classes = [] if self.num_classes is None else [f"{self.num_classes} classes"]
    return ", ".join([f"{blocks} blocks of width {self.num_hidden}", dense, *extras, *classes])


class Slot(NamedTuple):
  """The place of a module in one of the authors' chains."""
  prefix: str  # Of its keys.
  kind: str  # "actnorm", "block", "dense actnorm" or "dense block"
  shape: tuple  # Of its events, (h, w, c).


def infer_architecture(shapes, image_shape):
  """The architecture that the keys show; `None` if there is no residual block among them.

  Args:
    shapes: Dict from the keys of the authors' state dict to shapes.
    image_shape: `(H, W, C)`.
  """
  by_scale = collections.defaultdict(set)
  kernels, dense = [], []
  for key, shape in shapes.items():
    match = _CHAIN.fullmatch(key)
    if not match:
      continue
    scale, index, rest = int(match[1]), int(match[2]), match[3]
    if rest.startswith("nnet.nnet.") and rest.endswith(".weight"):
      dense.append((scale, index, rest, shape))
    elif rest.startswith("nnet.") and rest.endswith(".weight"):
      by_scale[scale].add(index)
      kernels.append((scale, index, rest, shape))
  kernels = [entry for entry in kernels if len(entry[3]) == 4]
  if not kernels:
    return None
  first_kernels = {}
  for scale, *_, shape in sorted(kernels):
    first_kernels.setdefault(scale, shape)
  scales = range(1 + max(by_scale))
  inputs = {scale: shape[1] for scale, shape in first_kernels.items()}
  squeeze_first = inputs.get(0) == 4 * image_shape[-1]
  channels = inputs.get(0, image_shape[-1])
  factor_out = len(scales) > 1 and inputs.get(1) == 2 * channels
  has_statistics = "init_layer.mean" in shapes
  heads = [shape for key, shape in shapes.items() if _HEAD.fullmatch(key)]
  logits = shapes.get("logit_layer.weight")
  return ResidualFlowArchitecture(
      num_blocks=tuple(len(by_scale[scale]) for scale in scales), num_hidden=_most_common(
          shape[0] for *_, rest, shape in kernels if shape[2:] == (1, 1)),
      num_dense_blocks=len({index for _, index, *_ in dense}),
      num_dense_hidden=_most_common(shape[0] for *_, rest, shape in dense if rest in _FIRST_OF_DENSE and shape),
      squeeze_first=squeeze_first, factor_out=factor_out,
      normalization="statistics" if has_statistics else "logit",
      learn_orders=any(key.endswith(".codomain") for key in shapes),
      num_classes=logits[0] if logits else None, num_class_channels=_most_common(shape[0] for shape in heads))


def check_options(options):
  """Raises `ValueError` for models that are not in the paper."""
  other = [name for name, value in _ONLY.items()
           if not (isinstance(options.get(name, value), _PLAIN) and options.get(name, value) == value)]
  expected = [f"{name}={_ONLY[name]!r}" for name in other]
  is_count = lambda value: value is None or is_int(value)
  checks = {"act": lambda value: isinstance(value, str) and value in _ACTIVATIONS, "data": lambda v: isinstance(v, str),
            "coeff": lambda value: is_number(value) and 0. < value < 1., "n_exact_terms": is_int,
            "n_dist": lambda value: isinstance(value, str) and value in ROULETTES, "n_lipschitz_iters": is_count,
            "sn_tol": lambda value: value is None or is_number(value) and value > 0., "nbits": is_int,
            "task": lambda value: isinstance(value, str), "scale_dim": lambda value: isinstance(value, bool)}
  wrong = [name for name, is_valid in checks.items() if name in options and not is_valid(options[name])]
  if other or wrong:
    found = ", ".join(f"{name}={options[name]!r:.60}" for name in other + wrong)
    expected = ", ".join(expected + [f"a known {name}" for name in wrong])
    raise ValueError(f"its recorded options must be those of a model of the paper ({expected}). Received: {found}")


def flow_arguments(architecture, options):
  """The arguments of a `ResidualFlowBijector`, except for the shape of images and their statistics."""
  alpha = _ALPHA_OF_DATA.get(options["data"], _ALPHA) if architecture.normalization == "logit" else None
  return {"num_scales": len(architecture.num_blocks), "num_blocks_per_scale": list(architecture.num_blocks),
          "num_hidden": architecture.num_hidden, "num_dense_blocks": architecture.num_dense_blocks,
          "num_dense_hidden": architecture.num_dense_hidden or 1, "logit_alpha": alpha,
          "squeeze_first": architecture.squeeze_first, "factor_out": architecture.factor_out,
          "activation": _ACTIVATIONS[options.get("act", "swish")], "coefficient": options["coeff"],
          "num_terms": options["n_exact_terms"], "roulette": options["n_dist"],
          "learn_orders": "per_position" if architecture.learn_orders else False, "log_scale_factor": 1.}


def likelihood_weight(architecture, options, num_dims):
  """The weight of the image's bits in the loss of a hybrid model; `None` for a model without a classifier."""
  if architecture.num_classes is None:
    return None
  if options.get("task") == "classification":
    return 0.
  return 1. / num_dims if options.get("scale_dim", False) else 1.


def scale_shapes(architecture, image_shape):
  """Shapes `(h, w, c)` of the blocks in each scale, and of the inputs of each scale's heads."""
  height, width, channels = image_shape
  halve = lambda shape: (shape[0] // 2, shape[1] // 2, 4 * shape[2])
  shape = halve((height, width, channels)) if architecture.squeeze_first else (height, width, channels)
  shapes, seen, last = [], [], len(architecture.num_blocks) - 1
  for scale in range(last + 1):
    shapes.append(shape)
    if scale < last:
      shape = halve(shape)
      shape = (*shape[:2], shape[2] // 2) if architecture.factor_out else shape
    seen.append(shape)
  return shapes, seen


def slots(architecture, image_shape):
  """The modules with keys, in the order of `inverse`: a list of `Slot`s."""
  shapes = scale_shapes(architecture, image_shape)[0]
  found = [Slot("transforms.0.chain.1", "actnorm", shapes[0])]
  for scale, (count, shape) in enumerate(zip(architecture.num_blocks, shapes)):
    num_dense = architecture.num_dense_blocks if scale == len(shapes) - 1 else 0
    kinds = ["block", "actnorm"] * count + ["dense block", "dense actnorm"] * num_dense
    first = 0 if scale else 2
    inner = {"dense actnorm": ".fc_module"}
    found += [Slot(f"transforms.{scale}.chain.{first + i}{inner.get(kind, '')}", kind, shape)
              for i, kind in enumerate(kinds)]
  return found


def tensor_shapes(architecture, options, image_shape):
  """Shapes of the tensors that a model needs, by key.

  Args:
    architecture: `ResidualFlowArchitecture`.
    options: Dict of the options of the authors' command line.
    image_shape: `(H, W, C)`.

  Returns:
    Dict from keys to tuples.
  """
  shapes = {}
  for position, slot in enumerate(slots(architecture, image_shape)):
    size = math.prod(slot.shape)
    if slot.kind.endswith("actnorm"):
      count = size if slot.kind == "dense actnorm" else slot.shape[-1]
      shapes |= {f"{slot.prefix}.weight": (count,), f"{slot.prefix}.bias": (count,)}
    else:
      shapes |= {f"{slot.prefix}.{key}": shape for key, shape in _block_shapes(
          slot, architecture, has_first=position != 1, has_beta=options.get("act", "swish") == "swish").items()}
  if architecture.num_classes is not None:
    shapes |= _classifier_shapes(architecture, image_shape)
  if architecture.normalization == "statistics":
    shapes |= {f"init_layer.{name}": (image_shape[-1],) for name in ("mean", "std")}
  return shapes


def _block_shapes(slot, architecture, has_first, has_beta):
  """Shapes of a residual block, whose first activation may be missing."""
  height, width, channels = slot.shape
  is_dense = slot.kind == "dense block"
  ends = math.prod(slot.shape) if is_dense else channels
  hidden = architecture.num_dense_hidden if is_dense else architecture.num_hidden
  sizes = [ends, hidden, hidden, ends]
  shapes = {}
  for i, kernel_size in enumerate((3, 1, 3)):
    index = 2 * i + has_first
    prefix = f"nnet.nnet.{index}" if is_dense else f"nnet.{index}"
    before = f"nnet.nnet.{index - 1}" if is_dense else f"nnet.{index - 1}"
    kernel = () if is_dense else (kernel_size, kernel_size)
    positions = 1 if is_dense or kernel_size == 1 else height * width
    if has_beta and index:
      shapes[f"{before}.beta"] = (1,)
    shapes |= {f"{prefix}.weight": (sizes[i + 1], sizes[i], *kernel), f"{prefix}.bias": (sizes[i + 1],),
               f"{prefix}.u": (positions * sizes[i + 1],), f"{prefix}.v": (positions * sizes[i],)}
    if architecture.learn_orders:
      # Input orders only for the first layer: those of other layers are the output orders of the layer before.
      shapes |= {f"{prefix}.{name}": () for name in (("domain", "codomain"), ("codomain",), ())[i]}
  return shapes


def _classifier_shapes(architecture, image_shape):
  width = architecture.num_class_channels
  shapes = {}
  for scale, (*_, channels) in enumerate(scale_shapes(architecture, image_shape)[1]):
    head = f"classification_heads.{scale}"
    shapes |= {f"{head}.0.weight": (width, channels, 3, 3), f"{head}.0.bias": (width,), f"{head}.1.weight": (width,),
               f"{head}.1.bias": (width,)}
  num_features = width * len(architecture.num_blocks)
  return shapes | {"logit_layer.weight": (architecture.num_classes, num_features),
                   "logit_layer.bias": (architecture.num_classes,)}


def _most_common(values):
  counted = collections.Counter(values).most_common(1)
  return counted[0][0] if counted else None

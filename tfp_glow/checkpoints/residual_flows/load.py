"""Reads checkpoints of the authors' code of Residual Flows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import numpy as np

from tfp_glow._core.validation import check_bools, checked_event_shape
from tfp_glow.bijectors.residual_flow import ResidualFlowBijector
from tfp_glow.checkpoints.contents import assign, differences, listed
from tfp_glow.checkpoints.residual_flows import architecture as architectures
from tfp_glow.checkpoints.residual_flows.layout import classifier_layout, flow_layout
from tfp_glow.checkpoints.residual_flows.power_iteration import norms_in_use, update_as_authors
from tfp_glow.checkpoints.residual_flows.training_state import compile_to_resume, trained_keys, training_state
from tfp_glow.checkpoints.torch_file import read_torch_file
from tfp_glow.likelihood import dequantize
from tfp_glow.networks.classifier import ScaleClassifier
from tfp_glow.training.model import FlowModel

# Keys of the authors' state dict that no output of a model depends on.
_IGNORED = (".geom_p", ".lamb", ".last_n_samples", ".last_firmom", ".last_secmom", ".initialized", ".spatial_dims",
            ".scale", ".domain", ".codomain", "transforms.0.chain.0.mean", "transforms.0.chain.0.std")
_NEEDED_OPTIONS = ("data", "coeff", "n_exact_terms", "n_dist")
_SLACK = 1e-3


def load_residual_flow_checkpoint(path: str | os.PathLike, image_shape: Sequence[int], num_bits: int = 8,
                                  ema: bool = True, log_det: str = "russian_roulette") -> FlowModel:
  """Reads a `.pth` file of the authors' code (https://github.com/rtqichen/residual-flows) as it stands.

  PyTorch is not needed, and nothing in the file is executed. The names and shapes of its tensors give the architecture.
  The options recorded in it give the activation, the logit, the coefficient and the estimates of log-dets.

  With `ema` the weights are the moving averages, with the norms of the authors' evaluation. These may be too small: a
  warning says how many layers exceed their bound, and by how much. A call of
  `model.distribution.bijector.after_update()`, as in each training step, measures the norms anew and so brings the
  layers below their bound; the numbers of the model then change a little.

  Without `ema` weights and norms are those in the file, and the model is compiled. Training resumes where it stopped,
  with Keras' Adam, its moments and number of updates, the learning rate of the options (a warm-up that has not ended is
  not resumed), the bound of 1 on the norm of all gradients together, the same number of batches per update, and the
  moving averages. As always, Keras puts these in the place of the weights when `fit` ends. For another optimizer, call
  `compile` yourself. A training with weight decay (`--wd`) or an annealed log-det (`--annealing-iters`) cannot be
  resumed, which is an error.

  From the same gradients Adam takes the same step as in the authors' code, except for learned orders. Here these follow
  the loss, there only the norms. So their moments start from 0, and their gradients count in the bounded norm. Until
  the first update, norms are those of the file's vectors in the orders of the weights; the authors' code takes the
  orders of the averages there. After each update norms are measured to a thousandth, there less exactly. Estimates of
  log-dets are unbiased and noise is uniform, whatever the options say.

  Latents are vectors of images flattened channels last, as everywhere in this package; the bijector's `split_latent`
  returns them as images. The heads of a classifier are read, too. The model is then a hybrid one, see `FlowModel`, with
  the weight of the likelihood that it was trained with.

  The logit of MNIST's models leaves black and white pixels very little room. Values in float32, which here lie around
  0, cannot resolve how black a pixel is: latents are off by up to 0.01. In float64
  (`keras.config.set_floatx("float64")`) they are not.

  Models of CelebA-HQ were trained with levels of `q * 31 / 32` instead of `q`, for `q` of 0 to 31. Here images of 5
  bits are not changed: bits per dimension are those of the images, not the authors'.

  Args:
    path: The file. `~` is the home folder.
    image_shape: `(H, W, C)` of an image.
    num_bits: Python `int`, as in `FlowModel`: bits of the images that the model was trained with.
    ema: Python `bool`: `True` to read the exponential moving averages of the weights, to use the model; `False` to read
      the weights and the state of the optimizer, to resume its training.
    log_det: See `InvertibleResidualBlock`; `"exact"` is for tiny images.

  Returns:
    `FlowModel`, compiled without `ema`; its distribution's bijector is a `ResidualFlowBijector`.

  Raises:
    FileNotFoundError: if there is no file at `path`.
    TypeError: if `path` is neither a string nor an `os.PathLike`.
    ValueError: if the file is damaged, of another kind, or would run code; if tensors of the model are missing,
      unexpected or not finite; without `ema`, if the state of the optimizer does not fit them; if its options make a
      model that is not in the paper; or if another argument does not fit.

  References:
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019).
  """
  image_shape = checked_event_shape("image_shape", image_shape)
  dequantize.check_num_bits(num_bits)
  check_bools(ema=ema)
  contents = read_torch_file(path)
  state, options = _checked_contents(contents, ema, path)
  shapes = {key: tuple(np.shape(value)) for key, value in state.items()}
  architecture = architectures.infer_architecture(shapes, image_shape)
  if architecture is None:
    raise ValueError("`path` must be a checkpoint of the authors' Residual Flows, with tensors such as "
                     f"transforms.0.chain.2.nnet.0.weight. Received: {path}, which holds {listed(sorted(shapes), 5)}")
  _check_fits(image_shape, num_bits, architecture, options)
  _check_tensors(shapes, architecture, options, image_shape, path)
  training = None if ema else _checked_training(contents, state, options, path)
  return _make_model(state, architecture, options, image_shape, num_bits, training, log_det, path)


def _checked_contents(contents, ema, path):
  """The state dict, with moving averages in it for `ema`, and the options of the command line, a dict."""
  required = {"state_dict", "args", "ema"} | (set() if ema else {"optimizer_state_dict"})
  if not isinstance(contents, dict) or not required <= contents.keys():
    found = listed(sorted(map(str, contents)), 10) if isinstance(contents, dict) else type(contents).__name__
    raise ValueError(f"`path` must be a checkpoint of the authors' Residual Flows: a dict with {sorted(required)}. "
                     f"Received: {path}, which holds {found}")
  state, options = contents["state_dict"], getattr(contents["args"], "__dict__", {})
  lacking = [name for name in _NEEDED_OPTIONS if name not in options]
  if not isinstance(state, dict) or lacking:
    raise ValueError("`path` must be a checkpoint of the authors' Residual Flows, with a state dict, and with options "
                     f"({', '.join(_NEEDED_OPTIONS)}) in `args`. "
                     f"Received: {path}, without {', '.join(lacking) or 'a state dict'}")
  try:
    architectures.check_options(options)
  except ValueError as error:
    raise ValueError(f"`path` must be a model of the paper: {error}, in {path}") from error
  if not all(isinstance(key, str) for key in state):
    raise ValueError(f"`path` must hold a state dict with names for keys. Received: {path}")
  _check_arrays("state_dict", state, path)
  averages = _averages(contents["ema"], state, path)[0] if ema else {}
  return state | {key: value for key, value in averages.items() if key in state}, options


def _check_arrays(name, values, path):
  """Raises `ValueError` for entries that are not arrays, because the model could be another without them."""
  others = [f"{key} ({getattr(value, 'name', type(value).__name__)})" for key, value in values.items()
            if not isinstance(value, np.ndarray)]
  if others:
    raise ValueError(f"`path` must hold plain tensors in `{name}`. Received: {path}, with {listed(others, 5)}")


def _averages(ema, state, path):
  """Dict from the keys of all parameters to their moving averages, and the decay of the averages."""
  recorded = getattr(ema, "state", None)
  averages = recorded.get("shadow_params") if isinstance(recorded, dict) else None
  if not isinstance(averages, dict):
    raise ValueError("`path` must hold moving averages, `shadow_params`. "
                     f"Received: {path}, with {type(averages).__name__}")
  missing = [key for key in trained_keys(state) if key not in averages]
  if missing:
    raise ValueError(f"`path` must hold a moving average of each weight. Received: {path}, without {listed(missing)}")
  _check_arrays("shadow_params", averages, path)
  return averages, recorded.get("decay")


def _checked_training(contents, state, options, path):
  averages, decay = _averages(contents["ema"], state, path)
  try:
    return training_state(contents["optimizer_state_dict"], decay, averages, state, options)
  except ValueError as error:
    raise ValueError("`path` must hold a state of training that fits its weights, for `ema=False`: "
                     f"{error}. Received: {path}") from error


def _check_fits(image_shape, num_bits, architecture, options):
  """Raises `ValueError` if the images do not fit the model."""
  bits = options.get("nbits", 8) if options["data"] == "celebahq" else 5 if options["data"] == "celeba_5bit" else 8
  if num_bits != bits:
    raise ValueError(f"`num_bits` must be {bits}, as of the images of the checkpoint's model, {options['data']}. "
                     f"Received: {num_bits}")
  if len(architecture.num_blocks) == 1:
    raise ValueError("`path` must be a model of several scales: the authors' code makes those of one differently. "
                     "Received: one scale")
  divisor = 2**(len(architecture.num_blocks) - 1 + architecture.squeeze_first)
  if any(size % divisor for size in image_shape[:2]):
    raise ValueError(f"`image_shape` must have a height and width divisible by {divisor}, because the checkpoint's "
                     f"model halves them. Received: {image_shape}")


def _check_tensors(shapes, architecture, options, image_shape, path):
  """Raises `ValueError` unless there is a whole model, and nothing else."""
  expected = architectures.tensor_shapes(architecture, options, image_shape)
  unexpected = [key for key in shapes if key not in expected and not key.endswith(_IGNORED)]
  lists = differences(expected, shapes, unexpected)
  if lists:
    raise ValueError("`path` must be a checkpoint of the authors' Residual Flows with all tensors of a model for "
                     f"`image_shape`, and no others. Compared with {architecture}, for images {image_shape}: {lists}. "
                     f"Received: {path}")


def _make_model(state, architecture, options, image_shape, num_bits, training, log_det, path):
  arguments = architectures.flow_arguments(architecture, options)
  if architecture.normalization == "statistics":
    arguments["mean_and_deviation"] = tuple(state[f"init_layer.{name}"].tolist() for name in ("mean", "std"))
  flow = ResidualFlowBijector(image_shape, **arguments, log_det=log_det, seed=0)
  hybrid = {}
  if architecture.num_classes is not None:
    hybrid["classifier"] = ScaleClassifier(
        architecture.num_classes, architecture.num_class_channels, _sources(architecture), seed=0,
        log_scale_factor=1.)
    hybrid["likelihood_weight"] = architectures.likelihood_weight(architecture, options, int(np.prod(image_shape)))
  model = FlowModel(flow, num_bits, **hybrid)
  try:
    rows = flow_layout(flow, architecture, image_shape) + (classifier_layout(model.classifier) if hybrid else [])
    assign(rows, state)
    if training is not None:
      compile_to_resume(model, rows, training)
  except ValueError as error:
    raise ValueError(f"`path` must hold weights that a model can have: {error} Received: {path}") from error
  if training is None:
    update_as_authors(flow, options.get("sn_tol") or 1e-3, options.get("n_lipschitz_iters"))
  flow.mark_initialized()
  if hybrid:
    model.classifier.mark_initialized()
  _warn_of_norms(flow, arguments["coefficient"], path)
  return model


def _sources(architecture):
  """The scale that each head sees. If channels leave at each scale, the authors' last head sees the second-last one."""
  num_scales = len(architecture.num_blocks)
  return [*range(num_scales - 1), num_scales - 2] if architecture.factor_out else None


def _warn_of_norms(flow, coefficient, path):
  norms = norms_in_use(flow)
  above = norms[norms > coefficient + _SLACK]
  if len(above):
    warnings.warn(
        f"{len(above)} of {len(norms)} layers of {path} are above their bound of {coefficient:g}, the largest by "
        f"{above.max() - coefficient:.3g}: the code that wrote the file underestimates norms. They are read unchanged; "
        "`model.distribution.bijector.after_update()`, and each training step, brings them to the bound.", stacklevel=4)

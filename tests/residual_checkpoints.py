"""The models of `tests/reference/residual_flow_checkpoints`, and numbers of the authors' code for them."""

import contextlib
import functools
import pathlib
from unittest import mock

import numpy as np

import tfp_glow
from tfp_glow.checkpoints.residual_flows import architecture as architectures
from tfp_glow.checkpoints.residual_flows import load
from tfp_glow.checkpoints.residual_flows.layout import classifier_layout, flow_layout
from tfp_glow.checkpoints.torch_file import read_torch_file
from tfp_glow.networks import norms

FOLDER = pathlib.Path(__file__).parent / "reference" / "residual_flow_checkpoints"
NAMES = ("m1", "m3", "m5", "m7")


@functools.cache
def reference(name):
  """Numbers of the authors' code."""
  return dict(np.load(FOLDER / name / "model.npz"))


def channels_last(images):
  return np.moveaxis(images, -3, -1)


def values_of(name, dtype="float32"):
  """The dequantized images, as flows here take them."""
  return channels_last(reference(name)["in_dequant"]).astype(dtype) - np.array(0.5, dtype)


def image_shape(name):
  return values_of(name).shape[1:]


def quick_flow(*args, **kwargs):
  """A `ResidualFlowBijector` for weights of a file: without norms of those it starts from, and estimates of one term.

  Both are most of the time of loading a model and of its passes.
  """
  with mock.patch.object(norms, "vectors_of_norm", lambda apply, transpose, u, v, *args: [u, v]):
    return tfp_glow.ResidualFlowBijector(*args, **kwargs, num_eval_terms=1)


def load_model(name, file="model.pth", measures_norms=False, **kwargs):
  """A model with a `quick_flow`; by default without the warning of norms above their bound, which takes as long."""
  with contextlib.ExitStack() as patches:
    patches.enter_context(mock.patch.object(load, "ResidualFlowBijector", quick_flow))
    if not measures_norms:
      patches.enter_context(mock.patch.object(load, "_warn_of_norms", lambda *args: None))
    return tfp_glow.load_residual_flow_checkpoint(FOLDER / name / file, image_shape(name), **kwargs)


@functools.cache
def contents(name):
  """What is in the file, and what the loader makes of it."""
  found = read_torch_file(FOLDER / name / "model.pth")
  shapes = {key: np.shape(value) for key, value in found["state_dict"].items()}
  return found, architectures.infer_architecture(shapes, image_shape(name))


def layout(name, model):
  """Where the tensors of the file are in the model: `(variable, keys, convert)`s."""
  rows = flow_layout(model.distribution.bijector, contents(name)[1], image_shape(name))
  return rows if model.classifier is None else rows + classifier_layout(model.classifier)

"""The reference models of `tests/reference`, as `GlowBijector`s."""

import json
import pathlib

import numpy as np
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow.checkpoints.openai_glow.layout import assign_original_variables

tfd = tfp.distributions
NUM_DIMS = 16 * 16 * 3
WEIGHT_Y = 0.01


def load(name):
  return dict(np.load(pathlib.Path(__file__).parent / "reference" / f"{name}.npz"))


def make_glow(reference, prefix="var/", **kwargs):
  """The bijector with the reference's weights, e.g. those after initialisation (`prefix` "ddi/var/")."""
  config = json.loads(str(reference["meta"]))["config"]
  glow = tfp_glow.GlowBijector(
      output_shape=(16, 16, 3), num_glow_blocks=3, num_steps_per_block=2, num_hidden=8,
      coupling=("additive", "affine")[config["flow_coupling"]],
      permutation=("reverse", "shuffle", "conv1x1")[config["flow_permutation"]], learn_top=config["learntop"],
      num_classes=config["n_y"] if config["ycond"] else None, **kwargs)
  assign_original_variables(
      glow, {key.removeprefix(prefix): value for key, value in reference.items() if key.startswith(prefix)})
  return glow


def make_distribution(glow):
  return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(glow.dtype.as_numpy_dtype(0), 1.), [NUM_DIMS]), glow)


def make_model(reference, glow):
  """A `FlowModel`, with the reference's classifier where there are classes."""
  model = tfp_glow.FlowModel(make_distribution(glow), weight_y=WEIGHT_Y if glow.num_classes else 0.)
  if model.classifier is not None:
    layer = model.classifier
    for name, variable in (("W", layer.kernel), ("b", layer.bias), ("logs", layer.log_scale)):
      variable.assign(reference[f"var/model/classifier/{name}"].reshape(variable.shape))
  return model


def labels_of(reference, glow):
  return {"labels": reference["y"]} if glow.top.num_classes else {}

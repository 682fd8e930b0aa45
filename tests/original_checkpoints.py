"""Checkpoints as the original TensorFlow 1 code writes them, of any architecture, with random weights."""

import numpy as np
import tensorflow as tf

SHADOW = "/ExponentialMovingAverage"


def random_variables(num_channels=3, num_levels=1, depth=2, width=5, coupling="affine", permutation="conv1x1",
                     learn_top=False, num_classes=None, has_classifier=False, seed=0):
  """Dict from names to float32 arrays (int32 for indices), in the shapes of the original."""
  rng = np.random.default_rng(seed)
  variables = {}

  def add(scope, **shapes):
    for name, shape in shapes.items():
      variables[f"{scope}/{name}"] = rng.normal(0., 0.1, shape).astype(np.float32)

  def add_actnorm(scope, channels):
    add(f"{scope}_center", b=(1, 1, 1, channels))
    add(f"{scope}_scale", logs=(1, 1, 1, channels))

  def add_zero_conv(scope, inputs, outputs):
    add(scope, W=(3, 3, inputs + 1, outputs), b=(1, 1, 1, outputs), logs=(1, outputs))

  def add_step(scope, channels):
    add_actnorm(f"{scope}/actnorm", channels)
    if permutation == "conv1x1":
      rotation = np.linalg.qr(rng.normal(size=[channels, channels]))[0]
      noise = rng.normal(0., 0.05, [channels, channels])
      variables[f"{scope}/invconv/W"] = (rotation + noise).astype(np.float32)
    elif permutation == "shuffle":
      indices = rng.permutation(channels).astype(np.int32)
      variables[f"{scope}/shuffle/indices"] = indices
      variables[f"{scope}/shuffle/indices_inverse"] = np.argsort(indices).astype(np.int32)
    add(f"{scope}/f1/l_1", W=(3, 3, channels // 2 + 1, width))
    add_actnorm(f"{scope}/f1/l_1/actnorm", width)
    add(f"{scope}/f1/l_2", W=(1, 1, width, width))
    add_actnorm(f"{scope}/f1/l_2/actnorm", width)
    add_zero_conv(f"{scope}/f1/l_last", width, channels if coupling == "affine" else channels // 2)

  for level in range(num_levels):
    channels = num_channels * 4 * 2**level
    for k in range(depth):
      add_step(f"model/{level}/{k}", channels)
    if level < num_levels - 1:
      add_zero_conv(f"model/pool{level}/conv", channels // 2, channels)
  if learn_top:
    add_zero_conv("model/prior/p", 2 * channels, 2 * channels)
  if num_classes is not None:
    add("model/prior/y_emb", W=(num_classes, 2 * channels), b=(1, 2 * channels), logs=(1, 2 * channels))
  if has_classifier:
    add("model/classifier", W=(channels, num_classes), b=(1, num_classes), logs=(1, num_classes))
  return variables


def with_training_state(variables):
  """The same, and what else a run saves: moving averages (here 0.9 times the weights), optimizer, step."""
  trained = {name: value for name, value in variables.items() if "/shuffle/" not in name}
  state = {"Variable": np.float32(1.), "global_step": np.int64(7)}
  for i, value in enumerate(trained.values()):
    state[f"Variable_{2 * i + 1}"] = state[f"Variable_{2 * i + 2}"] = np.zeros_like(value)
  return {**variables, **state, **{name + SHADOW: np.float32(0.9) * value for name, value in trained.items()}}


def write(prefix, variables):
  """Writes a checkpoint; returns its prefix as a string."""
  names = sorted(variables)
  tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names),
                    tensors=[tf.constant(variables[name]) for name in names])
  return str(prefix)


def read(prefix):
  reader = tf.train.load_checkpoint(str(prefix))
  return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}

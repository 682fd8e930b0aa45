"""Where the variables of the original TensorFlow 1 code go in a model."""

import numpy as np

from tfp_glow.bijectors.conv1x1 import lu_factors
from tfp_glow.checkpoints.contents import assign


def assign_original_variables(glow, values):
  """Puts weights of the original code into a `GlowBijector` of the same architecture.

  Args:
    glow: `GlowBijector` with the default network.
    values: Dict from the original's variable names, such as `"model/0/1/actnorm_center/b"`, to arrays.

  Raises:
    ValueError: if a variable is missing, has another shape than the architecture needs, or has values that no model can
      have: NaN, a singular 1x1 convolution, indices that are no permutation.
  """
  rows = original_layout(glow)
  missing = sorted({name for _, names, _ in rows for name in names} - set(values))
  if missing:
    raise ValueError(f"`values` must hold every variable of the architecture; {missing} are missing. "
                     f"Received: {sorted(values)}")
  assign(rows, values)
  glow.mark_initialized()


def assign_original_classifier(classifier, values):
  """Puts the weights of the original's classifier into a `ZeroDense`; arguments and errors are those for the flow."""
  assign(_classifier_layout(classifier), values)


def original_layout(glow):
  """Where each variable of the original goes.

  Args:
    glow: `GlowBijector` with the default network.

  Returns:
    List of `(variable, names, convert)`: the `keras.Variable` holds `convert` of the array `name`, for the steps of a
    block stacked over all `names`.
  """
  rows = []
  for block, scan in enumerate(glow.blocks):
    for variable, name, convert in _step_layout(scan.template, glow.parameters["permutation"]):
      names = [f"model/{block}/{k}/{name}" for k in range(scan.num_steps)]
      rows.append((scan.stacked(variable), names, convert))
  for block, split in enumerate(glow.splits):
    rows += [(variable, [f"model/pool{block}/conv/{name}"], convert)
             for variable, name, convert in _zero_conv_layout(split.network)]
  return rows + [(variable, [f"model/prior/{name}"], convert) for variable, name, convert in _top_layout(glow.top)]


def _step_layout(step, permutation):
  network = step.coupling.network
  rows = [(step.actnorm.shift, "actnorm_center/b", _flat), (step.actnorm.log_scale, "actnorm_scale/logs", _flat)]
  if permutation == "conv1x1":
    factor = lambda key: lambda matrix: lu_factors(matrix, matrix.shape[0])[key]
    rows += [(getattr(step.permutation, key), "invconv/W", factor(key))
             for key in ("lower", "upper", "log_scale", "sign", "permutation")]
  elif permutation == "shuffle":
    rows += [(step.permutation.indices, "shuffle/indices", _permutation)]
  for name, layer in (("l_1", network.first), ("l_2", network.second)):
    rows += [(layer.shift, f"f1/{name}/actnorm_center/b", _flat),
             (layer.log_scale, f"f1/{name}/actnorm_scale/logs", _flat)]
  rows += [(network.first.kernel, "f1/l_1/W", _with_negative_border), (network.second.kernel, "f1/l_2/W", np.asarray)]
  return rows + [(variable, f"f1/l_last/{name}", convert)
                 for variable, name, convert in _zero_conv_layout(network.last)]


def _zero_conv_layout(layer):
  group = lambda array: np.concatenate([array[..., i::layer.num_groups] for i in range(layer.num_groups)], axis=-1)
  return [(layer.kernel, "W", lambda kernel: group(_without_border(kernel))),
          (layer.border_kernel, "W", lambda kernel: group(_border(kernel))),
          (layer.bias, "b", lambda bias: group(_flat(bias))),
          (layer.log_scale, "logs", lambda logs: group(_flat(logs)))]


def _top_layout(top):
  rows = []
  if top.learn_top:
    rows += [(top.border_kernel, "p/W", _border), (top.bias, "p/b", _flat), (top.log_scale, "p/logs", _flat)]
  if top.num_classes is not None:
    rows += [(top.class_kernel, "y_emb/W", np.asarray), (top.class_bias, "y_emb/b", _flat),
             (top.class_log_scale, "y_emb/logs", _flat)]
  return rows


def _classifier_layout(classifier):
  return [(classifier.kernel, ["model/classifier/W"], np.asarray), (classifier.bias, ["model/classifier/b"], _flat),
          (classifier.log_scale, ["model/classifier/logs"], _flat)]


def _flat(array):
  return array.reshape(-1)


def _permutation(indices):
  if not np.array_equal(np.sort(indices), np.arange(indices.size)):
    raise ValueError(f"it must be a permutation of 0 .. {indices.size - 1}. Received: {indices.tolist()}")
  return indices


def _without_border(kernel):
  return kernel[:, :, :-1]


def _with_negative_border(kernel):
  return np.concatenate([_without_border(kernel), -_border(kernel)], axis=2)


def _border(kernel):
  return kernel[:, :, -1:]

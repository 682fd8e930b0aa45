"""Where the tensors of the authors' code go in a `ResidualFlowBijector`."""

import numpy as np

from tfp_glow.bijectors.actnorm import ActNorm
from tfp_glow.bijectors.leaving import HalfLeaves
from tfp_glow.bijectors.residual_flow import ResidualStep
from tfp_glow.bijectors.scan import Scan
from tfp_glow.checkpoints.residual_flows.architecture import slots
from tfp_glow.networks.lip_swish import LipSwish
from tfp_glow.networks.lipschitz import LearnedOrder, constrained_layers

_AS_IT_IS = slice(None)


def flow_layout(flow, architecture, image_shape):
  """Where each tensor goes.

  Args:
    flow: `ResidualFlowBijector` of the architecture.
    architecture: `ResidualFlowArchitecture`.
    image_shape: `(H, W, C)`.

  Returns:
    List of `(variable, keys, convert)`: the `keras.Variable` holds `convert` of the array of that key in the authors'
    state dict, for the steps of a `Scan` stacked over all `keys`.
  """
  modules = iter(slots(architecture, image_shape))
  first_actnorm, steps = parts_of(flow)
  rows = _actnorm_rows(first_actnorm, [next(modules)])
  for step, count, stacked in steps:
    pairs = [(next(modules), next(modules)) for _ in range(count)]
    blocks, actnorms = zip(*pairs)
    rows += [(stacked(variable), keys, convert) for variable, keys, convert in [
        *_block_rows(step.block, blocks), *_actnorm_rows(step.actnorm, actnorms)]]
  return rows


def classifier_layout(classifier):
  """As `flow_layout`, for a `ScaleClassifier`."""
  rows = []
  for index, head in enumerate(classifier.heads):
    prefix = f"classification_heads.{index}"
    rows += [(head.kernel, [f"{prefix}.0.weight"], _kernel), (head.bias, [f"{prefix}.0.bias"], np.asarray),
             (head.shift, [f"{prefix}.1.bias"], np.asarray), (head.log_scale, [f"{prefix}.1.weight"], np.asarray)]
  return rows + [(classifier.kernel, ["logit_layer.weight"], np.transpose),
                 (classifier.bias, ["logit_layer.bias"], np.asarray)]


def parts_of(flow):
  """The first actnorm, and `(step, number of steps, from variables of the step to those that hold all steps')`."""
  actnorm, steps = None, []
  for part in flow.parts:
    if isinstance(part, HalfLeaves):
      steps += parts_of(part.rest)[1]
    elif isinstance(part, Scan):
      steps.append((part.template, part.num_steps, part.stacked))
    elif isinstance(part, ResidualStep):
      steps.append((part, 1, lambda variable: variable))
    elif isinstance(part, ActNorm):
      actnorm = part
  return actnorm, steps


def _actnorm_rows(actnorm, modules):
  order = _channels_last(modules[0]) if modules[0].kind == "dense actnorm" else _AS_IT_IS
  return [(actnorm.shift, [f"{module.prefix}.bias" for module in modules], lambda bias: bias[order]),
          (actnorm.log_scale, [f"{module.prefix}.weight" for module in modules], lambda weight: weight[order])]


def _block_rows(block, modules):
  is_dense = modules[0].kind == "dense block"
  inner = "nnet.nnet" if is_dense else "nnet"
  keys = lambda index, name: [f"{module.prefix}.{inner}.{index}.{name}" for module in modules]
  constrained = constrained_layers(block.network)
  rows, orders = [], {}
  for index, layer in enumerate(block.network.layers):
    if isinstance(layer, LipSwish):
      rows.append((layer.beta, keys(index, "beta"), lambda beta: beta.reshape([])))
    if layer not in constrained:
      continue
    # The inputs and outputs of dense blocks are flat images.
    into, out = (_channels_last(modules[0]) if is_dense and layer is end else _AS_IT_IS
                 for end in (constrained[0], constrained[-1]))
    rows += [(layer.kernel, keys(index, "weight"), _dense_kernel(into, out) if is_dense else _kernel),
             (layer.bias, keys(index, "bias"), lambda bias, out=out: bias[out])]
    rows += [(vector, keys(index, name), _vector(vector.shape, order))
             for vector, name, order in zip(layer.vectors, ("u", "v"), (out, into))]
    for order, name in ((layer.domain, "domain"), (layer.codomain, "codomain")):
      if isinstance(order, LearnedOrder):
        orders.setdefault(id(order), (order.logit, keys(index, name), _logit_of_order))
  return rows + list(orders.values())


def _kernel(weight):
  return weight.transpose(2, 3, 1, 0)


def _dense_kernel(into, out):
  """From `[outputs, inputs]` to `[inputs, outputs]`, with the element orders of both."""
  return lambda weight: weight.T[into][:, out]


def _channels_last(module):
  """Indices into the vector of an image flattened channels first that give the same image flattened channels last."""
  height, width, channels = module.shape
  return np.arange(height * width * channels).reshape(channels, height, width).transpose(1, 2, 0).reshape(-1)


def _vector(shape, order):
  """From the flat vector of a power iteration to a batch of one, `[1, ..., C]`."""
  if len(shape) == 2:
    return lambda vector: vector[order][np.newaxis]
  _, height, width, channels = shape
  return lambda vector: vector.reshape(channels, height, width).transpose(1, 2, 0)[np.newaxis]


def _logit_of_order(raw):
  """The authors' order is `3 + 2 tanh(-l(0.549 - raw))`, `l(a) = 0.3 a + 0.7 elu(a)`; ours `1 + 4 sigmoid(logit)`."""
  a = 0.5493061829986572 - raw.astype(np.float64)
  return -2. * (0.3 * a + 0.7 * np.where(a > 0., a, np.expm1(np.minimum(a, 0.))))

"""The original's computation in NumPy and float64, from images to likelihood, without this package."""

import numpy as np


def encode(variables, images, labels=None):
  """Runs the flow on dequantized images.

  Args:
    variables: Dict from the original's names to arrays.
    images: Array `[N, H, W, C]`.
    labels: Integer array `[N]`, if the model has classes.

  Returns:
    log_density: Array `[N]`, nats.
    latents: List of arrays `[N, h, w, c]`, the first to leave first, the top last.
    top: Array `[N, h, w, c]`, the top latent before its prior.
  """
  variables = {name: np.asarray(value, np.float64) for name, value in variables.items()}
  z, log_density, latents, level = _squeeze(np.asarray(images, np.float64)), 0., [], 0
  while True:
    k = 0
    while f"model/{level}/{k}/actnorm_center/b" in variables:
      z, log_det = _step(_part(variables, f"model/{level}/{k}"), z)
      log_density += log_det
      k += 1
    split = _part(variables, f"model/pool{level}/conv")
    if not split:
      break
    kept, leaving = np.split(z, 2, axis=-1)
    h = _zero_conv(split, kept)
    log_density += _gaussian(leaving, h[..., 0::2], h[..., 1::2], latents)
    z, level = _squeeze(kept), level + 1
  h = _top(_part(variables, "model/prior"), z, labels)
  log_density += _gaussian(z, *np.split(h, 2, axis=-1), latents)
  return log_density, latents, z


def classify(variables, top):
  """The classifier's logits `[N, num_classes]`."""
  return _zero_linear(_part(variables, "model/classifier"), np.mean(top, axis=(1, 2)))


def _part(variables, scope):
  return {name.removeprefix(f"{scope}/"): value for name, value in variables.items() if name.startswith(f"{scope}/")}


def _squeeze(z):
  n, h, w, c = z.shape
  return z.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, 4 * c)


def _step(step, z):
  num_positions = z.shape[1] * z.shape[2]
  z = _actnorm(step, z)
  log_det = num_positions * np.sum(3. * step["actnorm_scale/logs"])
  if "invconv/W" in step:
    z = z @ step["invconv/W"]
    log_det += num_positions * np.linalg.slogdet(step["invconv/W"])[1]
  elif "shuffle/indices" in step:
    z = z[..., step["shuffle/indices"].astype(int)]
  else:
    z = z[..., ::-1]
  conditions, changes = np.split(z, 2, axis=-1)
  h = _network(_part(step, "f1"), conditions)
  if h.shape[-1] == changes.shape[-1]:
    changes = changes + h
  else:
    scale = 1. / (1. + np.exp(-(h[..., 1::2] + 2.)))
    changes = (changes + h[..., 0::2]) * scale
    log_det = log_det + np.sum(np.log(scale), axis=(1, 2, 3))
  return np.concatenate([conditions, changes], axis=-1), log_det


def _actnorm(layer, x):
  return (x + layer["actnorm_center/b"]) * np.exp(3. * layer["actnorm_scale/logs"])


def _network(network, x):
  first, second = (_part(network, name) for name in ("l_1", "l_2"))
  x = np.maximum(_actnorm(first, _conv(x, first["W"])), 0.)
  x = np.maximum(_actnorm(second, x @ second["W"][0, 0]), 0.)
  return _zero_conv(_part(network, "l_last"), x)


def _conv(x, kernel):
  n, h, w, c = x.shape
  padded = np.zeros([n, h + 2, w + 2, c + 1])
  padded[..., -1] = 1.
  padded[:, 1:-1, 1:-1, -1] = 0.
  padded[:, 1:-1, 1:-1, :-1] = x
  return sum(padded[:, i:i + h, j:j + w] @ kernel[i, j] for i in range(3) for j in range(3))


def _zero_conv(layer, x):
  return (_conv(x, layer["W"]) + layer["b"]) * np.exp(3. * layer["logs"])


def _zero_linear(layer, x):
  return (x @ layer["W"] + layer["b"]) * np.exp(3. * layer["logs"])


def _top(prior, z, labels):
  h = np.zeros([*z.shape[:-1], 2 * z.shape[-1]])
  if "p/W" in prior:
    h = _zero_conv(_part(prior, "p"), h)
  if "y_emb/W" in prior:
    h = h + _zero_linear(_part(prior, "y_emb"), np.eye(len(prior["y_emb/W"]))[labels])[:, None, None]
  return h


def _gaussian(z, mean, log_scale, latents):
  """The log-density `[N]`; appends the whitened latent."""
  latents.append((z - mean) * np.exp(-log_scale))
  return np.sum(-0.5 * (np.log(2. * np.pi) + latents[-1]**2) - log_scale, axis=(1, 2, 3))

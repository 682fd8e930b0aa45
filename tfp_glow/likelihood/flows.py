"""The flows in a distribution, wherever they are: initialised from data, and brought up to date."""

import contextlib

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow._core import _compat
from tfp_glow.bijectors.composition import as_one_pass, is_of_tensors

tfd = tfp.distributions


def flow_of(distribution):
  """The bijector of a `tfd.TransformedDistribution` as a `OnePassBijector`; `None` of another distribution."""
  bijector = getattr(distribution, "bijector", None)
  if bijector is None or not is_of_tensors(bijector) or not _compat.is_injective(bijector):
    return None
  return as_one_pass(bijector, distribution.dtype, distribution.event_shape.rank)


def initialize(distribution, values, condition=None):
  """Data-dependent initialisation of all flows in a distribution, as `OnePassBijector.initialize`.

  Those of a mixture's components all get the same data.

  Args:
    distribution: `tfd.Distribution`.
    values: Tensor `[N] + event_shape`, a batch of typical data.
    condition: Dict of arguments that the bijector cannot do without: its context, if it has any.
  """
  if not _learns(distribution):
    return  # Parameters may have a batch, which values have not.
  flow = flow_of(distribution)
  if flow is not None:
    condition = condition or {}
    flow.initialize(values, **condition)
    if _learns(distribution.distribution):
      latents, _ = flow.inverse_and_log_det(values, **flow.any_condition(values) | condition)
      initialize(distribution.distribution, latents)
    return
  for component in _components(distribution):
    initialize(component, values)


def are_initialized(distribution):
  """Whether `initialize` would find nothing to do, as far as the flows remember."""
  flow = flow_of(distribution) if _learns(distribution) else None
  if flow is not None:
    return flow.initialized and are_initialized(distribution.distribution)
  return all(are_initialized(component) for component in _components(distribution))


def follow_layers(distribution):
  """Has the variables of all flows in a distribution follow what layers of networks have as `trainable`.

  Raises `ValueError` for a `trainable` of something that would not heed it.
  """
  for part in [distribution, *distribution.submodules]:
    if "trainable" in vars(part) and type(part).__module__.startswith("tensorflow_probability."):
      raise ValueError("`trainable` must be that of a part of this package: bijectors and distributions of TFP know no "
                       "such thing. Put them into `tfp_glow.Chain`, or make their `tf.Variable`s with "
                       f"`trainable=False`. Received: trainable={part.trainable!r} of {part!r}")
  for owner in _owners(distribution):
    owner.follow_layers()


def be_followed_by(distribution, follower):
  """Has a method called whenever a variable of a flow in a distribution is frozen or unfrozen."""
  for owner in _owners(distribution):
    owner.be_followed_by(follower)


def freeze(distribution, variables):
  """Freezes some of the `tf.Variable`s in a distribution, of flows or not."""
  for owner in _owners(distribution):
    owner.freeze_variables(variables)
  for variable in variables:
    _compat.set_trainable(variable, False)


def after_update(distribution):
  """Has bijectors follow an update of the weights, wherever they are in a distribution."""
  for owner in _owners(distribution):
    owner.after_update()


def draw_other_noise(distribution):
  """Has estimates of log-dets move on to other noise, as after an update."""
  for seed in _noise_seeds(distribution):
    seed.assign(tf.convert_to_tensor(seed.value) + [0, 1])


@contextlib.contextmanager
def other_estimates(distribution, draw):
  """In which estimates of log-dets draw other noise; the weights stay.

  Args:
    distribution: `tfd.Distribution`.
    draw: Python `int`, a number for each noise. 0: the noise that they have at present.
  """
  seeds = _noise_seeds(distribution)
  before = [seed.numpy() for seed in seeds]
  try:
    if draw:
      for seed, value in zip(seeds, before):
        seed.assign(np.stack([value[..., 0], np.full_like(value[..., 1], -draw)], axis=-1))  # Training counts up.
    yield
  finally:
    for seed, value in zip(seeds, before):
      seed.assign(value)


def _noise_seeds(distribution):
  return sum([owner.noise_seeds() for owner in _owners(distribution)], [])


def _learns(distribution):
  """Whether there is anything in a distribution that is initialised from data."""
  return any(hasattr(part, "initialize") for part in distribution.submodules)


def _components(distribution):
  """The outermost distributions within a distribution that have flows."""
  transformed = [part for part in distribution.submodules
                 if isinstance(part, tfd.Distribution) and hasattr(part, "bijector")]
  return _outermost(transformed)


def _owners(distribution):
  """The outermost bijectors of this package."""
  return _outermost([part for part in distribution.submodules if hasattr(part, "after_update")])


def _outermost(modules):
  within = {id(part) for outer in modules for part in outer.submodules}
  return [part for part in modules if id(part) not in within]

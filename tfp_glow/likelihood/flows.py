"""All flows within a distribution: their initialisation from data, freezing and updates."""

import contextlib

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow._core import _compat
from tfp_glow.bijectors import ownership
from tfp_glow.bijectors.composition import as_one_pass, is_of_tensors

tfd = tfp.distributions


def flow_of(distribution):
  """The bijector of a `tfd.TransformedDistribution` as a `OnePassBijector`; `None` for other distributions."""
  bijector = getattr(distribution, "bijector", None)
  if bijector is None or not is_of_tensors(bijector) or not _compat.is_injective(bijector):
    return None
  return as_one_pass(bijector, distribution.dtype, distribution.event_shape.rank)


def initialize(distribution, values, condition=None):
  """Data-dependent initialisation of all flows in a distribution; see `OnePassBijector.initialize`.

  The components of a mixture all get the same data.

  Args:
    distribution: `tfd.Distribution`.
    values: Tensor `[N] + event_shape`, a batch of typical data.
    condition: Dict of the arguments that the bijector requires: its context, if it has one.
  """
  if not _learns(distribution):
    return  # Its parameters may have batch dimensions that the values lack.
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
  """Whether all flows have been initialised, as far as they remember."""
  flow = flow_of(distribution) if _learns(distribution) else None
  if flow is not None:
    return flow.initialized and are_initialized(distribution.distribution)
  return all(are_initialized(component) for component in _components(distribution))


def check_is_heeded(distribution):
  """Raises `ValueError` if `trainable` was set on something of TFP, where it has no effect."""
  for part in [distribution, *distribution.submodules]:
    if "trainable" in vars(part) and type(part).__module__.startswith("tensorflow_probability."):
      raise ValueError("`trainable` must be set on a part of this package: it has no effect on bijectors and "
                       "distributions of TFP. Put them into `tfp_glow.Chain`, or make their `tf.Variable`s with "
                       f"`trainable=False`. Received: trainable={part.trainable!r} of {part!r}")


def owners_of(distribution):
  """The outermost bijectors of this package in a distribution, a list."""
  return _outermost([part for part in distribution.submodules if hasattr(part, "after_update")])


def frozen_variables(owners, variables):
  """The frozen `tf.Variable`s, and the never trained ones that belong to something frozen.

  Args:
    owners: From `owners_of`.
    variables: All `tf.Variable`s of that distribution.
  """
  ids = {id(variable) for owner in _ours(owners) for variable in ownership.frozen_variables(owner)}
  return [v for v in variables if id(v) in ids or _compat.was_made_trainable(v) and not v.trainable]


def freeze(owners, variables):
  """Freezes what `frozen_variables` returned.

  Args:
    owners: From `owners_of`.
    variables: List of `tf.Variable`s.
  """
  for owner in _ours(owners):
    ownership.freeze(owner, variables)
  for variable in variables:
    _compat.set_trainable(variable, False)


def sync_trainable(owners):
  """Copies the `trainable` of the networks' layers to the variables of the bijectors."""
  for owner in _ours(owners):
    ownership.sync_trainable(owner)


def on_trainable_changed(owners, follower):
  """Registers a method to be called whenever a variable of these bijectors is frozen or unfrozen."""
  for owner in _ours(owners):
    ownership.on_trainable_changed(owner, follower)


def after_update(owners):
  """Brings the bijectors' state up to date after an update of the weights.

  Args:
    owners: From `owners_of`.
  """
  for owner in owners:
    owner.after_update()


def draw_other_noise(owners):
  """Moves estimates of log-dets on to new noise, as after an update.

  Args:
    owners: From `owners_of`.
  """
  for seed in _noise_seeds(owners):
    seed.assign(tf.convert_to_tensor(seed.value) + [0, 1])


@contextlib.contextmanager
def other_estimates(distribution, draw):
  """A context in which estimates of log-dets draw other noise; the weights stay the same.

  Args:
    distribution: `tfd.Distribution`.
    draw: Python `int` that selects the noise; 0: the present noise.
  """
  seeds = _noise_seeds(owners_of(distribution))
  before = [seed.numpy() for seed in seeds]
  try:
    if draw:
      for seed, value in zip(seeds, before):
        seed.assign(np.stack([value[..., 0], np.full_like(value[..., 1], -draw)], axis=-1))  # Training counts up.
    yield
  finally:
    for seed, value in zip(seeds, before):
      seed.assign(value)


def _noise_seeds(owners):
  return sum([owner.noise_seeds() for owner in owners], [])


def _ours(owners):
  return [owner for owner in owners if isinstance(owner, ownership.VariableOwner)]


def _learns(distribution):
  """Whether anything in a distribution is initialised from data."""
  return any(hasattr(part, "initialize") for part in distribution.submodules)


def _components(distribution):
  """The outermost distributions within a distribution that have flows."""
  transformed = [part for part in distribution.submodules
                 if isinstance(part, tfd.Distribution) and hasattr(part, "bijector")]
  return _outermost(transformed)


def _outermost(modules):
  within = {id(part) for outer in modules for part in outer.submodules}
  return [part for part in modules if id(part) not in within]

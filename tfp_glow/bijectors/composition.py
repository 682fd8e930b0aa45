"""`Chain` and `Invert`, compositions in one pass; and adapters that turn bijectors of TFP into ours."""

from __future__ import annotations

import functools

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow._core import _compat
from tfp_glow.bijectors import batching, contexts, ownership
from tfp_glow.bijectors.base import OnePassBijector

tfb = tfp.bijectors


class Sequence(OnePassBijector):
  """Bijectors one after the other, in the order of `inverse`."""

  _passes_arguments_on = True

  def __init__(self, parts, **kwargs):
    """Creates the sequence.

    Args:
      parts: List of `OnePassBijector`s.
      **kwargs: Of `OnePassBijector`.
    """
    super().__init__(**kwargs)
    self._parts = [self._add_child(part) for part in parts]

  @property
  def parts(self) -> list[OnePassBijector]:
    """The bijectors, in the order of `inverse`."""
    return list(self._parts)

  def _forward_and_log_det(self, x, **kwargs):
    return self._run(x, self._parts[::-1], False, kwargs)

  def _inverse_and_log_det(self, y, **kwargs):
    return self._run(y, self._parts, True, kwargs)

  def _run(self, value, parts, inverse, kwargs):
    total = tf.zeros(tf.shape(value)[:1], value.dtype)
    for part in parts:
      value, log_det = _pass_of(part, value, inverse, kwargs)
      total += log_det
    return value, total

  def _walk(self, y, **kwargs):
    for part in self._parts:
      if _num_extra(part, y, inverse=True):
        y, log_det = _pass_of(part, y, True, kwargs)
        yield part.name, y, log_det
      else:
        for name, y, log_det in part._walk(y, **_arguments_of(part, kwargs)):
          yield name, y, log_det

  def _initialize(self, y, **condition):
    for part in self._parts:
      y = _initialized_by(part, y, True, condition)
    return y

  def _initialize_back(self, x, **condition):
    for part in reversed(self._parts):
      x = _initialized_by(part, x, False, condition)
    return x

  @property
  def initialized(self) -> bool:
    return all(part.initialized for part in self._parts)

  def mark_initialized(self) -> None:
    for part in self._parts:
      part.mark_initialized()

  def _forward_event_shape(self, input_shape):
    for part in reversed(self._parts):
      input_shape = part.forward_event_shape(input_shape)
    return input_shape

  def _inverse_event_shape(self, output_shape):
    for part in self._parts:
      output_shape = part.inverse_event_shape(output_shape)
    return output_shape

  def _forward_event_shape_tensor(self, input_shape):
    for part in reversed(self._parts):
      input_shape = part.forward_event_shape_tensor(input_shape)
    return input_shape

  def _inverse_event_shape_tensor(self, output_shape):
    for part in self._parts:
      output_shape = part.inverse_event_shape_tensor(output_shape)
    return output_shape


def _pass_of(part, value, inverse, kwargs):
  """Value and log-det of a part of a sequence, `[N]` or broadcasting to it."""
  kwargs = _arguments_of(part, kwargs)
  extra = _num_extra(part, value, inverse)
  if not extra:
    return (part._inverse_and_log_det if inverse else part._forward_and_log_det)(value, **kwargs)
  kwargs = {key: batching.with_extra_dims(condition, extra) for key, condition in kwargs.items()
            if key in part.argument_names}
  value, log_det = (part.inverse_and_log_det if inverse else part.forward_and_log_det)(value, **kwargs)
  return value, tf.reduce_sum(log_det, list(range(1, 1 + extra)))


def _initialized_by(part, values, inverse, condition):
  """Initialises a part, for which one of our events may be several."""
  condition = _arguments_of(part, condition)
  initialize = part._initialize if inverse else part._initialize_back
  extra = _num_extra(part, values, inverse)
  if not extra:
    return initialize(values, **condition)
  leading = tf.shape(values)[:1 + extra]
  flat = batching.with_one_batch_dim(values, values.shape.rank - 1 - extra)
  condition, _ = batching.flat_arguments(
      {key: batching.with_extra_dims(value, extra) for key, value in condition.items()}, leading,
      values.shape[:1 + extra], contexts.checked_context_shape(part.context_shape))
  value = initialize(flat, **condition)
  return tf.reshape(value, tf.concat([leading, tf.shape(value)[1:]], axis=0))


def _num_extra(part, value, inverse):
  """Number of an event's dimensions that are batch dimensions for a part."""
  return value.shape.rank - 1 - part.event_shape_of(inverse).rank


def _arguments_of(part, kwargs):
  known = part.argument_names | ({"needs_log_det"} if part.has_costly_log_det else set())
  return {key: value for key, value in kwargs.items() if key in known}


class Chain(Sequence):
  """`tfb.Chain`, with value and log-det in one pass: `Chain([f, g]).forward(x) = f(g(x))`.

  The parts may be bijectors of this package and of TFP. Arguments, such as `labels`, reach each part of this package
  that takes them; TFP's own bijectors get none. `tfb.Chain`, outside of `FlowModel`, gives the same `log_prob`, but may
  take two passes, `experimental_sample_and_log_prob` three, and gradients more.

  #### Example

  ```python
  import tensorflow_probability as tfp
  import tfp_glow

  glow = tfp_glow.GlowBijector(output_shape=(8, 8, 1), num_glow_blocks=2, num_steps_per_block=2, num_hidden=8)
  chain = tfp_glow.Chain([tfp.bijectors.Shift(0.5), glow])
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [8 * 8 * 1])
  images = tfp.distributions.TransformedDistribution(base, chain)
  images.log_prob(images.sample(3))   # [3], in nats
  ```
  """

  def __init__(self, bijectors: list[tfb.Bijector] | tuple[tfb.Bijector, ...], validate_args: bool = False,
               name: str = "chain"):
    """Creates the chain; it shares the variables of its parts.

    Args:
      bijectors: Sequence of `tfb.Bijector`s, at least one, in the order of `inverse`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.

    Raises:
      TypeError: if `bijectors` is something else.
      ValueError: if it is empty, a bijector goes from or to several tensors, or their dtypes differ.
    """
    parameters = dict(locals())
    if not isinstance(bijectors, (list, tuple)) or not all(isinstance(part, tfb.Bijector) for part in bijectors):
      raise TypeError(f"`bijectors` must be a list of `tfb.Bijector`s. Received: {bijectors!r}")
    if not all(map(is_of_tensors, bijectors)):
      raise ValueError(f"`bijectors` must each go from one tensor to one tensor. Received: {bijectors!r}")
    if not bijectors:
      raise ValueError(f"`bijectors` must hold at least one bijector. Received: {bijectors!r}")
    dtypes = {part.dtype for part in bijectors if part.dtype is not None}
    if len(dtypes) > 1:
      raise ValueError("`bijectors` must compute in the same dtype. "
                       f"Received: {', '.join(sorted(dtype.name for dtype in dtypes))}")
    dtype = next(iter(dtypes), None)
    ranks = tfb.Chain(list(bijectors))  # TFP finds the ranks of events that suit all parts.
    parts = _as_parts(bijectors, dtype, ranks.inverse_min_event_ndims)
    latent = tf.TensorShape(_event_shape(bijectors[-1], ranks.forward_min_event_ndims, inverse=False))
    data = tf.TensorShape(_event_shape(bijectors[0], ranks.inverse_min_event_ndims, inverse=True))
    # A size that is known on one side fixes the size on the other side.
    latent = latent.merge_with(functools.reduce(lambda shape, part: part.inverse_event_shape(shape), parts, data))
    data = data.merge_with(functools.reduce(lambda shape, part: part.forward_event_shape(shape), parts[::-1], latent))
    super().__init__(parts, forward_event_shape=latent, inverse_event_shape=data, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)

  def __repr__(self):
    return f"<{type(self).__name__} {self.name!r} of {list(self.parameters['bijectors'])!r}>"


class Invert(OnePassBijector):
  """`tfb.Invert`, with value and log-det in one pass: `forward` is the `inverse` of another bijector.

  Its data are thus the other's latents. `initialize` runs the other from there, layer after layer.
  """

  _passes_arguments_on = True

  def __init__(self, bijector: tfb.Bijector, validate_args: bool = False, name: str | None = None):
    """Creates the inverse; it shares the variables of the bijector.

    Args:
      bijector: `tfb.Bijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`; `None`: `"invert_"` and the name of the bijector.

    Raises:
      TypeError: if `bijector` is something else.
      ValueError: if it goes from or to several tensors.
    """
    parameters = dict(locals())
    if not isinstance(bijector, tfb.Bijector):
      raise TypeError(f"`bijector` must be a `tfb.Bijector`. Received: {bijector!r}")
    if not is_of_tensors(bijector):
      raise ValueError(f"`bijector` must go from one tensor to one tensor. Received: {bijector!r}")
    part = as_one_pass(bijector)
    super().__init__(
        forward_event_shape=_event_shape(bijector, bijector.inverse_min_event_ndims, inverse=True),
        inverse_event_shape=_event_shape(bijector, bijector.forward_min_event_ndims, inverse=False), dtype=part.dtype,
        validate_args=validate_args, parameters=parameters, name=name or f"invert_{bijector.name}")
    self._part = self._add_child(part)

  def __repr__(self):
    return f"<{type(self).__name__} {self.name!r} of {self.parameters['bijector']!r}>"

  def _initialize(self, y, **condition):
    return self._part._initialize_back(y, **condition)

  def _initialize_back(self, x, **condition):
    return self._part._initialize(x, **condition)

  @property
  def initialized(self) -> bool:
    return self._part.initialized

  def mark_initialized(self) -> None:
    self._part.mark_initialized()

  @property
  def has_costly_log_det(self) -> bool:
    return False  # A `forward` calls the part's `inverse`, which computes both anyway.

  def _forward_and_log_det(self, x, **kwargs):
    return self._part._inverse_and_log_det(x, **kwargs)

  def _inverse_and_log_det(self, y, **kwargs):
    return self._part._forward_and_log_det(y, **kwargs)

  def _forward_event_shape(self, input_shape):
    return self._part.inverse_event_shape(input_shape)

  def _inverse_event_shape(self, output_shape):
    return self._part.forward_event_shape(output_shape)

  def _forward_event_shape_tensor(self, input_shape):
    return self._part.inverse_event_shape_tensor(input_shape)

  def _inverse_event_shape_tensor(self, output_shape):
    return self._part.forward_event_shape_tensor(output_shape)


class _OfTFP(OnePassBijector):
  """A bijector from outside of this package; events may have more dimensions than it needs."""

  _passes_arguments_on = True

  def __init__(self, bijector, dtype, event_ndims):
    super().__init__(forward_event_shape=[None] * bijector.inverse_event_ndims(event_ndims),
                     inverse_event_shape=[None] * event_ndims, dtype=bijector.dtype or dtype, name=bijector.name)
    self.bijector = bijector
    # `tf.Module` finds them in the bijector, so the order of variables, also in files, is the bijector's.
    self._children = _compat.untracked(self, _outermost_within(bijector))

  def _set_trainable(self, value):
    super()._set_trainable(value)
    for owned in self._owned_by_tfp():
      if owned.is_parameter:
        _compat.set_trainable(owned.stored, value)

  def _owned(self):
    return super()._owned() + self._owned_by_tfp()

  def _owned_by_tfp(self):
    """`Owned`s of TFP's variables, which follow no source. Looked up each time, because some are made late."""
    ours = {id(variable) for child in self._children for variable in child.variables}
    return [ownership.Owned(variable, None, variable) for variable in self.bijector.variables
            if id(variable) not in ours]

  @property
  def has_costly_log_det(self):
    return False  # TFP's bijectors do not know `needs_log_det`.

  @property
  def initialized(self):
    return getattr(self.bijector, "initialized", not hasattr(self.bijector, "initialize"))

  def _depends_on_variables_only(self):
    # Gradients of recalled passes need `keras.Variable`s, which TFP's are not; and functions may hold anything.
    return (type(self.bijector).__module__.startswith("tensorflow_probability.") and not self.bijector.variables
            and not any(map(callable, self.bijector.parameters.values())))

  @property
  def num_classes(self):
    return getattr(self.bijector, "num_classes", None)

  @property
  def context_shape(self):
    return getattr(self.bijector, "context_shape", None)

  @property
  def is_stochastic(self):
    return getattr(self.bijector, "is_stochastic", False)

  @property
  def log_det_estimator(self):
    return getattr(self.bijector, "log_det_estimator", None)

  @property
  def argument_names(self):
    names = {"labels": self.num_classes, "context": self.context_shape, "training": self.is_stochastic}
    return frozenset(name for name, value in names.items() if value)

  def _forward_and_log_det(self, x, **kwargs):
    x = tf.identity(x)  # For the user's own tensor TFP's cache may hold an outdated result.
    return (self.bijector.forward(x, **kwargs),
            self.bijector.forward_log_det_jacobian(x, self.forward_min_event_ndims, **kwargs))

  def _inverse_and_log_det(self, y, **kwargs):
    y = tf.identity(y)
    return (self.bijector.inverse(y, **kwargs),
            self.bijector.inverse_log_det_jacobian(y, self.inverse_min_event_ndims, **kwargs))

  def _initialize(self, y, **condition):
    if hasattr(self.bijector, "initialize"):
      self.bijector.initialize(y, **{key: value for key, value in condition.items() if key == "context"})
    return super()._initialize(y, **condition)

  def _forward_event_shape(self, input_shape):
    return self.bijector.forward_event_shape(input_shape)

  def _inverse_event_shape(self, output_shape):
    return self.bijector.inverse_event_shape(output_shape)

  def _forward_event_shape_tensor(self, input_shape):
    return self.bijector.forward_event_shape_tensor(input_shape)

  def _inverse_event_shape_tensor(self, output_shape):
    return self.bijector.inverse_event_shape_tensor(output_shape)


def _outermost_within(bijector):
  """The outermost bijectors of this package within another bijector."""
  found = [part for part in bijector.submodules if isinstance(part, OnePassBijector)]
  within = {id(part) for owner in found for part in owner.submodules}
  return [owner for owner in found if id(owner) not in within]


def latent_side_of(bijector):
  """The part of a composition that latents enter first in `forward`."""
  while isinstance(bijector, Sequence) and not hasattr(bijector, "split_latent"):
    bijector = bijector.parts[-1]
  return bijector.bijector if isinstance(bijector, _OfTFP) else bijector


def is_of_tensors(bijector):
  """Whether a bijector goes from one tensor to one tensor."""
  return not any(map(tf.nest.is_nested, (bijector.forward_min_event_ndims, bijector.inverse_min_event_ndims)))


def as_one_pass(bijector, dtype=None, event_ndims=None):
  """Any bijector as a `OnePassBijector` with the same variables.

  TFP's compositions, `tfb.Chain` and `tfb.Invert`, are rebuilt: each part gives value and log-det together.

  Args:
    bijector: `tfb.Bijector`.
    dtype: Dtype for bijectors that have none.
    event_ndims: Python `int`, the rank of events given to `inverse`; `None`: the least possible.
  """
  event_ndims = bijector.inverse_min_event_ndims if event_ndims is None else event_ndims
  if isinstance(bijector, OnePassBijector):
    return bijector
  is_chain = isinstance(bijector, _compat.class_made_of(tfb.Chain))
  if is_chain and bijector.bijectors and all(map(is_of_tensors, bijector.bijectors)):
    parts = _as_parts(bijector.bijectors, dtype, event_ndims)
    latent_shape = _event_shape(parts[-1], bijector.inverse_event_ndims(event_ndims), inverse=False)
    return Sequence(parts, forward_event_shape=latent_shape,
                    inverse_event_shape=_event_shape(parts[0], event_ndims, inverse=True), dtype=parts[0].dtype,
                    name=bijector.name)
  if isinstance(bijector, _compat.class_made_of(tfb.Invert)):
    inner = as_one_pass(bijector.bijector, dtype, bijector.inverse_event_ndims(event_ndims))
    return Invert(inner, name=bijector.name)
  return _OfTFP(bijector, dtype, event_ndims)


def _as_parts(bijectors, dtype, event_ndims):
  """The parts of a sequence, in the order of `inverse`, whose input events have rank `event_ndims`."""
  parts = []
  for bijector in bijectors:
    parts.append(as_one_pass(bijector, dtype, event_ndims))
    event_ndims = bijector.inverse_event_ndims(event_ndims)
  return parts


def _event_shape(bijector, rank, inverse):
  """The shape of an event on one side of a bijector, as far as it is known."""
  if isinstance(bijector, OnePassBijector) and bijector.event_shape_of(inverse).rank == rank:
    return bijector.event_shape_of(inverse)
  return [None] * rank

"""`OnePassBijector`: value and log-determinant from one evaluation.

TFP asks a bijector for a value and for its log-det in two calls, and joins them with a cache keyed by tensor identity.
That cache never learns that a weight changed or that a gradient tape was opened, so this class does not use it. It
remembers a pass on the tensors that the pass connected, and reuses it only where doing so cannot be told from computing
it again: same graph, same weights, same gradient tapes.
"""

import functools
import sys

import keras
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.bijectors.composition import Composition

from tfp_glow._core.gradients import with_pull_back
from tfp_glow._core.validation import checked_dtype
from tfp_glow.bijectors import passes

tfb = tfp.bijectors

# Known of a bijector that is not ours: whether one of ours is part of it.
_HOLDS_OURS = "_tfp_glow_holds_ours"


class OnePassBijector(tfb.Bijector):
  """Base class of bijectors that compute value and log-det together.

  Subclasses implement `_forward_and_log_det(x, **kwargs)` and `_inverse_and_log_det(y, **kwargs)`. Both get a tensor
  with exactly one batch dimension, `[N] + event_shape`, and return the value and a log-det that broadcasts to `[N]`.
  TFP's `forward`, `inverse`, `forward_log_det_jacobian` and `inverse_log_det_jacobian` follow from them, for any number
  of leading dimensions.

  As everywhere in this package `forward` is the generative direction, latent to data.

  A value and then its log-det, as `log_prob` asks for them, are one evaluation, as long as weights and gradient tapes
  stay what they were. Under a persistent tape, or two nested ones, which TensorFlow does not tell apart, they are two.

  References:
    The contract is that of distrax (https://github.com/google-deepmind/distrax).
  """

  def __init__(self, *, forward_event_shape, inverse_event_shape, dtype=None, validate_args=False, parameters=None,
               name=None):
    """Creates the base.

    Args:
      forward_event_shape: Shape of one event given to `forward`; a list of `int`s, `None` where any size will do.
      inverse_event_shape: The same of `inverse`.
      dtype: float32 or float64, of parameters, inputs and outputs. Default: Keras' `floatx`.
      validate_args: Python `bool`: check values at run time (a non-finite input is an error), at a cost.
      parameters: The constructor's arguments, as everywhere in TFP.
      name: Python `str`.
    """
    dtype = checked_dtype(dtype or keras.config.floatx())
    self._event_shapes = self._no_dependency(
        {False: tf.TensorShape(forward_event_shape), True: tf.TensorShape(inverse_event_shape)})
    self._dtype_policy = keras.config.dtype_policy()
    self._own_keras_variables = self._no_dependency([])
    self._own_variables = []
    self._children = []
    super().__init__(
        forward_min_event_ndims=len(forward_event_shape), inverse_min_event_ndims=len(inverse_event_shape), dtype=dtype,
        validate_args=validate_args, parameters=parameters, name=name)

  @property
  def dtype_policy(self):
    """Keras' global dtype policy when this was made, which is that of the networks it made."""
    return self._dtype_policy

  # TFP takes bijectors made with equal arguments for equal, and answers for one from the cache of the other. Ours hold
  # weights of their own.

  def __eq__(self, other):
    return self is other

  def __hash__(self):
    return id(self)

  # What subclasses implement.

  def _forward_and_log_det(self, x, **kwargs):
    raise NotImplementedError(f"{type(self).__name__} must implement `_forward_and_log_det`.")

  def _inverse_and_log_det(self, y, **kwargs):
    raise NotImplementedError(f"{type(self).__name__} must implement `_inverse_and_log_det`.")

  def _initialize(self, y):
    """Sets parameters from the batch `y` `[N] + event_shape`; returns what `inverse` now makes of it."""
    return self._inverse_and_log_det(y)[0]

  def _walk(self, y, **kwargs):
    """`inverse`, part after part: yields the name of each, its value and its log-det, as they are computed."""
    yield (self.name, *self._inverse_and_log_det(y, **kwargs))

  # How `Scan` runs many alike: `_prepare` for all of them at once, `_enter` once, `_apply` of each, `_leave` once.

  def _prepare(self, value, event_shape, inverse):
    """What depends on the parameters alone, and so need not be computed step by step.

    Args:
      value: Callable, from a `keras.Variable` of this bijector to its value; or to those of many alike, stacked along a
        first dimension, which all that is returned then has, too.
      event_shape: Static shape of one event.
      inverse: Python `bool`: for which direction.

    Returns:
      weights: Nest of floating tensors, handed to `_apply`.
      log_det: The part of the direction's log-det that does not depend on the input.
    """
    del value, event_shape, inverse
    return (), tf.zeros([], self.dtype)

  def _prepare_back(self, value, event_shape, inverse):
    """What `_rebuild` of this direction needs besides the weights of `_apply`; arguments as in `_prepare`."""
    return self._prepare(value, event_shape, not inverse)[0]

  def _enter(self, values):
    """Values in the form in which `_apply` takes and returns them."""
    return values

  def _leave(self, values):
    """The inverse of `_enter`."""
    return values

  def _apply(self, inputs, weights, inverse, **kwargs):
    """The rest of the work of `_prepare`: returns value and the part of the log-det that depends on the input."""
    del weights
    return (self._inverse_and_log_det if inverse else self._forward_and_log_det)(inputs, **kwargs)

  def _variables_of_apply(self):
    """The `keras.Variable`s that `_apply` reads by itself."""
    return self._keras_variables()

  def _rebuild(self, outputs, weights, weights_back, variables, d_outputs, d_log_det, inverse, **kwargs):
    """Gradients of `_apply` without its inputs, which are computed from its outputs.

    Args:
      outputs: What `_apply` returned.
      weights: What it was given.
      weights_back: From `_prepare_back`.
      variables: List of the values of `_variables_of_apply`, which a call of `_apply` reads as well.
      d_outputs: Gradient with respect to `outputs`.
      d_log_det: Gradient with respect to the log-det that `_apply` returned, `[N]`.
      inverse: The direction of `_apply`.
      **kwargs: What else it was given.

    Returns:
      inputs: What `_apply` was given.
      d_inputs: The gradient with respect to it.
      d_weights: Nest as `weights`.
      d_variables: List as `variables`.
    """
    inputs, _ = self._apply(outputs, weights_back, not inverse, **kwargs)

    def apply(inputs, weights, variables):
      del variables  # They are read by `_apply` itself.
      again, log_det = self._apply(inputs, weights, inverse, **kwargs)
      return again, tf.broadcast_to(log_det, tf.shape(d_log_det))

    _, pull_back = with_pull_back(apply, (inputs, weights, variables))
    return inputs, *pull_back((d_outputs, d_log_det))

  def _prepare_and_apply(self, inputs, inverse):
    weights, constant = self._prepare(lambda v: tf.convert_to_tensor(v.value), inputs.shape[1:], inverse)
    outputs, log_det = self._apply(self._enter(inputs), weights, inverse)
    return self._leave(outputs), log_det + constant

  # State that follows the weights.

  def _variables_of_update(self):
    """The `keras.Variable`s that `after_update` assigns."""
    return sum([child._variables_of_update() for child in self._children], [])

  def _update(self):
    """The values that it assigns to them."""
    return sum([child._update() for child in self._children], [])

  # Variables. Keras' `StatelessScope`, which `Scan` uses to run one step with the weights of another, knows
  # `keras.Variable`s; `tf.Module`, `tf.train.Checkpoint` and TFP know `tf.Variable`s. Each pair shares its storage.

  def __setattr__(self, name, value):
    if isinstance(value, (keras.Variable, keras.layers.Layer)):
      value = self._no_dependency(value)  # Or a checkpoint would hold each variable twice.
    super().__setattr__(name, value)

  def _add_variable(self, name, value, trainable=True, aggregation="none"):
    variable = keras.Variable(value, dtype=value.dtype.name, trainable=trainable, aggregation=aggregation,
                              name=f"{self._name}_{name}")
    self._adopt([variable])
    return variable

  def _adopt(self, keras_variables):
    self._own_keras_variables.extend(keras_variables)
    self._own_variables.extend(v.value for v in keras_variables)

  def _add_child(self, bijector):
    self._children.append(bijector)
    return bijector

  def copy(self, **override_parameters_kwargs):
    """Not to be had: TFP's way, to call the constructor again, would lose the weights."""
    raise NotImplementedError(
        f"`{self.name}.copy` would have new weights in place of the present ones; make another bijector, and restore a "
        f"`tf.train.Checkpoint` into it. Received: {override_parameters_kwargs}")

  def __deepcopy__(self, memo):
    raise NotImplementedError(
        f"`{self.name}` cannot be deep-copied: its networks would lose their variables; make another bijector, and "
        "restore a `tf.train.Checkpoint` into it.")

  def _keras_variables(self):
    return sum([child._keras_variables() for child in self._children], list(self._own_keras_variables))

  # The public contract.

  def forward_and_log_det(self, x, **kwargs):
    """Latent to data, with the log-det of that map.

    Args:
      x: Tensor `[...] + event_shape`.
      **kwargs: Conditioning, e.g. `labels` of shape `[...]` (or broadcasting to it), and options, `bool`s.

    Returns:
      y: Tensor `[...] + event_shape`.
      log_det: `log |det dy/dx|` in nats, `[...]`.

    Raises:
      ValueError: if the shape of `x`, or that of an argument, does not fit.
      TypeError: if `x` is a tensor of another dtype than that of the bijector; all else is converted.
    """
    with self._name_and_control_scope("forward_and_log_det"):
      return self._evaluate(self._convert(x, "x", inverse=False), False, kwargs)

  def inverse_and_log_det(self, y, **kwargs):
    """Data to latent, with the log-det of that map; see `forward_and_log_det`.

    Args:
      y: Tensor `[...] + event_shape`.
      **kwargs: As in `forward_and_log_det`.

    Returns:
      x: Tensor `[...] + event_shape`.
      log_det: `log |det dx/dy|` in nats, `[...]`.

    Raises:
      ValueError: if the shape of `y`, or that of an argument, does not fit.
      TypeError: if `y` is a tensor of another dtype than that of the bijector; all else is converted.
    """
    with self._name_and_control_scope("inverse_and_log_det"):
      return self._evaluate(self._convert(y, "y", inverse=True), True, kwargs)

  def walk(self, y, **kwargs):
    """`inverse` part after part, to see where something goes wrong; eagerly, and not for speed.

    Args:
      y: Tensor `[N] + event_shape`.
      **kwargs: As in `inverse_and_log_det`.

    Yields:
      name: Of the part, e.g. `"block1, step of flow 7, affine_coupling"`.
      value: What it makes of the value before.
      log_det: Its log-det, `[N]` or a scalar.

    Raises:
      ValueError: if the shape of `y` does not fit.
      TypeError: if `y` is a tensor of another dtype than that of the bijector; all else is converted.
    """
    yield from self._walk(self._convert(y, "y", inverse=True), **kwargs)

  def initialize(self, y):
    """Data-dependent initialisation, layer after layer, from one batch of data.

    An explicit act, as `adapt` of Keras' `Normalization`: never inside `forward` or `inverse`.

    Args:
      y: Tensor `[...] + event_shape` on the data side, a batch of typical data.

    Raises:
      RuntimeError: inside a `tf.function` or in replica context: it must happen once, for all replicas alike.
      ValueError: if the shape of `y` does not fit, it is empty, or holds values that are not finite.
    """
    in_replica = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    if in_replica or not tf.executing_eagerly():
      raise RuntimeError(
          f"`{self.name}.initialize` assigns variables, once and for all replicas alike: call it eagerly, outside of "
          f"`tf.function` and `strategy.run`. Received: a call in {'a replica' if in_replica else 'a graph'}")
    y = self._convert(y, "y", inverse=True)
    flat = self._with_one_batch_dim(y, inverse=True)
    if flat.shape[0] == 0 or not bool(tf.reduce_all(tf.math.is_finite(flat))):
      raise ValueError("`y` must be a batch of at least one event, with finite values only. "
                       f"Received: shape {y.shape}" + (" with NaN or infinite values" if flat.shape[0] else ""))
    self._initialize(flat)

  @property
  def is_stochastic(self):
    """Whether log-dets are estimated; if so, calls take `training=True` for the estimate that is meant for training."""
    return any(child.is_stochastic for child in self._children)

  @property
  def has_costly_log_det(self):
    """Whether a log-det takes longer than the value; if so, calls take `needs_log_det=False` (and `training`)."""
    return any(child.has_costly_log_det for child in self._children)

  @property
  def log_det_estimator(self):
    """How log-dets are computed outside of training, a Python `str`; `None` where there is a formula for them."""
    ways = dict.fromkeys(child.log_det_estimator for child in self._children)
    return "; ".join(way for way in ways if way) or None

  def after_update(self):
    """Brings state that follows the weights up to date: call it after every update of them, as `FlowModel` does.

    Norms of constrained layers are measured again, and estimates draw new noise. Most bijectors have no such state.
    """
    for variable, value in zip(self._variables_of_update(), self._update()):
      variable.assign(value)

  # TFP's interface.

  def _call_forward(self, x, name, **kwargs):
    with self._name_and_control_scope(name):
      return self._value(self._convert(x, "x", inverse=False), False, kwargs)

  def _call_inverse(self, y, name, **kwargs):
    with self._name_and_control_scope(name):
      return self._value(self._convert(y, "y", inverse=True), True, kwargs)

  def _call_forward_log_det_jacobian(self, x, event_ndims, name, **kwargs):
    with self._name_and_control_scope(name):
      return self._log_det(self._convert(x, "x", inverse=False), event_ndims, False, kwargs)

  def _call_inverse_log_det_jacobian(self, y, event_ndims, name, **kwargs):
    with self._name_and_control_scope(name):
      return self._log_det(self._convert(y, "y", inverse=True), event_ndims, True, kwargs)

  def _value(self, inputs, inverse, kwargs):
    done = self._recall(inputs, inverse, kwargs)
    if done is not None:
      return done[0]
    if inverse or not self.has_costly_log_det:
      return self._evaluate(inputs, inverse, kwargs)[0]
    # Passes differ where their arguments do: nobody will be told that this one's log-det was 0.
    kwargs = {**kwargs, "needs_log_det": False}
    done = self._recall(inputs, inverse, kwargs)
    return self._evaluate(inputs, inverse, kwargs)[0] if done is None else done[0]

  def _log_det(self, inputs, event_ndims, inverse, kwargs):
    min_event_ndims = self._event_shapes[inverse].rank
    extra = 0 if event_ndims is None else int(tf.get_static_value(event_ndims)) - min_event_ndims
    if not 0 <= extra <= inputs.shape.rank - min_event_ndims:
      raise ValueError(f"`event_ndims` must lie between {min_event_ndims} and the rank of the input, "
                       f"{inputs.shape.rank}. Received: {event_ndims}")
    done = self._recall(inputs, inverse, kwargs, log_det_only=True)
    log_det = self._evaluate(inputs, inverse, kwargs)[1] if done is None else done[1]
    return tf.reduce_sum(log_det, axis=list(range(-extra, 0))) if extra else log_det

  def _forward_event_shape(self, input_shape):
    return self._other_shape(input_shape, inverse=False)

  def _inverse_event_shape(self, output_shape):
    return self._other_shape(output_shape, inverse=True)

  def _forward_event_shape_tensor(self, input_shape):
    return self._other_shape_tensor(input_shape, inverse=False)

  def _inverse_event_shape_tensor(self, output_shape):
    return self._other_shape_tensor(output_shape, inverse=True)

  def _keeps_shape(self):
    return self._event_shapes[True] == self._event_shapes[False]

  def _other_shape(self, shape, inverse):
    """The shape on the other side, of bijectors that keep it, or are between two shapes that are known."""
    shape, own = tf.TensorShape(shape), self._event_shapes[inverse]
    if self._keeps_shape():
      return shape
    if shape.rank is None:
      return self._event_shapes[not inverse]
    if not own.is_compatible_with(shape[shape.rank - own.rank:]):
      raise ValueError(f"The event shape on this side of `{self.name}` must be {own}. Received: {shape}")
    return shape[:shape.rank - own.rank].concatenate(self._event_shapes[not inverse])

  def _other_shape_tensor(self, shape, inverse):
    if self._keeps_shape():
      return shape
    return tf.concat([shape[:-self._event_shapes[inverse].rank], self._event_shapes[not inverse]], axis=0)

  # One evaluation.

  def _convert(self, value, name, inverse):
    if tf.is_tensor(value) and value.dtype != self.dtype:
      raise TypeError(f"`{name}` of `{self.name}` must be of dtype {self.dtype.name}. Received: {value.dtype.name}")
    value = tf.convert_to_tensor(value, dtype=self.dtype, name=name)
    expected = self._event_shapes[inverse]
    if value.shape.rank is None or value.shape.rank < expected.rank or not expected.is_compatible_with(
        value.shape[value.shape.rank - expected.rank:]):
      wanted = ", ".join(["..."] + ["?" if d is None else str(d) for d in expected.as_list()])
      raise ValueError(f"`{name}` of `{self.name}.{'inverse' if inverse else 'forward'}` must have shape [{wanted}]. "
                       f"Received: {value.shape}")
    if self.validate_args:
      value = tf.debugging.check_numerics(value, f"`{name}` of `{self.name}` must be finite.")
    return value

  def _with_one_batch_dim(self, value, inverse):
    """To exactly one batch dimension."""
    event = value.shape[value.shape.rank - self._event_shapes[inverse].rank:]
    if value.shape.rank == event.rank + 1:
      return value
    sizes = tf.unstack(tf.shape(value)[value.shape.rank - event.rank:]) if not event.is_fully_defined() else list(event)
    count = value.shape[:value.shape.rank - event.rank].num_elements()
    return tf.reshape(value, [-1 if count is None else count] + sizes)

  @tf.autograph.experimental.do_not_convert
  def _evaluate(self, inputs, inverse, kwargs):
    batch_rank = inputs.shape.rank - self._event_shapes[inverse].rank
    batch_shape = tf.shape(inputs)[:batch_rank]
    static_batch_shape = inputs.shape[:batch_rank]
    options = {key: value for key, value in kwargs.items() if isinstance(value, bool)}
    flat_kwargs = {key: _flat_argument(key, value, batch_shape, static_batch_shape) for key, value in kwargs.items()
                   if value is not None and key not in options}
    flat = self._with_one_batch_dim(inputs, inverse)
    run = functools.partial(self._inverse_and_log_det if inverse else self._forward_and_log_det, **options)
    outputs, log_det = _never_empty(run)(flat, **flat_kwargs)
    if flat is not inputs:
      event = outputs.shape[1:]
      outputs = tf.reshape(outputs, tf.concat([batch_shape, tf.shape(outputs)[1:]], axis=0))
      outputs.set_shape(static_batch_shape.concatenate(event))
    log_det = tf.reshape(log_det, batch_shape)
    log_det.set_shape(static_batch_shape)
    if outputs is inputs:
      outputs = tf.identity(outputs)
    passes.Pass(self, inverse, inputs, outputs, log_det, kwargs).remember()
    return outputs, log_det

  def _recall(self, inputs, inverse, kwargs, log_det_only=False):
    """Value and log-det of an earlier pass, from either of its ends, if they still hold; else `None`."""
    back, again = passes.that_returned(inputs), passes.that_was_given(inputs)
    if back is not None and back.inverse != inverse and back.is_by(self, kwargs) and back.still_holds():
      # The way back as a function of `inputs` cannot be had from what came before `inputs`: of a sample, watched after
      # it was drawn, the gradient of `log_prob` would be lost. For log-dets alone, which follow their pass, it may be.
      if log_det_only or not back.watched[0] or _for_log_dets_of_a_composition():
        return back.input, -back.log_det
    if again is not None and again.inverse == inverse and again.is_by(self, kwargs) and again.still_holds():
      return again.output(), again.log_det
    return None


def _never_empty(run):
  """Lets a pass run on at least one event, if need be of zeros, which is dropped.

  Of an empty batch TensorFlow's convolution on CPUs returns its input, with the input's number of channels. A batch is
  empty for a replica when there are fewer events than replicas, for example.
  """

  def run_padded(inputs, **kwargs):
    count = tf.shape(inputs)[:1]
    if inputs.shape[0]:
      outputs, log_det = run(inputs, **kwargs)
      return outputs, tf.broadcast_to(log_det, count)
    missing = tf.cast(tf.equal(count, 0), count.dtype)
    pad = lambda x: tf.pad(x, [[0, missing[0]]] + [[0, 0]] * (x.shape.rank - 1))
    outputs, log_det = run(pad(inputs), **{key: pad(value) for key, value in kwargs.items()})
    return outputs[:count[0]], tf.broadcast_to(log_det, count + missing)[:count[0]]

  return run_padded


def _flat_argument(name, value, batch_shape, static_batch_shape):
  """Conditioning, broadcast to the batch and then flat."""
  value = tf.convert_to_tensor(value, name=name)
  sizes = static_batch_shape[len(static_batch_shape) - value.shape.rank:] if value.shape.rank else []
  if value.shape.rank > len(static_batch_shape) or any(
      given not in (1, None, size) and size is not None for given, size in zip(value.shape, sizes)):
    raise ValueError(f"`{name}` must have the shape of the batch, {static_batch_shape}, or broadcast to it. "
                     f"Received: {value.shape}")
  return tf.reshape(tf.broadcast_to(value, batch_shape), [-1])


class _CacheOfOthers(type(tfb.Bijector._cache.storage)):  # pylint: disable=protected-access
  """TFP's cache without the compositions, such as `tfb.Chain`, that one of our bijectors is part of.

  For those it would answer itself: from before the update of a weight, or from outside of a gradient tape. Without it
  they ask our bijectors, which remember their own passes. For all other bijectors it is TFP's.
  """

  def setdefault(self, key, default=None):
    return default if _holds_ours(key.subkey[0]) else super().setdefault(key, default)

  def __setitem__(self, key, value):
    if not _holds_ours(key.subkey[0]):
      super().__setitem__(key, value)

  def __delitem__(self, key):
    # TFP deletes what it believes to have stored.
    if key in self or not _holds_ours(key.subkey[0]):
      super().__delitem__(key)


# A descriptor of the class, whose storage all bijectors share.
vars(tfb.Bijector)["_cache"].storage = _CacheOfOthers()


def _holds_ours(bijector):
  if not getattr(bijector, _HOLDS_OURS, False):
    setattr(bijector, _HOLDS_OURS, any(isinstance(part, OnePassBijector) for part in bijector.submodules))
  return getattr(bijector, _HOLDS_OURS)


def _for_log_dets_of_a_composition():
  """Whether `tfb.Chain` and the like are asking, on their walk back to sum the log-dets."""
  walk = Composition._get_bijectors_with_metadata.__code__  # pylint: disable=protected-access
  frame = sys._getframe()  # pylint: disable=protected-access
  while frame is not None and frame.f_code is not walk:
    frame = frame.f_back
  return frame is not None

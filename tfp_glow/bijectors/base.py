"""`OnePassBijector`, the contract: value and log-determinant from one evaluation."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_glow._core import _compat, precision
from tfp_glow._core.validation import checked_dtype
from tfp_glow.bijectors import batching, contexts, ownership, recall

tfb = tfp.bijectors

# An argument between bijectors: `False` tells a bijector with a costly log-det to leave it out.
_NEEDS_LOG_DET = "needs_log_det"


class OnePassBijector(ownership.VariableOwner, tfb.Bijector):
  """Base class of bijectors that compute value and log-det together.

  Subclasses implement `_forward_and_log_det(x, **kwargs)` and `_inverse_and_log_det(y, **kwargs)`. Both get a tensor
  with exactly one batch dimension, `[N] + event_shape`, and return the value and a log-det that broadcasts to `[N]`.
  TFP's `forward`, `inverse`, `forward_log_det_jacobian` and `inverse_log_det_jacobian` follow from them, for any number
  of leading dimensions.

  As everywhere in this package `forward` is the generative direction, latent to data.

  `tfd.TransformedDistribution.log_prob` and `experimental_sample_and_log_prob` are one evaluation each, under any
  gradient tapes. Within `tfb.Chain` and `tfb.Invert` they give the same numbers, but `log_prob` may take two
  evaluations, `experimental_sample_and_log_prob` three, and gradients further ones: within `tfp_glow.Chain` and
  `tfp_glow.Invert` they are one each.

  Passes of classes from outside of this package are not remembered, because they may depend on anything. Within
  `tfb.Chain` they thus take more evaluations, and log-dets are computed in the opposite direction. If a class depends
  only on inputs, arguments, and variables of `_add_variable`, `_adopt` and `_add_child`, its
  `_depends_on_variables_only` should return `True`.

  References:
    The contract is that of distrax (https://github.com/google-deepmind/distrax).
  """

  # Whether the `**kwargs` of its functions go to its parts, whose `argument_names` list what they take.
  _passes_arguments_on = False

  def __init__(self, *, forward_event_shape: Sequence[int | None] | tf.TensorShape,
               inverse_event_shape: Sequence[int | None] | tf.TensorShape, dtype: tf.DType | str | None = None,
               validate_args: bool = False, parameters: dict[str, Any] | None = None, name: str | None = None):
    """Creates the base.

    Args:
      forward_event_shape: Shape of one event given to `forward`: a list of `int`s, with `None` for any size.
      inverse_event_shape: The same for `inverse`.
      dtype: float32 or float64, of parameters, inputs and outputs. Default: Keras' `floatx`.
      validate_args: Python `bool`: check values at run time (a non-finite input is an error), which costs time.
      parameters: The constructor's arguments, as everywhere in TFP.
      name: Python `str`.
    """
    dtype = checked_dtype(dtype or keras.config.floatx())
    self._event_shapes = _compat.untracked(self,
        {False: tf.TensorShape(forward_event_shape), True: tf.TensorShape(inverse_event_shape)})
    self._dtype_policy = keras.config.dtype_policy()
    self._last_weights = None
    self._own_nothing_yet()
    super().__init__(
        forward_min_event_ndims=len(forward_event_shape), inverse_min_event_ndims=len(inverse_event_shape), dtype=dtype,
        validate_args=validate_args, parameters=parameters, name=name)

  @property
  def dtype_policy(self) -> keras.DTypePolicy:
    """Keras' global dtype policy when the bijector was made; the networks that it made have it, too."""
    return self._dtype_policy

  # TFP treats bijectors made with equal arguments as equal, and answers for one from the cache of the other. But each
  # of ours has its own weights.

  def __eq__(self, other):
    return self is other

  def __hash__(self):
    return id(self)

  def __str__(self):
    return repr(self)

  # What subclasses implement.

  def _forward_and_log_det(self, x, **kwargs):
    raise NotImplementedError(f"{type(self).__name__} must implement `_forward_and_log_det`.")

  def _inverse_and_log_det(self, y, **kwargs):
    raise NotImplementedError(f"{type(self).__name__} must implement `_inverse_and_log_det`.")

  def _initialize(self, y, **condition):
    """Sets all parameters that are not frozen from the batch `y` `[N] + event_shape`; returns its new `inverse`."""
    return self._inverse_and_log_det(y, **self.any_condition(y) | condition)[0]

  def _initialize_back(self, x, **condition):
    """As `_initialize`, for `Invert`: from the batch `x` on the latent side; returns its new `forward`."""
    return self._forward_and_log_det(x, **self.any_condition(x) | condition)[0]

  def _depends_on_variables_only(self):
    """Whether passes depend only on inputs, arguments, and variables of `_add_variable`, `_adopt` and children.

    `False` for classes from elsewhere: they may hold anything (arrays, functions, Keras' objects), or override this.
    """
    classes = [cls for cls in type(self).__mro__ if issubclass(cls, OnePassBijector)]
    return (all(cls.__module__.startswith("tfp_glow.") for cls in classes)
            and all(child._depends_on_variables_only() for child in self._children))

  def _walk(self, y, **kwargs):
    """`inverse`, part by part: yields the name, the value and the log-det of each."""
    yield (self.name, *self._inverse_and_log_det(y, **kwargs))

  # The contract.

  def forward_and_log_det(self, x: tf.Tensor | np.ndarray, **kwargs: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Latent to data, with the log-det of that map.

    Args:
      x: Tensor `[...] + event_shape`.
      **kwargs: Conditioning: `labels` of shape `[...]`, `context` of shape `[...] + context_shape`, or anything that
        broadcasts to these; and options, `bool`s.

    Returns:
      y: Tensor `[...] + event_shape`.
      log_det: `log |det dy/dx|` in nats, `[...]`.

    Raises:
      ValueError: if the shape of `x`, or that of an argument, does not fit.
      TypeError: if `x` is a tensor whose dtype is not the bijector's. Other inputs are converted.
    """
    with self._scope_of("forward_and_log_det"):
      return self._evaluate(self._convert(x, "x", inverse=False), False, kwargs)

  def inverse_and_log_det(self, y: tf.Tensor | np.ndarray, **kwargs: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Data to latent, with the log-det of that map; see `forward_and_log_det`.

    Args:
      y: Tensor `[...] + event_shape`.
      **kwargs: As in `forward_and_log_det`.

    Returns:
      x: Tensor `[...] + event_shape`.
      log_det: `log |det dx/dy|` in nats, `[...]`.

    Raises:
      ValueError: if the shape of `y`, or that of an argument, does not fit.
      TypeError: if `y` is a tensor whose dtype is not the bijector's. Other inputs are converted.
    """
    with self._scope_of("inverse_and_log_det"):
      return self._evaluate(self._convert(y, "y", inverse=True), True, kwargs)

  def walk(self, y: tf.Tensor | np.ndarray, **kwargs: Any) -> Iterator[tuple[str, tf.Tensor, tf.Tensor]]:
    """`inverse` part by part, to see where something goes wrong. It runs eagerly and is slow.

    Args:
      y: Tensor `[N] + event_shape`.
      **kwargs: As in `inverse_and_log_det`.

    Yields:
      name: Of the part, e.g. `"block1, step of flow 7, affine_coupling"`.
      value: Its output for the previous value.
      log_det: Its log-det, `[N]` or a scalar.

    Raises:
      ValueError: if the shape of `y` does not fit.
      TypeError: if `y` is a tensor whose dtype is not the bijector's. Other inputs are converted.
    """
    y = self._convert(y, "y", inverse=True)
    steps = self._walk(y, **self._flat_arguments(y, kwargs))
    while True:
      with self._precision_of(kwargs):  # Not while the caller computes between two parts.
        step = next(steps, None)
      if step is None:
        return
      yield step

  def initialize(self, y: tf.Tensor | np.ndarray, **kwargs: Any) -> None:
    """Data-dependent initialisation, layer after layer, from one batch of data.

    It must be called explicitly, like `adapt` of Keras' `Normalization`: `forward` and `inverse` never call it. Frozen
    parts keep their values.

    Args:
      y: Tensor `[...] + event_shape` on the data side, a batch of typical data.
      **kwargs: Conditioning, as in `inverse_and_log_det`. With classes, `labels` may be omitted.

    Raises:
      RuntimeError: inside a `tf.function` or in replica context: it must happen once for all replicas.
      ValueError: if the shape of `y` or of conditioning does not fit, or `y` is empty or holds non-finite values.
    """
    in_replica = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    if in_replica or not tf.executing_eagerly():
      raise RuntimeError(
          f"`{self.name}.initialize` must be called eagerly, outside of `tf.function` and `strategy.run`, because it "
          "assigns variables once for all replicas. "
          f"Received: a call in {'a replica' if in_replica else 'a graph'}")
    y = self._convert(y, "y", inverse=True)
    flat = batching.with_one_batch_dim(y, self._event_shapes[True].rank)
    if flat.shape[0] == 0 or not bool(tf.reduce_all(tf.math.is_finite(flat))):
      raise ValueError("`y` must be a batch of at least one event, with finite values only. "
                       f"Received: shape {y.shape}" + (" with NaN or infinite values" if flat.shape[0] else ""))
    condition = self._flat_arguments(y, kwargs)
    with precision.of_evaluation(is_training=False):
      self._initialize(flat, **condition)
    self.mark_initialized()

  def mark_initialized(self) -> None:
    """Marks the bijector as initialised, after `initialize` or with weights from elsewhere, if it remembers this."""

  @property
  def is_stochastic(self) -> bool:
    """Whether log-dets are estimated. If so, calls take `training=True` for the estimate that training uses."""
    return any(child.is_stochastic for child in self._children)

  @property
  def has_costly_log_det(self) -> bool:
    """Whether a log-det takes longer than the value. `_forward_and_log_det` may then take `needs_log_det=False`."""
    return any(child.has_costly_log_det for child in self._children)

  @property
  def initialized(self) -> bool:
    """Whether `initialize` was called; `False` for bijectors that do not remember."""
    return False

  @property
  def argument_names(self) -> frozenset[str]:
    """Names of the keyword arguments that calls take: a set of Python `str`s."""
    return frozenset().union(*(child.argument_names for child in self._children))

  @property
  def num_classes(self) -> int | None:
    """Number of classes of `labels`; `None` if there are none."""
    return next((child.num_classes for child in self._children if child.num_classes is not None), None)

  @property
  def context_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    """Shape of one `context`, or a dict of such shapes; `None` if calls take no context."""
    found = (child.context_shape for child in self._children)
    return next((shape for shape in found if shape is not None), None)

  def _context_shapes(self):
    return contexts.checked_context_shape(self.context_shape)

  @property
  def can_be_recalled(self) -> bool:
    """Whether passes may be remembered, because all that they depend on is known (see `OnePassBijector`)."""
    known = {id(v.value) for v in self._keras_variables()}
    return all(id(v) in known for v in self.variables) and self._depends_on_variables_only()

  def any_condition(self, values: tf.Tensor) -> dict[str, tf.Tensor]:
    """Default conditioning for a batch `values` `[N, ...]`: class 0, and zeros as context.

    Args:
      values: Tensor `[N, ...]`.

    Returns:
      Dict of keyword arguments of a call.
    """
    count, shapes, condition = tf.shape(values)[:1], self._context_shapes(), {}
    if self.num_classes is not None:
      condition["labels"] = tf.zeros(count, tf.int32)
    if shapes is not None:
      condition["context"] = tf.nest.map_structure(
          lambda shape: tf.zeros(tf.concat([count, shape], axis=0), self.dtype), shapes)
    return condition

  def event_shape_of(self, inverse: bool) -> tf.TensorShape:
    """Shape of one event given to `inverse` or to `forward`, as far as it is fixed.

    Args:
      inverse: Python `bool`: `True` for inputs of `inverse`, the data; `False` for inputs of `forward`, the latents.

    Returns:
      `tf.TensorShape`, with `None` for any size.
    """
    return self._event_shapes[inverse]

  @property
  def log_det_estimator(self) -> str | None:
    """How log-dets are computed outside of training, a Python `str`; `None` if they have a closed form."""
    ways = dict.fromkeys(child.log_det_estimator for child in self._children)
    return "; ".join(way for way in ways if way) or None

  # TFP's interface, without TFP's own cache, which does not notice that a weight changed or a tape was opened.

  def forward(self, x, name="forward", **kwargs):
    with self._scope_of(name):
      return self._value(self._convert(x, "x", inverse=False), False, kwargs)

  def inverse(self, y, name="inverse", **kwargs):
    with self._scope_of(name):
      return self._value(self._convert(y, "y", inverse=True), True, kwargs)

  def forward_log_det_jacobian(self, x, event_ndims=None, name="forward_log_det_jacobian", **kwargs):
    with self._scope_of(name):
      return self._log_det(self._convert(x, "x", inverse=False), event_ndims, False, kwargs)

  def inverse_log_det_jacobian(self, y, event_ndims=None, name="inverse_log_det_jacobian", **kwargs):
    with self._scope_of(name):
      return self._log_det(self._convert(y, "y", inverse=True), event_ndims, True, kwargs)

  def experimental_compute_density_correction(self, x, tangent_space, backward_compat=False, event_ndims=None,
                                              **kwargs):
    """As TFP's. `tfd.TransformedDistribution.log_prob` calls it right after `x = inverse(y)`, which also computed the
    log-det. A later call still gets the log-det of the pass that made `x`.
    """
    log_det = recall.log_det_that_came_with(x, self, kwargs)
    if log_det is None or not isinstance(tangent_space, tfp.experimental.tangent_spaces.FullSpace):
      return super().experimental_compute_density_correction(
          x, tangent_space, backward_compat, event_ndims=event_ndims, **kwargs)
    self.keep_last(None)
    return -self._summed(log_det, x, event_ndims, inverse=False), tangent_space

  @classmethod
  def _parameter_properties(cls, dtype, num_classes=None):
    del dtype, num_classes
    return {}  # No parameter has batch dimensions: a slice of a batch of distributions has the same bijector.

  def forward_dtype(self, *args, **kwargs):
    _compat.forget_compositions_of(self)
    return super().forward_dtype(*args, **kwargs)

  def inverse_dtype(self, *args, **kwargs):
    _compat.forget_compositions_of(self)
    return super().inverse_dtype(*args, **kwargs)

  def keep_last(self, weights: Any) -> None:
    """Keeps a weak reference to the weights of the last pass for `recall`; the pass before it is forgotten.

    Args:
      weights: Object with a method `forget`, or `None`.
    """
    before = None if self._last_weights is None else self._last_weights()
    if before is not None:
      before.forget()
    self._last_weights = None if weights is None else weakref.ref(weights)

  def _scope_of(self, name):
    return tf.name_scope(f"{self.name}_{name}")

  def _value(self, inputs, inverse, kwargs):
    # `log_prob` begins with `inverse`. It is computed at each call, so that it has gradients in forward mode, too.
    done = self._recall(inputs, inverse, kwargs, way_back_only=inverse)
    if done is None and self.has_costly_log_det and not inverse:
      value, log_det = self._evaluate(inputs, inverse, kwargs, needs_log_det=False)[0], None
    else:
      value, log_det = done or self._evaluate(inputs, inverse, kwargs)
    # `log_prob` asks for the log-det of `inverse`. A recalled `forward` is already remembered.
    if inverse or done is None:
      recall.Pass(self, inverse, inputs, value, log_det, kwargs)
    return value

  def _log_det(self, inputs, event_ndims, inverse, kwargs):
    done = self._recall(inputs, inverse, kwargs)
    return self._summed((done or self._evaluate(inputs, inverse, kwargs))[1], inputs, event_ndims, inverse)

  def _recall(self, inputs, inverse, kwargs, way_back_only=False):
    evaluate = lambda inputs: self._evaluate(inputs, inverse, kwargs)
    return recall.recall(self, inputs, inverse, kwargs, evaluate, way_back_only)

  def _summed(self, log_det, inputs, event_ndims, inverse):
    """Sums a log-det `[...]` over the leading dimensions that belong to the event by `event_ndims`."""
    min_event_ndims = self._event_shapes[inverse].rank
    extra = 0 if event_ndims is None else int(tf.get_static_value(event_ndims)) - min_event_ndims
    if not 0 <= extra <= inputs.shape.rank - min_event_ndims:
      raise ValueError(f"`event_ndims` must lie between {min_event_ndims} and the rank of the input, "
                       f"{inputs.shape.rank}. Received: {event_ndims}")
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
    """The shape on the other side, for bijectors that keep it or have a known shape on both sides."""
    shape, own = tf.TensorShape(shape), self._event_shapes[inverse]
    if self._keeps_shape():
      return shape
    if shape.rank is None:
      return self._event_shapes[not inverse]
    if not own.is_compatible_with(shape[shape.rank - own.rank:]):
      raise ValueError(f"`{'output' if inverse else 'input'}_shape` of `{self.name}`, the shape of an event given to "
                       f"`{'inverse' if inverse else 'forward'}`, must be {own}. Received: {shape}")
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

  @tf.autograph.experimental.do_not_convert
  def _evaluate(self, inputs, inverse, kwargs, needs_log_det=True):
    ownership.sync_trainable(self)
    function = self._inverse_and_log_det if inverse else self._forward_and_log_det
    arguments = self._own_arguments(function, kwargs)
    if not needs_log_det and _takes(function, _NEEDS_LOG_DET):
      arguments[_NEEDS_LOG_DET] = False
    with self._precision_of(kwargs):
      return batching.evaluate(
          function, inputs, self._event_shapes[inverse].rank, arguments, self._context_shapes())

  def _precision_of(self, kwargs):
    is_training = kwargs.get("training")
    is_training = False if is_training is None else is_training
    if not isinstance(is_training, bool):
      raise ValueError(f"`training` must be a Python `bool`. Received: {is_training!r}")
    return precision.of_evaluation(is_training)

  def _own_arguments(self, function, kwargs):
    """Checks names. Any call may have `training`, which sets the networks' precision; not all functions take it."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters) and not self._passes_arguments_on
    known = self.argument_names.union(p.name for p in parameters if p.kind != p.VAR_KEYWORD) - {_NEEDS_LOG_DET}
    shapes, declares = self._context_shapes(), type(self).context_shape is not OnePassBijector.context_shape
    if shapes is None and declares:  # Its class may take a context, but this bijector does not.
      known -= {"context"}
    unknown = sorted(kwargs.keys() - known - {"training"})
    if unknown and (not takes_any or _NEEDS_LOG_DET in unknown):
      raise TypeError(f"`{self.name}` must be given arguments that it, or a part of it, takes: "
                      f"{', '.join(sorted(known | {'training'}))}. Received: {', '.join(unknown)}")
    arguments = {key: value for key, value in kwargs.items() if key != "training" or takes_any or key in known}
    if shapes is not None:
      arguments["context"] = contexts.converted(arguments.get("context"), shapes, self.dtype, self.name)
      if self.validate_args:
        message = f"`context` of `{self.name}` must be finite."
        arguments["context"] = tf.nest.map_structure(
            lambda part: tf.debugging.check_numerics(part, message), arguments["context"])
    return arguments

  def _flat_arguments(self, y, kwargs):
    """The arguments of `inverse` of `y` `[...] + event_shape`, reshaped to one batch dimension."""
    batch_rank = y.shape.rank - self._event_shapes[True].rank
    condition, options = batching.flat_arguments(
        self._own_arguments(self._inverse_and_log_det, kwargs), tf.shape(y)[:batch_rank], y.shape[:batch_rank],
        self._context_shapes())
    return {**condition, **options}


def _takes(function, name):
  parameters = inspect.signature(function).parameters.values()
  return any(p.name == name or p.kind == p.VAR_KEYWORD for p in parameters)

"""Conversion between any number of leading dimensions and the one that bijectors compute with."""

import tensorflow as tf

from tfp_glow._core.numerics import at_least_one


def evaluate(function, inputs, event_rank, kwargs, context_shape=None):
  """Calls a function of one batch dimension with inputs of any leading dimensions.

  Args:
    function: Callable, from a tensor `[N] + event_shape` (and the arguments that `flat_arguments` returns) to a value
      `[N] + event_shape` and a log-det that broadcasts to `[N]`.
    inputs: Tensor `[...] + event_shape`.
    event_rank: Python `int`, the rank of `event_shape`.
    kwargs: As in `flat_arguments`.
    context_shape: As in `flat_arguments`.

  Returns:
    outputs: Tensor `[...] + event_shape`, never `inputs` itself.
    log_det: Tensor `[...]`.

  Raises:
    ValueError: if the shape of an argument does not fit.
  """
  batch_rank = inputs.shape.rank - event_rank
  batch_shape, static_batch_shape = tf.shape(inputs)[:batch_rank], inputs.shape[:batch_rank]
  condition, options = flat_arguments(kwargs, batch_shape, static_batch_shape, context_shape)
  flat = with_one_batch_dim(inputs, event_rank)
  outputs, log_det = _never_empty(lambda x, **condition: function(x, **condition, **options))(flat, **condition)
  if flat is not inputs:
    event = outputs.shape[1:]
    outputs = tf.reshape(outputs, tf.concat([batch_shape, tf.shape(outputs)[1:]], axis=0))
    outputs.set_shape(static_batch_shape.concatenate(event))
  log_det = tf.reshape(log_det, batch_shape)
  log_det.set_shape(static_batch_shape)
  return tf.identity(outputs) if outputs is inputs else outputs, log_det


def flat_arguments(kwargs, batch_shape, static_batch_shape, context_shape=None):
  """Arguments for one batch dimension.

  Args:
    kwargs: Dict: conditioning that broadcasts to `[...]` (`context`: to `[...] + context_shape`), and options, `bool`s.
      `None` counts as absent.
    batch_shape: Integer tensor, `[...]`.
    static_batch_shape: The same as a `tf.TensorShape`.
    context_shape: `tf.TensorShape` of one context, or a dict of them; `None`: there is no context.

  Returns:
    condition: Dict of tensors `[N]` (`context`: `[N] + context_shape`, or a dict of them).
    options: Dict of `bool`s.

  Raises:
    ValueError: if the shape of an argument does not fit.
  """
  options = {key: value for key, value in kwargs.items() if isinstance(value, bool)}
  flat = lambda name, value, shape: _flat_argument(name, value, batch_shape, static_batch_shape, shape)
  condition = {}
  for key, value in kwargs.items():
    if value is None or key in options:
      continue
    if key != "context":
      condition[key] = flat(key, value, tf.TensorShape([]))
    elif isinstance(context_shape, dict):
      condition[key] = {part: flat(f"context[{part!r}]", value[part], shape) for part, shape in context_shape.items()}
    else:
      condition[key] = flat(key, value, tf.TensorShape([]) if context_shape is None else context_shape)
  return condition, options


def with_extra_dims(condition, extra):
  """Conditioning `[N, ...]` (or a nest) as `[N, 1, ..., 1, ...]`, for parts that see several events in one.

  Args:
    condition: Tensor, nest of them, or a `bool`, which is returned unchanged.
    extra: Python `int`, the number of an event's dimensions that are batch dimensions for the part.
  """
  if isinstance(condition, bool):
    return condition
  return tf.nest.map_structure(lambda t: tf.reshape(t, [-1] + [1] * extra + t.shape[1:].as_list()), condition)


def with_one_batch_dim(value, event_rank):
  """Reshapes to exactly one leading dimension."""
  event = value.shape[value.shape.rank - event_rank:]
  if value.shape.rank == event_rank + 1:
    return value
  sizes = list(event) if event.is_fully_defined() else tf.unstack(tf.shape(value)[value.shape.rank - event_rank:])
  count = value.shape[:value.shape.rank - event_rank].num_elements()
  return tf.reshape(value, [-1 if count is None else count] + sizes)


def _never_empty(run):
  """Makes a pass run on `at_least_one` event; what was added is dropped."""

  def run_padded(inputs, **kwargs):
    count = tf.shape(inputs)[:1]
    if inputs.shape[0]:
      outputs, log_det = run(inputs, **kwargs)
      return outputs, tf.broadcast_to(log_det, count)
    outputs, log_det = run(at_least_one(inputs), **tf.nest.map_structure(at_least_one, kwargs))
    return outputs[:count[0]], tf.broadcast_to(log_det, tf.maximum(count, 1))[:count[0]]

  return run_padded


def _flat_argument(name, value, batch_shape, static_batch_shape, event_shape):
  """Conditioning, broadcast to the batch and then reshaped to one batch dimension."""
  value = tf.convert_to_tensor(value, name=name)
  rank = value.shape.rank - event_shape.rank
  if rank < 0 or rank > len(static_batch_shape) or not event_shape.is_compatible_with(value.shape[rank:]) or any(
      given not in (1, None, size) and size is not None
      for given, size in zip(value.shape[:rank], static_batch_shape[len(static_batch_shape) - rank:])):
    expected = f"the shape of the batch, {static_batch_shape},"
    if event_shape.rank:
      expected = f"shape {event_shape}, after that of the batch, {static_batch_shape},"
    raise ValueError(f"`{name}` must have {expected} or broadcast to it. Received: {value.shape}")
  broadcast = tf.broadcast_to(value, tf.concat([batch_shape, event_shape], axis=0))
  return tf.reshape(broadcast, [-1, *event_shape])

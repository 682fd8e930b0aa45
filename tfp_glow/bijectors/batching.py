"""From any number of leading dimensions to the one that bijectors compute with, and back."""

import tensorflow as tf

from tfp_glow._core.numerics import at_least_one


def evaluate(function, inputs, event_rank, kwargs):
  """Calls a function of a batch with inputs of any leading dimensions.

  Args:
    function: Callable, from a tensor `[N] + event_shape` (and the other arguments, those that are no options with one
      dimension `[N]`) to a value `[N] + event_shape` and a log-det that broadcasts to `[N]`.
    inputs: Tensor `[...] + event_shape`.
    event_rank: Python `int`, the rank of `event_shape`.
    kwargs: Dict: conditioning, of shape `[...]` or broadcasting to it, and options, `bool`s. `None` counts as absent.

  Returns:
    outputs: Tensor `[...] + event_shape`, never `inputs` itself.
    log_det: Tensor `[...]`.

  Raises:
    ValueError: if the shape of an argument does not fit.
  """
  batch_rank = inputs.shape.rank - event_rank
  batch_shape, static_batch_shape = tf.shape(inputs)[:batch_rank], inputs.shape[:batch_rank]
  options = {key: value for key, value in kwargs.items() if isinstance(value, bool)}
  condition = {key: _flat_argument(key, value, batch_shape, static_batch_shape) for key, value in kwargs.items()
               if value is not None and key not in options}
  flat = with_one_batch_dim(inputs, event_rank)
  outputs, log_det = _never_empty(lambda x, **condition: function(x, **condition, **options))(flat, **condition)
  if flat is not inputs:
    event = outputs.shape[1:]
    outputs = tf.reshape(outputs, tf.concat([batch_shape, tf.shape(outputs)[1:]], axis=0))
    outputs.set_shape(static_batch_shape.concatenate(event))
  log_det = tf.reshape(log_det, batch_shape)
  log_det.set_shape(static_batch_shape)
  return tf.identity(outputs) if outputs is inputs else outputs, log_det


def with_one_batch_dim(value, event_rank):
  """To exactly one leading dimension."""
  event = value.shape[value.shape.rank - event_rank:]
  if value.shape.rank == event_rank + 1:
    return value
  sizes = list(event) if event.is_fully_defined() else tf.unstack(tf.shape(value)[value.shape.rank - event_rank:])
  count = value.shape[:value.shape.rank - event_rank].num_elements()
  return tf.reshape(value, [-1 if count is None else count] + sizes)


def _never_empty(run):
  """Lets a pass run on `at_least_one` event; what was added is dropped."""

  def run_padded(inputs, **kwargs):
    count = tf.shape(inputs)[:1]
    if inputs.shape[0]:
      outputs, log_det = run(inputs, **kwargs)
      return outputs, tf.broadcast_to(log_det, count)
    outputs, log_det = run(at_least_one(inputs), **{key: at_least_one(value) for key, value in kwargs.items()})
    return outputs[:count[0]], tf.broadcast_to(log_det, tf.maximum(count, 1))[:count[0]]

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

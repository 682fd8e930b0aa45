"""Events of bijectors that act on channels, position by position."""


import tensorflow as tf

from tfp_glow._core.validation import check_choice, check_counts


def channels_event_shape(num_channels, event_ndims):
  """The event shape `[..., C]` of a bijector that acts on channels; raises `ValueError` for bad arguments."""
  check_counts(num_channels=num_channels)
  check_choice("event_ndims", event_ndims, (1, 2, 3, 4))
  return [None] * (event_ndims - 1) + [int(num_channels)]


def num_positions(event_shape, dtype):
  """Number of positions at which a bijector on channels acts: `H * W` for an image."""
  count = event_shape[:-1].num_elements()
  if count is None:
    raise ValueError(f"The size of an event must be known when the graph is built. Received: {event_shape}")
  return tf.cast(count, dtype)

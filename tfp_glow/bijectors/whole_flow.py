"""What whole flows, from latents to data, have in common."""

from __future__ import annotations

import inspect
import math

import tensorflow as tf

from tfp_glow.bijectors.base import OnePassBijector


class WholeFlow(OnePassBijector):
  """A flow all of whose variables exist from the start, and which remembers whether it was initialised."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self._initialized = self._add_variable("initialized", tf.constant(False), trainable=False)

  def mark_initialized(self) -> None:
    self._initialized.assign(True)

  def __repr__(self):
    """With the architecture: what the constructor was given that is not the default, the shapes, and the size."""
    signature = inspect.signature(type(self).__init__).parameters
    given = [f"{key}={value!r}" for key, value in self.parameters.items()
             if key in signature and key not in ("name", "dtype") and value is not signature[key].default]
    count = sum(math.prod(v.shape) for v in self.trainable_variables)
    shapes = [tuple(self.event_shape_of(inverse)) for inverse in (True, False)]
    return (f"<{type(self).__name__} {self.name!r}: {', '.join(given)}; {shapes[0]} to {shapes[1]}, "
            f"{count:,} parameters, {self.dtype.name}>")

  @property
  def built(self) -> bool:
    """`True`: all variables exist from the start, while couplings on their own make theirs when first called."""
    return True

  @property
  def initialized(self) -> bool:
    """Whether `initialize` was called, or trained weights were restored: a Python `bool`, saved in checkpoints."""
    return bool(self._initialized.numpy())

"""What whole flows, from latents to data, have in common."""

from __future__ import annotations

import tensorflow as tf

from tfp_glow.bijectors.base import OnePassBijector


class WholeFlow(OnePassBijector):
  """A flow all of whose variables exist from the start, and which remembers whether it was initialised."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self._initialized = self._add_variable("initialized", tf.constant(False), trainable=False)

  def mark_initialized(self) -> None:
    self._initialized.assign(True)

  @property
  def built(self) -> bool:
    """`True`: all variables exist from the start, while couplings on their own make theirs when first called."""
    return True

  @property
  def initialized(self) -> bool:
    """Whether `initialize` was called, or trained weights were restored: a Python `bool`, saved in checkpoints."""
    return bool(self._initialized.numpy())

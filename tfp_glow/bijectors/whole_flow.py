"""What whole flows, from latents to data, have in common."""

import tensorflow as tf

from tfp_glow.bijectors.base import OnePassBijector


class WholeFlow(OnePassBijector):
  """A flow all of whose variables exist from the start, and which remembers whether it was initialised."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self._initialized = self._add_variable("initialized", tf.constant(False), trainable=False)

  def mark_initialized(self):
    self._initialized.assign(True)

  @property
  def built(self):
    """`True`: all variables exist from the start, while couplings on their own make theirs when first called."""
    return True

  @property
  def initialized(self):
    """Whether `initialize` was called, or trained weights were restored: a Python `bool`, saved in checkpoints."""
    return bool(self._initialized.numpy())

"""Tells all worker processes that one of them must end."""

import weakref

import tensorflow as tf


class Notice:
  """A notice given in one worker. It travels with the gradients, so all workers have it after the same training step.

  Attributes:
    is_given: Python `bool`, whether this process must end.
    has_come: Python `bool`, whether a worker must end, as of the last step.
  """

  def __init__(self):
    self.is_given = False
    self.has_come = False

  def with_sums(self, sums):
    """Adds the notice of this process to what is to be summed over replicas.

    Args:
      sums: Floating tensor of one dimension.

    Returns:
      Tensor with one more number.
    """
    own = weakref.ref(self)  # TensorFlow never frees the functions that it calls.
    given = tf.py_function(lambda: float(own().is_given), [], tf.float32)
    return tf.concat([sums, tf.cast(tf.reshape(given, [1]), sums.dtype)], axis=0)

  def taken_from(self, sums):
    """Undoes `with_sums` after the exchange, and sets `has_come` from the number that it added.

    Args:
      sums: Floating tensor of one dimension, the sum over replicas of what `with_sums` returned.

    Returns:
      Tensor with one number less.
    """
    own = weakref.ref(self)

    def take(given):
      own().has_come = bool(given > 0.)
      return True

    with tf.control_dependencies([tf.py_function(take, [sums[-1]], tf.bool)]):
      return tf.identity(sums[:-1])

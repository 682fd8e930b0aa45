"""`tf.custom_gradient`, which graphs that nobody will differentiate can do without."""

import contextlib
import functools
import threading

import tensorflow as tf

_this_thread = threading.local()


def custom_gradient(function):
  """As `tf.custom_gradient`; but within `left_out`, what `function` computes and no more."""

  @functools.wraps(function)
  def evaluate(*args):
    if getattr(_this_thread, "leaves_out", False):
      return function(*args)[0]
    return tf.custom_gradient(function)(*args)

  return evaluate


@contextlib.contextmanager
def left_out():
  """For functions that are traced to be evaluated only: a SavedModel would hold the gradients, which take time to load.

  A `tf.function` inside of them that is traced for the first time here has no gradients later either, as it is not
  traced again: a network that is one must have been called before.
  """
  before = getattr(_this_thread, "leaves_out", False)
  _this_thread.leaves_out = True
  try:
    yield
  finally:
    _this_thread.leaves_out = before

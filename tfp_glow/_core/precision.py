"""The precision in which networks compute: their own policy in the training step, full precision elsewhere.

A network that rounds its inputs is a step function. On the way back through a flow, its inputs are the same except for
rounding errors. Some inputs then fall on another step, and the next coupling multiplies the difference. Training
tolerates this. Everything else is exact only if networks compute in the flow's own precision. Two things lower the
precision: a Keras dtype policy such as `"mixed_bfloat16"`, and devices whose float32 products keep fewer bits than
float32 has. NVIDIA's cards since 2020 keep 10 of 23 bits (TensorFloat-32), unless TensorFlow is told otherwise, for the
whole process.

So each evaluation has a `Mode`. It belongs to the thread, while the evaluation is traced or runs.
"""

import contextlib
import threading
from typing import NamedTuple

import numpy as np
import tensorflow as tf

_this_thread = threading.local()

# Factors to try a product with: fewer than 20 bits of mantissa change the result.
_ODD, _UNIT = np.full([8, 8], 1. + 2.**-20, np.float32), np.eye(8, dtype=np.float32)


class Mode(NamedTuple):
  """How networks compute.

  Attributes:
    is_training: Python `bool`: whether they follow their dtype policies, with the device's own products.
    device_rounds: Python `bool`: whether the device's products of float32 numbers lose bits. Outside of training,
      operands are then split.
    is_lite: Python `bool`: whether the graph is traced for TensorFlow Lite, from operations that it has itself.
  """
  is_training: bool
  device_rounds: bool
  is_lite: bool = False


def mode():
  """The `Mode` of this thread's present evaluation; `None` outside of any."""
  return getattr(_this_thread, "mode", None)


def is_full():
  """Whether networks must compute in full precision."""
  return mode() is not None and not mode().is_training


def is_lite():
  """Whether the graph is traced for TensorFlow Lite."""
  return mode() is not None and mode().is_lite


@contextlib.contextmanager
def of_evaluation(is_training):
  """Enters the mode of an evaluation; within another evaluation, the outer mode stays.

  Args:
    is_training: Python `bool`.
  """
  if mode() is not None:
    yield
  elif is_training:
    # Another thread may hold the switch off now, but no longer when this continues, or when its graph runs.
    with entered(Mode(True, _may_round())):
      yield
  else:
    with full():
      yield


@contextlib.contextmanager
def entered(new_mode):
  """Puts this thread into a mode (a `Mode` or `None`), for example the one in which a gradient's value was computed."""
  before = mode()
  _this_thread.mode = new_mode
  try:
    with switched_off() if is_full() and tf.executing_eagerly() else contextlib.nullcontext():
      yield
  finally:
    _this_thread.mode = before


@contextlib.contextmanager
def full():
  """Full precision, also in training."""
  with switched_off() if tf.executing_eagerly() else contextlib.nullcontext():
    with entered(Mode(False, _products_are_rounded()) if mode() is None else Mode(False, *mode()[1:])):
      yield


@contextlib.contextmanager
def for_other_processes(is_lite=False):
  """For graphs that other processes run, on devices like those here, with TensorFlow's switch either on or off.

  Args:
    is_lite: Python `bool`: whether TensorFlow Lite runs them, on devices that round nothing.
  """
  with entered(Mode(False, _may_round() and not is_lite, is_lite)):
    yield


class _Switch:
  """TensorFlow's switch of TensorFloat-32: off as long as any thread needs it off."""

  def __init__(self):
    self._lock = threading.Lock()
    self._num_users = 0
    self._was_on = False

  @property
  def is_held(self):
    """Whether any thread needs it off."""
    return self._num_users > 0

  def __enter__(self):
    with self._lock:
      if not self._num_users:
        self._was_on = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(False)
      self._num_users += 1
    _this_thread.num_holds = getattr(_this_thread, "num_holds", 0) + 1

  def __exit__(self, *error):
    _this_thread.num_holds -= 1
    with self._lock:
      self._num_users -= 1
      if not self._num_users:
        tf.config.experimental.enable_tensor_float_32_execution(self._was_on)


_SWITCH = _Switch()


def switched_off():
  """A context in which products run in full float32; those that XLA compiles in it keep this.

  It is the cheapest way, and the only one for other code's networks, but it does not help graphs that others run.
  """
  return _SWITCH


def as_switched_off_elsewhere():
  """For a replica's thread, which does not know by itself that the thread that started it holds the switch."""
  return _SWITCH if _SWITCH.is_held else contextlib.nullcontext()


def _has_tensor_float_32():
  gpus = tf.config.list_physical_devices("GPU")
  capabilities = (tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus)
  return any(capability >= (8, 0) for capability in capabilities)


def _products_are_rounded():
  """Whether products that this thread now computes, or traces for later, may lose bits."""
  # The switch may be on again when a graph runs, unless this thread holds it.
  is_for_later = tf.inside_function() and not getattr(_this_thread, "num_holds", 0)
  return _may_round() if is_for_later else _device_rounds()


def _may_round():
  """Whether products of float32 numbers lose bits here, or would with TensorFlow's switch on."""
  return _has_tensor_float_32() or _device_rounds()


def _device_rounds():
  """Whether products of float32 numbers lose bits here and now."""
  if _has_tensor_float_32() and tf.config.experimental.tensor_float_32_execution_enabled():
    return True
  with tf.init_scope():
    if not tf.executing_eagerly():
      return True  # A graph of TensorFlow 1: it cannot be tried, so assume the worst.
    return bool((tf.matmul(_ODD, _UNIT).numpy() != _ODD).any())

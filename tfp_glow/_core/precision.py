"""In which precision networks compute: as they were made in the training step, in full elsewhere.

A network that rounds its inputs is a step function. On the way back of a flow its inputs are what they were but for
rounding: some fall on another step, and the next coupling multiplies the difference. Training minds little, but what is
kept of a model is exact only if its networks compute in the flow's own precision. Two things lower that: a Keras dtype
policy such as `"mixed_bfloat16"`, and devices whose float32 products keep fewer bits than float32 has: NVIDIA's cards
since 2020 keep 10 of 23 (TensorFloat-32), unless TensorFlow is told otherwise, for the whole process.

So each evaluation is made in a `Mode`, which belongs to the thread, as long as it is traced or runs.
"""

import contextlib
import threading
from typing import NamedTuple

import numpy as np
import tensorflow as tf

_this_thread = threading.local()

# What a product is tried with: with fewer than 20 bits of mantissa these are other numbers.
_ODD, _UNIT = np.full([8, 8], 1. + 2.**-20, np.float32), np.eye(8, dtype=np.float32)


class Mode(NamedTuple):
  """How networks compute.

  Attributes:
    is_training: Python `bool`: by their dtype policies, and with what products the device has.
    device_rounds: Python `bool`: otherwise: the device's products of float32 numbers are not those of float32.
    is_lite: Python `bool`: what is traced is for TensorFlow Lite, and made of operations that it has itself.
  """
  is_training: bool
  device_rounds: bool
  is_lite: bool = False


def mode():
  """The `Mode` of the evaluation that this thread is in; `None` outside of any."""
  return getattr(_this_thread, "mode", None)


def is_full():
  """Whether networks must compute in full precision."""
  return mode() is not None and not mode().is_training


def is_lite():
  """Whether what is traced is for TensorFlow Lite."""
  return mode() is not None and mode().is_lite


@contextlib.contextmanager
def of_evaluation(is_training):
  """The mode of an evaluation; of one within another, that of the other.

  Args:
    is_training: Python `bool`.
  """
  if mode() is not None:
    yield
  elif is_training:
    # Another thread may have the switch off now, and no longer when this goes on, or when its graph runs.
    with entered(Mode(True, _may_round())):
      yield
  else:
    with full():
      yield


@contextlib.contextmanager
def entered(new_mode):
  """Has this thread be in a mode, `None` or a `Mode`: that in which a gradient's value was computed, say."""
  before = mode()
  _this_thread.mode = new_mode
  try:
    with switched_off() if is_full() and tf.executing_eagerly() else contextlib.nullcontext():
      yield
  finally:
    _this_thread.mode = before


@contextlib.contextmanager
def full():
  """Full precision, in training, too."""
  with switched_off() if tf.executing_eagerly() else contextlib.nullcontext():
    device_rounds = _products_are_rounded() if mode() is None else mode().device_rounds
    with entered(Mode(False, device_rounds, is_lite())):
      yield


@contextlib.contextmanager
def for_other_processes(is_lite=False):
  """For what is traced to be run elsewhere, where TensorFlow's switch may be as it likes: on devices as those here.

  Args:
    is_lite: Python `bool`: by TensorFlow Lite, on devices that round nothing.
  """
  with entered(Mode(False, _may_round() and not is_lite, is_lite)):
    yield


class _Switch:
  """TensorFlow's switch of TensorFloat-32: off as long as anybody needs it to be, in whatever thread."""

  def __init__(self):
    self._lock = threading.Lock()
    self._num_users = 0
    self._was_on = False

  @property
  def is_held(self):
    """Whether any thread needs it to be off."""
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
  """A context within which products that run are those of float32, and those that XLA compiles stay so.

  The cheapest way, and the only one for networks that are not ours; but not for graphs that others will run.
  """
  return _SWITCH


def as_switched_off_elsewhere():
  """For what a thread of a replica computes: it does not know by itself that whoever started it holds the switch."""
  return _SWITCH if _SWITCH.is_held else contextlib.nullcontext()


def _has_tensor_float_32():
  gpus = tf.config.list_physical_devices("GPU")
  capabilities = (tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus)
  return any(capability >= (8, 0) for capability in capabilities)


def _products_are_rounded():
  """Whether products in what this thread now computes, or traces for later, may lose bits."""
  # A graph may run when the switch is on again, unless whoever runs it sees to that.
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
      return True  # A graph of TensorFlow 1: nobody knows.
    return bool((tf.matmul(_ODD, _UNIT).numpy() != _ODD).any())

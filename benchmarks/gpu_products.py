"""The part `products` of `gpu.py`: errors of products and convolutions, the cost of exact ones, and when TensorFlow
reads its switch for TensorFloat-32.
"""

import os
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf
from gpu_common import machine  # noqa: F401  For `gpu_worker.py`.

from tfp_glow._core import precision
from tfp_glow._core import products as exact

try:
  from tensorflow.compiler.tf2xla.python import xla  # Not public: XLA's own way to request exact products.
  from tensorflow.compiler.xla import xla_data_pb2
except ImportError:
  xla = None

# How a function is run.
_MODES = {"eager": lambda f: f, "tf.function": lambda f: tf.function(f, autograph=False),
          "XLA": lambda f: tf.function(f, autograph=False, jit_compile=True)}
_CALLS, _LOOPS = 5, 8
_SWITCH = {"on": True, "off": False}


def products(session):
  """Entries: errors, the switch, times."""
  rows, channels = (64, (12,)) if session.tiny else (16384, (12, 24, 48, 96))
  shapes = [(max(rows * 12**2 // c**2 // 4 * 4, 4), c) for c in channels]
  convolutions = [(2, 4, 6, 16)] if session.tiny else [(64, 16, 6, 512), (64, 8, 12, 512), (64, 16, 6, 128)]
  yield "switch", lambda: _switch_rows(session)
  for n, c in shapes[::3]:
    yield f"errors, product {n} x {c} x {c}", lambda n=n, c=c: _errors(_matmul_case(n, c), _MATMULS)
  yield "errors, product, long sums", lambda: _errors(
      _long_case(*((32, 64) if session.tiny else (4096, 512))), _LONG_MATMULS)
  yield f"errors, convolution {convolutions[0]}", lambda: _errors(_conv_case(*convolutions[0]), _CONVS)
  for n, c in shapes[::2]:
    yield f"times, product {n} x {c} x {c}", lambda n=n, c=c: _times(_matmul_case(n, c), _MATMULS)
  for case in convolutions:
    yield f"times, convolutions {case}", lambda case=case: _conv_times(case)
  if not session.tiny:
    yield "NVIDIA_TF32_OVERRIDE=0", _override_row
  for n, c in shapes[1::2]:
    yield f"times, product {n} x {c} x {c}", lambda n=n, c=c: _times(_matmul_case(n, c), _MATMULS)


@precision.entered(precision.Mode(is_training=False, device_rounds=True))
def _split_matmul(x, w):
  return exact.matmul(x, w)


@precision.entered(precision.Mode(is_training=False, device_rounds=True))
def _split_conv2d(x, kernel):
  return exact.conv2d(x, kernel)


def _by_float64(x, w):
  return tf.cast(tf.matmul(tf.cast(x, tf.float64), tf.cast(w, tf.float64)), x.dtype)


def _multiply_and_sum(x, w):
  return tf.reduce_sum(x[:, :, tf.newaxis] * w, axis=1)


def _split_side_by_side(x, w):
  """The three products as one, with sums three times as long."""
  (x_high, x_low), (w_high, w_low) = exact.parts(x), exact.parts(w)
  return tf.matmul(tf.concat([x_low, x_high, x_high], 1), tf.concat([w_high, w_low, w_high], 0))


def _split_without_the_middle(x, w):
  """Four products, including that of the two rests."""
  (x_high, x_low), (w_high, w_low) = exact.parts(x), exact.parts(w)
  return (tf.matmul(x_low, w_low) + (tf.matmul(x_low, w_high) + tf.matmul(x_high, w_low))) + tf.matmul(x_high, w_high)


def _xla_highest(x, w):
  numbers, config = xla_data_pb2.DotDimensionNumbers(), xla_data_pb2.PrecisionConfig()
  numbers.lhs_contracting_dimensions.append(1)
  numbers.rhs_contracting_dimensions.append(0)
  config.operand_precision.extend([xla_data_pb2.PrecisionConfig.HIGHEST] * 2)
  return xla.dot_general(x, w, numbers, precision_config=config)


_LONG_MATMULS = {"plain": tf.matmul, "split": _split_matmul, "split, four": _split_without_the_middle,
                 "float64": _by_float64}
if xla is not None:
  _LONG_MATMULS["XLA's HIGHEST"] = _xla_highest
_MATMULS = {**_LONG_MATMULS, "split, side by side": _split_side_by_side, "multiply and sum": _multiply_and_sum}
_CONVS = {"plain": lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"), "split": _split_conv2d,
          "float64": lambda x, k: tf.cast(tf.nn.conv2d(tf.cast(x, tf.float64), tf.cast(k, tf.float64), 1, "SAME"),
                                          x.dtype)}


def _matmul_case(n, c):
  """A name, two factors, and their product in float64."""
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(n, c)).astype(np.float32), np.linalg.qr(rng.normal(size=(c, c)))[0].astype(np.float32)
  return f"product {n} x {c} x {c}", x, w, x.astype(np.float64) @ w.astype(np.float64)


def _long_case(n, k):
  rng = np.random.default_rng(0)
  x, w = np.maximum(rng.normal(size=(n, k)), 0.).astype(np.float32), rng.normal(size=(k, k)).astype(np.float32)
  return f"product {n} x {k} x {k}", x, w, x.astype(np.float64) @ w.astype(np.float64)


def _conv_case(n, size, c, hidden):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(n, size, size, hidden)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, hidden, c)).astype(np.float32)
  with tf.device("CPU:0"):  # Some images are enough.
    expected = tf.nn.conv2d(tf.constant(x[:2], tf.float64), tf.constant(kernel, tf.float64), 1, "SAME").numpy()
  return f"convolution 3x3, {hidden} to {c}", x, kernel, expected


def _error(outputs, expected):
  """Root mean square of the error, relative to that of the values."""
  found = np.asarray(outputs, np.float64)[:len(expected)]
  return float(np.sqrt(np.mean(np.square(found - expected)) / np.mean(np.square(expected))))


def _errors(case, functions):
  """A row for each function and way to run it, with the switch on and off."""
  name, x, w, expected = case
  x, w = tf.constant(x), tf.constant(w)
  rows = {}
  for label, function in functions.items():
    for mode, compiled in _MODES.items():
      if label.startswith("XLA") and mode != "XLA":
        continue
      row = rows.setdefault(f"{name}: {label}, {mode}", {})
      for state, value in _SWITCH.items():
        tf.config.experimental.enable_tensor_float_32_execution(value)
        row[f"error, TF32 {state}"] = _error(compiled(function)(x, w), expected)
  tf.config.experimental.enable_tensor_float_32_execution(True)
  return rows


def _switch_rows(session):
  """Errors of a function if the switch is flipped after tracing or compilation."""
  _, x, w, expected = _matmul_case(*((64, 12) if session.tiny else (4096, 96)))
  x, w = tf.constant(x), tf.constant(w)
  set_switch = tf.config.experimental.enable_tensor_float_32_execution
  rows = {}
  for mode, compiled in _MODES.items():
    set_switch(True)
    function = compiled(tf.matmul)
    row = {"made with TF32 on": _error(function(x, w), expected)}
    set_switch(False)
    row["then off, called again"] = _error(function(x, w), expected)
    row["off, made anew"] = _error(compiled(lambda x, w: tf.identity(tf.matmul(x, w)))(x, w), expected)
    function = compiled(lambda x, w: tf.matmul(x, w) + 0.)
    function(x, w)
    set_switch(True)
    row["made off, then on"] = _error(function(x, w), expected)

    def off_while_traced(x, w):
      set_switch(False)
      outputs = tf.matmul(x, w)
      set_switch(True)
      return outputs

    row["off while it is traced"] = _error(compiled(off_while_traced)(x, w), expected)

    def off_around(x, w):
      tf.py_function(lambda: set_switch(False), [], [])
      return tf.matmul(x, w)

    if mode == "tf.function":
      function = compiled(off_around)
      row["switched off by an operation within it"] = _error(function(x, w), expected)
      set_switch(True)
    rows[f"switch, {mode}"] = row
  set_switch(True)
  return rows


_OVERRIDE = """
import numpy as np, tensorflow as tf
rng = np.random.default_rng(0)
x, w = (rng.normal(size=s).astype(np.float32) for s in ((256, 96), (96, 96)))
expected = x.astype(np.float64) @ w.astype(np.float64)
for jit in (False, True):
  y = tf.function(tf.matmul, autograph=False, jit_compile=jit)(x, w).numpy()
  print("ERROR", np.sqrt(np.mean((y - expected)**2) / np.mean(expected**2)))
"""


def _override_row():
  """Whether environment variables alone make products exact, for a server of SavedModels."""
  done = subprocess.run([sys.executable, "-c", _OVERRIDE], env={**os.environ, "NVIDIA_TF32_OVERRIDE": "0"}, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=60)
  found = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("ERROR")]
  return {"NVIDIA_TF32_OVERRIDE=0, TF32 on": {"error, tf.function": found[0], "error, XLA": found[1]}}


def _milliseconds(function, arguments, mode):
  """Seconds of one call in a chain, in which each call gets the result of the previous one: the best of three chains.

  The chain is a loop, as in a flow. Each turn has several calls, so that the loop itself takes little of the time.
  """

  def run(x, *weights):

    def body(i, x):
      for _ in range(_CALLS):
        x = function(x, *weights)
      return i + 1, x

    return tf.while_loop(lambda i, _: i < _LOOPS, body, (0, x), maximum_iterations=_LOOPS)[1][:1]

  compiled = _MODES[mode](run)
  compiled(*arguments).numpy()
  best = np.inf
  for _ in range(3):
    start = time.perf_counter()
    compiled(*arguments).numpy()
    best = min(best, time.perf_counter() - start)
  return 1e3 * best / _CALLS / _LOOPS


def _times(case, functions):
  """Milliseconds of a product by each function."""
  name, x, w, _ = case
  arguments = tf.constant(x), tf.constant(w)
  rows = {}
  tf.config.experimental.enable_tensor_float_32_execution(True)
  for label, function in functions.items():
    row = rows.setdefault(f"{name}: {label}", {})
    for mode in ("tf.function", "XLA"):
      if label.startswith("XLA") and mode != "XLA":
        row[f"ms, {mode}"] = "-"
        continue
      row[f"ms, {mode}"] = _milliseconds(function, arguments, mode)
  tf.config.experimental.enable_tensor_float_32_execution(False)
  rows[f"{name}: plain, TF32 off"] = {
      f"ms, {mode}": _milliseconds(tf.matmul, arguments, mode)
      for mode in ("tf.function", "XLA")}
  tf.config.experimental.enable_tensor_float_32_execution(True)
  return rows


def _conv_times(shape):
  """Milliseconds of the three convolutions of a coupling's network, one after the other."""
  n, size, c, hidden = shape
  rng = np.random.default_rng(0)
  draw = lambda *shape: tf.constant(rng.normal(0., 0.05, shape).astype(np.float32))
  arguments = draw(n, size, size, c), draw(3, 3, c, hidden), draw(hidden, hidden), draw(3, 3, hidden, c)

  def network(convolve, multiply):

    def run(x, first, second, last):
      hidden_values = tf.nn.relu(convolve(x, first))
      flat = tf.nn.relu(multiply(tf.reshape(hidden_values, [-1, hidden]), second))
      return convolve(tf.reshape(flat, [n, size, size, hidden]), last)

    return run

  rows = {}
  name = f"network {n} x {size} x {size}, {c} to {hidden} to {c}"
  for label, is_on, functions in (("plain, TF32 on", True, (_CONVS["plain"], tf.matmul)),
                                  ("plain, TF32 off", False, (_CONVS["plain"], tf.matmul)),
                                  ("split, TF32 on", True, (_split_conv2d, _split_matmul))):
    tf.config.experimental.enable_tensor_float_32_execution(is_on)
    rows[f"{name}: {label}"] = {
        f"ms, {mode}": _milliseconds(network(*functions), arguments, mode)
        for mode in ("tf.function", "XLA")}
  tf.config.experimental.enable_tensor_float_32_execution(True)
  return rows

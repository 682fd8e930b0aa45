"""SavedModels, and processes that serve them, for the tests of examples/serve.py."""

import contextlib
import http.client
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import small_models
import tensorflow as tf

import tfp_glow

SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "serve.py"
GREY_SHAPE, COLOUR_SHAPE, CONTEXT_SHAPE = (8, 8, 1), (4, 8, 3), (4, 4, 3)
CLASSES = ("cat", "dog", "fox")
SECONDS_TO_START = 300

# Refuses what made the SavedModel.
_SERVE = """
import runpy
import sys

class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("tfp_glow", "tensorflow_probability", "sklearn"):
      raise ImportError(name + " must not be needed")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def load_script():
  spec = importlib.util.spec_from_file_location("serve", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _export(path, shape, **kwargs):
  distribution = small_models.distribution(shape, num_steps_per_block=1, num_hidden=4, **kwargs)
  model = tfp_glow.FlowModel(distribution, num_bits=8)
  images = small_models.images(shape=shape)
  context = {} if model.context_shape is None else {"context": np.zeros([len(images), *model.context_shape])}
  model.adapt((images, context))
  for v in model.distribution.trainable_variables:
    v.assign_add(0.05 * tf.random.stateless_normal(v.shape, [1, 2]))
  model.export(path)
  return path


def export_grey(path):
  return _export(path, GREY_SHAPE)


def export_colour(path):
  return _export(path, COLOUR_SHAPE, num_classes=len(CLASSES))


def export_conditional(path, context_shape=CONTEXT_SHAPE):
  return _export(path, GREY_SHAPE, context_shape=context_shape)


def export_continuous(path):
  tfp_glow.FlowModel(small_models.gaussian(), num_bits=None).export(path)


def export_deep(path):
  tfp_glow.FlowModel(small_models.gaussian((4, 4, 1)), num_bits=16).export(path)


def directions():
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=np.prod(GREY_SHAPE)).astype(np.float32) for name in ("darker", "3 to 8")}


@contextlib.contextmanager
def running(path, *options):
  """Serves a SavedModel in a process of its own, until the block ends, and gives the port. Ctrl-C ends the process."""
  # Background jobs of a shell and workers of pytest-xdist ignore Ctrl-C, and the process would inherit that.
  is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  command = [sys.executable, "-c", _SERVE, SCRIPT, path, f"--port={port}", *options]
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
  with subprocess.Popen(command, env=environment) as process:
    try:
      _wait(process, port)
      yield port
    finally:
      process.send_signal(signal.SIGTERM if is_ignored else signal.SIGINT)
  assert process.returncode == (-signal.SIGTERM if is_ignored else 0)


def _wait(process, port):
  for _ in range(SECONDS_TO_START * 10):
    assert process.poll() is None, "the server has ended"
    with contextlib.suppress(ConnectionRefusedError):
      return http.client.HTTPConnection("127.0.0.1", port).connect()
    time.sleep(0.1)
  raise TimeoutError(f"no answer after {SECONDS_TO_START} s")

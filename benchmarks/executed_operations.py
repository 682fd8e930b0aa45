"""Counts the operations that TensorFlow executes, by its profiler."""

import collections
import pathlib
import tempfile

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2


def executed(function):
  """The number of operations of each kind that run in a call of a function, a `collections.Counter`.

  Args:
    function: Callable without arguments that waits until its work is done. It is called once before.
  """
  function()
  counts = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    tf.profiler.experimental.start(folder, tf.profiler.experimental.ProfilerOptions(
        host_tracer_level=3, python_tracer_level=0, device_tracer_level=0))
    function()
    tf.profiler.experimental.stop()
    for path in pathlib.Path(folder).rglob("*.xplane.pb"):
      space = xplane_pb2.XSpace.FromString(path.read_bytes())
      for plane in space.planes:
        names = (plane.event_metadata[event.metadata_id].name for line in plane.lines for event in line.events)
        # Operations are named "name:kind". Calls of functions are, too, but with a space.
        counts.update(name.rpartition(":")[2] for name in names if ":" in name and "::" not in name)
  return collections.Counter({kind: count for kind, count in counts.items() if kind.isidentifier()})

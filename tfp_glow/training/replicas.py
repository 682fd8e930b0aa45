"""What replicas and worker processes tell each other under a `tf.distribute.Strategy`."""

import json

import numpy as np
import tensorflow as tf


def sum_over_replicas(values):
  """The sum of a tensor over all replicas, or of each of a list of them of one dtype; to be called in each replica."""
  context = tf.distribute.get_replica_context()
  return context.all_reduce(tf.distribute.ReduceOp.SUM, values) if context.num_replicas_in_sync > 1 else values


def mean_over_replicas(values):
  """The mean of the values `[N]` of all replicas, whose sum over the replicas it is: each returns its share.

  They may have got unequal numbers of them, or none.
  """
  count = sum_over_replicas(tf.shape(values)[0])
  return tf.math.divide_no_nan(tf.reduce_sum(values), tf.cast(count, values.dtype))


def sum_gradients(gradients):
  """Each gradient's sum over all replicas, `None` where there is none."""
  found = iter(sum_over_replicas([gradient for gradient in gradients if gradient is not None]))
  return [None if gradient is None else next(found) for gradient in gradients]


def has_workers(strategy):
  """Whether other processes train the same model."""
  if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
    return False
  tasks = strategy.cluster_resolver.cluster_spec().as_dict()
  return len(tasks.get("chief", ())) + len(tasks.get("worker", ())) > 1


def is_chief(strategy):
  """Whether this process is the one that writes files; `True` where there are no others."""
  return strategy.extended.should_checkpoint


def take_from_chief(variables, strategy):
  """Gives variables the values that they have on the chief, bit by bit; all workers must call it.

  Args:
    variables: List of `tf.Variable`s.
    strategy: `tf.distribute.Strategy`; where there are no other workers nothing happens.
  """
  if not has_workers(strategy):
    return
  read = lambda: [tf.cast(v, tf.int32) if v.dtype == tf.bool else v.read_value() for v in variables]
  with strategy.scope():
    for variable, value in zip(variables, _from_chief(read, strategy)):
      variable.assign(tf.cast(value, variable.dtype))


def run_on_chief(function, strategy):
  """Runs a function on the chief alone; all workers must call it.

  Args:
    function: Callable without arguments; its result must be such that JSON can hold it.
    strategy: `tf.distribute.Strategy`; where there are no other workers the function is called, and no more.

  Returns:
    What the function returned on the chief, on all workers.

  Raises:
    ValueError: on all workers, if the function raised it on the chief: none may wait for others that have given up.
  """
  if not has_workers(strategy):
    return function()
  outcome = {}
  if is_chief(strategy):
    try:
      outcome["result"] = function()
    except ValueError as error:
      outcome["error"] = str(error)
  outcome = json.loads(_bytes_from_chief(json.dumps(outcome).encode(), strategy))
  if "error" in outcome:
    raise ValueError(outcome["error"])
  return outcome["result"]


def _bytes_from_chief(content, strategy):
  length, = _from_chief(lambda: [tf.constant(len(content))], strategy)
  own = np.frombuffer(content, np.uint8).astype(np.int32) if is_chief(strategy) else np.zeros(int(length), np.int32)
  found, = _from_chief(lambda: [tf.constant(own)], strategy)
  return found.numpy().astype(np.uint8).tobytes()


def _from_chief(read, strategy):
  """The tensors that `read` returns on the chief's first replica."""

  def values_of_first_replica():
    is_first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
    # One by one: the dtypes differ.
    return [sum_over_replicas(tf.where(is_first, value, tf.zeros_like(value))) for value in read()]

  values = tf.function(lambda: strategy.run(values_of_first_replica), autograph=False)()
  return [strategy.experimental_local_results(value)[0] for value in values]

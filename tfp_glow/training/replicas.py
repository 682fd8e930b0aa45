"""The exchange between replicas and worker processes under a `tf.distribute.Strategy`."""

import concurrent.futures
import functools
import json
import weakref

import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat


def sum_over_replicas(values):
  """The sum of a tensor over all replicas; call it in each replica."""
  context = tf.distribute.get_replica_context()
  return context.all_reduce(tf.distribute.ReduceOp.SUM, values) if are_several() else values


def are_several():
  """Whether there is more than one replica; call it in a replica."""
  return tf.distribute.get_replica_context().num_replicas_in_sync > 1


def packed(gradients, terms, num_failed):
  """Packs the results of one replica into one tensor, to be summed over replicas.

  Replicas may have unequal numbers of images, or none. After the sum, what is not finite on one replica is not finite
  on all.

  Args:
    gradients: List of floating tensors and `None`s, gradients of the mean over this replica's images.
    terms: Floating tensor `[N, K]`, of this replica's `N` images.
    num_failed: Floating scalar, which becomes the last number of the result.

  Returns:
    Floating tensor of one dimension.
  """
  present = [gradient for gradient in gradients if gradient is not None]
  dtype = tf.float64 if tf.float64 in {terms.dtype, *(gradient.dtype for gradient in present)} else tf.float32
  # Below 1, so that sums of large gradients do not overflow.
  share = tf.cast(tf.shape(terms)[0], dtype) / 2.**20
  parts = [share * tf.cast(tf.reshape(gradient, [-1]), dtype) for gradient in present]
  parts += [tf.cast(tf.reduce_sum(terms, axis=0), dtype), tf.stack([share, tf.cast(num_failed, dtype)])]
  return tf.concat(parts, axis=0)


def unpacked(sums, gradients_like, terms_like, num_replicas):
  """Unpacks the sum over replicas of the results of `packed`, as means over the images of all replicas.

  Args:
    sums: Floating tensor of one dimension.
    gradients_like: List of `tf.TensorSpec`s, with `None` where there is no gradient.
    terms_like: `tf.TensorSpec`.
    num_replicas: Python `int`.

  Returns:
    gradients: List of tensors and `None`s, gradients of the mean over all images.
    terms: Tensor `[1, K]`, the mean over all images.
    weights: Tensor `[1]`, the number of these images divided by the number of replicas.
  """
  present = [like for like in gradients_like if like is not None]
  sizes = [*(like.shape.num_elements() for like in present), terms_like.shape[1], 1, 1]
  *totals, terms_total, share, _ = tf.split(sums, sizes)
  divisor = tf.where(share > 0., share, 1.)  # There may be no images at all.
  means = iter([tf.reshape(tf.cast(total / divisor, like.dtype), like.shape)
                for total, like in zip(totals, present)])
  return ([None if like is None else next(means) for like in gradients_like],
          tf.cast(terms_total / divisor / 2.**20, terms_like.dtype)[tf.newaxis],
          tf.cast(share * 2.**20, terms_like.dtype) / num_replicas)


class TracedOnce:
  """Calls functions on the device of each replica, with its variables, but traces them for the first replica only.

  TensorFlow traces a `tf.function` anew on each device. A plain function, or one that the graph optimizer inlines, is
  in the graph once for each replica.
  """

  def __init__(self):
    self._of_graphs = weakref.WeakKeyDictionary()

  def __call__(self, function, *args, trace=None):
    """Calls a function; do this in each replica.

    Args:
      function: Callable, from tensors to a nest of tensors. Other values in the nest are those of the first replica.
      *args: Tensors, or nests of tensors.
      trace: Callable, from a function and its arguments to a `tf.ConcreteFunction`, called in the first replica;
        `None`: the function is traced in the first replica.

    Returns:
      The result of the function.
    """
    if tf.executing_eagerly():
      return function(*args)
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    traced = self._of_graphs.setdefault(tf.compat.v1.get_default_graph(), {})
    specs = tf.nest.map_structure(lambda arg: tf.TensorSpec(arg.shape, arg.dtype), [number, *args])
    key = (function.__name__, repr(specs))
    if key not in traced:
      traced[key] = _Traced(function, specs, trace or _trace_here)
    return traced[key](tf.nest.flatten([number, *args]))


def _trace_here(function, specs):
  """Traces a function in this replica, for all of them."""
  context = tf.distribute.get_replica_context()

  def of_any(number, *args):
    with _AnyReplica(context, number):
      return function(number, *args)

  return _function(of_any).get_concrete_function(*specs)


def trace_outside(function, specs):
  """Traces a function outside of all replicas; called within one."""
  return outside(lambda: _function(function).get_concrete_function(*specs))


@tf.autograph.experimental.do_not_convert
def outside(function):
  """Calls a function outside of all replicas and graphs; called within one."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(function).result()


def _function(function):
  return _compat.function_of_its_own(function)


class _AnyReplica(tf.distribute.ReplicaContext):
  """A context in which a function is traced for all replicas: variables of one replica, and the caller's number."""

  def __init__(self, context, number):
    super().__init__(context.strategy, int(tf.get_static_value(context.replica_id_in_sync_group)))
    self._number = number

  @property
  def replica_id_in_sync_group(self):
    return self._number

  def merge_call(self, *args, **kwargs):
    raise RuntimeError("`merge_call` must not be called where a replica computes by itself, for example in "
                       "a distribution's `log_prob`, which is traced once for all replicas. "
                       f"Received: {args}, {kwargs}")


class _Traced:
  """A traced function, and the nest that it returns."""

  def __init__(self, function, specs, trace):

    def tensors(number, *args):
      del number  # The context returns it.
      self._result = function(*args)
      return [part for part in tf.nest.flatten(self._result) if tf.is_tensor(part)]

    self._function = trace(tensors, specs)
    options = tf.compat.v1.ConfigProto()
    # The optimizer runs on the whole graph, for all calls, and need not run again on each device.
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    self._options = options.SerializeToString()

  def __call__(self, args):
    """Calls the function with the variables of this replica instead of the captured ones."""
    function = self._function
    outputs = tf.raw_ops.StatefulPartitionedCall(
        args=[*args, *map(_compat.handle_here, function.captured_inputs)],
        Tout=[output.dtype for output in function.outputs], f=function, config_proto=self._options)
    for output, traced in zip(outputs, function.outputs):
      output.set_shape(traced.shape)
    outputs = iter(outputs)
    return tf.nest.map_structure(lambda part: next(outputs) if tf.is_tensor(part) else part, self._result)


def gathered(batch):
  """A batch of all replicas of all workers. All workers must call it, in the strategy's scope.

  Args:
    batch: Nest of tensors, or of the values of a worker's replicas.
  """
  strategy = tf.distribute.get_strategy()

  def gather(values):
    dtype = strategy.experimental_local_results(values)[0].dtype
    # Collective operations do not support integers of one or two bytes.
    widen = (lambda own: tf.cast(own, tf.int32)) if dtype in (tf.uint8, tf.uint16) else tf.identity
    wide = strategy.run(widen, args=(values,))
    return tf.cast(strategy.gather(wide, axis=0), dtype)

  return tf.nest.map_structure(gather, batch)


def function_of_iterator(step, strategy, run_eagerly):
  """The function that `fit` and `evaluate` call with an iterator; returns the result of the first replica's step.

  Keras' own function takes the mean of each returned number over all replicas, each an exchange between machines.

  Args:
    step: Callable, from a batch to a dict of scalars, called in each replica.
    strategy: `tf.distribute.Strategy`.
    run_eagerly: Python `bool`.

  Returns:
    Callable.
  """

  def run(data):
    return tf.nest.map_structure(lambda values: strategy.experimental_local_results(values)[0],
                                 strategy.run(step, args=(data,)))

  make = (lambda function: function) if run_eagerly else functools.partial(
      tf.function, autograph=False, reduce_retracing=True)
  run_on_batch, run_on_next = make(run), make(lambda iterator: run(iterator.get_next()))

  def run_on_iterator(iterator):
    if not isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
      return run_on_batch(next(iterator))
    try:
      return run_on_next(iterator)
    except tf.errors.OutOfRangeError:
      raise StopIteration from None

  return run_on_iterator


def has_workers(strategy):
  """Whether other processes train the same model."""
  if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
    return False
  tasks = strategy.cluster_resolver.cluster_spec().as_dict()
  return len(tasks.get("chief", ())) + len(tasks.get("worker", ())) > 1


def is_chief(strategy):
  """Whether this process writes files; `True` if there are no other workers."""
  return strategy.extended.should_checkpoint


def take_from_chief(variables, strategy):
  """Assigns variables the chief's values, bit by bit; all workers must call it.

  Args:
    variables: List of `tf.Variable`s.
    strategy: `tf.distribute.Strategy`. Without other workers, nothing happens.
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
    function: Callable without arguments, with a result that JSON can hold.
    strategy: `tf.distribute.Strategy`. Without other workers, the function is just called.

  Returns:
    The chief's result, on all workers.

  Raises:
    Exception: on the chief, what the function raised; on the others `ValueError` if it is one, else `RuntimeError`. So
      no worker waits for others that have failed.
  """
  if not has_workers(strategy):
    return function()
  outcome, own_error = {}, None
  if is_chief(strategy):
    try:
      outcome["result"] = function()
    except Exception as error:
      own_error = error
      outcome |= {"error": str(error), "is_value_error": isinstance(error, ValueError)}
  outcome = json.loads(_bytes_from_chief(json.dumps(outcome).encode(), strategy))
  if "error" in outcome:
    raise own_error or (ValueError if outcome["is_value_error"] else RuntimeError)(outcome["error"])
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

"""All private names of TensorFlow, Keras and TFP that are needed, one entry each.

Each says why it is needed, what it touches, and what happens in a version that lacks it: a slower way or a clear error,
never another number. `tests/test_compat.py` tests each with the private name, and without it.
"""

import contextlib
import weakref

import keras
import tensorflow as tf
import tensorflow_probability as tfp

try:
  from tensorflow.python.framework.ops import gradient_registry
except ImportError:
  gradient_registry = None
try:
  from tensorflow.python.distribute.distribute_lib import UpdateContext
except ImportError:
  UpdateContext = None

# Where a graph keeps the gradients of its operations.
_GRADIENTS = "_tfp_glow_gradients"
# Where a variable keeps its first `trainable`.
_MADE_TRAINABLE = "_tfp_glow_made_trainable"


def forget_with_its_graph(operation):
  """Frees the graph of a `tf.custom_gradient` once nobody else needs it.

  Why: TensorFlow registers each custom gradient of each graph by a name, for ever. The gradient holds the graph, and
  with it the model: a hundred megabytes for each model of a search. There is no public way to remove it.

  Touches: `tensorflow.python.framework.ops.gradient_registry`, its dict `_registry` and the key `"type"` in that.

  Missing: nothing is freed. Gradients are the same.

  Args:
    operation: `tf.Operation` that a `tf.custom_gradient` has made.
  """
  registered = getattr(gradient_registry, "_registry", {})
  graph, name = operation.graph, _name_of_gradient(operation)
  if name not in registered or "type" not in registered[name]:
    return
  gradients = getattr(graph, _GRADIENTS, {})
  gradients[name] = registered[name]["type"]
  setattr(graph, _GRADIENTS, gradients)
  graph_if_alive = weakref.ref(graph)

  @tf.autograph.experimental.do_not_convert
  def gradient(unused_op, *d_outputs):
    return getattr(graph_if_alive(), _GRADIENTS)[name](unused_op, *d_outputs)

  registered[name]["type"] = gradient
  weakref.finalize(graph, registered.pop, name, None).atexit = False


def _name_of_gradient(operation):
  try:
    return operation.get_attr("_gradient_op_type").decode()
  except ValueError:  # There is no such attribute.
    return None


def apply_sums(optimizer, gradients, variables):
  """`optimizer.apply_gradients`, of gradients that are already sums over the replicas; to be called in each of them.

  Why: Keras 3 clips each replica's share of the gradients and adds up what is left, so that the same batch is clipped
  otherwise on two devices than on one. There is no public way to turn the sum off. With a single replica the sum would
  be a `tf.custom_gradient`, which TensorFlow keeps for ever with its graph.

  Touches: `_all_reduce_sum_gradients` of Keras' optimizers.

  Missing: Keras adds up the first replica's gradients and the others' zeros, which takes a second exchange. Where Keras
  has it but does not call it, there is an error.

  Args:
    optimizer: Keras optimizer.
    gradients: List of tensors, `None` among them.
    variables: List of `keras.Variable`s.

  Returns:
    What `optimizer.apply_gradients` does.

  Raises:
    NotImplementedError: if Keras did not call it: it may have added up the sums, as many times as there are replicas.
  """
  context = tf.distribute.get_replica_context()
  inner = getattr(optimizer, "inner_optimizer", optimizer)
  has_replicas = context.num_replicas_in_sync > 1
  if not hasattr(inner, "_all_reduce_sum_gradients"):
    is_first = tf.equal(context.replica_id_in_sync_group, 0)
    if has_replicas:  # A product: what is not finite is so on all replicas.
      gradients = [g if g is None else tf.cast(is_first, g.dtype) * g for g in gradients]
    return optimizer.apply_gradients(zip(gradients, variables))
  # Keras may call that of another replica's thread.
  unsummed = vars(inner).get("_all_reduce_sum_gradients", None) or _Unsummed()
  inner._all_reduce_sum_gradients = unsummed
  try:
    iterations = optimizer.apply_gradients(zip(gradients, variables))
  finally:
    vars(inner).pop("_all_reduce_sum_gradients", None)  # Another replica's thread may have been here before.
  # Run eagerly, a `LossScaleOptimizer` calls it only if it does update.
  if has_replicas and not unsummed.was_called and (inner is optimizer or not tf.executing_eagerly()):
    raise NotImplementedError("`keras` must be a version whose optimizers call `_all_reduce_sum_gradients`, to train "
                              f"with several replicas. Received: {keras.__version__}")
  return iterations


class _Unsummed:
  """Stands in for a function that sums gradients, and returns them unchanged."""

  def __init__(self):
    self.was_called = False

  def __call__(self, grads_and_vars):
    self.was_called = True
    return list(grads_and_vars)


def adam_moments(adam, variable):
  """The averages that a Keras Adam keeps for a variable.

  Why: TensorFlow's operation for a whole step of Adam writes to them. Publicly they can only be told by their names.

  Touches: `_get_variable_index`, `_momentums` and `_velocities` of `keras.optimizers.Adam`.

  Missing: Keras' own operations, sixteen for each variable.

  Args:
    adam: `keras.optimizers.Adam`, built.
    variable: `tf.Variable` that it updates.

  Returns:
    The `tf.Variable`s of the mean of the gradients and of the mean of their squares; `None` if they are not there.
  """
  try:
    index = adam._get_variable_index(variable)
    return adam._momentums[index].value, adam._velocities[index].value
  except AttributeError:
    return None


def knows_replicas(optimizer, variables):
  """Whether `handle_here` and `first_replica` work for an optimizer and the variables that it updates.

  Args:
    optimizer: Keras optimizer, built.
    variables: List of `keras.Variable`s, made under the scope of a strategy of several replicas.
  """
  variables = [*variables, *optimizer.variables]
  return (UpdateContext is not None and all(hasattr(variable, "_value") for variable in variables)
          and all(hasattr(variable.value.handle, "_distributed_container") for variable in variables)
          and all(hasattr(o, "_distribution_strategy") for o in _with_inner(optimizer)))


def handle_here(tensor):
  """The handle of a variable on the device of this replica; to be called in a replica.

  Why: a function that was traced for one replica is called on the devices of others with the handles of their
  variables. There is no public way from the handle that a function has captured to the variable.

  Touches: `_distributed_container` of the handles of variables that `tf.distribute` has made.

  Missing: what would need it is traced on each device (see `knows_replicas`), which takes longer.

  Args:
    tensor: What a function has captured: a handle of any replica; or something else, which is returned as it is.
  """
  container = getattr(tensor, "_distributed_container", lambda: None)()
  return tensor if container is None else container.handle


@contextlib.contextmanager
def first_replica(optimizer, variables):
  """A context in which variables are those of the first replica, and an optimizer sees no strategy.

  Why: a function that is traced once must change the variables of one replica. In a replica, Keras' optimizers ask the
  strategy to change those of all replicas, and outside of replicas the variables do so. To be called outside.

  Touches: `UpdateContext` of TensorFlow, in which variables are those of one replica; `_value` of `keras.Variable` and
  `_distribution_strategy` of Keras' optimizers, which are put back.

  Missing: updates are traced on each device (see `knows_replicas`), which takes longer.

  Args:
    optimizer: Keras optimizer, built.
    variables: List of the `keras.Variable`s that it updates.
  """
  changed = [(v, "_value", v.value.values[0]) for v in [*variables, *optimizer.variables]]
  changed += [(o, "_distribution_strategy", tf.distribute.get_strategy()) for o in _with_inner(optimizer)]
  before = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
  set_all = lambda attributes: [object.__setattr__(*attribute) for attribute in attributes]
  set_all(changed)
  try:
    with UpdateContext(0):
      yield
  finally:
    set_all(before)


def _with_inner(optimizer):
  inner = getattr(optimizer, "inner_optimizer", None)
  return [optimizer] if inner is None else [optimizer, inner]


class BuiltModel(keras.Model):
  """A Keras model that `fit` and `evaluate` do not build from a batch: all is there before.

  Why: with several replicas Keras draws a batch and takes the mean of the replicas' shares, to build the model from it.
  It cannot do so if the shares differ, nor with several workers.

  Touches: `_maybe_symbolic_build` of `keras.Model`, which it overrides.

  Missing: Keras may build the model: no change on one device, perhaps Keras' error with several replicas.
  """

  def _maybe_symbolic_build(self, iterator=None, data_batch=None):
    del iterator, data_batch


def set_direction(metric, direction):
  """Tells Keras' callbacks (`EarlyStopping`, `ModelCheckpoint`) whether a metric is better when lower or higher.

  Why: with `mode="auto"` they know it of Keras' own metrics only.

  Touches: `_direction` of the metric.

  Missing: the callbacks raise an error that asks for `mode`.

  Args:
    metric: `keras.metrics.Metric` that is given to `compile`.
    direction: `"down"` or `"up"`.
  """
  metric._direction = direction


def parts_of_deferred_tensor(value):
  """The arguments of a `tfp.util.DeferredTensor` that are not public.

  Why: a `.keras` file holds the arguments of all constructors.

  Touches: `_transform_fn` and `_also_track` of `tfp.util.DeferredTensor`.

  Missing: an error; the distribution cannot be written to a file.

  Args:
    value: `tfp.util.DeferredTensor`.

  Returns:
    `dict` of `transform_fn` and `also_track`.

  Raises:
    ValueError: if they are missing.
  """
  try:
    return {"transform_fn": value._transform_fn, "also_track": value._also_track}
  except AttributeError as error:
    raise ValueError("`tfp.util.DeferredTensor` must have the attributes that it has in TFP 0.25, for one to be saved. "
                     f"Received: {error}") from error


def given_in_graphs_to(operation):
  """The arguments of an operation of Keras in each of the functional models that it is a part of: a list.

  Why: `x * variable` in such a model is an operation with the variable as an argument. The model does not track it.

  Touches: `_inbound_nodes` of `keras.Operation`, and their `arguments`.

  Missing: an error, after which the caller does not remember what such networks computed.

  Args:
    operation: `keras.Operation`, layers among them.

  Raises:
    NotImplementedError: if they are missing.
  """
  try:
    return [(node.arguments.args, node.arguments.kwargs) for node in operation._inbound_nodes]
  except AttributeError as error:
    raise NotImplementedError(
        "`keras` must be a version whose operations have the `_inbound_nodes` of Keras 3. "
        f"Received: {keras.__version__}, {error}") from error


def untracked(module, value):
  """A value that can be assigned to an attribute of a `tf.Module` without being tracked or wrapped as a part of it.

  Why: `tf.Module` and checkpoints would hold variables twice, and count the template of a `Scan` as parameters. There
  is no public way to hide an attribute.

  Touches: `_no_dependency` of `tf.Module`.

  Missing: values are tracked: checkpoints of another layout, the same numbers.

  Args:
    module: `tf.Module`.
    value: Anything.
  """
  return getattr(module, "_no_dependency", lambda value: value)(value)


def set_trainable(variable, value):
  """Makes a `tf.Variable` trained, or not trained.

  Why: gradient tapes, `tf.Module` and TFP ask a variable for its `trainable`, which has no setter.

  Touches: `_trainable` of `tf.Variable`, of each replica's copy where there are several.

  Missing: an error; nothing can be frozen.

  Args:
    variable: `tf.Variable`, or what `tf.distribute` makes of one.
    value: Python `bool`.

  Raises:
    NotImplementedError: if it is missing.
  """
  setattr(variable, _MADE_TRAINABLE, was_made_trainable(variable))
  for copy in variable.values if isinstance(variable, tf.distribute.DistributedValues) else [variable]:
    copy._trainable = value
  if variable.trainable != value:
    raise NotImplementedError(
        "`tensorflow` must be a version whose variables have the `_trainable` of TensorFlow 2, to freeze or unfreeze "
        f"them. Received: {tf.__version__}, in which `{variable.name}` stays as it is")


def was_made_trainable(variable):
  """Whether a `tf.Variable` is a parameter: trained, unless `set_trainable` has frozen it.

  Args:
    variable: `tf.Variable`.
  """
  return getattr(variable, _MADE_TRAINABLE) if hasattr(variable, _MADE_TRAINABLE) else variable.trainable


def forget_compositions_of(bijector):
  """Takes compositions that a bijector is part of, such as a `tfb.Chain`, out of TFP's cache.

  Why: TFP answers `chain.inverse(y)` from its cache as long as somebody has an earlier answer: from before an update of
  the weights, or from outside of a gradient tape. A composition asks its parts for their dtypes before it looks there.

  Touches: `_cache` of `tfb.Bijector`, its dict `storage`, and the keys of that.

  Missing: an error; compositions might answer with old weights.

  Args:
    bijector: `tfb.Bijector`.

  Raises:
    NotImplementedError: if it is missing.
  """
  try:
    storage = tfp.bijectors.Bijector._cache.storage
    owners = {key: key.subkey[0] for key in list(storage)}
  except (AttributeError, TypeError) as error:
    raise NotImplementedError(
        "`tensorflow_probability` must be a version whose bijectors have the `_cache` of TFP 0.25, or compositions "
        f"might answer with old weights. Received: {tfp.__version__}, {error}") from error
  distinct = {id(owner): owner for owner in owners.values() if owner is not bijector}
  holders = {key for key, owner in distinct.items() if any(part is bijector for part in owner.submodules)}
  for key, owner in owners.items():
    if id(owner) in holders and key in storage:
      key.cancel()
      del storage[key]


def is_injective(bijector):
  """Whether a bijector of TFP never maps two values to one, as almost all do.

  Why: for others, such as `tfb.AbsoluteValue`, TFP sums the densities of all values that map to the result.

  Touches: `_is_injective` of `tfb.Bijector`.

  Missing: `True`; others then end in an error of shapes, as they return tuples.

  Args:
    bijector: `tfb.Bijector`.
  """
  return getattr(bijector, "_is_injective", True)


def class_made_of(public):
  """The class of the instance that TFP makes when a public class, such as `tfb.Chain`, is called.

  Why: if a part is not a `CompositeTensor`, and ours are not, it is a base class without a public name. To walk such a
  composition part by part, and to save it, one must know its class.

  Touches: the base class of `tfb.Chain` that is called `_Chain`, and so on.

  Missing: the public class. If TFP's base class has another name, such a composition counts as one bijector of TFP:
  there are more evaluations, labels are refused, and saving it is an error.

  Args:
    public: Class of TFP's.
  """
  return next((cls for cls in public.__mro__ if cls.__name__ == f"_{public.__name__}"), public)


def function_of_its_own(function):
  """`tf.function` without AutoGraph, which TensorFlow does not inline.

  Why: replicas share one function. TensorFlow would copy it for each of them.

  Touches: `_noinline`, one of the `experimental_attributes` of `tf.function`.

  Missing: TensorFlow may copy it, and the first step takes longer.

  Args:
    function: Callable.
  """
  try:
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
  except (TypeError, ValueError):
    return tf.function(function, autograph=False)

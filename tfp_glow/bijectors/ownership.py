"""Variables that Keras and TensorFlow both know, and what follows their updates."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfp_glow._core import _compat
from tfp_glow._core.validation import check_bools


class VariableOwner:
  """What a bijector needs to own variables, networks and other bijectors.

  Keras' `StatelessScope`, which `Scan` uses to run one step with the weights of another, knows `keras.Variable`s;
  `tf.Module`, `tf.train.Checkpoint` and TFP know `tf.Variable`s. Each pair shares its storage.

  For classes that derive from `tfb.Bijector`, too.
  """

  def _own_nothing_yet(self):
    """To be called first."""
    self._own_keras_variables = _compat.untracked(self, [])
    self._own_variables = []
    self._children = []
    self._is_trainable = True
    self._followers = _compat.untracked(self, [])

  def __setattr__(self, name, value):
    if name == "trainable":
      object.__setattr__(self, name, value)  # TensorFlow would set nothing where it is this value, of a part of it.
      return
    if isinstance(value, (keras.Variable, keras.layers.Layer)):
      value = _compat.untracked(self, value)  # Or a checkpoint would hold each variable twice.
    super().__setattr__(name, value)

  def _add_variable(self, name, value, trainable=True, aggregation="none"):
    variable = keras.Variable(value, dtype=value.dtype.name, trainable=trainable, aggregation=aggregation,
                              name=f"{self.name}_{name}")
    self._adopt([variable])
    return variable

  def _adopt(self, keras_variables):
    self._own_keras_variables.extend(keras_variables)
    self._own_variables.extend(v.value for v in keras_variables)
    for variable in keras_variables:
      variable.trainable = variable.trainable and self._is_trainable
      if not variable.trainable and variable.value.trainable:  # Of a layer that was frozen before.
        _compat.set_trainable(variable.value, False)

  def _add_child(self, bijector):
    self._children.append(bijector)
    return bijector

  def _keras_variables(self):
    return sum([child._keras_variables() for child in self._children], list(self._own_keras_variables))

  def copy(self, **override_parameters_kwargs):
    """Raises an error: TFP copies by calling the constructor again, which would lose the weights.

    Args:
      **override_parameters_kwargs: As TFP's.

    Raises:
      NotImplementedError: always.
    """
    raise NotImplementedError(
        f"`{self.name}.copy` would have new weights in place of the present ones; make another bijector, and restore a "
        f"`tf.train.Checkpoint` into it. Received: {override_parameters_kwargs}")

  def __deepcopy__(self, memo):
    raise NotImplementedError(self._cannot_be("deep-copied"))

  def __reduce_ex__(self, protocol):
    raise NotImplementedError(self._cannot_be("copied or pickled"))

  def _cannot_be(self, what):
    return (f"`{self.name}` cannot be {what}: its networks would lose their variables; make another bijector, and "
            "restore a `tf.train.Checkpoint` into it. (A `FlowModel` can be pickled, and saved.)")

  def after_update(self) -> None:
    """Brings state that follows the weights up to date: call it after every update of them, as `FlowModel` does.

    Norms of constrained layers are measured again, and estimates draw new noise. Most bijectors have no such state.
    """
    for variable, value in zip(self._variables_of_update(), self._update()):
      variable.assign(value)

  @property
  def trainable(self) -> bool:
    """Whether any of its variables is trained. It can be set, as that of a Keras layer.

    `False` freezes all variables and networks of the bijector and its parts, `True` has them trained. Variables that
    are never trained, such as the permutation of a 1x1 convolution, stay as they are. What is frozen has no gradients,
    is not among `trainable_variables`, here and of distributions, and keeps its values in `initialize` as well. A
    `FlowModel` must be compiled afterwards.

    Parts of the `template` of a `Scan` stand for those of all of its steps. One step alone cannot be frozen: it has no
    variables of its own.

    Layers of networks have a `trainable` of their own, by Keras, which takes effect when the bijector, or
    `FlowModel.compile`, is called next.
    """
    parameters = [source for source, variable in self._sources() if _is_parameter(variable)]
    return any(source.trainable for source in parameters) if parameters else self._is_trainable

  @trainable.setter
  def trainable(self, value: bool) -> None:
    check_bools(trainable=value)
    self._set_trainable(bool(value))
    self.follow_layers()
    self._tell_followers()  # Variables of TFP's bijectors have no layers to follow.

  @property
  def trainable_variables(self):
    """`tf.Variable`s that are trained: a tuple."""
    self.follow_layers()
    return super().trainable_variables

  def _set_trainable(self, value):
    """Tells all that `_sources` ask."""
    self._is_trainable = value
    for layer in self._layers():
      layer.trainable = value
    for variable in self._own_keras_variables:
      variable.trainable = value and _is_parameter(variable)
    for child in self._children:
      child._set_trainable(value)

  def _layers(self):
    """The Keras layers that are its own."""
    return [value for value in vars(self).values() if isinstance(value, keras.layers.Layer)]

  def _sources(self):
    """Pairs: what tells by its `trainable` whether a variable is trained, and that variable, mostly the same.

    Variables are `keras.Variable`s, but those of TFP's bijectors.
    """
    return sum([child._sources() for child in self._children], [(v, v) for v in self._own_keras_variables])

  def follow_layers(self) -> None:
    """Has its variables follow what layers of networks now have as `trainable`; each call does."""
    has_changed = False
    for source, variable in self._sources():
      if not hasattr(_stored(variable), "trainable"):
        continue  # A tensor: in a `keras.StatelessScope`, which evaluates with other weights.
      value = source.trainable and _is_parameter(variable)
      if isinstance(variable, keras.Variable):
        variable.trainable = value
      if _stored(variable).trainable != value:
        _compat.set_trainable(_stored(variable), value)
        has_changed = True
    if has_changed:
      self._tell_followers()

  def _tell_followers(self):
    for follower in [follower() for follower in self._followers]:
      if follower is not None:
        follower()

  def freeze_variables(self, variables: Sequence[tf.Variable]) -> None:
    """Freezes some of its variables, as a file has them; to freeze parts, set their `trainable`.

    Args:
      variables: Sequence of `tf.Variable`s; those that are not its own are ignored.
    """
    ids = set(map(id, variables))
    for source, variable in self._sources():
      if id(_stored(variable)) in ids and source is not _stored(variable):
        source.trainable = False
    self.follow_layers()

  def be_followed_by(self, follower: Callable[[], None]) -> None:
    """Has a method called whenever a variable, of it or one of its parts, is frozen or unfrozen.

    Args:
      follower: Method without arguments; its object is not kept alive.
    """
    self._followers[:] = [known for known in self._followers if known() is not None]
    self._followers.append(weakref.WeakMethod(follower))
    for child in self._children:
      child.be_followed_by(follower)

  def noise_seeds(self) -> list[keras.Variable]:
    """The seeds of what estimates of log-dets draw.

    Returns:
      List of integer `keras.Variable`s `[..., 2]`: a seed, and the number of updates so far.
    """
    return sum([child.noise_seeds() for child in self._children], [])

  def _variables_of_update(self):
    """The `keras.Variable`s that `after_update` assigns."""
    return sum([child._variables_of_update() for child in self._children], [])

  def _update(self):
    """The values that it assigns to them."""
    return sum([child._update() for child in self._children], [])


def _stored(variable):
  """The `tf.Variable` of a `keras.Variable`, or the `tf.Variable` itself."""
  return variable.value if isinstance(variable, keras.Variable) else variable


def _is_parameter(variable):
  """Whether a variable is trained, unless it is frozen."""
  return _compat.was_made_trainable(_stored(variable))

"""Variables that Keras and TensorFlow both know, their `trainable`, and what follows their updates."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_glow._core import _compat
from tfp_glow._core.validation import check_bools


class Owned(NamedTuple):
  """A variable of a bijector, and the object whose `trainable` it follows.

  Attributes:
    source: Object with `trainable`. For most parameters it is the variable itself, for other variables the bijector's
      switch.
    variable: `keras.Variable`; `None` for the variables of TFP's bijectors.
    stored: The `tf.Variable` that shares its storage. (`variable.value` is a tensor in Keras' `StatelessScope`.)
  """
  source: Any
  variable: keras.Variable | None
  stored: tf.Variable

  @property
  def is_parameter(self):
    """Whether it is trained, unless it is frozen."""
    return _compat.was_made_trainable(self.stored)

  @property
  def can_be_frozen(self):
    """Whether freezing its bijector has an effect on it, because it is trained or measured."""
    return self.is_parameter or self.source is not self.stored

  def sync(self):
    """Copies the source's `trainable` to the variable; returns whether this changes anything."""
    value = self.source.trainable and self.is_parameter
    if self.variable is not None:
      self.variable.trainable = value
    if self.stored.trainable == value:
      return False
    _compat.set_trainable(self.stored, value)
    return True


class _Switch:
  """Remembers the last `trainable` of a bijector, for variables that are not trained or not made yet."""

  def __init__(self):
    self.trainable = True


class VariableOwner:
  """What a bijector needs to own variables, networks and other bijectors.

  Keras' `StatelessScope`, which `Scan` uses to run one step with the weights of another, knows `keras.Variable`s;
  `tf.Module`, `tf.train.Checkpoint` and TFP know `tf.Variable`s. Each pair shares its storage.

  It is a mixin for classes that also derive from `tfb.Bijector`.
  """

  def _own_nothing_yet(self):
    """Must be called before anything else."""
    self._own_keras_variables = _compat.untracked(self, [])
    self._own_variables = []
    self._children = []
    self._switch = _Switch()
    self._followers = _compat.untracked(self, [])

  def __setattr__(self, name, value):
    if name == "trainable":
      # TensorFlow would skip a value that this has already, though its parts may not.
      object.__setattr__(self, name, value)
      return
    if isinstance(value, (keras.Variable, keras.layers.Layer)):
      value = _compat.untracked(self, value)  # Otherwise a checkpoint would hold each variable twice.
    super().__setattr__(name, value)

  def _add_variable(self, name, value, trainable=True, aggregation="none"):
    variable = keras.Variable(value, dtype=value.dtype.name, trainable=trainable, aggregation=aggregation,
                              name=f"{self.name}_{name}")
    self._adopt([variable])
    return variable

  def _adopt(self, keras_variables):
    self._own_keras_variables.extend(keras_variables)
    stored = [v.value for v in keras_variables]
    self._own_variables.extend(stored)
    for variable, tf_variable in zip(keras_variables, stored):
      variable.trainable = variable.trainable and self._switch.trainable
      if not variable.trainable and tf_variable.trainable:  # Its layer was frozen before.
        _compat.set_trainable(tf_variable, False)

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
        f"`{self.name}.copy` is not possible, because the copy would have new weights. Make another bijector, and "
        f"restore a `tf.train.Checkpoint` into it. Received: {override_parameters_kwargs}")

  def __deepcopy__(self, memo):
    raise NotImplementedError(self._cannot_be("deep-copied"))

  def __reduce_ex__(self, protocol):
    raise NotImplementedError(self._cannot_be("copied or pickled"))

  def _cannot_be(self, what):
    return (f"`{self.name}` cannot be {what}, because its networks would lose their variables. Make another bijector, "
            "and restore a `tf.train.Checkpoint` into it. (A `FlowModel` can be pickled and saved.)")

  def after_update(self) -> None:
    """Updates the state that follows the weights. Call it after every update of the weights, as `FlowModel` does.

    Norms of constrained layers are measured again, and estimates draw new noise. Most bijectors have no such state.
    """
    for variable, value in zip(self._variables_of_update(), self._update()):
      variable.assign(value)

  @property
  def trainable(self) -> bool:
    """Whether any of its variables is trained. It can be set, like that of a Keras layer.

    `False` freezes all variables and networks of the bijector and its parts; `True` unfreezes them. Variables that are
    never trained, such as the permutation of a 1x1 convolution, do not change. Frozen variables have no gradients, are
    not among the `trainable_variables` of bijectors and distributions, and keep their values in `initialize` as well. A
    `FlowModel` must be compiled afterwards.

    Freezing a part of the `template` of a `Scan` freezes it in all steps. One step alone cannot be frozen, because it
    has no variables of its own.

    Layers of networks have Keras' own `trainable`. It takes effect at the next call of the bijector or of
    `FlowModel.compile`.
    """
    owned = self._owned()
    sources = [each.source for each in owned if each.is_parameter] or [
        each.source for each in owned if each.can_be_frozen]
    if sources:
      return any(source.trainable for source in sources)
    return any(child.trainable for child in self._children) if self._children else self._switch.trainable

  @trainable.setter
  def trainable(self, value: bool) -> None:
    check_bools(trainable=value)
    self._set_trainable(bool(value))
    self._sync_trainable()
    self._tell_followers()  # Always, because variables of TFP's bijectors follow no source.

  @property
  def trainable_variables(self):
    """`tf.Variable`s that are trained: a tuple."""
    sync_trainable(self)
    return super().trainable_variables

  # What this module's functions ask of bijectors.

  def _set_trainable(self, value):
    """Sets the `trainable` of all sources."""
    self._switch.trainable = value
    for layer in self._layers():
      layer.trainable = value
    for variable, stored in zip(self._own_keras_variables, self._own_variables):
      variable.trainable = value and _compat.was_made_trainable(stored)
    for child in self._children:
      child._set_trainable(value)

  def _layers(self):
    """Its own Keras layers."""
    return [value for value in vars(self).values() if isinstance(value, keras.layers.Layer)]

  def _own(self):
    """`Owned`s of its own variables."""
    return [Owned(variable if _compat.was_made_trainable(stored) else self._switch, variable, stored)
            for variable, stored in zip(self._own_keras_variables, self._own_variables)]

  def _owned(self):
    """`Owned`s of all variables, including those of its parts."""
    return sum([child._owned() for child in self._children], self._own())

  def _sync_trainable(self):
    """As `sync_trainable`, but tells no followers; returns whether anything changed."""
    return any([child._sync_trainable() for child in self._children] + [owned.sync() for owned in self._own()])

  def _tell_followers(self):
    for follower in [follower() for follower in self._followers]:
      if follower is not None:
        follower()

  def _add_follower(self, follower):
    self._followers[:] = [known for known in self._followers if known() is not None]
    self._followers.append(weakref.WeakMethod(follower))
    for child in self._children:
      child._add_follower(follower)

  def noise_seeds(self) -> list[keras.Variable]:
    """The seeds of the noise in estimates of log-dets.

    Returns:
      List of integer `keras.Variable`s `[..., 2]`: a seed, and the number of updates so far.
    """
    return sum([child.noise_seeds() for child in self._children], [])

  def _variables_of_update(self):
    """The `keras.Variable`s that `after_update` assigns."""
    return sum([child._variables_of_update() for child in self._children], [])

  def _update(self):
    """The values that `after_update` assigns to them."""
    return sum([child._update() for child in self._children], [])


def sync_trainable(bijector: VariableOwner) -> None:
  """Copies the `trainable` of the networks' layers to the bijector's variables. Each call of the bijector does this.

  Args:
    bijector: `OnePassBijector`.
  """
  if bijector._sync_trainable():
    bijector._tell_followers()


def on_trainable_changed(bijector: VariableOwner, follower: Callable[[], None]) -> None:
  """Registers a method to be called whenever a variable of a bijector, or of one of its parts, is frozen or unfrozen.

  Args:
    bijector: `OnePassBijector`.
    follower: Method without arguments. Its object is not kept alive.
  """
  bijector._add_follower(follower)


def frozen_variables(bijector: VariableOwner) -> list[tf.Variable]:
  """The frozen variables, and the never trained ones of frozen bijectors.

  Args:
    bijector: `OnePassBijector`.

  Returns:
    List of `tf.Variable`s.
  """
  return [owned.stored for owned in bijector._owned() if owned.can_be_frozen and not owned.source.trainable]


def freeze(bijector: VariableOwner, variables: Sequence[tf.Variable]) -> None:
  """Freezes what `frozen_variables` returned for a bijector that was made in the same way.

  Args:
    bijector: `OnePassBijector`.
    variables: Sequence of `tf.Variable`s. Variables of others are ignored.
  """
  ids = set(map(id, variables))
  for owned in bijector._owned():
    if id(owned.stored) in ids:
      if owned.source is not owned.stored:
        owned.source.trainable = False
      elif owned.is_parameter:
        _compat.set_trainable(owned.stored, False)
  bijector._sync_trainable()
  bijector._tell_followers()

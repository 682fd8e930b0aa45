"""Variables that Keras and TensorFlow both know, and what follows their updates."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfp_glow._core import _compat


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

  def __setattr__(self, name, value):
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

  def frozen_variables(self) -> list[tf.Variable]:
    """Those of networks that are not to be trained: of layers with `trainable = False`.

    Returns:
      List of `tf.Variable`s, which do not know it themselves.
    """
    return [variable.value for variable in self._keras_variables() if not variable.trainable]

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

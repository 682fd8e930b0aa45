"""The variables of `FlowModel`: those of its distribution, which of them are trained, and whether they are adapted."""

import keras

from tfp_glow._core import _compat
from tfp_glow.training.train_step import FlowSteps


class AdoptsVariables(FlowSteps):
  """A model that trains the variables of its distribution, except frozen ones; `FlowModel` is made of it."""

  def __init__(self, likelihood, *args):
    super().__init__(likelihood, *args)
    # Keras trains `keras.Variable`s. These share the storage of the distribution's variables. Keras, and so files, put
    # trainable ones first: the order must not depend on what is frozen at present.
    self._adopted = [keras.Variable(v, trainable=_compat.was_made_trainable(v), dtype=v.dtype.name,
                                    name=_keras_name(v)) for v in likelihood.variables]
    for adopted, variable in zip(self._adopted, likelihood.variables):
      adopted.constraint = variable.constraint  # For example the masks of an autoregressive network.
    likelihood.sync_trainable()
    self._are_trained = (True,) * len(self._adopted)
    self._take_trainable()
    self._were_trained_at_first = self._are_trained
    self._trained_as_compiled = frozenset()
    likelihood.on_trainable_changed(self._take_trainable)
    self._adapted = self.add_weight(name="adapted", shape=(), initializer="zeros", trainable=False)

  def _sync_trainable(self):
    self._likelihood.sync_trainable()
    self._take_trainable()

  def _take_trainable(self):
    """Trains the distribution's variables that were unfrozen since the last call, and no frozen ones."""
    before, self._are_trained = self._are_trained, tuple(v.trainable for v in self._likelihood.variables)
    for adopted, was_trained, is_trained in zip(self._adopted, before, self._are_trained):
      if not (was_trained and is_trained):
        adopted.trainable = is_trained

  def _note_what_is_trained(self):
    """In `compile`, for `_check_trains_as_compiled`."""
    self._trained_as_compiled = frozenset(map(id, self.trainable_variables))

  def _check_trains_as_compiled(self):
    if self.optimizer is None:
      raise ValueError("`optimizer` of `compile` must be a Keras optimizer or its name, to train. Received: None")
    self._sync_trainable()
    trained = frozenset(map(id, self.trainable_variables))
    changed = trained ^ self._trained_as_compiled
    if changed:
      changed = [f"{v.path} {'un' if id(v) in trained else ''}frozen" for v in self.variables if id(v) in changed]
      raise ValueError("`trainable` of a part of the model must not change after `compile`, which decides what is "
                       f"trained: compile the model again. Received: {', '.join(changed[:3])}"
                       + (f" and {len(changed) - 3} others" if len(changed) > 3 else ""))
    if not trained:
      raise ValueError("`trainable` must be True for a part of the model, or there is nothing to train. "
                       f"Received: {self.name!r}, with all parts frozen")

  def _needs_adapt(self):
    if self._adapted.numpy() > 0.:
      return False
    return not self._likelihood.is_initialized or self._is_hybrid and not self.classifier.initialized

  def _mark_adapted(self):
    self._adapted.assign(1.)

  def _variables_as_before(self):
    """`variables` in the order of version 0.1.0: those frozen when the model was made are among the non-trainable."""
    last = [variable for variable, was_trained in zip(self._adopted, self._were_trained_at_first) if not was_trained]
    ids = set(map(id, last))
    others = [variable for variable in self.variables if id(variable) not in ids]
    where = next(index for index, variable in enumerate(others) if variable is self._adapted)
    return others[:where] + last + others[where:]


def _keras_name(variable):
  return variable.name.split(":")[0].replace("/", "_")

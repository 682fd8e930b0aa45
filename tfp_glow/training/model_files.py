"""Keras files of `FlowModel`: each is written completely or not at all, and read completely or not at all."""

import json
import os

import keras
import numpy as np

from tfp_glow._core import files
from tfp_glow.storage import saving
from tfp_glow.training.model_variables import AdoptsVariables

# This key in files of weights says that variables are in the order of a model without frozen parts. Files of version
# 0.1.0 do not have it.
_NONE_LAST = "frozen_in_place"


class KeptInFiles(AdoptsVariables):
  """A model that `keras.models.load_model` can load; `FlowModel` is made of it."""

  def save(self, filepath, **kwargs):
    """As `keras.Model.save`: writes one file with all that is needed to resume training as if it had not stopped.

    `keras.models.load_model(filepath)` loads the compiled model with its optimizer, in any process that has imported
    `tfp_glow`. Functions and classes of your own (for example `network_fn`) must be registered by
    `keras.saving.register_keras_serializable`, also before loading. For other devices, load under the scope of the
    strategy.

    Args:
      filepath: Path that ends in `.keras`.
      **kwargs: Of `keras.Model.save`.

    Raises:
      ValueError: if `filepath` has another ending, or a part of the distribution cannot be written to a file.
      OSError: if the file cannot be written. After any error, a file that was there before is unchanged.
    """
    if not str(filepath).endswith(".keras"):
      raise ValueError(f"`filepath` must end in `.keras` (or use `save_weights`). Received: {filepath}")
    saving.check_is_found(type(self))
    json.dumps(keras.saving.serialize_keras_object(self))  # Keras would fail after it has written a part.
    if not kwargs.get("overwrite", True) and os.path.exists(filepath):
      super().save(filepath, **kwargs)  # Keras asks in the terminal.
      return
    with files.written_as_a_whole(filepath) as path:
      super().save(path, **kwargs)

  def load_weights(self, filepath, **kwargs):
    """As `keras.Model.load_weights`, but if the file does not fit, no weight changes.

    Args:
      filepath: Path of a file that `save_weights` wrote.
      **kwargs: Of `keras.Model.load_weights`.

    Raises:
      ValueError: if the weights belong to another architecture.
      OSError: if the file cannot be read.
    """
    variables = self.weights + (self.optimizer.variables if self.compiled else [])
    before = [v.numpy() for v in variables]
    try:
      super().load_weights(filepath, **kwargs)
    except BaseException as error:
      for variable, value in zip(variables, before):
        variable.assign(value)
      if not isinstance(error, ValueError):
        raise
      raise ValueError("`filepath` must hold the weights of a model with the same levels, steps, width, coupling, "
                       f"permutation and image size: {str(error):.500} Received: {filepath}") from error

  def save_own_variables(self, store):
    """As `keras.Layer.save_own_variables`; also notes the order of the variables.

    Args:
      store: Where `save` and `save_weights` write the values.
    """
    super().save_own_variables(store)
    store[_NONE_LAST] = np.ones([])

  def load_own_variables(self, store):
    """As `keras.Layer.load_own_variables`; also reads the order of version 0.1.0.

    Args:
      store: Where `load_weights` and `keras.models.load_model` read the values.
    """
    content = {key: store[key] for key in store.keys()}
    if content.pop(_NONE_LAST, None) is None:
      places = {id(variable): str(index) for index, variable in enumerate(self._variables_as_before())}
      moved = [(str(index), places[id(variable)]) for index, variable in enumerate(self.variables)]
      content = {index: content[place] for index, place in moved if place in content}
    super().load_own_variables(content)

  def get_config(self):
    """The configuration that `from_config` makes the model from, without its weights; see `save`.

    A subclass with more constructor arguments adds them to the returned `dict`.
    """
    self._likelihood.check_trainable()
    self._likelihood.sync_trainable()
    config = {"distribution": saving.distribution_to_config(self._likelihood.distribution),
              "num_bits": self._likelihood.spec.num_bits,
              "seed": self._seed, "weight_y": self._weight_y, "trainable": self.trainable, "name": self.name,
              "frozen": [index for index, v in enumerate(self.variables) if not v.trainable],
              "frozen_parts": self._likelihood.frozen_indices()}
    if self._is_hybrid:
      config |= {"classifier": saving.keras_config(self.classifier, "classifier"),
                 "likelihood_weight": self._likelihood_weight}
    return config

  @classmethod
  def from_config(cls, config):
    """Makes a model from what `get_config` returned."""
    config = dict(config, distribution=saving.distribution_from_config(config["distribution"]))
    if config.get("classifier") is not None:
      config["classifier"] = keras.saving.deserialize_keras_object(config["classifier"])
    is_trainable, *frozen = (config.pop(key, default) for key, default in (
        ("trainable", True), ("frozen", []), ("frozen_parts", None)))
    model = cls(**config)
    cls._freeze(model, *frozen)
    if not is_trainable:
      model.trainable = False
    return model

  def _freeze(self, frozen, frozen_parts):
    """Freezes the variables and parts that `get_config` noted; that of version 0.1.0 noted variables only."""
    variables = self._variables_as_before() if frozen_parts is None else self.variables
    self._likelihood.freeze(frozen_parts or [])
    for index in frozen:
      variables[index].trainable = False

"""What `FlowModel` does with files of Keras: it is written whole, read as a whole or not at all, and made again."""

import json
import os

import keras

from tfp_glow._core import _compat, files
from tfp_glow.likelihood import flows
from tfp_glow.storage import saving
from tfp_glow.training.train_step import FlowSteps


class KeptInFiles(FlowSteps):
  """A model that `keras.models.load_model` makes again; `FlowModel` is made of it."""

  def save(self, filepath, **kwargs):
    """As `keras.Model.save`: all that training needs to go on as if it had not stopped, in one file.

    `keras.models.load_model(filepath)` makes the model again, in any process that has imported `tfp_glow`, with its
    optimizer and as it was compiled. Functions and classes of your own (`network_fn`, say) must be registered by
    `keras.saving.register_keras_serializable`, also before loading. For other devices load it under the scope of the
    strategy.

    Args:
      filepath: Ends in `.keras`.
      **kwargs: Of `keras.Model.save`.

    Raises:
      ValueError: if `filepath` does not end so, or a part of the distribution cannot be written to a file.
      OSError: if the file cannot be written. After any error, one that was there before is as it was.
    """
    if not str(filepath).endswith(".keras"):
      raise ValueError(f"`filepath` must end in `.keras` (or use `save_weights`). Received: {filepath}")
    saving.check_is_found(type(self))
    json.dumps(keras.saving.serialize_keras_object(self))  # Keras would find out after it has written a part.
    if not kwargs.get("overwrite", True) and os.path.exists(filepath):
      super().save(filepath, **kwargs)  # Keras asks, in a terminal.
      return
    with files.written_as_a_whole(filepath) as path:
      super().save(path, **kwargs)

  def load_weights(self, filepath, **kwargs):
    """As `keras.Model.load_weights`; but if the file does not fit, nothing has changed.

    Args:
      filepath: What `save_weights` wrote.
      **kwargs: Of `keras.Model.load_weights`.

    Raises:
      ValueError: if the weights are of a model with another architecture.
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

  def get_config(self):
    """What `from_config` makes the model from, without its weights; see `save`.

    A subclass whose constructor has other arguments adds them to what this returns.
    """
    self._likelihood.follow_layers()
    config = {"distribution": saving.distribution_to_config(self.distribution), "num_bits": self.num_bits,
              "seed": self._seed, "weight_y": self._weight_y, "trainable": self.trainable, "name": self.name,
              "frozen": [index for index, v in enumerate(self.variables) if not v.trainable],
              "frozen_parts": [index for index, v in enumerate(self.distribution.variables) if _is_frozen(v)]}
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
        ("trainable", True), ("frozen", []), ("frozen_parts", [])))
    model = cls(**config)
    flows.freeze(model.distribution, [model.distribution.variables[index] for index in frozen[1]])
    if not is_trainable:
      model.trainable = False
    for index in frozen[0]:
      model.variables[index].trainable = False
    return model

  def get_compile_config(self):
    """What `compile_from_config` compiles the model with."""
    if not self.compiled:
      return {}
    optimizer = saving.keras_config(self.optimizer, "optimizer")
    return {"optimizer": optimizer, "is_built": self.optimizer.built, **self._compile_options}

  def compile_from_config(self, config):
    """Compiles the model as another was, of whose `get_compile_config` this is."""
    optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
    self.compile(optimizer, **{key: value for key, value in config.items() if key not in ("optimizer", "is_built")})
    if config["is_built"]:  # Then the file holds its variables.
      self._build_optimizer()


def _is_frozen(variable):
  return _compat.was_made_trainable(variable) and not variable.trainable

"""The state of a training run, kept in a folder."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import time
from typing import Any

import keras
import tensorflow as tf

from tfp_glow._core import files
from tfp_glow.training import replicas

# How TensorFlow's checkpoints name what is in them.
_PROGRESS_KEY = "progress/.ATTRIBUTES/py_state"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class TrainingState(keras.callbacks.Callback):
  """Keeps the state of training in a folder, so that a killed run can be resumed as if it had not stopped.

  Each epoch ends by writing the weights, all of the optimizer (its step, and so the position in a learning-rate
  schedule; moments; EMA), the history, and the seconds of training. The dequantization noise of `FlowModel` depends on
  the step. The order of the data depends on the epoch if `data.load_images` is given `epochs`. So a resumed run ends
  with the weights of an uninterrupted one. `StopOnPreemption` also writes the state within an epoch.

  Counters of other callbacks (the patience of `EarlyStopping`, the plateaus of `ReduceLROnPlateau`) are not kept,
  because Keras gives no access to them. A learning rate without a schedule is restored.

  Unlike the state of `keras.callbacks.BackupAndRestore`, this state is never half written: a new one is written beside
  the last one, which is kept. With several workers (`tf.distribute`) only the chief writes and reads; it tells the
  others.

  #### Example

  ```python
  import tempfile
  import tfp_glow

  glow = tfp_glow.GlowBijector(output_shape=(8, 8, 1), num_glow_blocks=1, num_steps_per_block=2, num_hidden=8)
  model = tfp_glow.FlowModel(glow, num_bits=4)
  model.compile("adam")
  state = tfp_glow.callbacks.TrainingState(tempfile.mkdtemp())
  epochs = range(state.restore(model), 2)      # From the first epoch that has not been finished.
  if epochs:
    images = tfp_glow.data.load_images("digits", "train", batch_size=256, epochs=epochs)
    model.fit(images, steps_per_epoch=len(images) // len(epochs), initial_epoch=epochs.start, epochs=epochs.stop,
              callbacks=[state])
  else:
    model.optimizer.finalize_variable_values(model.trainable_variables)  # As `fit` does at its end, for EMA.
  state.delete()
  ```

  Attributes:
    history: Python `dict`, from the names of metrics to their values after each epoch of the run, resumed or not.
    seconds: Python `float`, seconds of training until the state was last written, resumed or not.
    num_batches: Python `int`: number of batches of the next epoch in the restored state, 0 unless the state was written
      within that epoch. `fit` must then first get the rest of that epoch, as `StopOnPreemption` shows.
  """

  def __init__(self, folder: str | os.PathLike, settings: dict[str, Any] | None = None):
    """Creates the callback; it should come after callbacks that save something at the end of an epoch.

    Args:
      folder: Where the state is kept; it should hold nothing else.
      settings: What must not change within a run: a Python `dict` that JSON can hold.

    Raises:
      TypeError: if `folder` is not a path, or JSON cannot hold `settings`.
    """
    super().__init__()
    self.history = {}
    self.seconds = 0.
    self._folder = pathlib.Path(files.checked_path("folder", folder))
    try:
      self._settings = json.loads(json.dumps(settings))  # As they will be read: tuples become lists.
    except (TypeError, ValueError) as error:
      raise TypeError("`settings` must be a `dict` that JSON can hold, but: "
                      f"{error}. Received: {settings!r}") from error
    self._progress = _Progress()
    self._num_epochs = 0
    self._within = None  # For a state within an epoch: what `save` writes.

  @property
  def num_batches(self) -> int:
    """Number of batches of the next epoch in the state."""
    return self._within["num_batches"] if self._within else 0

  def exists(self) -> bool:
    """Whether there is a state to resume.

    Returns:
      Python `bool`.
    """
    return bool(self._complete())

  def restore(self, model: keras.Model) -> int:
    """Puts the last state, if any, into a model. Nothing changes unless all of it can be read and fits.

    Args:
      model: Keras model, built, and compiled with the optimizer to resume.

    Returns:
      Number of finished epochs, 0 if there is no state: the `initial_epoch` of `fit`.

    Raises:
      ValueError: if the model is not compiled, or the state is damaged or belongs to another model, optimizer or
        settings.
    """
    if not getattr(model, "compiled", False):
      raise ValueError(f"`model` must be compiled: its optimizer is part of the state. Received: {model!r}")
    self._checkpoint = _checkpoint_of(model, self._progress)
    strategy = model.distribute_strategy
    progress = replicas.run_on_chief(lambda: self._read(model), strategy)
    self._num_epochs = 0 if progress is None else progress["num_epochs"]
    self._within = None if progress is None else progress["within"]
    if progress is not None:
      replicas.take_from_chief([v.value for variables in _variables_of(model).values() for v in variables], strategy)
      self.history, self.seconds = progress["history"], progress["seconds"]
    return self._num_epochs

  def _read(self, model):
    """Puts the last state into the model and returns Python's part of it; `None` if there is no state."""
    complete = self._complete()
    if not complete:
      return None
    prefix = self._prefix(*complete[-1])
    try:
      # Read everything: TensorFlow compares checksums as it reads.
      reader = tf.train.load_checkpoint(prefix)
      tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:  # The reader raises all of them.
      remedy = f"to resume from epoch {_name_of(*complete[-2])}" if len(complete) > 1 else "to begin anew"
      raise ValueError(f"`folder` must hold a whole training state, but the last one is damaged: {error}. Delete the "
                       f"files {prefix}.* {remedy}. Received: {self._folder}") from error
    progress = json.loads(tensors.pop(_PROGRESS_KEY, "null"))
    if progress and progress["settings"] != self._settings:
      then, now = _differences(progress["settings"], self._settings)
      raise ValueError(f"`settings` must be those of the run whose training state is in {self._folder}: {then}. "
                       f"Received: {now}")
    if progress and progress["optimizer"] != _kind_of(model.optimizer):
      raise ValueError(f"`model` must be compiled with {progress['optimizer']}, as when its state was kept. "
                       f"Received: {_kind_of(model.optimizer)}")
    self._check_fits(model, tensors)
    self._checkpoint.read(prefix).assert_consumed()
    return {"within": None, **progress, "num_epochs": complete[-1][0]}

  def delete(self) -> None:
    """Removes the folder after the run."""
    shutil.rmtree(self._folder, ignore_errors=True)

  def on_train_begin(self, logs=None):
    if replicas.is_chief(self.model.distribute_strategy):
      self._folder.mkdir(parents=True, exist_ok=True)  # Fails now, not after an epoch.
    self._checkpoint = _checkpoint_of(self.model, self._progress)  # It may have been compiled anew.
    self._start = time.monotonic() - self.seconds
    self._is_checked = False

  def on_epoch_begin(self, epoch, logs=None):
    is_first = not self._is_checked
    if is_first:
      self._check_follows(epoch)
      self._is_checked = True
    self._is_resumed = is_first and self.num_batches > 0  # Within this epoch.
    self._num_batches_before = self.num_batches if is_first else 0
    self._epoch, self._num_batches = epoch, 0

  def _check_follows(self, epoch):
    kept = self._complete() if replicas.is_chief(self.model.distribute_strategy) else []
    if epoch != self._num_epochs or kept and kept[-1] != (epoch, self.num_batches):
      raise ValueError("`initial_epoch` must be what `restore` returned, and `folder` hold no other run. Received: "
                       f"epoch {epoch} after {self._num_epochs} finished ones, {self._folder} with states after "
                       f"[{', '.join(_name_of(*position) for position in kept)}]")
    if self._within and self._within["num_steps"] != self.params.get("steps"):
      raise ValueError(f"`steps_per_epoch` must be {self._within['num_steps']}, what is left of the epoch: the state "
                       f"was written after {self.num_batches} of its batches. Received: {self.params.get('steps')}")

  def on_train_batch_end(self, batch, logs=None):
    if self._is_resumed:  # Not earlier: Keras makes the variables of metrics in the first batch.
      _add_to_metrics(self.model, self._within["metrics"])
      self._is_resumed = False
    self._num_batches = batch + 1

  def on_epoch_end(self, epoch, logs=None):
    for name, value in (logs or {}).items():
      self.history.setdefault(name, []).append(float(value))
    # An epoch that was cut short would be taken for a complete one.
    num_batches = self.params.get("steps")
    is_whole = self._num_batches >= num_batches if num_batches else self._num_batches and not self.model.stop_training
    self.seconds = time.monotonic() - self._start
    if not is_whole:
      return
    self._within = None
    if replicas.is_chief(self.model.distribute_strategy):
      self._write(epoch + 1)
    self._num_epochs = epoch + 1

  def save(self) -> None:
    """Writes the state after the current batch. Call it within an epoch; training must end after it.

    All workers must call it after the same batch. It returns when the chief has written.

    Raises:
      OSError: if the state cannot be written.
    """
    num_steps = self.params.get("steps")
    self.seconds = time.monotonic() - self._start
    self._within = {"num_batches": self._num_batches_before + self._num_batches,
                    "num_steps": num_steps and num_steps - self._num_batches,
                    "metrics": _values_of_metrics(self.model)}
    replicas.run_on_chief(lambda: self._write(self._epoch), self.model.distribute_strategy)

  def _write(self, num_epochs):
    self._progress.value = {"settings": self._settings, "optimizer": _kind_of(self.model.optimizer),
                            "history": self.history, "seconds": self.seconds, "within": self._within}
    position, last = (num_epochs, self.num_batches), max(self._complete(), default=None)
    try:
      self._checkpoint.write(self._prefix(*position))
      for path in self._folder.glob("epoch-*"):
        if _position_of(path) not in (None, last, position):  # Also files that a killed run left unfinished.
          shutil.rmtree(path) if path.is_dir() else path.unlink()
    except (tf.errors.OpError, OSError) as error:
      kept = f"that after epoch {_name_of(*last)} is still there" if last else "there is none yet"
      raise OSError(f"`folder` must take the training state after epoch {_name_of(*position)}, but writing it failed "
                    f"({kept}): {error}. Received: {self._folder}") from error

  def _prefix(self, *position):
    return str(self._folder / f"epoch-{_name_of(*position)}")

  def _complete(self):
    """Positions of the complete states, in order: finished epochs, and batches of the next one.

    The index gets its name after all else is written.
    """
    return sorted(_position_of(path) for path in self._folder.glob("epoch-*.index") if _position_of(path) is not None)

  def _check_fits(self, model, tensors):
    expected = {_key(kind, i): (variable.path, tuple(variable.shape))
                for kind, variables in _variables_of(model).items() for i, variable in enumerate(variables)}
    found = {name: tensor.shape for name, tensor in tensors.items() if name.endswith(_VALUE)}
    odd = [f"{path} {shape}, not {found.get(name, 'there')}" for name, (path, shape) in expected.items()
           if found.get(name) != shape] + [f"no {name}" for name in found.keys() - expected.keys()]
    if odd:
      raise ValueError("`folder` must hold the training state of the same model and optimizer, or none: expected "
                       f"{'; '.join(odd[:3])}. Received: {self._folder}")


class _Progress(tf.train.experimental.PythonState):
  """Python's part of a checkpoint."""

  def __init__(self):
    super().__init__()
    self.value = {}

  def serialize(self):
    return json.dumps(self.value)

  def deserialize(self, string_value):
    self.value = json.loads(string_value)


def _variables_of(model):
  if not model.optimizer.built:
    with model.distribute_strategy.scope():
      model.optimizer.build(model.trainable_variables)
  return {"weights": model.weights, "optimizer": model.optimizer.variables}


def _checkpoint_of(model, progress):
  # By position: Keras' names depend on what else the process has made.
  variables = {kind: {str(i): variable.value for i, variable in enumerate(variables)}
               for kind, variables in _variables_of(model).items()}
  return tf.train.Checkpoint(progress=progress, **variables)


def _differences(first, second):
  """The differences of two settings."""
  if not (isinstance(first, dict) and isinstance(second, dict)):
    return first, second
  keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
  return tuple({key: settings.get(key) for key in keys} for settings in (first, second))


def _kind_of(optimizer):
  inner = getattr(optimizer, "inner_optimizer", None)
  return type(optimizer).__name__ + (f" of {_kind_of(inner)}" if inner else "")


def _key(kind, position):
  return f"{kind}/{position}{_VALUE}"


def _name_of(num_epochs, num_batches):
  """As in file names: `3`, or `3+17` for 17 batches of the fourth epoch."""
  return f"{num_epochs}+{num_batches}" if num_batches else f"{num_epochs}"


def _position_of(path):
  """Numbers of epochs and batches of one of our files, finished or not; `None` for other files."""
  match = re.fullmatch(r"epoch-(\d+)(?:\+(\d+))?([._][^ ]*)?", path.name)
  return (int(match[1]), int(match[2] or 0)) if match else None


def _values_of_metrics(model):
  """Sums since the start of the epoch. All replicas hold the same: see `FlowSteps`."""
  first = lambda v: model.distribute_strategy.experimental_local_results(v.value)[0]
  return [first(v).numpy().tolist() for metric in model.metrics for v in metric.variables]


def _add_to_metrics(model, values):
  """Adds sums, so that the epoch's means cover all its batches."""
  variables = [v for metric in model.metrics for v in metric.variables]
  for variable, value in zip(variables, values, strict=True):
    for local in model.distribute_strategy.experimental_local_results(variable.value):
      local.assign_add(value)

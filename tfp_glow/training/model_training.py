"""`FlowModel` with Keras: initialisation, `compile`, `fit`, `evaluate` and their like."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any

import keras
import tensorflow as tf

from tfp_glow._core import precision
from tfp_glow.likelihood import dequantize
from tfp_glow.storage import saving
from tfp_glow.training import batches, guard, replicas, summary
from tfp_glow.training.model_files import KeptInFiles

_DATASETS = (tf.data.Dataset, tf.distribute.DistributedDataset)


class TrainsWithKeras(KeptInFiles):
  """A model with the methods of `keras.Model`; `FlowModel` is made of it."""

  def compile(self, optimizer="adam", *, jit_compile="auto", **kwargs):
    """As `keras.Model.compile`, but the loss is fixed. Changes of the parts' `trainable` take effect.

    Args:
      optimizer: Keras optimizer, made under the scope of the model's `tf.distribute.Strategy`; or its name.
      jit_compile: Whether XLA compiles what each replica computes by itself: values, loss and gradients; on one device
        also the optimizer's update. `"auto"`: no XLA.
        XLA's convolutions are slower on CPUs, and it takes a minute to compile a deep flow on GPUs (see docs/gpu.md).
      **kwargs: `run_eagerly`, `steps_per_execution` (one with several replicas) and `auto_scale_loss` of
        `keras.Model.compile`.

    Raises:
      ValueError: if a loss or metrics are given, because the loss is bits per dimension; if `jit_compile` is not as
        above; or if several steps per execution or gradient accumulation are asked for with several replicas.
    """
    for key in ("loss", "loss_weights", "metrics", "weighted_metrics"):
      value = kwargs.pop(key, None)
      if value is not None:
        raise ValueError(f"`{key}` must not be given: the loss of a `FlowModel` is its bits per dimension. "
                         f"Received: {key}={value!r}")
    self._likelihood.check_trainable()
    self._sync_trainable()
    has_replicas = self._has_replicas()
    if jit_compile not in (True, False, "auto"):
      raise ValueError(f"`jit_compile` must be True, False or 'auto'. Received: {jit_compile!r}")
    for key, value in (("steps_per_execution", kwargs.get("steps_per_execution", 1)),
                       ("gradient_accumulation_steps", getattr(optimizer, "gradient_accumulation_steps", None))):
      if has_replicas and value not in (None, 1):
        raise ValueError(f"`{key}` must be 1 with several replicas: Keras cannot do more. "
                         f"Received: {key}={value!r}")
    self._compile_steps(optimizer, jit_compile != "auto" and bool(jit_compile), **kwargs)
    self._note_what_is_trained()
    self._compile_options = {"jit_compile": jit_compile, **kwargs}

  def get_compile_config(self):
    """The configuration that `compile_from_config` compiles the model with."""
    if not self.compiled:
      return {}
    optimizer = saving.keras_config(self.optimizer, "optimizer")
    return {"optimizer": optimizer, "is_built": self.optimizer.built, **self._compile_options}

  def compile_from_config(self, config):
    """Compiles the model like the one whose `get_compile_config` returned `config`."""
    optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
    self.compile(optimizer, **{key: value for key, value in config.items() if key not in ("optimizer", "is_built")})
    if config["is_built"]:  # The file then holds its variables.
      self._build_optimizer()

  def adapt(self, data: Any) -> None:
    """Data-dependent initialisation from one batch, of all flows in the distribution, wherever they are.

    They may be parts of compositions, follow one another, or be components of a mixture. The components of a mixture
    all get the same data. A hybrid model's classifier is also initialised.

    With several workers all must call it, each with its own batch or with the same one. The result is the chief's.

    Args:
      data: A batch, with its contexts if the model takes them; or a `tf.data.Dataset` or
        `tf.distribute.DistributedDataset`, whose first batch is used. The first batch of the latter is put together
        from the shares of all workers.

    Raises:
      TypeError: if the images or contexts do not have the dtypes that the model takes.
      ValueError: if `data` is empty, does not fit, or holds NaN or infinite values.
    """
    self._adapt(data, anew=True)

  def _adapt(self, data, anew):
    """As `adapt`; unless `anew`, an initialised flow is not changed."""
    with self.distribute_strategy.scope():
      batch = batches.first_batch(data, "data") if isinstance(data, _DATASETS) else data
      images, condition = batches.unpack(batch)
      values = self._likelihood.to_values(images, self._noise_seed(dequantize.INITIALIZATION))
      spec = self._likelihood.spec
      context = batches.checked_context(spec, spec.taken(condition).get("context"), len(values))
      replicas.run_on_chief(lambda: self._initialize(values, context, anew), self.distribute_strategy)
      self._mark_adapted()
    of_classifier = [v.value for v in self.classifier.weights] if self._is_hybrid else []
    replicas.take_from_chief([*self._likelihood.variables, *of_classifier], self.distribute_strategy)

  def _initialize(self, values, context, anew):
    batches.check_finite("data", values)
    with precision.switched_off():
      if anew or not self._likelihood.is_initialized:
        self._likelihood.initialize(values, context)
      if self._is_hybrid:
        self.classifier.initialize(self._likelihood.features_of_scales(values, {"context": context}))

  def fit(self, x=None, y=None, batch_size=None, epochs=1, **kwargs):
    """As `keras.Model.fit`; initialises from the first batch if `adapt` has not been called.

    If `x` is an array of vectors, it initialises from 10,000 of them, or all if there are fewer. The array is divided
    into as many equal parts, and one vector is drawn from each, with a fixed seed.

    Args:
      x: Images, a `tf.data.Dataset` of batches, or any other input of `keras.Model.fit`. With several workers it may
        be what `strategy.distribute_datasets_from_function` makes of `load_images`: each worker then reads its share.
      y: If `x` is an array: labels, or a dict of labels and contexts, as in a batch (see `FlowModel`). Whatever the
        model does not take is ignored, for example the labels of a model without classes: `fit(x, y)` is then `fit(x)`.
      batch_size: Python `int`, if `x` is an array.
      epochs: Python `int`.
      **kwargs: Of `keras.Model.fit`.

    Returns:
      `keras.callbacks.History`.

    Raises:
      FloatingPointError: if the loss or a gradient of a training step is not finite. The message names the step, and
        the quantity and layer where it began. Weights and optimizer are as they were before that step.
      ValueError: if `x` is empty or does not fit, or repeats forever without `steps_per_epoch` (-1: one endless epoch);
        if the model is not compiled, or a part of it has been frozen or unfrozen since it was compiled.
    """
    self._check_is_compiled("fit")
    self._check_trains_as_compiled()
    batches.check_data(self._data_spec, x, y, batch_size, kwargs)
    batches.check_ends(x, "steps_per_epoch", kwargs)
    if kwargs.get("validation_data") is not None:
      validation_x, validation_y, _ = keras.utils.unpack_x_y_sample_weight(kwargs["validation_data"])
      batches.check_data(self._data_spec, validation_x, validation_y, kwargs.get("validation_batch_size"), {}, True)
      batches.check_ends(validation_x, "validation_steps", kwargs)
    if self._needs_adapt():
      with self.distribute_strategy.scope():
        batch, x = batches.batch_to_adapt(self._likelihood.spec, x, y, batch_size)
      self._adapt(batch, anew=False)
    self._build_optimizer()
    if isinstance(x, _DATASETS):
      kwargs.setdefault("shuffle", False)  # Keras would warn that it does not shuffle them.
    # Keras does not tell callbacks such as `StopOnInterrupt` and `StopOnPreemption` of errors.
    with _signal_handlers_kept(signal.SIGINT, signal.SIGTERM), self._stop_unless_finite.failure_named():
      history = super().fit(x, y, batch_size=batch_size, epochs=epochs, **kwargs)
    # Keras has just replaced the weights by their averages, also if it scales the loss.
    if getattr(self.optimizer, "inner_optimizer", self.optimizer).use_ema:
      with self.distribute_strategy.scope():
        self._likelihood.after_update()
    return history

  def make_train_function(self, force=False):
    """As `keras.Model.make_train_function`; with several replicas, without Keras' exchanges between them."""
    if not self._has_replicas():
      return super().make_train_function(force)
    if self.train_function is None or force:
      self.train_function = replicas.function_of_iterator(
          self.train_step, self.distribute_strategy, self.run_eagerly)
    return self.train_function

  def make_test_function(self, force=False):
    """As `make_train_function`, for `evaluate`."""
    if not self._has_replicas():
      return super().make_test_function(force)
    if self.test_function is None or force:
      self.test_function = replicas.function_of_iterator(
          self.test_step, self.distribute_strategy, self.run_eagerly)
    return self.test_function

  def train_on_batch(self, x, y=None, **kwargs):
    """As `keras.Model.train_on_batch`; initialises from the batch if `adapt` has not been called.

    Args:
      x: Images.
      y: Labels, or a dict of labels and contexts, as in `fit`.
      **kwargs: Of `keras.Model.train_on_batch`.

    Returns:
      Loss and metrics, as `keras.Model.train_on_batch` does.

    Raises:
      FloatingPointError: as `fit`.
      ValueError: if `x` is empty or does not fit, or the model is not compiled.
    """
    self._check_is_compiled("train_on_batch")
    self._check_trains_as_compiled()
    batches.check_data(self._data_spec, x, y, None, kwargs)
    if self._needs_adapt():
      self._adapt(x if y is None else (x, y), anew=False)
    self._build_optimizer()
    with self._stop_unless_finite.failure_named():
      return super().train_on_batch(x, y, **kwargs)

  def evaluate(self, x=None, y=None, batch_size=None, **kwargs):
    """As `keras.Model.evaluate`; the dequantization noise is the same each time.

    Args:
      x: As in `fit`.
      y: As in `fit`.
      batch_size: As in `fit`.
      **kwargs: Of `keras.Model.evaluate`.

    Returns:
      Loss and metrics; with `return_dict=True` a dict, which has the key `"bits_per_dim"`.

    Raises:
      ValueError: if `x` is empty, does not fit, is an array with NaN or infinite values, or repeats forever without
        `steps`; or if the model is not compiled.
    """
    self._check_is_compiled("evaluate")
    batches.check_data(self._data_spec, x, y, batch_size, kwargs, must_be_finite=True)
    batches.check_ends(x, "steps", kwargs)
    with precision.switched_off(), guard.checks_told_briefly():
      return super().evaluate(x, y, batch_size=batch_size, **kwargs)

  def predict(self, x, batch_size=None, **kwargs):
    """As `keras.Model.predict`: bits per dimension of each image, `[N]`.

    `evaluate` returns their mean (if log-dets are estimated, only with the same batch size).

    Args:
      x: As in `fit`; class-conditional and conditional models take datasets, or dicts of arrays.
      batch_size: As in `fit`.
      **kwargs: Of `keras.Model.predict`.

    Returns:
      NumPy array `[N]`, bits per dimension.

    Raises:
      ValueError: if `x` is empty, does not fit, is an array with NaN or infinite values, or repeats forever without
        `steps`.
    """
    batches.check_data(self._likelihood.spec, x, None, batch_size, kwargs, must_be_finite=True)
    batches.check_ends(x, "steps", kwargs)
    with precision.switched_off(), guard.checks_told_briefly():
      return super().predict(x, batch_size=batch_size, **kwargs)

  def test_on_batch(self, x, y=None, **kwargs):
    """As `keras.Model.test_on_batch`; see `evaluate`.

    Args:
      x: Images.
      y: Labels, or a dict of labels and contexts, as in `fit`.
      **kwargs: Of `keras.Model.test_on_batch`.

    Returns:
      Loss and metrics, as `keras.Model.test_on_batch` does.

    Raises:
      ValueError: as `evaluate`.
    """
    self._check_is_compiled("test_on_batch")
    batches.check_data(self._data_spec, x, y, None, kwargs, must_be_finite=True)
    with precision.switched_off(), guard.checks_told_briefly():
      return super().test_on_batch(x, y, **kwargs)

  def predict_on_batch(self, x):
    """As `keras.Model.predict_on_batch`; see `predict`.

    Args:
      x: Images.

    Returns:
      NumPy array `[N]`, bits per dimension.
    """
    with precision.switched_off(), guard.checks_told_briefly():
      return super().predict_on_batch(x)

  def summary(self, line_length=None, positions=None, print_fn=None, expand_nested=False, show_trainable=False,
              layer_range=None):
    """Prints levels and steps of the flow, shapes and numbers of parameters, in the order from images to latents.

    The parts of one step of a `Scan` stand for all of its steps. Shapes are those that a part's `inverse` returns. If
    networks train in a lower precision than that of the flow, a last line says so: `fit` then reports bits per
    dimension in the lower precision, `evaluate` in that of the flow.

    Args:
      line_length: Python `int`, width of the table; `None`: as wide as needed.
      positions: Ignored: columns are as wide as needed.
      print_fn: Callable, called with each line; `None`: `print`.
      expand_nested: Python `bool`: whether each weight of a coupling's network has a line.
      show_trainable: Python `bool`: whether to show which parts are trained.
      layer_range: Ignored: the parts of a flow are not Keras layers.
    """
    del positions, layer_range
    self._sync_trainable()
    rows = summary.rows_of(self._likelihood.distribution, [*self.layers, *self.weights], with_weights=expand_nested)
    optimizer_variables = self.optimizer.variables if self.compiled else []
    text = summary.text_of(f'Model: "{self.name}"', rows, summary.totals_of(self.weights, optimizer_variables),
                           line_length, show_trainable)
    for line in [*text.splitlines(), *summary.notes_on_precision(self._likelihood.distribution)]:
      (print_fn or print)(line)

  def _has_replicas(self):
    return self.distribute_strategy.num_replicas_in_sync > 1

  def _check_is_compiled(self, method):
    if not self.compiled:
      raise ValueError(f"You must call `compile()` before calling `{method}()`.")


@contextlib.contextmanager
def _signal_handlers_kept(*numbers):
  """Restores the previous handlers of signals; only in the main thread, because no other may set them."""
  handlers = {number: signal.getsignal(number) for number in numbers}
  try:
    yield
  finally:
    for number, handler in handlers.items():
      if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)

"""Ends training when a cluster wants the machine back."""

from __future__ import annotations

import signal

import keras

from tfp_glow.training import replicas
from tfp_glow.training.callbacks.signals import FirstSignal
from tfp_glow.training.callbacks.training_state import TrainingState
from tfp_glow.training.notice import Notice


class StopOnPreemption(keras.callbacks.Callback):
  """Writes the state of training after the current batch at SIGTERM; the program then ends, to be started again.

  SLURM and Kubernetes send SIGTERM some time before they take a machine away. The program's exit code is then 143, as
  usual after a SIGTERM: Kubeflow's `restartPolicy: ExitCode` starts it again. With several workers (`tf.distribute`)
  one signal is enough: all workers learn of it from the exchange of their gradients, and end after the same batch.

  A second SIGTERM acts as if there were no callback, as does one before or after training. A SIGTERM after the last
  batch of `fit` is passed on at the end of `fit`, when the state of the last epoch has been written.

  #### Example

  The run ends with the same weights, however often it was ended and restarted:

  ```python
  import tempfile
  import tfp_glow

  NUM_EPOCHS = 2
  model = tfp_glow.FlowModel(tfp_glow.GlowBijector((8, 8, 1), num_glow_blocks=1, num_steps_per_block=2, num_hidden=8),
                             num_bits=4)
  model.compile("adam")
  state = tfp_glow.callbacks.TrainingState(tempfile.mkdtemp())

  def fit(epochs, num_batches):
    images = tfp_glow.data.load_images("digits", "train", batch_size=256, epochs=epochs,
                                       skip_batches=num_batches)
    model.fit(images, steps_per_epoch=len(images) // len(epochs),
              initial_epoch=epochs.start, epochs=epochs.stop,
              callbacks=[state, tfp_glow.callbacks.StopOnPreemption(state)])

  first = state.restore(model)
  while first < NUM_EPOCHS:
    stop = first + 1 if state.num_batches else NUM_EPOCHS    # First the rest of an epoch that was begun.
    fit(range(first, stop), state.num_batches)
    # If the optimizer keeps averages of weights, the end of `fit` has replaced the weights by them.
    first = state.restore(model) if stop < NUM_EPOCHS else stop
  ```
  """

  EXIT_CODE = 128 + signal.SIGTERM

  def __init__(self, state: TrainingState):
    """Creates the callback; it should come after the others, because it ends the program.

    Args:
      state: `TrainingState`, a callback of the same `fit`.

    Raises:
      TypeError: if `state` is something else.
    """
    super().__init__()
    if not isinstance(state, TrainingState):
      raise TypeError(f"`state` must be a `TrainingState`. Received: {state!r}")
    self._state = state
    self._notice = Notice()
    self._signal = FirstSignal(signal.SIGTERM, self._give_notice)

  def on_train_begin(self, logs=None):
    self._has_workers = replicas.has_workers(self.model.distribute_strategy)
    if self._has_workers and not hasattr(self.model, "notice"):
      raise ValueError(f"`model` must be a `FlowModel` to be trained by several workers. Received: {self.model!r}")
    self._notice = self.model.notice if self._has_workers else Notice()
    self._notice.is_given = self._notice.has_come = False
    self._signal.begin()

  def on_train_end(self, logs=None):
    self._signal.end()
    if self._notice.is_given:
      signal.raise_signal(signal.SIGTERM)

  def on_train_batch_end(self, batch, logs=None):
    is_last = batch + 1 == self.params.get("steps")  # After it and validation, the state is written anyway.
    if self._must_end() and not is_last:
      self._state.save()
      self._end()

  def on_epoch_end(self, epoch, logs=None):
    if self._must_end() and not self.model.stop_training:
      self._end()

  def _must_end(self):
    """Whether all workers know of the signal."""
    return self._notice.has_come or self._notice.is_given and not self._has_workers

  def _give_notice(self):
    self._notice.is_given = True
    print("\nSIGTERM: training ends with this batch.", flush=True)

  def _end(self):
    self._signal.end()
    if replicas.is_chief(self.model.distribute_strategy):
      print("The state of training is written: the program goes on from there when it is started again.", flush=True)
    raise SystemExit(self.EXIT_CODE)

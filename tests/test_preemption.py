"""Runs that a cluster ends by SIGTERM, and starts again."""

import signal

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow
from tfp_glow import callbacks

IMAGES = small_models.images(20)
NUM_STEPS = 3  # An epoch.


class _At(keras.callbacks.Callback):
  """A SIGTERM at the beginning of a batch, counted from the first of the first epoch, or at the end of an epoch."""

  def __init__(self, batch=None, epoch=None):
    super().__init__()
    self._batch, self._epoch = batch, epoch

  def on_train_batch_begin(self, batch, logs=None):
    if self._batch is not None and self._batch == self.model.optimizer.iterations:
      signal.raise_signal(signal.SIGTERM)

  def on_epoch_end(self, epoch, logs=None):
    if epoch == self._epoch:
      signal.raise_signal(signal.SIGTERM)


def _data(epochs):
  batches = [IMAGES[i:i + 8] for i in range(0, 20, 8)]
  order = tf.concat([np.random.default_rng(epoch).permutation(NUM_STEPS) for epoch in epochs], axis=0)
  return tf.data.Dataset.from_generator(lambda: (batches[i] for i in order.numpy()),
                                        output_signature=tf.TensorSpec([None, *small_models.SHAPE], tf.uint8))


def _fit(model, state, epochs, *others):
  model.fit(_data(epochs).skip(state.num_batches), steps_per_epoch=NUM_STEPS - state.num_batches,
            initial_epoch=epochs.start, epochs=epochs.stop, verbose=0,
            callbacks=[*others, state, callbacks.StopOnPreemption(state)])


def _model():
  schedule = keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=12)
  optimizer = keras.optimizers.Adam(schedule, use_ema=True, ema_momentum=0.5)
  return small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), optimizer, run_eagerly=True)


def _run(folder, *others, num_epochs=4):
  """Resumes a run with a new model; returns the model and the callback."""
  model, state = _model(), callbacks.TrainingState(folder)
  first = state.restore(model)
  while first < num_epochs:
    stop = first + 1 if state.num_batches else num_epochs
    _fit(model, state, range(first, stop), *others)
    first = state.restore(model) if stop < num_epochs else stop
  return model, state


def _everything_in(model):
  return [v.numpy() for v in model.weights + model.optimizer.variables]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that was not interrupted."""
  return _run(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("at, kept", [
    ({"batch": 1}, "epoch-0+2"), ({"batch": 2}, "epoch-1"), ({"batch": 6}, "epoch-2+1"), ({"epoch": 1}, "epoch-2")],
    ids=str)
def test_a_run_that_was_ended_comes_to_the_same_weights(whole, at, kept, tmp_path):
  """Also the epoch's means are those of all its batches."""
  with pytest.raises(SystemExit) as end:
    _run(tmp_path, _At(**at))
  assert end.value.code == 143
  assert max(path.stem for path in tmp_path.glob("*.index")) == kept
  model, state = _run(tmp_path)
  for found, expected in zip(_everything_in(model), _everything_in(whole[0]), strict=True):
    np.testing.assert_array_equal(found, expected)
  assert state.history == whole[1].history
  assert state.num_batches == 0


@pytest.mark.slow
def test_a_run_may_be_ended_twice_in_an_epoch(whole, tmp_path):
  for batch in (0, 1):
    with pytest.raises(SystemExit):
      _run(tmp_path, _At(batch))
  assert sorted(path.stem for path in tmp_path.glob("*.index")) == ["epoch-0+1", "epoch-0+2"]
  model, state = _run(tmp_path)
  for found, expected in zip(_everything_in(model), _everything_in(whole[0]), strict=True):
    np.testing.assert_array_equal(found, expected)
  assert state.history == whole[1].history


@pytest.mark.slow
def test_a_signal_after_the_last_batch_is_passed_on(tmp_path):
  received = []
  before = signal.signal(signal.SIGTERM, lambda *_: received.append("passed on"))
  try:
    state = callbacks.TrainingState(tmp_path)
    _model().fit(IMAGES, batch_size=8, verbose=0, callbacks=[state, callbacks.StopOnPreemption(state), _At(epoch=0)])
    assert received == ["passed on"]
    _run(tmp_path, num_epochs=2)
    signal.raise_signal(signal.SIGTERM)
    assert received == 2 * ["passed on"]
  finally:
    signal.signal(signal.SIGTERM, before)


def test_the_rest_of_an_epoch_comes_first(tmp_path):
  with pytest.raises(SystemExit):
    _run(tmp_path, _At(batch=0))
  model, state = _model(), callbacks.TrainingState(tmp_path)
  assert state.restore(model) == 0 and state.num_batches == 1
  with pytest.raises(ValueError, match="`steps_per_epoch` must be 2, what is left of the epoch.*1 of its.*Received: 3"):
    model.fit(_data(range(4)), steps_per_epoch=NUM_STEPS, epochs=4, verbose=0, callbacks=[state])
  assert model.optimizer.iterations == 1


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_signal_as_it_was(tmp_path):
  """The same callback may be used again."""

  class Fail(keras.callbacks.Callback):

    def on_train_batch_end(self, batch, logs=None):
      raise ArithmeticError

  before = signal.getsignal(signal.SIGTERM)
  model, state = _model(), callbacks.TrainingState(tmp_path)
  stop = callbacks.StopOnPreemption(state)
  with pytest.raises(ArithmeticError):
    model.fit(IMAGES, batch_size=8, verbose=0, callbacks=[state, stop, Fail()])
  assert signal.getsignal(signal.SIGTERM) is before
  with pytest.raises(SystemExit):
    model.fit(IMAGES, batch_size=8, verbose=0, callbacks=[_At(batch=1), state, stop])


@pytest.mark.slow
def test_without_a_state():
  with pytest.raises(TypeError, match="`state` must be a `TrainingState`. Received: 'folder'"):
    callbacks.StopOnPreemption("folder")

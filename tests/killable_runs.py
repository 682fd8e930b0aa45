"""Training runs that are killed."""

import signal
import sys

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

NUM_EPOCHS, STEPS_PER_EPOCH = 60, 6


def train(folder, result):
  """Trains to the last epoch, from the state in `folder` if there is one, and writes all variables to `result`."""
  tf.config.experimental.enable_op_determinism()  # Needed on a GPU.
  # Between two calls of `fit` a SIGTERM ends the process with the same exit code.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(tfp_glow.callbacks.StopOnPreemption.EXIT_CODE))
  # Large, so that a kill can hit the writing of the state.
  parts = tf.Variable(tf.random.stateless_normal([8, 8, 1, 10_000], [0, 0]), name="parts")
  mean = tfp.util.DeferredTensor(parts, lambda parts: tf.reduce_mean(parts, -1), shape=[8, 8, 1])
  model = tfp_glow.FlowModel(tfp.distributions.Independent(tfp.distributions.Normal(mean, 1.), 3), num_bits=4)
  schedule = keras.optimizers.schedules.CosineDecay(1e-2, STEPS_PER_EPOCH * NUM_EPOCHS)
  model.compile(keras.optimizers.Adam(schedule, use_ema=True, ema_momentum=0.9), run_eagerly=True)
  state = tfp_glow.callbacks.TrainingState(folder, {"num_epochs": NUM_EPOCHS})
  first = state.restore(model)
  while first < NUM_EPOCHS:
    stop = first + 1 if state.num_batches else NUM_EPOCHS
    _fit(model, state, range(first, stop))
    first = state.restore(model)
  # `fit` does this at its end; the state was written before.
  model.optimizer.finalize_variable_values(model.trainable_variables)
  variables = {str(i): v.numpy() for i, v in enumerate(model.weights + model.optimizer.variables)}
  np.savez(result, learning_rate=model.optimizer.learning_rate, loss=state.history["loss"], **variables)


def _fit(model, state, epochs):
  images = tfp_glow.data.load_images("digits", "train", 240, epochs=epochs, skip_batches=state.num_batches)
  model.fit(images, steps_per_epoch=STEPS_PER_EPOCH - state.num_batches, initial_epoch=epochs.start,
            epochs=epochs.stop, verbose=0, callbacks=[state, tfp_glow.callbacks.StopOnPreemption(state)])

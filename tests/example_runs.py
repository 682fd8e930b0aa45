"""Runs of `examples/train_glow.py` with a small flow, for tests of the run and not of the flow."""

import os
import pathlib
import runpy
import sys

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow import callbacks

SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "train_glow.py"
TINY = ["--num-blocks=1", "--num-steps=1", "--num-hidden=4", "--batch-size=256"]


def flow(output_shape, *_, seed=0, **__):
  """In place of a Glow: it starts at random, must be initialised, and is traced fast."""
  shift = tfp.bijectors.Shift(tf.Variable(0.1 * tf.random.stateless_normal(output_shape, [seed, 0]), name="shift"))
  return tfp_glow.Chain([tfp_glow.ActNorm(output_shape[-1]), shift,
                         tfp.bijectors.Reshape(output_shape, [int(np.prod(output_shape))])])


class _SignalInTheSecondEpoch(callbacks.TrainingState):
  """Its process gets the signal `number`, as if from outside, but always at the same step."""

  number = None

  def on_epoch_begin(self, epoch, logs=None):
    super().on_epoch_begin(epoch, logs)
    self._is_second = epoch == 1

  def on_train_batch_end(self, batch, logs=None):
    super().on_train_batch_end(batch, logs)
    if self._is_second and batch == 2:
      os.kill(os.getpid(), self.number)


def run_script(*options, ended_by=None):
  """The program, in a process of its own; it may get a signal in the second epoch."""
  tfp_glow.GlowBijector = flow
  if ended_by:
    _SignalInTheSecondEpoch.number = ended_by
    callbacks.TrainingState = _SignalInTheSecondEpoch
  sys.argv = [str(SCRIPT), *TINY, *options]
  runpy.run_path(str(SCRIPT), run_name="__main__")

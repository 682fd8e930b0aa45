"""What a model reports of its steps: means over images, whatever their replicas."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfp_glow._core import _compat


class Mean(NamedTuple):
  """A metric.

  Attributes:
    name: Python `str`.
    direction: `"down"` or `"up"`, where it goes if training goes well.
    column: Python `int`, of the terms that it is the mean of.
    column_of_weights: Python `int`, of the images that count for it, the terms of all others are 0; `None`: all do.
  """
  name: str
  direction: str
  column: int
  column_of_weights: int | None = None


class Means:
  """The mean of the losses, and those of the terms that they are made of.

  (A plain object: of its attributes Keras does not make metrics of the model once more.)
  """

  def __init__(self, means):
    """Creates them, to be done under the scope of the model's strategy.

    Args:
      means: List of `Mean`s.
    """
    self.loss = keras.metrics.Mean(name="loss")
    self.terms = [_MeanOfColumn(mean) for mean in means]
    for metric, mean in zip(self.terms, means):
      _compat.set_direction(metric, mean.direction)


class _MeanOfColumn(keras.metrics.Mean):
  """Of terms `[N, K]`, weighted: a metric for `compile`, of which alone callbacks learn a direction."""

  def __init__(self, mean):
    super().__init__(name=mean.name)
    self._columns = mean.column, mean.column_of_weights

  def update_state(self, weights, terms, sample_weight=None):
    column, column_of_weights = self._columns
    columns = tf.unstack(terms, axis=1)
    values = columns[column]
    if column_of_weights is not None:  # Rows may be means of many images, some of which count.
      values = tf.math.divide_no_nan(values, columns[column_of_weights])
      weights = weights * columns[column_of_weights]
    super().update_state(values, sample_weight=weights)

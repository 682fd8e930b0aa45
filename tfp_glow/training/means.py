"""The metrics of a model: means over images, independent of the replicas that the images are on."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfp_glow._core import _compat


class Mean(NamedTuple):
  """A metric.

  Attributes:
    name: Python `str`.
    direction: `"down"` or `"up"`: where it goes if training goes well.
    column: Python `int`, the column of the terms whose mean it is.
    column_of_weights: Python `int`, the column that is 1 for images that count in it. The terms of all others are 0.
      `None`: all images count.
  """
  name: str
  direction: str
  column: int
  column_of_weights: int | None = None


class Means:
  """The mean of the losses, and the means of the terms of the losses.

  (It is a plain object, so that Keras does not add its attributes to the metrics of the model a second time.)
  """

  def __init__(self, means):
    """Creates the metrics; call it under the scope of the model's strategy.

    Args:
      means: List of `Mean`s.
    """
    self.loss = keras.metrics.Mean(name="loss")
    self.terms = [_MeanOfColumn(mean) for mean in means]
    for metric, mean in zip(self.terms, means):
      _compat.set_direction(metric, mean.direction)


class _MeanOfColumn(keras.metrics.Mean):
  """Weighted mean of a column of terms `[N, K]`. Callbacks know a direction only of metrics given to `compile`."""

  def __init__(self, mean):
    super().__init__(name=mean.name)
    self._columns = mean.column, mean.column_of_weights

  def update_state(self, weights, terms, sample_weight=None):
    column, column_of_weights = self._columns
    columns = tf.unstack(terms, axis=1)
    values = columns[column]
    if column_of_weights is not None:  # Rows may be means over many images, of which only some count.
      values = tf.math.divide_no_nan(values, columns[column_of_weights])
      weights = weights * columns[column_of_weights]
    super().update_state(values, sample_weight=weights)

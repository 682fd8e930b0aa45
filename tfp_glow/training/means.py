"""What a model reports of its steps: means over images, whatever their replicas."""

import keras
import tensorflow as tf

from tfp_glow._core import _compat
from tfp_glow.training import replicas


class Means:
  """The mean of the losses, and that of each of the terms that they are made of.

  (A plain object: of its attributes Keras does not make metrics of the model once more.)
  """

  def __init__(self, directions):
    """Creates them, to be done under the scope of the model's strategy.

    Args:
      directions: Dict, from the name of each term to `"down"` or `"up"`: where it goes if training goes well.
    """
    self.loss = keras.metrics.Mean(name="loss")
    self.terms = [_mean_of_column(column, name) for column, name in enumerate(directions)]
    for mean, direction in zip(self.terms, directions.values()):
      _compat.set_direction(mean, direction)

  def over_replicas(self, strategy):
    """Dict of scalars, or tensors `[1]` with several workers; to be called in each replica."""
    means = [self.loss, *self.terms]
    # Keras would report the mean of the replicas' means, however many images each has seen.
    sums = replicas.sum_over_replicas([tf.stack([mean.total.value, mean.count.value]) for mean in means])
    values = [tf.math.divide_no_nan(total, count) for total, count in map(tf.unstack, sums)]
    if replicas.has_workers(strategy):
      # Keras averages over the workers by `strategy.reduce(..., axis=0)`: not a scalar.
      values = [value[tf.newaxis] for value in values]
    return {mean.name: value for mean, value in zip(means, values)}


def _mean_of_column(column, name):
  """Of terms `[N, K]`: a metric for `compile`, of which alone callbacks learn a direction."""
  return keras.metrics.MeanMetricWrapper(lambda _, terms: terms[:, column], name=name)

"""What a model reports of its steps: means over images, whatever their replicas."""

import keras

from tfp_glow._core import _compat


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
    self.terms = [_MeanOfColumn(column, name) for column, name in enumerate(directions)]
    for mean, direction in zip(self.terms, directions.values()):
      _compat.set_direction(mean, direction)


class _MeanOfColumn(keras.metrics.Mean):
  """Of terms `[N, K]`, weighted: a metric for `compile`, of which alone callbacks learn a direction."""

  def __init__(self, column, name):
    super().__init__(name=name)
    self._column = column

  def update_state(self, weights, terms, sample_weight=None):
    super().update_state(terms[:, self._column], sample_weight=weights)

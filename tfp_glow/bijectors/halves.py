"""`Halves`: the two parts of the channels that couplings tell apart, and products of them."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfp_glow._core.products import flow_matmul, rows, with_rows
from tfp_glow.networks.glow import append_ones


class Halves(NamedTuple):
  """The channels of a batch in two tensors, the first with a channel of ones behind it.

  ```none
                     C channels                                 first              second
  [N, ..., C]    | a a a | b b b |    enter     [N, ..., C // 2 + 1] | a a a 1 |   [N, ..., C - C // 2] | b b b |
                                      leave
  ```

  To put the parts together and apart in every step would take longer than to change them. The ones are what
  `networks.ActNormConv2D` sees the border by, and what carries the bias of a product.
  """
  first: tf.Tensor
  second: tf.Tensor

  @classmethod
  def enter(cls, values):
    """From `[N, ..., C]`."""
    first, second = tf.split(values, [values.shape[-1] // 2, -1], axis=-1)
    return cls(append_ones(first), second)

  def leave(self):
    """To `[N, ..., C]`."""
    return tf.concat([self.first[..., :-1], self.second], axis=-1)

  def matmul(self, matrix):
    """`z @ matrix + bias` of the whole `z`, as `Halves`; of what `HalvesMatrix.of` made of these two."""
    product = flow_matmul(rows(self.first), matrix.top) + flow_matmul(rows(self.second), matrix.bottom)
    return Halves(*tf.split(with_rows(product, self.first), [self.first.shape[-1], -1], axis=-1))

  def undo_matmul(self, matrix, matrix_back, d_product):
    """From what `matmul` returned, which this is, and the gradients of that.

    Args:
      matrix: `HalvesMatrix` that was given to `matmul`.
      matrix_back: That of the inverse map.
      d_product: `Halves`.

    Returns:
      inputs: `Halves` that `matmul` was called on.
      d_inputs: The gradients with respect to them, `Halves`.
      d_matrix: Those with respect to the matrix, `HalvesMatrix`.
    """
    inputs, d_rows = self.matmul(matrix_back), rows(tf.concat(d_product, axis=-1))
    d_inputs = Halves(*(with_rows(flow_matmul(d_rows, part, transpose_b=True), half)
                        for part, half in zip(matrix, inputs)))
    return inputs, d_inputs, HalvesMatrix(*(flow_matmul(rows(half), d_rows, transpose_a=True) for half in inputs))


class HalvesMatrix(NamedTuple):
  """The matrix of `Halves.matmul`, its rows in two tensors.

  ```none
               C // 2    1   C - C // 2
             |   W11   | 0 |   W12   |  C // 2
  top        |   b1    | 1 |   b2    |  1           the ones add the bias, and stay
  bottom     |   W21   | 0 |   W22   |  C - C // 2
  ```
  """
  top: tf.Tensor
  bottom: tf.Tensor

  @classmethod
  def of(cls, matrix, bias):
    """From `[..., C, C]` and `[..., C]`."""
    where, batch = matrix.shape[-1] // 2, matrix.shape[:-2].as_list()
    upper, lower, biases = tf.split(tf.concat([matrix, tf.expand_dims(bias, -2)], axis=-2), [where, -1, 1], axis=-2)
    left, right = tf.split(tf.concat([upper, biases, lower], axis=-2), [where, -1], axis=-1)
    size = matrix.shape[-1] + 1
    ones = np.broadcast_to(np.eye(size)[:, where:where + 1], batch + [size, 1])
    square = tf.concat([left, tf.constant(ones, matrix.dtype), right], axis=-1)
    return cls(*tf.split(square, [where + 1, -1], axis=-2))

"""The two halves of a coupling's channels in one tensor, with a channel of ones between them, and products of it.

```none
[N, ..., C]    | a a a | b b b |    `enter`    [N, ..., C + 1]    | a a a 1 | b b b |
                                    `leave`                          kept    changed
```

`a` are the first `C // 2` channels, which a coupling keeps. By the ones `networks.ActNormConv2D` sees the border. They
also carry the bias of a product, so that an affine map of the channels is one matrix.
"""

import numpy as np
import tensorflow as tf

from tfp_glow._core.products import channel_product, flow_dtype, flow_matmul, rows, with_rows
from tfp_glow.networks.glow import append_ones


def enter(values):
  """From `[N, ..., C]`."""
  kept, changed = tf.split(values, [values.shape[-1] // 2, -1], axis=-1)
  return joined(append_ones(kept), changed)


def leave(halves):
  """To `[N, ..., C]`."""
  kept, _, changed = tf.split(halves, [(halves.shape[-1] - 1) // 2, 1, -1], axis=-1)
  return tf.concat([kept, changed], axis=-1)


def parts(halves):
  """The kept channels, with the ones, `[N, ..., C // 2 + 1]`; and the changed ones, `[N, ..., C - C // 2]`."""
  kept, changed = tf.split(halves, [(halves.shape[-1] - 1) // 2 + 1, -1], axis=-1)
  return kept, changed


def joined(kept, changed):
  """The inverse of `parts`."""
  return tf.concat([kept, changed], axis=-1)


def affine_matrix(matrix, bias):
  """The matrix `[..., C + 1, C + 1]` that computes `z @ matrix + bias` on a tensor from `enter`.

  Args:
    matrix: Tensor `[..., C, C]`.
    bias: Tensor `[..., C]`.

  Returns:
    Tensor of `flow_dtype`: see `flow_matmul`.
  """
  where, size = matrix.shape[-1] // 2, matrix.shape[-1] + 1
  of_kept, of_changed = tf.split(matrix, [where, -1], axis=-2)
  affine = tf.cast(tf.concat([of_kept, tf.expand_dims(bias, -2), of_changed], axis=-2), flow_dtype(bias.dtype))
  to_kept, to_changed = tf.split(affine, [where, -1], axis=-1)
  to_ones = np.broadcast_to(np.eye(size)[:, where:where + 1], matrix.shape[:-2].as_list() + [size, 1])
  return tf.concat([to_kept, tf.constant(to_ones, affine.dtype), to_changed], axis=-1)


def product(halves, matrix):
  """Applies the affine map of the channels whose matrix `affine_matrix` returned."""
  return channel_product(halves, matrix)


def product_pull_back(halves, matrix, d_product):
  """The gradients of `product` with respect to both arguments."""
  d_rows = rows(d_product)
  d_halves = with_rows(flow_matmul(d_rows, matrix, transpose_b=True), halves)
  return d_halves, flow_matmul(rows(halves), d_rows, transpose_a=True, dtype=matrix.dtype)

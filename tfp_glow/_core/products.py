"""Products over the last dimension of images and vectors."""

import tensorflow as tf


def rows(x):
  """From `[..., C]` to `[N, C]`."""
  return tf.reshape(x, [-1, x.shape[-1]])


def with_rows(product, like):
  """From `[N, D]` to `[..., D]`, the leading dimensions being those of a tensor `[..., C]`."""
  sizes = [tf.shape(like)[i] if size is None else size for i, size in enumerate(like.shape[:-1])]
  return tf.reshape(product, [-1, *sizes[1:], product.shape[-1]])


def channel_product(inputs, matrix):
  """`inputs @ matrix` over the last dimension, as one matrix product: a 1x1 convolution.

  Args:
    inputs: Tensor `[N, ..., C]`.
    matrix: Tensor `[C, D]`.

  Returns:
    Tensor `[N, ..., D]`.
  """
  return with_rows(tf.matmul(rows(inputs), matrix), inputs)

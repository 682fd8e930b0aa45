"""Which image comes when, and to which replica. The order is the same for any number of workers.

A batch has as many lanes as images. A lane owns consecutive numbers of images, `num_images / batch_size` of them (one
more or less). Each batch takes one image from each lane. Each pass draws an order within the lanes. A worker has the
same lanes of every batch, so it gets the same images in each pass, except at the ends of its lanes. Each pass also
draws which lanes have one image more, for the last batch. Otherwise the last batch, where each image counts more, would
always have images of the same lanes.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Share(NamedTuple):
  """The lanes of a worker."""

  batch_size: int
  parts: list[tuple[int, int]]  # First lane and the one after the last, for each replica of the worker.


def share_of(batch_size, context):
  """The `Share` of a worker.

  Args:
    batch_size: Python `int`, images of all replicas.
    context: `tf.distribute.InputContext`; `None`: there is one worker with one replica.
  """
  if context is None:
    return Share(batch_size, [(0, batch_size)])
  num_workers, num_replicas = context.num_input_pipelines, context.num_replicas_in_sync
  # In the order in which Keras' `predict` joins the results of replicas of several workers.
  places = range(context.input_pipeline_id, num_replicas, num_workers)
  return Share(batch_size, [
      (place * batch_size // num_replicas, (place + 1) * batch_size // num_replicas) for place in places])


def numbers_of(share, num_images, shuffle):
  """The numbers of the images that a worker may need in any pass: int64, increasing."""
  if shuffle:
    ranges = [range(first * num_images // share.batch_size, -(-end * num_images // share.batch_size))
              for first, end in share.parts if first < end]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *map(np.asarray, ranges)]).astype(np.int64))
  rows = in_sequence(share.batch_size, num_images).numpy()
  found = np.concatenate([rows[:, first:end].ravel() for first, end in share.parts])
  return np.sort(found[found >= 0])


def in_sequence(batch_size, num_images):
  """Lanes of all batches in the order of the numbers; a tensor like that of `shuffled`."""
  num_whole = num_images // batch_size
  rows = np.arange(num_whole * batch_size).reshape(num_whole, batch_size)
  # Images of the last batch are spread over all lanes, and so over all replicas.
  rest = num_images % batch_size
  ends = np.arange(batch_size + 1) * rest // batch_size
  last = np.where(np.diff(ends) > 0, num_whole * batch_size + ends[:-1], -1)
  return tf.constant(np.concatenate([rows, last[np.newaxis]] if rest else [rows]), tf.int64)


def shuffled(share, num_images, seeds):
  """Lanes of all batches of a pass; lanes of a replica are permuted.

  Args:
    share: `Share`.
    num_images: Python `int`.
    seeds: Three integer tensors `[2]`.

  Returns:
    int64 tensor `[num_batches, batch_size]`: numbers of images, -1 where the last batch has none.
  """
  batch_size = share.batch_size
  num_batches = -(-num_images // batch_size)
  phase = tf.random.stateless_uniform([], seeds[0], maxval=batch_size, dtype=tf.int64)
  ends = (tf.range(batch_size + 1, dtype=tf.int64) * num_images + phase) // batch_size
  first, length = ends[:-1, tf.newaxis], ends[1:, tf.newaxis] - ends[:-1, tf.newaxis]
  is_there = tf.range(num_batches, dtype=tf.int64) < length
  # Missing images come last.
  keys = tf.random.stateless_uniform([batch_size, num_batches], seeds[1]) + tf.cast(~is_there, tf.float32)
  numbers = first + tf.cast(tf.argsort(keys, stable=True), tf.int64)
  rows = tf.transpose(tf.where(is_there, numbers, -1))
  keys = tf.random.stateless_uniform([num_batches, batch_size], seeds[2])
  order = tf.argsort(keys + _part_of_each_lane(share), stable=True)
  return tf.gather(rows, order, batch_dims=1)


def _part_of_each_lane(share):
  ends = np.unique(share.parts)
  return np.searchsorted(ends, np.arange(share.batch_size), side="right").astype(np.float32)

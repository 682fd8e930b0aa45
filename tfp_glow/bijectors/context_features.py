"""What the parts of a conditional flow see of its context: features in the size of each level."""

from __future__ import annotations

import math

import tensorflow as tf

from tfp_glow.bijectors.squeeze import Squeeze
from tfp_glow.networks import building


class ContextFeatures:
  """What the parts of a flow see of a context.

  A context network, if there is one, comes first, and its outputs replace the context. Vectors are repeated at all
  positions of a level. Images of at least the size of the first level are squeezed to that size, which loses nothing,
  and averaged over blocks for each further level. Smaller images are repeated in blocks up to the size of a level. All
  parts of a context become channels of one image.
  """

  def __init__(self, shapes, network, sizes, dtype):
    """Creates it, and builds the network.

    Args:
      shapes: From `contexts.checked_context_shape`, not `None`.
      network: Keras layer, from a context `[N] + shape` (or a dict of them) to vectors or images, or a nest of them;
        `None`: no network.
      sizes: List of pairs, height and width of each level, the largest first. Empty for flows of vectors.
      dtype: `tf.DType`.

    Raises:
      TypeError: if `network` is not a Keras layer.
      ValueError: if an image does not fit the sizes, or the network does not return vectors or images, or holds state
        that a call changes.
    """
    self._sizes = sizes
    self._dtype = dtype
    self.network = network
    self._lower_layers = []
    self._shapes = tf.nest.flatten(shapes)
    if network is not None:
      self._shapes = self._build(shapes)
    what = "`context_shape`" if network is None else "The outputs of `context_network`"
    for shape in self._shapes if sizes else []:
      _check_fits(shape, sizes, what)
    self._squeezes = {block: Squeeze(block, dtype) for block in {_block(shape, sizes) for shape in self._shapes}}

  @property
  def variables(self):
    """The variables of the network, a list of `keras.Variable`s."""
    return [] if self.network is None else self.network.variables

  @property
  def num_channels(self):
    """Number of channels of the features, the same for all levels."""
    return sum(shape[-1] * _block(shape, self._sizes)**2 for shape in self._shapes)

  @property
  def num_flat(self):
    """Number of features per event that `flat` returns."""
    return sum(shape.num_elements() for shape in self._shapes)

  def shape(self, level):
    """The static shape `[h, w, num_channels]` of the features of a level."""
    return tf.TensorShape([*self._sizes[level], self.num_channels])

  def parts(self, context):
    """The parts of the context, or of the network's outputs for it, for the methods below.

    Args:
      context: Tensor `[N] + shape`, or a dict of them.

    Returns:
      List of tensors, vectors and images.
    """
    if self.network is not None:
      with building.computing_in_full(self._lower_layers, self._dtype):
        context = self.network(context)
    return [tf.cast(part, self._dtype) for part in tf.nest.flatten(context)]

  def of_levels(self, parts):
    """Features of each level, a list of tensors `[N, h, w, num_channels]`."""
    entered = [self._entered(part) for part in parts]
    return [tf.concat([_resized(part, *size) for part in entered], axis=-1) for size in self._sizes]

  def flat(self, parts):
    """Features `[N, num_flat]` for parts of the flow that act on vectors; images are flattened."""
    sizes = [shape.num_elements() for shape in self._shapes]
    return tf.concat([tf.reshape(part, [-1, size]) for part, size in zip(parts, sizes)], axis=-1)

  def _build(self, shapes):
    """Builds the network; returns the shapes of its outputs, a list."""
    building.is_built(self.network, "context_network")  # Raises if it is not a layer.
    inputs = tf.nest.map_structure(lambda shape: tf.zeros([1, *shape], self._dtype), shapes)
    outputs = tf.nest.flatten(building.outputs_of(self.network, inputs, self._dtype))
    found = [tf.TensorShape(output.shape[1:]) for output in outputs]
    if not found or any(shape.rank not in (1, 3) for shape in found):
      raise ValueError("`context_network` must return vectors [N, D] or images [N, h, w, c], one tensor or a dict. "
                       f"Received: {self.network.name!r}, which returns {[output.shape for output in outputs]}")
    building.check_stateless(self.network, inputs, "context_network")
    self._lower_layers = building.lower_layers_of(self.network, self._dtype)
    return found

  def _entered(self, part):
    """An image no larger than the first level. A vector becomes an image of one position."""
    if part.shape.rank == 2:
      return tf.reshape(part, [-1, 1, 1, part.shape[-1]])
    block = _block(part.shape[1:], self._sizes)
    return part if block == 1 else self._squeezes[block]._inverse_and_log_det(part)[0]


def check_no_network(context_network):
  """Raises `ValueError` if there is a context network; called for flows without a context."""
  if context_network is not None:
    raise ValueError(f"`context_network` must be None without a `context_shape`. Received: {context_network!r}")


def _block(shape, sizes):
  """The side of the blocks that an image is squeezed by for the first level; 1 for vectors and smaller images."""
  return max(1, shape[0] // sizes[0][0]) if shape.rank == 3 and sizes else 1


def _check_fits(shape, sizes, what):
  """Raises `ValueError` if an image cannot be brought to these sizes."""
  if shape.rank == 1:
    return
  ratios = [math.log2(side / of_first) for side, of_first in zip(shape[:2], sizes[0])]
  if ratios[0] != ratios[1] or ratios[0] % 1:
    raise ValueError(f"{what} must be vectors, or images whose height and width are those of the first level, "
                     f"{sizes[0]}, times or divided by the same power of two. Received: {tuple(shape)}")


def _resized(image, height, width):
  """An image `[N, h, w, c]` averaged over blocks, or repeated in blocks, to another size."""
  old_height, old_width, channels = image.shape[1:]
  if (old_height, old_width) == (height, width):
    return image
  if old_height > height:
    blocks = tf.reshape(image, [-1, height, old_height // height, width, old_width // width, channels])
    return tf.reduce_mean(blocks, axis=[2, 4])
  rows, columns = height // old_height, width // old_width
  # Reshaped, not indexed by `tf.newaxis`: TensorFlow Lite does not support indices of so many dimensions.
  blocks = tf.broadcast_to(tf.reshape(image, [-1, old_height, 1, old_width, 1, channels]),
                           [tf.shape(image)[0], old_height, rows, old_width, columns, channels])
  return tf.reshape(blocks, [-1, height, width, channels])

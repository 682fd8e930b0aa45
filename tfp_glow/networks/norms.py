"""Norms of linear maps between orders: by a formula where there is one, otherwise by a power iteration.

An order is a Python `float`, or a scalar tensor if it is learned. The norm of a map is

```none
norm = max |map(x)|_codomain / |x|_domain = max <u, map(v)>,  |u|conjugate(codomain) = |v|_domain = 1
```
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core.products import matmul
from tfp_glow._core.validation import is_number
from tfp_glow.networks.building import value_of

# Where both orders are 2: the number of vectors spanned at a time, and the share of noise in the second one relative to
# the rest. With fewer vectors, some updates in training miss a norm by more than 0.001.
_SPAN = 32
_NOISE = 0.3


@keras.saving.register_keras_serializable("tfp_glow")
class LearnedOrder(keras.layers.Layer):
  """A trained order of a norm, between 1 and 5; it starts at 2.

  Given to one layer as `codomain` and to the next as `domain`, it is one parameter.

  References:
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019), section 3.2 and appendix D.
  """

  def __init__(self, **kwargs: Any):
    """Creates the order.

    Args:
      **kwargs: Arguments of `keras.layers.Layer`.
    """
    super().__init__(**kwargs)
    self.logit = self.add_weight(name="logit", shape=(), initializer=keras.initializers.Constant(-math.log(3.)))
    self.built = True

  def order(self) -> tf.Tensor:
    """The order.

    Returns:
      Scalar tensor, between 1 and 5.
    """
    return 1. + 4. * tf.sigmoid(value_of(self.logit))


def check_orders(domain, codomain):
  """Raises `ValueError` for invalid orders, and for pairs of orders whose norm cannot be computed."""
  for name, order in (("domain", domain), ("codomain", codomain)):
    if not isinstance(order, LearnedOrder) and not (is_number(order) and order >= 1.):
      raise ValueError(f"`{name}` must be the order of a norm, a number of at least 1 (`math.inf` too), or a "
                       f"`LearnedOrder`. Received: {order!r}")
  if (codomain == 1. and domain != 1.) or (domain == math.inf and codomain != math.inf):
    raise ValueError("`codomain` may be 1 only if `domain` is 1, and `domain` infinite only if `codomain` is: "
                     "otherwise each combination of signs may have a maximum, and the iteration may miss the largest. "
                     f"Received: domain={domain!r}, codomain={codomain!r}")


def order_of(order, dtype):
  """A number or `LearnedOrder`, converted for the functions below."""
  return tf.cast(order.order(), dtype) if isinstance(order, LearnedOrder) else float(order)


def has_formula(domain, codomain):
  """Whether the norm is that of the largest row or column of the matrix."""
  return _is(domain, 1.) or _is(codomain, math.inf)


def by_formula(kernel, into_inputs, into_outputs, domain, codomain):
  """The norms of the rows or columns of a map's matrix, which bound the norm of the map.

  A row gives one output; a column holds the effects of one input. For a convolution they are taken at the position
  where they are largest, because elsewhere a part of the kernel meets the padding.

  Args:
    kernel: Tensor `[..., inputs, outputs]`, 0 where the map does not use it.
    into_inputs: Callable: the transpose of the map with another kernel, of ones.
    into_outputs: Callable: the map with another kernel, of ones.
    domain: Order of the norm of inputs.
    codomain: Order of the norm of outputs. See `has_formula`.

  Returns:
    Tensor `[inputs, 1]` or `[outputs]`, to be broadcast to the matching parts of the kernel.
  """
  size = tf.abs(kernel)
  if _is(domain, 1.) and _is(codomain, math.inf):
    return tf.reduce_max(tf.reshape(tf.reduce_max(size, -1), [-1, size.shape[-2]]), 0)[:, tf.newaxis]
  largest = tf.stop_gradient(tf.reduce_max(size))  # Otherwise high powers would overflow or vanish.
  size = tf.math.divide_no_nan(size, largest)
  power, add_up = (codomain, into_inputs) if _is(domain, 1.) else (conjugate(domain), into_outputs)
  sums = add_up(size**power)
  sums = tf.reduce_max(tf.reshape(sums, [-1, sums.shape[-1]]), 0)
  norms = largest * tf.where(sums > 0., tf.where(sums > 0., sums, 1.)**(1. / power), 0.)
  return norms[:, tf.newaxis] if _is(domain, 1.) else norms


def at_vectors(apply, u, v, domain, codomain):
  """The norm of a map at given vectors of the power iteration.

  Its gradient is that at the maximum, with `u` and `v` held constant.

  Args:
    apply: Callable, the map.
    u: Tensor of the shape of outputs.
    v: Tensor of the shape of inputs.
    domain: Order of the norm of inputs.
    codomain: Order of the norm of outputs.

  Returns:
    Scalar tensor.
  """
  u, v = tf.stop_gradient(u), tf.stop_gradient(v)
  product = tf.reduce_sum(u * apply(v))
  for vector, order in ((v, domain), (u, conjugate(codomain))):
    if tf.is_tensor(order):
      # It is 1 up to rounding errors, which must not change the norm of the map, until the order changes.
      norm = _norm(vector, order)
      is_one = tf.abs(norm - 1.) < 1e-5
      product /= norm / tf.where(is_one, tf.stop_gradient(norm), tf.ones_like(norm))
  return product


def vectors_of_norm(apply, transpose, u, v, domain, codomain, tolerance, max_iterations):
  """The vectors that attain the norm of a map, or a local maximum of it.

  Args:
    apply: Callable, the map.
    transpose: Callable, its transpose.
    u: Tensor of the shape of outputs, the start.
    v: Tensor of the shape of inputs, the start.
    domain: Order of the norm of inputs.
    codomain: Order of the norm of outputs.
    tolerance: Python `float`: the iteration ends when `u` changes by less than this, relative to its length; see also
      `_singular_vectors`.
    max_iterations: Python `int`: the iteration ends after about this many steps in any case.

  Returns:
    List `[u, v]`.
  """
  if _is(domain, 2.) and _is(codomain, 2.):
    return _singular_vectors(apply, transpose, u, v, tolerance, max_iterations)
  return _power_iteration(apply, transpose, u, v, domain, codomain, tolerance, max_iterations)


def conjugate(order):
  """The order of the dual norm: `1 / order + 1 / conjugate = 1`."""
  if _is(order, 1.):
    return math.inf
  return 1. if _is(order, math.inf) else order / (order - 1.)


def dual(x, order, otherwise):
  """The vector of dual norm 1 whose product with `x` is the norm of `x`; `otherwise` if `x` is 0.

  Args:
    x: Tensor.
    order: Order of the norm of `x`, finite.
    otherwise: Tensor of the shape of `x`.
  """
  size = tf.abs(x)
  largest = tf.reduce_max(size)
  scaled = tf.math.divide_no_nan(size, largest)
  powers = scaled if _is(order, 2.) else scaled**(order - 1.)
  vector = tf.sign(x) * powers / tf.reduce_sum(powers * scaled)**(1. - 1. / order)
  return tf.where(largest > 0., vector, otherwise)


def _power_iteration(apply, transpose, u, v, domain, codomain, tolerance, max_iterations):
  """`vectors_of_norm` for any orders."""
  u_of = lambda v, before: dual(apply(v), codomain, before)
  v_of = lambda u, before: dual(transpose(u), conjugate(domain), before)

  def step(change, u, v):
    v = v_of(u, v)
    u_next = u_of(v, u)
    return tf.norm(u_next - u) / tf.norm(u_next), u_next, v

  start = tf.constant(np.inf, u.dtype), u_of(v, u), v
  _, u, v = tf.while_loop(lambda change, *_: change > tolerance, step, start, maximum_iterations=max_iterations)
  return [u, v]


def _singular_vectors(apply, transpose, u, v, tolerance, max_iterations):
  """`vectors_of_norm` where both orders are 2.

  A power iteration keeps only its last vector, and takes hundreds of steps to separate singular values that differ by a
  percent. This takes the best of all vectors that some steps span, as Lanczos does. It repeats until the norm grows by
  less than `tolerance`, relative to the norm, or the residual shows that a singular value is as near. Part of the span
  is noise: after the weights have changed, the old vector may belong to a smaller singular value, and only noise leads
  away from it.
  """
  on_outputs = u.shape.num_elements() < v.shape.num_elements()  # The side where the kept vectors are shorter.
  start, there, back = (u, transpose, apply) if on_outputs else (v, apply, transpose)
  square = lambda x: tf.reshape(back(there(tf.reshape(x, start.shape))), x.shape)
  size = min(_SPAN, max_iterations, start.shape.num_elements())

  def improve(change, x):
    basis, images = _span(square, x, size)
    products = tf.cast(_dots(basis, images), tf.float64)
    mixture = _largest_eigenvector(products)
    value = _dots(matmul(mixture, products), mixture)
    growth = 1. - tf.sqrt(products[:1, :1] / value)
    mixture = tf.cast(mixture, x.dtype)
    best = matmul(mixture, basis)
    error = _length(matmul(mixture, images) - tf.cast(value, x.dtype) * best)
    change = tf.minimum(growth, tf.cast(error, tf.float64) / (2. * value))
    return tf.reshape(change, []), tf.where(growth > 0., _unit(best), x)  # A NaN keeps the old vector.

  state = tf.constant(np.inf, tf.float64), _unit(tf.reshape(start, [1, -1]))
  _, x = tf.while_loop(lambda change, x: change > tolerance, improve, state,
                       maximum_iterations=-(-max_iterations // size))
  x = tf.reshape(x, start.shape)
  v = dual(transpose(x), 2., v) if on_outputs else x
  return [dual(apply(v), 2., u), v]


def _span(square, x, size):
  """An orthonormal basis of vectors to choose from.

  Args:
    square: Callable, a linear map from a tensor `[1, N]` to another.
    x: Tensor `[1, N]`, of length 1, the start.
    size: Python `int`, number of vectors.

  Returns:
    basis: Tensor `[size, N]`, orthonormal; some rows are zeros if there are fewer vectors.
    images: Tensor `[size, N]`, `square` of each.
  """
  noise = np.random.default_rng(0).standard_normal(x.shape)
  noise = tf.constant(noise / np.linalg.norm(noise), x.dtype)
  least = 10. * np.finfo(x.dtype.as_numpy_dtype).eps

  def add(share, place, x, basis, images):
    basis += place * x
    image = square(x)
    length = _length(image)
    rest = image - matmul(_dots(image, basis), basis)
    rest += share * tf.maximum(_length(rest), 1e-3 * length) * noise
    rest -= matmul(_dots(rest, basis), basis)  # Again, for what rounding left the first time.
    x = tf.where(_length(rest) > least * length, _unit(rest), 0.)
    return 0. * share, tf.roll(place, 1, 0), x, basis, images + place * image

  empty = tf.zeros([size, x.shape[-1]], x.dtype)
  state = tf.constant(_NOISE, x.dtype), tf.constant(np.eye(size, 1), x.dtype), x, empty, empty
  *_, basis, images = tf.while_loop(lambda *_: True, add, state, maximum_iterations=size)
  return basis, images


def _largest_eigenvector(matrix):
  """The top eigenvector of a small matrix without negative eigenvalues, by a high power, which XLA compiles fast."""
  power = matrix
  for _ in range(3):
    power /= tf.reduce_max(power)  # Otherwise it would overflow or vanish.
    for _ in range(4):
      power = tf.matmul(power, power)
  return _unit(tf.matmul(np.random.default_rng(0).standard_normal([1, matrix.shape[0]]), power))


def _dots(a, b):
  """Dot products of the rows of two matrices."""
  return matmul(a, b, transpose_b=True)


def _length(row):
  return tf.sqrt(_dots(row, row))


def _unit(row):
  """The row scaled to length 1, or 0."""
  return tf.math.divide_no_nan(row, _length(row))


def _is(order, number):
  """Whether an order is fixed and this number. A learned order is neither 1 nor infinite, and unknown in graphs."""
  return is_number(order) and order == number


def _norm(x, order):
  size = tf.abs(x)
  largest = tf.reduce_max(size)
  # The numbers are at most 1, so their powers do not overflow.
  return largest * tf.reduce_sum(tf.math.divide_no_nan(size, largest)**order)**(1. / order)

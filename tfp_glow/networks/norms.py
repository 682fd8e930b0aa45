"""Norms of linear maps, from one order to another: by a formula where there is one, else by a power iteration.

An order is a Python `float`, or a scalar tensor where it is learned. The norm of a map is

```none
norm = max |map(x)|_codomain / |x|_domain = max <u, map(v)>,  |u|_conjugate(codomain) = |v|_domain = 1
```
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core.validation import is_number
from tfp_glow.networks.building import value_of


@keras.saving.register_keras_serializable("tfp_glow")
class LearnedOrder(keras.layers.Layer):
  """The order of a norm, between 1 and 5, that is trained; it starts at 2.

  Given to one layer as `codomain` and to the next as `domain` it is one parameter.

  References:
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019), section 3.2 and appendix D.
  """

  def __init__(self, **kwargs: Any):
    """Creates the order.

    Args:
      **kwargs: Of `keras.layers.Layer`.
    """
    super().__init__(**kwargs)
    self.logit = self.add_weight(name="logit", shape=(), initializer=keras.initializers.Constant(-math.log(3.)))
    self.built = True

  def order(self) -> tf.Tensor:
    """The order, a scalar tensor.

    Returns:
      Scalar tensor, between 1 and 5.
    """
    return 1. + 4. * tf.sigmoid(value_of(self.logit))


def check_orders(domain, codomain):
  """Raises `ValueError` for what are no orders, or such that no norm can be had of."""
  for name, order in (("domain", domain), ("codomain", codomain)):
    if not isinstance(order, LearnedOrder) and not (is_number(order) and order >= 1.):
      raise ValueError(f"`{name}` must be the order of a norm, a number of at least 1 (`math.inf` too), or a "
                       f"`LearnedOrder`. Received: {order!r}")
  if (codomain == 1. and domain != 1.) or (domain == math.inf and codomain != math.inf):
    raise ValueError("`codomain` must not be 1 but with `domain` 1, nor `domain` infinite but with `codomain` "
                     "infinite: the iteration would miss the norm among maxima as many as combinations of signs. "
                     f"Received: domain={domain!r}, codomain={codomain!r}")


def order_of(order, dtype):
  """A number or `LearnedOrder` as the functions below take it."""
  return tf.cast(order.order(), dtype) if isinstance(order, LearnedOrder) else float(order)


def has_formula(domain, codomain):
  """Whether the norm is that of the largest row or column of the matrix."""
  return _is(domain, 1.) or _is(codomain, math.inf)


def by_formula(kernel, into_inputs, into_outputs, domain, codomain):
  """The norms of the rows or columns of a map's matrix, which bound that of the map.

  A row is what an output is made of, a column what an input goes to. Those of a convolution are taken at the position
  where they are largest: at others some of the kernel meets the padding.

  Args:
    kernel: Tensor `[..., inputs, outputs]`, 0 where the map makes no use of it.
    into_inputs: Callable: the transpose of the map with another kernel, of ones.
    into_outputs: Callable: the map with another kernel, of ones.
    domain: Order of the norm of inputs.
    codomain: Order of the norm of outputs. See `has_formula`.

  Returns:
    Tensor `[inputs, 1]` or `[outputs]`, to be broadcast to the parts of the kernel that the norms belong to.
  """
  size = tf.abs(kernel)
  if _is(domain, 1.) and _is(codomain, math.inf):
    return tf.reduce_max(tf.reshape(tf.reduce_max(size, -1), [-1, size.shape[-2]]), 0)[:, tf.newaxis]
  largest = tf.stop_gradient(tf.reduce_max(size))  # Or high powers would overflow, or vanish.
  size = tf.math.divide_no_nan(size, largest)
  power, add_up = (codomain, into_inputs) if _is(domain, 1.) else (_conjugate(domain), into_outputs)
  sums = add_up(size**power)
  sums = tf.reduce_max(tf.reshape(sums, [-1, sums.shape[-1]]), 0)
  norms = largest * tf.where(sums > 0., tf.where(sums > 0., sums, 1.)**(1. / power), 0.)
  return norms[:, tf.newaxis] if _is(domain, 1.) else norms


def at_vectors(apply, u, v, domain, codomain):
  """The norm of a map as the vectors of the power iteration have it.

  The gradient of a maximum is that at the maximum, `u` and `v` held.

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
  # Their norms are 1, but for learned orders, which change under them.
  for vector, order in ((v, domain), (u, _conjugate(codomain))):
    product /= _norm(vector, order) if tf.is_tensor(order) else 1.
  return product


def power_iteration(apply, transpose, u, v, domain, codomain, tolerance, max_iterations):
  """The vectors at which the norm of a map is attained, or a norm that is a maximum among its neighbours.

  Args:
    apply: Callable, the map.
    transpose: Callable, its transpose.
    u: Tensor of the shape of outputs, to begin with.
    v: Tensor of the shape of inputs, to begin with.
    domain: Order of the norm of inputs.
    codomain: Order of the norm of outputs.
    tolerance: Python `float`: it ends when `u` changes by less than that, relative to its length.
    max_iterations: Python `int`, or after that many steps.

  Returns:
    List `[u, v]`.
  """
  u_of = lambda v, before: _dual(apply(v), codomain, before)
  v_of = lambda u, before: _dual(transpose(u), _conjugate(domain), before)

  def step(change, u, v):
    v = v_of(u, v)
    u_next = u_of(v, u)
    return tf.norm(u_next - u) / tf.norm(u_next), u_next, v

  start = tf.constant(np.inf, u.dtype), u_of(v, u), v
  _, u, v = tf.while_loop(lambda change, *_: change > tolerance, step, start, maximum_iterations=max_iterations)
  return [u, v]


def _is(order, number):
  """Whether an order is fixed, and this number: a learned one is neither 1 nor infinite, and in graphs not known."""
  return is_number(order) and order == number


def _conjugate(order):
  """The order of the dual norm: `1 / order + 1 / conjugate = 1`."""
  if _is(order, 1.):
    return math.inf
  return 1. if _is(order, math.inf) else order / (order - 1.)


def _norm(x, order):
  size = tf.abs(x)
  largest = tf.reduce_max(size)
  # Of numbers up to 1: their powers do not overflow.
  return largest * tf.reduce_sum(tf.math.divide_no_nan(size, largest)**order)**(1. / order)


def _dual(x, order, otherwise):
  """The vector of norm 1 in the dual norm whose product with `x` is the norm of `x`; `otherwise`, if `x` is 0.

  Args:
    x: Tensor.
    order: Of the norm of `x`, finite.
    otherwise: Tensor of the shape of `x`.
  """
  size = tf.abs(x)
  largest = tf.reduce_max(size)
  scaled = tf.math.divide_no_nan(size, largest)
  powers = scaled if _is(order, 2.) else scaled**(order - 1.)
  dual = tf.sign(x) * powers / tf.reduce_sum(powers * scaled)**(1. - 1. / order)
  return tf.where(largest > 0., dual, otherwise)

"""`log_prob` is the same number under any gradient tapes and in every mode, also for images unlike real ones."""

import functools

import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import perturb

import tfp_glow

tfb, tfd = tfp.bijectors, tfp.distributions

SHAPE = (8, 8, 1)


def checkerboard():
  return np.where(np.indices(SHAPE[:2]).sum(0) % 2, 100., -100.)[np.newaxis, ..., np.newaxis].astype(np.float32)


@functools.cache
def glow():
  """A flow so deep, and so far from its initial weights, that another way to the log-det shows in float32."""
  bijector = tfp_glow.GlowBijector(SHAPE, 1, 24, num_hidden=8, seed=0)
  perturb(bijector, seed=0, scale=0.1)
  return bijector


def _of(bijector):
  """Latents are about 1e5 here, and the base is so wide that the log-det counts."""
  return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1e5), [64]), bijector)


COMPOSITIONS = {
    "glow": glow, "chain": lambda: tfp_glow.Chain([tfb.Shift(0.), glow()]),
    "tfb_chain": lambda: tfb.Chain([tfb.Shift(0.), glow()]), "tfb_inverts": lambda: tfb.Invert(tfb.Invert(glow()))}


def plain(function):
  return function()


def under_one_tape(function):
  with tf.GradientTape():
    return function()


def under_two_tapes(function):
  with tf.GradientTape(), tf.GradientTape():
    return function()


def under_a_persistent_tape(function):
  with tf.GradientTape(persistent=True):
    return function()


WAYS = {"eager": lambda f: f, "function": lambda f: tf.function(f, autograph=False),
        "xla": lambda f: tf.function(f, autograph=False, jit_compile=True)}


@pytest.fixture(scope="module")
def expected():
  x = tf.constant(checkerboard())
  z, log_det = glow().inverse_and_log_det(x)
  log_prob = _of(glow()).distribution.log_prob(z) + log_det
  back = -glow().forward_and_log_det(tf.identity(z))[1]
  assert np.isfinite(log_prob).all() and not np.allclose(log_det, back, rtol=0.1), "the way back must be another one"
  return log_prob


def _cases():
  """XLA compiles slowly, and graphs under tapes are slow to build, so they run for few distributions."""
  for name in COMPOSITIONS:
    for tapes in (plain, under_one_tape, under_two_tapes, under_a_persistent_tape):
      yield name, tapes, "eager"
  for name in ("glow", "tfb_chain", "tfb_inverts"):
    yield name, under_a_persistent_tape, "function"
  for tapes in (plain, under_one_tape, under_two_tapes):
    yield "tfb_chain", tapes, "function"
  for name in ("glow", "tfb_chain"):
    yield name, plain, "xla"


@pytest.mark.parametrize("name, tapes, way", list(_cases()))
def test_log_prob_is_the_same_number(name, tapes, way, expected):
  x, distribution = tf.constant(checkerboard()), _of(COMPOSITIONS[name]())

  log_prob = lambda x: tapes(lambda: distribution.log_prob(x))

  # XLA's arithmetic differs, also that of `inverse_and_log_det` under XLA.
  np.testing.assert_allclose(WAYS[way](log_prob)(x), expected, rtol=1e-6 if way != "xla" else 1e-4)


def test_log_prob_of_a_composition_follows_an_update():
  small = tfp_glow.GlowBijector((4, 4, 1), 1, 2, num_hidden=4, seed=0)
  chain = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [16]), tfb.Chain([tfb.Shift(0.5), small]))
  x = tf.constant(np.random.default_rng(0).standard_normal([3, 4, 4, 1]).astype(np.float32))
  held = chain.bijector.inverse(x), chain.log_prob(x)
  perturb(small)
  np.testing.assert_allclose(chain.log_prob(x), chain.log_prob(x.numpy()), rtol=1e-6)
  assert not np.allclose(chain.log_prob(x), held[1])


@pytest.mark.slow
def test_hessian_of_an_exact_residual_flow():
  flow = small_models.residual_flow(num_dense_blocks=2, log_det="exact", dtype="float64")
  perturb(flow, seed=1)
  distribution = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(np.float64(0.), 1.), [2]), flow)
  x = tf.constant([[0.3, -0.4]], tf.float64)

  def gradient(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      log_prob = distribution.log_prob(x)
    return tape.gradient(log_prob, x)

  with tf.GradientTape(persistent=True) as tape:
    tape.watch(x)
    first = tf.unstack(gradient(x)[0])
  hessian = np.stack([tape.gradient(entry, x)[0] for entry in first])
  steps = 1e-5 * np.eye(2)
  differences = np.stack([(gradient(x + step) - gradient(x - step))[0] / 2e-5 for step in steps])
  np.testing.assert_allclose(hessian, differences, rtol=1e-5, atol=1e-7)

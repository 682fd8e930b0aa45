"""Flows whose every value is known for two sets of weights."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import CASE, Case, dense, perturb

import tfp_glow

tfb, tfd = tfp.bijectors, tfp.distributions


def distribution_of(bijector, latent_shape, dtype="float64"):
  return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(np.array(0., dtype), 1.), latent_shape), bijector)


def _nested_chain_of_vectors(dtype):
  coupling = lambda: tfp_glow.AdditiveCoupling(dense(2, dtype), 1, dtype)
  return tfb.Chain([tfb.Chain([tfb.Invert(coupling()), tfp_glow.ActNorm(3, 1, dtype)]),
                    tfb.Invert(tfb.Chain([tfp_glow.ActNorm(3, 1, dtype), tfb.Shift(np.array(0.5, dtype))]))])


# Small flows, because graphs with nested tapes are slow to build.
FLOWS = {
    "scan": CASE["scan_vector"],
    "invert": Case("invert", lambda dtype: tfb.Invert(CASE["affine_coupling_vector"].construct(dtype)), [5]),
    "chain": Case("nested_chain", _nested_chain_of_vectors, [3]),
    "glow": CASE["glow_fixed_top"],
}
MODES = {"eager": lambda function: function, "function": tf.function}

both_modes = pytest.mark.parametrize("mode", MODES)


class Flow:
  """A bijector and its distribution, whose every value is known for two sets of weights."""

  def __init__(self, case):
    self.bijector = case.make("float64")
    self.distribution = distribution_of(self.bijector, case.shape(inverse=False))
    self.variables = self.distribution.trainable_variables
    self.data, self.latents = case.draw([3], True, "float64"), case.draw([3], False, "float64")
    self.old = [v.numpy() for v in self.variables]
    perturb(self.bijector, seed=1)
    self.new = [v.numpy() for v in self.variables]
    self.expected = {"new": self.values_from_arrays()}
    self.assign(self.old)
    self.expected["old"] = self.values_from_arrays()

  def assign(self, values):
    for variable, value in zip(self.variables, values):
      variable.assign(value)

  def values(self, y, x):
    """Everything that a bijector answers about data `y` and latents `x`."""
    return {
        "log_prob": self.distribution.log_prob(y), "inverse": self.bijector.inverse(y),
        "inverse_log_det": self.bijector.inverse_log_det_jacobian(y), "forward": self.bijector.forward(x),
        "forward_log_det": self.bijector.forward_log_det_jacobian(x)}

  def values_from_arrays(self):
    """The same, but each for a tensor of its own, so that no pass can be recalled."""
    y, x = self.data, self.latents
    return {
        "log_prob": self.distribution.log_prob(y), "inverse": self.bijector.inverse(y),
        "inverse_log_det": self.bijector.inverse_log_det_jacobian(tf.constant(y)), "forward": self.bijector.forward(x),
        "forward_log_det": self.bijector.forward_log_det_jacobian(tf.constant(x))}


def assert_equal(actual, expected):
  for key, value in expected.items():
    np.testing.assert_allclose(actual[key], value, rtol=1e-10, atol=1e-12, err_msg=key)

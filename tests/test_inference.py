"""The page on inference: its program runs as users run it, and finds the known posterior."""

import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "inference.md").read_text()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def names(tmp_path_factory):
  """The variables of the page's program, run in a folder of its own."""
  found = {"__name__": "page"}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(tmp_path_factory.mktemp("page"))
    exec(compile("\n".join(re.findall(r"^```py\n(.*?)^```", PAGE, re.M | re.S)), "page", "exec"), found)
    yield found


def _check_moments(draws, names, num_effective):
  """Checks that mean and covariance are within five standard errors of the exact ones for independent draws."""
  mean, covariance = names["exact_mean"], names["exact_covariance"]
  deviation = np.sqrt(np.diag(covariance))
  np.testing.assert_allclose(
      (draws.mean(axis=0) - mean) / deviation, np.zeros(4), atol=5. / np.sqrt(num_effective))
  np.testing.assert_allclose((np.cov(draws.T) - covariance) / np.outer(deviation, deviation), np.zeros([4, 4]),
                             atol=5. * np.sqrt(2. / num_effective))


def test_chains_have_the_moments_of_the_posterior(names):
  chains, num_effective = names["chains"].numpy(), names["num_effective"].numpy().min()
  assert num_effective > 1500 and 0.8 < names["are_accepted"].numpy().mean() < 1.
  assert (tfp.mcmc.potential_scale_reduction(chains, independent_chain_ndims=1).numpy() < 1.02).all()
  _check_moments(chains.reshape(-1, 4), names, 1500)


def test_the_surrogate_is_near_the_posterior(names):
  x, y, losses = names["x"], names["y"], names["losses"].numpy()
  covariance = x @ x.T + 0.25 * np.eye(40)
  log_evidence = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2. * np.pi * covariance)[1])
  # The bound is lower by the divergence from surrogate to posterior.
  assert abs(losses[-50:].mean() + log_evidence) < 0.05 < losses[:5].mean() + log_evidence
  _check_moments(names["approximate"].numpy(), names, 500)


def test_the_surrogate_that_was_saved(names):
  """Loaded into one with other initial values, the surrogate is as before."""
  flow = tfp_glow.VectorFlowBijector(4, num_steps=3, num_hidden=16, seed=1)
  other = tfp.distributions.TransformedDistribution(names["surrogate"].distribution, flow)
  points, expected = names["approximate"][:50], names["surrogate"].log_prob(names["approximate"][:50])
  assert np.max(np.abs(other.log_prob(tf.identity(points)) - expected)) > 10.
  tf.train.Checkpoint(surrogate=other).restore(names["path"]).assert_consumed()
  np.testing.assert_array_equal(other.log_prob(tf.identity(points)), expected)

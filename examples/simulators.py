"""Simulators for `posterior.py`. All their parameters have a standard normal prior."""

import numpy as np


class LinearGaussian:
  """`x = MATRIX @ theta + noise`: the posterior is normal and known."""

  names = "theta 1", "theta 2"
  num_numbers = 3

  MATRIX = np.array([[1., 0.5], [-0.5, 1.], [1., 1.]])
  DEVIATION = 0.7
  COVARIANCE = np.linalg.inv(np.eye(2) + MATRIX.T @ MATRIX / DEVIATION**2)  # The posterior's covariance.
  GAIN = COVARIANCE @ MATRIX.T / DEVIATION**2  # The posterior's mean is `GAIN @ x`.

  def simulate(self, theta, rng):
    """Observations `[N, num_numbers]` of parameters `[N, 2]`."""
    return theta @ self.MATRIX.T + self.DEVIATION * rng.standard_normal([len(theta), self.num_numbers])

  def log_posterior(self, theta, x):
    """Log-densities `[N]`, nats, of parameters `[N, 2]` given observations `[N, num_numbers]`, or one observation."""
    difference = theta - x @ self.GAIN.T
    precision = np.linalg.inv(self.COVARIANCE)
    distance = np.einsum("ni,ij,nj->n", difference, precision, difference)
    return -0.5 * (distance - np.linalg.slogdet(precision)[1]) - np.log(2. * np.pi)


class Epidemic:
  """Infections and recoveries happen at random, day by day; half of the new cases are reported.

  Parameters are logarithms of the two rates, minus their mean and divided by their deviation.
  """

  names = "infection rate", "recovery rate"
  num_numbers = 10

  POPULATION, AT_FIRST = 1000, 5
  DAYS_A_REPORT = 3
  MEANS, DEVIATIONS = np.log([0.5, 0.2]), np.array([0.5, 0.4])

  def simulate(self, theta, rng):
    """Logarithms of the reported cases of every three days, scaled to about -1 .. 1: `[N, num_numbers]`."""
    infection, recovery = np.exp(self.MEANS + self.DEVIATIONS * theta).T
    infected = np.full([len(theta)], self.AT_FIRST)
    susceptible = self.POPULATION - infected
    reports = np.zeros([len(theta), self.num_numbers])
    for day in range(self.DAYS_A_REPORT * self.num_numbers):
      new = rng.binomial(susceptible, 1. - np.exp(-infection * infected / self.POPULATION))
      infected = infected + new - rng.binomial(infected, 1. - np.exp(-recovery))
      susceptible = susceptible - new
      reports[:, day // self.DAYS_A_REPORT] += rng.binomial(new, 0.5)
    return np.log1p(reports) / 2.5 - 1.


SIMULATORS = {"linear_gaussian": LinearGaussian(), "epidemic": Epidemic()}


def draw(simulator, count, *seed):
  """Parameters `[count, 2]` and their observations, float32. The same seed gives the same numbers."""
  rng = np.random.default_rng(seed)
  theta = rng.standard_normal([count, 2])
  return theta.astype(np.float32), simulator.simulate(theta, rng).astype(np.float32)

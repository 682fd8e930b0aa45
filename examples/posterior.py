"""The posterior of a simulator's parameters given its output, as a conditional flow.

  python examples/posterior.py
  python examples/posterior.py --simulator linear_gaussian
  python examples/posterior.py --model residual_flow

Parameters are drawn from the prior, and the simulator is run with each of them. A flow over parameters is trained with
the simulator's output as context ("neural posterior estimation"). No likelihood is needed: the posterior of an epidemic
with partly reported cases has no formula. That of linear_gaussian has one, with which the flow is compared.

Ranks check whether posteriors are as wide as they should be: the ranks of parameters drawn from the prior among samples
of the posterior given their simulation. If the posterior is right, they are uniform. So are the ranks of the
log-density of the parameters among those of the samples. The table has the chi-square statistic of each, and its
p-value: if it is far below 0.01, the posterior is wrong. Uniform ranks do not show that anything was learned, because
the prior has them, too. For that, see by how many nats the log-density of the true parameters exceeds the prior's.

The folder then holds:

  model.weights.h5   the weights
  posteriors.png     posteriors of some observations, with the true parameters, and exact ones for linear_gaussian
  ranks.png          histograms of the ranks
  results.json       nats, statistics of the ranks, settings, number of parameters, seconds, versions

References:
  Papamakarios and Murray, "Fast epsilon-free inference of simulation models with Bayesian conditional density
    estimation" (2016); Greenberg et al., "Automatic posterior transformation for likelihood-free inference" (2019).
  Talts et al., "Validating Bayesian inference algorithms with simulation-based calibration" (2018).
"""

import sys
import time

import keras
import numpy as np
import options
import output_folder
import tensorflow as tf
from run_pictures import plt
from scipy import stats
from simulators import SIMULATORS, draw

import tfp_glow
from tfp_glow import pictures

WEIGHTS, POSTERIORS, RANKS = "model.weights.h5", "posteriors.png", "ranks.png"
OUTPUTS = (WEIGHTS, POSTERIORS, RANKS, output_folder.RESULTS)

NUM_VALIDATION, NUM_TEST = 10_000, 20_000  # Simulations to monitor training, and to measure log-densities.
NUM_RANKS, NUM_SAMPLES, NUM_BINS = 1000, 99, 20  # Ranks are 0 .. 99; a bin has five of them.
LOG_DENSITY = "log-density"
NUM_POSTERIORS, SIDE, NUM_CELLS = 4, 3.5, 150  # For the picture, which shows the square from -SIDE to SIDE.
_TRAIN, _VALIDATION, _TEST = range(3)  # The purpose of a draw, for its seed.


def main():
  """Parses the command line, trains, measures; returns the exit code."""
  start = time.monotonic()
  args = parse_args()
  keras.utils.set_random_seed(args.seed)
  simulator = SIMULATORS[args.simulator]
  output_folder.prepare(args, OUTPUTS)
  model = make_model(simulator, args)
  fit(model, simulator, args)
  model.save_weights(args.output / WEIGHTS)
  theta, x = draw(simulator, NUM_TEST, args.seed, _TEST)
  ranks = ranks_of(model, theta[:NUM_RANKS], x[:NUM_RANKS], simulator.names, args.seed)
  results = {"nats": log_densities(model, simulator, theta, x),
             "ranks": {name: uniformity(of_one) for name, of_one in ranks.items()},
             "num_parameters": output_folder.num_parameters(model)}
  save_posteriors(args.output / POSTERIORS, model, simulator, theta[:NUM_POSTERIORS], x[:NUM_POSTERIORS])
  save_ranks(args.output / RANKS, ranks)
  output_folder.write_results(results, start, args)
  show(results)
  print(f"After {time.monotonic() - start:.0f} s. In {args.output}: {', '.join(OUTPUTS)}")
  return 0


def parse_args():
  """The settings; argparse ends the program with a message if one of them is invalid."""
  parser = options.empty_parser(__doc__)
  add = parser.add_argument
  add("--simulator", choices=SIMULATORS, default="epidemic", help="(%(default)s)")
  add("--model", choices=("couplings", "residual_flow"), default="couplings", help="(%(default)s)")
  add("--num-simulations", type=options.positive_int, default=100_000, help="simulations to train with (%(default)s)")
  add("--num-steps", type=options.positive_int, default=6, help="steps of flow (%(default)s)")
  add("--num-hidden", type=options.positive_int, default=64, help="width of the coupling networks (%(default)s)")
  add("--epochs", type=options.positive_int, default=10, help="(%(default)s)")
  add("--batch-size", type=options.positive_int, default=256, help="(%(default)s)")
  add("--learning-rate", type=options.positive_float, default=2e-3,
      help="the highest rate; it falls to 0 at the last step (%(default)s)")
  add("--seed", type=options.non_negative_int, default=0, help="the same seed gives the same result (%(default)s)")
  output_folder.add_options(parser, "posterior")
  args = parser.parse_args()
  output_folder.check(parser, args, OUTPUTS)
  return args


def make_model(simulator, args):
  """A `FlowModel` of two parameters, with an observation as context."""
  context_shape = (simulator.num_numbers,)
  if args.model == "residual_flow":
    flow = tfp_glow.ResidualFlowBijector(
        (2,), num_scales=0, num_dense_blocks=args.num_steps, num_dense_hidden=args.num_hidden, log_det="exact",
        seed=args.seed, context_shape=context_shape)
  else:
    flow = tfp_glow.VectorFlowBijector(2, args.num_steps, args.num_hidden, seed=args.seed, context_shape=context_shape)
  return tfp_glow.FlowModel(flow, num_bits=None)


def fit(model, simulator, args):
  """Trains the model on simulations."""
  batches = lambda count, what: tf.data.Dataset.from_tensor_slices(
      as_pair(*draw(simulator, count, args.seed, what))).batch(args.batch_size)
  train, validation = batches(args.num_simulations, _TRAIN), batches(NUM_VALIDATION, _VALIDATION)
  train = train.shuffle(len(train), args.seed)  # Within an epoch, batches are independent draws already.
  schedule = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.epochs * len(train))
  model.compile(keras.optimizers.Adam(schedule, global_clipnorm=10.), jit_compile=True)
  model.fit(train, validation_data=validation, epochs=args.epochs)


def as_pair(theta, x):
  """A batch as `FlowModel` takes it."""
  return theta, {"context": x}


def log_densities(model, simulator, theta, x):
  """Mean log-densities of the simulations' parameters: a dict, nats."""
  found = {"posterior": model.log_prob(theta, context=x), "prior": stats.norm.logpdf(theta).sum(1)}
  if hasattr(simulator, "log_posterior"):
    found["exact posterior"] = simulator.log_posterior(theta, x)
  return {name: float(np.mean(values)) for name, values in found.items()}


def ranks_of(model, theta, x, names, seed):
  """How many samples of the posterior are below the true value.

  Args:
    model: `FlowModel`.
    theta: Array `[N, 2]`, the parameters.
    x: Array `[N, num_numbers]`, the simulator's output for them.
    names: Names of the parameters.
    seed: Python `int`.

  Returns:
    Dict from these names, and `LOG_DENSITY`, to arrays `[N]` of numbers from 0 to `NUM_SAMPLES`.
  """
  context = np.repeat(x, NUM_SAMPLES, axis=0)
  samples = model.sample(len(context), seed=seed, context=context)
  of_samples = np.c_[samples, model.log_prob(samples, context=context)].reshape([len(x), NUM_SAMPLES, -1])
  of_truth = np.c_[theta, model.log_prob(theta, context=x)]
  ranks = np.sum(of_samples < of_truth[:, np.newaxis], axis=1)
  return dict(zip([*names, LOG_DENSITY], ranks.T))


def histogram(ranks):
  """The number of ranks in each of `NUM_BINS` bins."""
  return np.bincount(ranks * NUM_BINS // (NUM_SAMPLES + 1), minlength=NUM_BINS)


def uniformity(ranks):
  """The chi-square statistic of ranks, and its p-value: a dict."""
  statistic, p_value = stats.chisquare(histogram(ranks))
  return {"chi_square": float(statistic), "p_value": float(p_value)}


def show(results):
  """Prints the measurements."""
  print("\nMean log-density of the true parameters, nats: " +
        ", ".join(f"{name} {value:.4f}" for name, value in results["nats"].items()))
  print(f"{NUM_RANKS} ranks in {NUM_BINS} bins{'chi-square':>18} {'p-value':>9}")
  for name, found in results["ranks"].items():
    print(f"{name:<22} {found['chi_square']:18.1f} {found['p_value']:9.3f}")


def save_posteriors(path, model, simulator, theta, x):
  """Draws posteriors, brightest where they are largest."""
  line = (np.arange(NUM_CELLS) + 0.5) / NUM_CELLS * 2. * SIDE - SIDE
  grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2).astype(np.float32)
  side = pictures.PAGE_WIDTH / NUM_POSTERIORS
  figure, axes = plt.subplots(1, len(x), sharey=True, squeeze=False, layout="compressed",
                              figsize=(side * len(x), side + 0.3))
  axes[0, 0].set_ylabel(simulator.names[1])
  for panel, truth, observation in zip(axes[0], theta, x):
    density = np.exp(model.log_prob(grid, context=observation)).reshape([NUM_CELLS] * 2)
    panel.imshow(density, origin="lower", extent=[-SIDE, SIDE] * 2)
    if hasattr(simulator, "log_posterior"):
      exact = np.exp(simulator.log_posterior(grid, observation)).reshape([NUM_CELLS] * 2)
      panel.contour(line, line, exact, exact.max() * np.exp([-4.5, -2., -0.5]), colors="white", linewidths=0.7)
    panel.plot(*truth, "P", color="white", markeredgecolor="black", markersize=7)  # Seen on any brightness.
    panel.set(xlabel=simulator.names[0], xticks=[-2, 0, 2], yticks=[-2, 0, 2])
  figure.savefig(path)
  plt.close(figure)


def save_ranks(path, ranks):
  """Draws histograms of ranks, and the range of 99 of 100 bars if the ranks are uniform."""
  figure, axes = plt.subplots(1, len(ranks), figsize=(pictures.PAGE_WIDTH, pictures.PAGE_WIDTH / 4.))
  for panel, (name, of_one) in zip(axes, ranks.items()):
    panel.bar(np.arange(NUM_BINS), histogram(of_one), width=0.9)
    panel.axhspan(*stats.binom.ppf([0.005, 0.995], len(of_one), 1. / NUM_BINS), color=pictures.TEXT, alpha=0.15)
    panel.set(title=name, xlabel="rank", xticks=[])
  figure.savefig(path)
  plt.close(figure)


if __name__ == "__main__":
  sys.exit(main())

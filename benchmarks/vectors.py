"""Densities of small tables: Glow for vectors, a masked autoregressive flow, a mixture of Gaussians, and one Gaussian.

  python benchmarks/vectors.py --save   the table of docs/tables.md: eleven minutes on two cores
  python benchmarks/vectors.py --data wine --num-folds 5

The tables are those of scikit-learn, without columns that have the same value in more than a tenth of the rows. Their
numbers are rounded, which a density could exploit. Uniform noise as wide as the least step between two values of a
column prevents that. Rows are split into folds. A fifth of the rows outside of the test fold is for validation. For all
methods, columns are standardised by the mean and the deviation of the training rows. Log-likelihoods, in nats, are
those of standardised rows.

All four are fitted on the same training rows. The flows are trained by the same optimizer, from rows that `Whitening`
has made uncorrelated, and stop early, at the best bits per dimension of the validation rows. The mixture's number of
components, and whether its covariances are full or diagonal, are chosen by the validation rows. The autoregressive flow
is `tfb.MaskedAutoregressiveFlow` with `tfb.AutoregressiveNetwork`s, also in `FlowModel`. The width of its networks
gives it about as many parameters as the other flow, without masked ones. Their activation is tanh: with relu, scales
have no bound, and the mean of one fold of breast_cancer was -2e16 nats.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import results
import tensorflow_probability as tfp
from scipy import stats
from sklearn import datasets, mixture, model_selection

import tfp_glow

tfb, tfd = tfp.bijectors, tfp.distributions
_TABLES = {"breast_cancer": datasets.load_breast_cancer, "wine": datasets.load_wine,
           "diabetes": lambda: datasets.load_diabetes(scaled=False)}
_MOST_OFTEN = 0.1
_NUM_VALIDATION_FOLDS = 5


def main():
  args = parse_args()
  shown = results.Table("rows x columns", *(_LABELS.get(method, method) for method in args.methods))
  for name in args.data:
    table = load(name, args.seed)
    found = of_table(name, table, args)
    shown.add(f"{name.replace('_', ' ')}, {len(table)} x {table.shape[1]}",
              *_cells([found[method] for method in args.methods]))
  shown.save(args, "vectors")


def parse_args():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("--data", nargs="+", choices=_TABLES, default=list(_TABLES), help="(%(default)s)")
  add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="(%(default)s)")
  add("--num-folds", type=int, default=3, help="folds, each of which is tested once (%(default)s)")
  add("--num-steps", type=int, default=5, help="steps of flow, and autoregressive layers (%(default)s)")
  add("--num-hidden", type=int, default=32, help="width inside the networks of couplings (%(default)s)")
  add("--max-components", type=int, default=6, help="most components of the mixture (%(default)s)")
  add("--epochs", type=int, default=500, help="at most (%(default)s)")
  add("--patience", type=int, default=30, help="epochs without improvement before training stops (%(default)s)")
  add("--batch-size", type=int, default=64, help="(%(default)s)")
  add("--learning-rate", type=float, default=1e-3, help="(%(default)s)")
  add("--weight-decay", type=float, default=1e-2, help="(%(default)s)")
  add("--seed", type=int, default=0, help="seed of folds, noise and initial values (%(default)s)")
  results.add_save(parser)
  return parser.parse_args()


def load(name, seed):
  """A table `[N, D]`, float64, whose columns are continuous."""
  table = _TABLES[name]().data
  is_continuous = [np.unique(column, return_counts=True)[1].max() <= _MOST_OFTEN * len(table) for column in table.T]
  table = table[:, is_continuous]
  steps = [np.diff(np.unique(np.round(column, 9))).min() for column in table.T]
  return table + np.random.default_rng(seed).uniform(-0.5, 0.5, table.shape) * steps


def of_table(name, table, args):
  """A dict from methods to their results."""
  found = {method: [] for method in args.methods}
  folds = model_selection.KFold(args.num_folds, shuffle=True, random_state=args.seed)
  for fold, (rest, test) in enumerate(folds.split(table)):
    train, validation = model_selection.train_test_split(
        rest, test_size=1. / _NUM_VALIDATION_FOLDS, random_state=args.seed + fold)
    mean, deviation = table[train].mean(0), table[train].std(0)
    parts = [(table[rows] - mean) / deviation for rows in (train, validation, test)]
    for method in args.methods:
      start = time.monotonic()
      log_likelihood, about = METHODS[method](*parts, args)
      found[method].append({"log_likelihood": float(np.mean(log_likelihood)), "seconds": time.monotonic() - start,
                            "training_log_likelihood": about.pop("train"), **about})
      print(f"  {name}, fold {fold}, {method}: {found[method][-1]}", file=sys.stderr, flush=True)
  return {method: {"mean": float(np.mean([fold["log_likelihood"] for fold in of_method])),
                   "deviation": float(np.std([fold["log_likelihood"] for fold in of_method])), "folds": of_method}
          for method, of_method in found.items()}


def _vector_flow(train, validation, test, args):
  flow = tfp_glow.VectorFlowBijector(train.shape[1], args.num_steps, args.num_hidden, seed=args.seed)
  return _trained(flow, sum(v.shape.num_elements() for v in flow.trainable_variables), train, validation, test, args)


def _autoregressive(train, validation, test, args):
  keras.utils.set_random_seed(args.seed)  # Also sets TensorFlow's seed, by which networks of `tf_keras` are drawn.
  num_dims = train.shape[1]
  like = tfp_glow.VectorFlowBijector(num_dims, args.num_steps, args.num_hidden)
  aim = sum(v.shape.num_elements() for v in like.trainable_variables)
  size = lambda width: args.num_steps * size_of_network(num_dims, width)
  width = min(range(1, 1000), key=lambda width: abs(size(width) - aim))
  rng, layers = np.random.default_rng(args.seed), [tfp_glow.Whitening(num_dims)]
  for _ in range(args.num_steps):
    network = tfb.AutoregressiveNetwork(2, event_shape=[num_dims], hidden_units=[width] * 2, activation="tanh")
    layers += [tfb.MaskedAutoregressiveFlow(network), tfb.Permute(rng.permutation(num_dims).astype(np.int32))]
  base = tfd.Sample(tfd.Normal(0., 1.), [num_dims])
  flow = tfd.TransformedDistribution(base, tfp_glow.Chain(layers[:-1]))
  return _trained(flow, size(width), train, validation, test, args)


def size_of_network(num_dims, width):
  """Number of unmasked parameters of an autoregressive layer's network: half of its kernels are masked."""
  return (num_dims * width + width**2 + 2 * num_dims * width) // 2 + 2 * width + 2 * num_dims


def _trained(flow, num_parameters, train, validation, test, args):
  """Log-likelihoods of the test rows, and other results."""
  train, validation, test = (np.float32(rows) for rows in (train, validation, test))
  model = tfp_glow.FlowModel(flow, num_bits=None)
  model.compile(keras.optimizers.AdamW(args.learning_rate, weight_decay=args.weight_decay, global_clipnorm=10.))
  model.adapt(train)
  keras.utils.set_random_seed(args.seed)  # For the order of rows.
  stop = keras.callbacks.EarlyStopping("val_bits_per_dim", patience=args.patience, restore_best_weights=True)
  history = model.fit(train, validation_data=(validation, None), batch_size=args.batch_size, epochs=args.epochs,
                      callbacks=[stop], verbose=0).history
  return model.log_prob(test), {"train": float(np.mean(model.log_prob(train))), "num_parameters": num_parameters,
                                "epochs": len(history["loss"]), "best_epoch": int(stop.best_epoch)}


def _mixture(train, validation, test, args):
  candidates = [
      mixture.GaussianMixture(count, covariance_type=kind, random_state=args.seed, reg_covar=1e-4).fit(train)
      for kind in ("full", "diag") for count in range(1, args.max_components + 1)]
  best = max(candidates, key=lambda candidate: candidate.score(validation))
  size = _size_of_mixture(train.shape[1], best.n_components, best.covariance_type)
  return best.score_samples(test), {"train": float(best.score(train)), "num_parameters": size,
                                    "components": best.n_components, "covariance": best.covariance_type}


def _gaussian(train, validation, test, args):
  del validation, args
  gaussian = stats.multivariate_normal(train.mean(0), np.cov(train.T))
  return gaussian.logpdf(test), {"train": float(np.mean(gaussian.logpdf(train))),
                                 "num_parameters": _size_of_mixture(train.shape[1], 1, "full")}


def _size_of_mixture(num_dims, num_components, covariance_type):
  """Number of parameters: means, covariances, and weights whose sum is 1."""
  of_covariance = {"full": num_dims * (num_dims + 1) // 2, "diag": num_dims}[covariance_type]
  return num_components * (num_dims + of_covariance + 1) - 1


METHODS = {"vector flow": _vector_flow, "autoregressive flow": _autoregressive, "mixture of Gaussians": _mixture,
           "one Gaussian": _gaussian}
_LABELS = {"vector flow": "`VectorFlowBijector`", "autoregressive flow": "`tfb.MaskedAutoregressiveFlow`"}


def _cells(found):
  """Means and, in brackets, deviations over the folds; the best mean is bold."""
  best = max(of_method["mean"] for of_method in found)
  bold = lambda of_method: "**" if of_method["mean"] == best else ""
  return [f"{bold(one)}{one['mean']:.2f}{bold(one)} ({one['deviation']:.2f})" for one in found]


if __name__ == "__main__":
  main()

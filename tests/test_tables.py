"""`benchmarks/tables.py`: what it makes of the tables, and all of it at sizes at which it says nothing."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn import datasets, model_selection

_PATH = pathlib.Path(__file__).parent.parent / "benchmarks" / "tables.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_of_tables", _PATH)
tables = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tables)


@pytest.fixture
def options(monkeypatch):
  """Those of the command line."""

  def parsed(*options):
    monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, options)])
    return tables.parse_args()

  return parsed


def test_tables_are_continuous():
  """Rounded values are blurred by less than a step, and columns of a few values are left out."""
  found, raw = tables.load("diabetes", seed=0), datasets.load_diabetes(scaled=False)
  names = [name for name, column in zip(raw.feature_names, raw.data.T)
           if np.unique(column, return_counts=True)[1].max() <= 0.1 * len(column)]
  assert "sex" not in names and {"age", "bmi", "s5"} <= set(names)
  assert found.shape == (442, len(names))
  ages = found[:, names.index("age")]
  np.testing.assert_array_equal(np.round(ages), raw.data[:, raw.feature_names.index("age")])
  assert len(np.unique(ages)) == 442 and np.ptp(ages - np.round(ages)) > 0.9
  np.testing.assert_array_equal(tables.load("diabetes", seed=0), found)
  assert np.any(tables.load("diabetes", seed=1) != found)


def test_parameters_of_autoregressive_networks():
  """About as many as the masks let through."""
  network = tables.tfb.AutoregressiveNetwork(2, event_shape=[30], hidden_units=[40, 40])
  network(np.zeros([1, 30], np.float32))
  weights = network.get_weights()
  assert tables._size_of_network(30, 40) == pytest.approx(sum(np.count_nonzero(w) if w.ndim == 2 else w.size
                                                              for w in weights), rel=0.1)


@pytest.mark.slow
@pytest.mark.benchmark
def test_all_methods(options, tmp_path, capsys):
  args = options("--data", "wine", "--num-folds=2", "--num-steps=1", "--num-hidden=4", "--max-components=2",
                 "--epochs=2", "--json", tmp_path / "found.json")
  tables.main()
  found = json.loads((tmp_path / "found.json").read_text())
  assert found["settings"]["epochs"] == 2 and found["tables"]["wine"]["rows"] == 178
  of_methods = {method: found["tables"]["wine"][method] for method in tables._METHODS}
  printed = capsys.readouterr().out
  for of_method in of_methods.values():
    values = [fold["log_likelihood"] for fold in of_method["folds"]]
    assert len(values) == 2 and np.all(np.isfinite(values)) and of_method["mean"] == pytest.approx(np.mean(values))
    assert f"{of_method['mean']:.2f} (" in printed
  assert of_methods["vector flow"]["folds"][0]["epochs"] == 2
  # The Gaussian, once more by hand.
  table = tables.load("wine", args.seed)
  rest, test = next(iter(model_selection.KFold(2, shuffle=True, random_state=args.seed).split(table)))
  train, _ = model_selection.train_test_split(rest, test_size=0.2, random_state=args.seed)
  mean, covariance = table[train].mean(0), np.cov(table[train].T)
  expected = stats.multivariate_normal.logpdf(table[test], mean, covariance) + np.log(table[train].std(0)).sum()
  assert of_methods["one Gaussian"]["folds"][0]["log_likelihood"] == pytest.approx(np.mean(expected))

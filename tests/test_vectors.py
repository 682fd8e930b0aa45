"""`benchmarks/vectors.py`: how it prepares the tables, and a whole run at sizes at which it says nothing."""

import importlib
import pathlib
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn import datasets, model_selection

sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))
vectors = importlib.import_module("vectors")


@pytest.fixture
def options(monkeypatch):
  """The arguments of the command line."""

  def parsed(*options):
    monkeypatch.setattr(sys, "argv", ["vectors.py", *map(str, options)])
    return vectors.parse_args()

  return parsed


def test_tables_are_continuous():
  """Noise of less than a step is added to rounded values, and columns with few values are left out."""
  found, raw = vectors.load("diabetes", seed=0), datasets.load_diabetes(scaled=False)
  names = [name for name, column in zip(raw.feature_names, raw.data.T)
           if np.unique(column, return_counts=True)[1].max() <= 0.1 * len(column)]
  assert "sex" not in names and {"age", "bmi", "s5"} <= set(names)
  assert found.shape == (442, len(names))
  ages = found[:, names.index("age")]
  np.testing.assert_array_equal(np.round(ages), raw.data[:, raw.feature_names.index("age")])
  assert len(np.unique(ages)) == 442 and np.ptp(ages - np.round(ages)) > 0.9
  np.testing.assert_array_equal(vectors.load("diabetes", seed=0), found)
  assert np.any(vectors.load("diabetes", seed=1) != found)


def test_parameters_of_autoregressive_networks():
  """About as many as the masks leave."""
  network = vectors.tfb.AutoregressiveNetwork(2, event_shape=[30], hidden_units=[40, 40])
  network(np.zeros([1, 30], np.float32))
  weights = network.get_weights()
  assert vectors.size_of_network(30, 40) == pytest.approx(sum(np.count_nonzero(w) if w.ndim == 2 else w.size
                                                              for w in weights), rel=0.1)


@pytest.mark.slow
@pytest.mark.benchmark
def test_all_methods(options, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(vectors.results, "FOLDER", tmp_path)
  args = options("--data", "wine", "--num-folds=2", "--num-steps=1", "--num-hidden=4", "--max-components=2",
                 "--epochs=2", "--save")
  of_tables = []
  of_table = vectors.of_table
  monkeypatch.setattr(vectors, "of_table", lambda *args: of_tables.append(of_table(*args)) or of_tables[-1])
  vectors.main()
  of_methods, = of_tables
  assert list(of_methods) == list(vectors.METHODS)
  kept = vectors.results.read("vectors")
  assert capsys.readouterr().out == vectors.results.markdown(kept["columns"], kept["rows"]) + "\n"
  assert kept["columns"][1] == "`VectorFlowBijector`" and kept["rows"][0][0] == "wine, 178 x 13"
  best = max(of_methods, key=lambda method: of_methods[method]["mean"])
  cells = dict(zip(of_methods, kept["rows"][0][1:]))
  for method, of_method in of_methods.items():
    values = [fold["log_likelihood"] for fold in of_method["folds"]]
    assert len(values) == 2 and np.all(np.isfinite(values)) and of_method["mean"] == pytest.approx(np.mean(values))
    bold = "**" if method == best else ""
    assert cells[method] == f"{bold}{np.mean(values):.2f}{bold} ({np.std(values):.2f})"
  assert of_methods["vector flow"]["folds"][0]["epochs"] == 2
  # The Gaussian, computed here again.
  table = vectors.load("wine", args.seed)
  rest, test = next(iter(model_selection.KFold(2, shuffle=True, random_state=args.seed).split(table)))
  train, _ = model_selection.train_test_split(rest, test_size=0.2, random_state=args.seed)
  mean, covariance = table[train].mean(0), np.cov(table[train].T)
  expected = stats.multivariate_normal.logpdf(table[test], mean, covariance) + np.log(table[train].std(0)).sum()
  assert of_methods["one Gaussian"]["folds"][0]["log_likelihood"] == pytest.approx(np.mean(expected))

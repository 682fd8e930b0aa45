"""`benchmarks/serving.py`, `page.py` and `class_samples.py` run, at sizes at which they say nothing."""

import json
import types

import benchmark_scripts
import numpy as np
import pytest
import served_models
import tensorflow as tf

from tfp_glow import data

run = benchmark_scripts.load("run")
serving = benchmark_scripts.load("serving")
page = benchmark_scripts.load("page")
class_samples = benchmark_scripts.load("class_samples")


def test_tables_of_serving_hold_ratios_within_a_round(monkeypatch, capsys, saved_tables):
  asked = []

  def measure(system, measurement, *options):
    asked.append((system, measurement, *options[1:]))
    # The machine gets slower round by round: the first of `asked` is the export.
    time = 2.**(len(asked) // 2) * (1.5 if system == "SavedModel" else 1.)
    return {"export": {"FlowModel": 1., "SavedModel": 2.}, "load": {"load": time}}.get(measurement, {"log_prob": time})

  monkeypatch.setattr(run, "measure", measure)
  benchmark_scripts.call(serving, "--rounds=2", "--save", "--num_hidden=8")
  rows = [line for line in capsys.readouterr().out.splitlines() if "`log_prob`" in line]
  assert len(rows) == 3 and all(row.endswith("| 1.50 (1.50 to 1.50) |") for row in rows)
  assert all("--num_hidden=8" in options and "--save" not in options for _, _, *options in asked)
  assert saved_tables("serving_latency")["rows"] == [["`log_prob`", "1.50 (1.50 to 1.50)", "1.50 (1.50 to 1.50)"]]
  assert [system for system, *_ in asked[1:5]] == ["FlowModel", "SavedModel", "SavedModel", "FlowModel"]


@benchmark_scripts.benchmark
@pytest.mark.usefixtures("benchmark_clock")
def test_measurements_of_serving(tmp_path):
  measure = lambda system, measurement: benchmark_scripts.measure(
      system, measurement, f"--folder={tmp_path}", *benchmark_scripts.TINY)
  found = measure("tfp_glow", "export")
  sizes = {name: sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and part in str(path))
           for name, part in (("FlowModel", "model.keras"), ("SavedModel", "saved_model"))}
  assert {name: size * 2**20 for name, size in found.items()} == pytest.approx(sizes)
  for system in found:
    latency = dict.fromkeys(("log_prob", "encode", "decode", "sample", "interpolate"), 1000.)
    assert measure(system, "latency") == latency and measure(system, "load") == {"load": 1.}


@benchmark_scripts.benchmark
def test_page_is_asked_everything(grey_path, tmp_path, capfd, saved_tables):
  np.savez(tmp_path / "directions.npz", **served_models.directions())
  (tmp_path / "saved_model").symlink_to(grey_path)
  (tmp_path / "results.json").write_text(json.dumps({"settings": {"data": "../grey.npz"}}))
  options = [tmp_path / "saved_model", "--directions", tmp_path / "directions.npz", "--calls=2", "--save"]
  benchmark_scripts.call(page, *options)
  rows = [line.split("|")[1:-1] for line in capfd.readouterr().out.splitlines()[2:]]
  assert [row[0].strip(" `/") for row in rows] == [f"api/{name}" for name in (
      "model", "image", "edit", "interpolate", "sample")]
  assert all(0 <= int(median) <= int(worst) for _, median, worst in rows)
  assert [cells[1] for cells in saved_tables("page_grey")["rows"]] == [
      f"{median.strip()} ({worst.strip()})" for _, median, worst in rows]


@benchmark_scripts.benchmark
def test_page_without_a_model_is_an_error(tmp_path, capfd):
  with pytest.raises(SystemExit, match=f"serve.py {tmp_path} .*failed"):
    benchmark_scripts.call(page, tmp_path)
  assert "serve.py: error: " in capfd.readouterr().err


def test_page_is_saved_for_models_whose_data_are_known_only(tmp_path, capsys):
  with pytest.raises(SystemExit):
    benchmark_scripts.call(page, tmp_path / "saved_model", "--save")
  assert "--save needs a model in the output folder" in capsys.readouterr().err


def test_page_is_asked_with_a_class_and_all_sliders(monkeypatch):
  asked = []
  answers = {"/api/model": {"classes": ["cat"], "directions": ["darker", "3 to 8"]},
             "/api/sample": {"images": ["a", "b", "c"]}}
  monkeypatch.setattr(page, "ask", lambda connection, path, body: asked.append((path, body)) or answers[path])
  questions = page.make_questions(None)
  assert asked == [("/api/model", None), ("/api/sample", questions["/api/sample"])]
  assert questions["/api/edit"] == {"image": "a", "strengths": {"darker": 0.5, "3 to 8": 0.5}, "label": 0}
  assert questions["/api/interpolate"] == {"first": "a", "second": "b", "label": 0}
  assert all(body["label"] == 0 for path, body in questions.items() if body)


@pytest.mark.slow
@pytest.mark.parametrize("shift, least, most", [(0, 0.95, 1.), (1, 0., 0.05)])
def test_classes_of_samples_are_compared_with_those_asked_for(
    tmp_path, monkeypatch, capsys, saved_tables, shift, least, most):
  """The model draws real images, of the class it is asked for, or of the next one."""
  batches = data.load_images("digits", "train", 2000, with_labels=True, seed=0)
  images, labels = next(iter(batches.as_numpy_iterator()))

  def sample(num_samples, temperature, seed, labels_asked):
    del temperature, seed
    wanted = (labels_asked + shift) % 10
    drawn = [images[labels == label][index % 100] for index, label in enumerate(wanted)]
    assert len(drawn) == num_samples
    return {"images": tf.constant(np.stack(drawn))}

  saved_model = types.SimpleNamespace(signatures={"sample": lambda labels, **kwargs: sample(
      labels_asked=labels.numpy(), **{name: value.numpy() for name, value in kwargs.items()})})
  monkeypatch.setattr(tf.saved_model, "load", lambda path: saved_model)
  settings = {"data": "digits", "image_size": None, "shorter_side": None, "data_dir": None, "num_bits": 4,
              "conditional": True, "batch_size": 64, "max_shift": 0., "seed": 0, "weight_y": 0.01}
  (tmp_path / "results.json").write_text(json.dumps({"settings": settings, "bits_per_dim": 2.345}))
  benchmark_scripts.call(class_samples, tmp_path, "--samples=20", "--save")
  shown = [line.split("|")[2].strip() for line in capsys.readouterr().out.splitlines()[2:]]
  assert saved_tables("class_samples_digits_0.01")["rows"] == [["`--weight-y 0.01`", "2.35", *shown]]
  shares = [float(share.strip("%")) / 100. for share in shown]
  assert len(shares) == 1 + len(class_samples.TEMPERATURES)
  assert shares[0] > 0.95 and all(least <= share <= most for share in shares[1:])


def test_classes_of_samples_need_a_run_by_class(tmp_path, capsys):
  with pytest.raises(SystemExit):
    benchmark_scripts.call(class_samples, tmp_path)
  (tmp_path / "results.json").write_text(json.dumps({"settings": {"conditional": False}}))
  with pytest.raises(SystemExit):
    benchmark_scripts.call(class_samples, tmp_path)
  assert capsys.readouterr().err.count("Received: ") == 2

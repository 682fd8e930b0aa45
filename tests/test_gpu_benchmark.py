"""`benchmarks/gpu.py`: how it runs processes, with a worker without TensorFlow; the whole script, tiny and on a CPU."""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import gpu  # noqa: E402
import gpu_processes  # noqa: E402
import gpu_tables  # noqa: E402
import results  # noqa: E402

# Each entry of a part is a word that tells what it does.
_WORKER = """
import json, os, pathlib, sys, time
folder = pathlib.Path(__file__).parent
with open(folder / "begun", "a") as file:
  file.write("x")
options = json.loads(sys.argv[1])
say = lambda **message: print(json.dumps(message), flush=True)
for part in options["parts"]:
  say(part=part, machine={part: "seen"})
  for entry in options["entries"][part]:
    if entry in options["done"][part]:
      continue
    say(begin=entry)
    if entry.startswith("hangs"):
      time.sleep(60)
    if entry.startswith("crashes"):
      os._exit(3)
    if entry.startswith("meets"):  # A part of another process, which has to run at the same time.
      (folder / part).touch()
      while not (folder / {"a": "b", "b": "a"}[part]).exists():
        time.sleep(0.01)
    say(end=entry, rows={entry: {part: "there"}}, notes=["noted"])
"""


@pytest.fixture
def make_run(tmp_path, monkeypatch):
  """A function from the entries of each part to a run of such a worker and what the run finds."""
  worker = tmp_path / "worker.py"
  worker.write_text(_WORKER)
  monkeypatch.setattr(gpu_processes, "WORKER", worker)
  monkeypatch.setattr(gpu_processes, "GRACE", 1.)

  def make(entries, budget=20., limit=2.):
    found = {"machine": {}, "sections": {}}
    return gpu_processes.Run(found, {"entries": entries}, budget, limit, lambda: None), found

  return make


def test_processes_run_side_by_side_and_their_rows_meet(make_run):
  run, found = make_run({"a": ["meets"], "b": ["meets"], "c": ["y"]}, limit=20.)
  run.stage([[("first", "a", 1.), ("second", "c", 1.)], [("first", "b", 1.)]], 10., 10.)
  assert found["sections"]["first"]["rows"] == {"meets": {"a": "there", "b": "there"}}
  assert found["machine"].keys() == {"a", "b", "c"} and "y" in found["sections"]["second"]["rows"]
  assert sorted(found["sections"]["first"]["notes"]) == ["a, meets: noted", "b, meets: noted"]


def test_what_hangs_or_crashes_costs_itself_alone(make_run):
  run, found = make_run({"a": ["x", "hangs", "crashes", "y"], "b": ["z"]})
  run.stage([[("first", "a", 9.), ("second", "b", 9.)]], 18., 18.)
  assert found["sections"]["first"]["rows"].keys() == {"x", "y"} and "z" in found["sections"]["second"]["rows"]
  hung, crashed = [note for note in found["sections"]["first"]["notes"] if "noted" not in note]
  assert hung == "a, hangs: ended after 2 s" and crashed.startswith("a, crashes: ended with 3")


def test_what_there_is_no_time_for_is_named(make_run):
  run, found = make_run({"a": ["hangs"], "b": ["x"]}, budget=7., limit=60.)
  run.stage([[("first", "a", 1.)]], 4., 4.)
  run.stage([[("second", "b", 1.)]], 2., 6.)
  assert found["sections"]["second"]["notes"] == ["b left out, for lack of time"]


def test_nothing_is_begun_anew_after_ctrl_c(make_run, tmp_path):
  run, found = make_run({"a": ["hangs", "x"], "b": ["hangs", "x"]}, limit=60.)
  threading.Timer(3., os.kill, (os.getpid(), signal.SIGINT)).start()
  with pytest.raises(KeyboardInterrupt):
    run.stage([[("first", "a", 1.)], [("first", "b", 1.)]], 20., 20.)
  assert (tmp_path / "begun").read_text() == "xx" and not found["sections"]["first"]["rows"]


@pytest.mark.parametrize("num_cards, counts", [(1, []), (2, [1, 2]), (6, [1, 2, 4]), (8, [1, 2, 4, 8])])
def test_each_number_of_cards_has_a_process_of_its_own(num_cards, counts):
  """TensorFlow confuses the collective operations of two strategies in one process."""
  stages = gpu._chosen(["scaling"], num_cards, {})
  processes = [process for stage in stages for process in stage]
  assert len(processes) == len(stages)  # One after the other.
  assert [[part for _, part, _ in process] for process in processes] == [[f"scaling_{count}"] for count in counts]


def test_what_several_cards_do_is_compared_with_what_one_does():
  rows = {"4 cards": {"images/s": 150.}}
  gpu._compare(rows)  # The run on one card has hung.
  assert rows == {"4 cards": {"images/s": 150.}}
  rows["1 cards"] = {"images/s": 50.}
  gpu._compare(rows)
  assert rows["4 cards"] == {"images/s": 150., "of one card's, times": 3., "efficiency, %": 75.}


def test_tables_are_saved_as_the_pages_show_them(tmp_path, monkeypatch):
  times = {"step, ms": 49.2, "images/s": 1300., "least, ms": 43.4, "most, ms": 52.8}
  sections = {
      "speed": {"rows": {"3 x 8, 128 wide: ours, autodiff, TF32, no XLA": times,
                         "3 x 32, 512 wide: ours, autodiff, TF32, XLA": times}},
      "memory": {"rows": {"reversible, 3 x 64, 512 wide, batch of 64": {
          "peak, MiB": 2801.4, "parameters, gradients, Adam, MiB": 1362.}}},
      "products": {"rows": {
          "product 16384 x 12 x 12: plain, tf.function": {"error, TF32 on": 3.1e-4, "error, TF32 off": 6.2e-8},
          "product 16384 x 12 x 12: plain, TF32 off": {"ms, tf.function": 0.0341, "ms, XLA": 0.0214},
          "product 16384 x 12 x 12: XLA's HIGHEST": {"ms, tf.function": "-", "ms, XLA": 0.024}}},
      "exactness": {"rows": {
          "TF32, as in training": {"changed": 6144, "of": 65536, "by up to": 214,
                                   "log-prob moved from float64's by up to, nats": 5.12},
          "gradients, TF32": {"reversible from autodiff": 3.6e-4, "autodiff from float32's": "nan"}}}}
  monkeypatch.setattr(results, "FOLDER", tmp_path)
  gpu._save(sections, argparse.Namespace(save=False))
  assert not any(tmp_path.iterdir())
  gpu._save(sections, argparse.Namespace(save=True))
  kept = {path.stem: results.read(path.stem) for path in tmp_path.iterdir()}
  assert kept.keys() == {"gpu_speed", "gpu_memory", "gpu_products", "gpu_exactness_training", "gpu_gradients"}
  missing = "not measured"
  assert kept["gpu_speed"]["rows"][1] == ["ours, autodiff", "49 ms (43 to 53)", missing]
  assert kept["gpu_memory"]["rows"][1] == ["reversible", missing, missing, missing, "2,801"]
  rows = {row[0]: row[1:] for row in kept["gpu_products"]["rows"]}
  assert rows["TensorFlow's"] == ["3e-4", *[""] * 5]
  assert rows["TensorFlow's, TensorFloat-32 off"] == ["6e-8", "", "", "", "0.034", "0.021"]
  assert rows["XLA's precision `HIGHEST`"] == ["", "", "", "", "", "0.024"]
  assert kept["gpu_exactness_training"]["rows"][0][1:] == ["6,144", "214", "5.1 nats"]
  assert kept["gpu_gradients"]["rows"] == [["float32", missing, ""], ["TensorFloat-32", "3.6e-4", missing],
                                           ["bfloat16 networks", missing, missing]]


@pytest.mark.parametrize("name", gpu_tables._TABLES)
def test_saved_tables_have_the_columns_of_the_pages(name):
  _, make = gpu_tables._TABLES[name]
  columns, rows = make(gpu_tables._Rows({}))
  before = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
  assert columns == before["columns"] and all(len(row) == len(columns) for row in rows)
  assert {row[0] for row in rows} & {row[0] for row in before["rows"]}


def test_tiny_numbers_are_not_saved(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--save"])
  with pytest.raises(SystemExit):
    gpu.main()
  assert "--save must not be given with --tiny" in capsys.readouterr().err


def run(folder, *options):
  """The file that it writes."""
  path = folder / "gpu.json"
  done = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny", "--budget", "1800", "--limit", "300",
                         "--json", path, "--markdown", folder / "gpu.md", *options],
                        capture_output=True, text=True, check=True)
  found = json.loads(path.read_text(encoding="utf-8"))
  assert (folder / "gpu.md").read_text(encoding="utf-8") == done.stdout
  return found, done.stdout


@pytest.mark.slow
@pytest.mark.benchmark
def test_all_sections(tmp_path, monkeypatch):
  found, tables = run(tmp_path)
  assert found["machine"]["tensorflow"] and found["machine"]["python"] and "card" in found["machine"]
  rows = {name: section["rows"] for name, section in found["sections"].items()}
  assert rows.keys() == {"products", "checks", "speed", "exactness", "finite", "memory", "scaling", "start"}
  notes = [note for section in found["sections"].values() for note in section["notes"]]
  assert all("normflows" in note or "several GPUs" in note for note in notes), notes
  for name, row in rows["products"].items():
    errors = [value for column, value in row.items() if not column.startswith("ms")]
    assert all(error < 5e-7 for error in errors), name
  assert {f"product 64 x 12 x 12: split, {mode}" for mode in ("eager", "tf.function", "XLA")} <= rows["products"].keys()
  assert len(rows["checks"]) == 6 and all(row["right as float32"] for row in rows["checks"].values())
  trips = {name: row for name, row in rows["exactness"].items() if "changed" in row}
  assert {"float32, model", "float32, XLA", "residual flow, TF32", "noise, TF32"} <= trips.keys()
  assert all(row["changed"] == row["by up to"] == 0 and row["of"] for name, row in trips.items() if "bf" not in name)
  assert rows["exactness"]["float32, model"]["log-prob moved from float64's by up to, nats"] < 1e-3
  assert rows["exactness"]["gradients, float32"]["reversible from autodiff"] < 1e-4
  assert all(row["finite"] and row["last quarter"] > 0. for row in rows["finite"].values())
  for kind in ("bare convolutions", "ours, autodiff", "ours, reversible"):
    assert rows["speed"][f"1 x 2, 8 wide: {kind}, TF32, no XLA"]["images/s"] > 0.
  bare = rows["speed"]["1 x 2, 8 wide: bare convolutions, TF32, no XLA"]
  assert bare["to bare"] == 1. and bare["first step, s"] > 1e-3 * bare["step, ms"]
  assert all(row["all, s"] > 0. for row in rows["start"].values())
  assert len(rows["memory"]) == 2
  if found["machine"]["card"] == "none":
    assert list(rows["scaling"]) == ["1 cards", "2 cards", "4 cards"]
    one, *others = [row["loss"] for row in rows["scaling"].values()]  # All cards get the same images.
    assert others == pytest.approx([one] * 2, rel=1e-5)
  tiny = gpu_tables.common.TINY
  monkeypatch.setattr(gpu_tables.common, "PAPER", tiny)
  monkeypatch.setattr(gpu_tables.common, "SMALL", dataclasses.replace(tiny, num_steps=1))
  saved = gpu_tables.tables(found["sections"])
  assert all("ms (" in cell for row in saved["gpu_speed"][1] for cell in row[1:])
  assert saved["gpu_exactness"][1][0][1] == "0" and "e-" in saved["gpu_gradients"][1][0][1]
  assert tables.startswith("# python ") and "| float32, model | 0 | 64 | 0 |" in tables


@pytest.mark.slow
@pytest.mark.benchmark
def test_what_is_missing_is_named(tmp_path):
  found, _ = run(tmp_path, "--only", "checks", "--reference", str(tmp_path))
  notes = found["sections"]["checks"]["notes"]
  assert len(notes) == 6 and all("`--reference` names the folder" in note for note in notes)

"""`benchmarks/gpu.py` at its tiny size, without a GPU."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.benchmark]


def run(folder, *options):
  """What it writes."""
  path = folder / "gpu.json"
  done = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny", "--budget", "900", "--limit", "300",
                         "--json", path, "--markdown", folder / "gpu.md", *options],
                        capture_output=True, text=True, check=True)
  found = json.loads(path.read_text(encoding="utf-8"))
  assert (folder / "gpu.md").read_text(encoding="utf-8") == done.stdout
  return found, done.stdout


def test_all_sections(tmp_path):
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
  assert rows["exactness"]["float32, model"]["log-prob moved by up to, nats"] < 1e-3
  assert rows["exactness"]["gradients, float32"]["reversible from autodiff"] < 1e-4
  assert all(row["finite"] and row["last quarter"] > 0. for row in rows["finite"].values())
  for kind in ("bare convolutions", "ours, autodiff"):
    assert rows["speed"][f"1 x 2, 8 wide: {kind}, TF32, no XLA"]["images/s"] > 0.
  bare = rows["speed"]["1 x 2, 8 wide: bare convolutions, TF32, no XLA"]
  assert bare["to bare"] == 1. and bare["first step, s"] > 1e-3 * bare["step, ms"]
  assert all(row["all, s"] > 0. for row in rows["start"].values())
  assert len(rows["memory"]) == 2
  assert tables.startswith("# python ") and "| float32, model | 0 | 64 | 0 |" in tables


def test_what_hangs_is_ended_and_what_fails_is_named(tmp_path):
  found, _ = run(tmp_path, "--only", "checks", "--limit", "1", "--budget", "20")
  assert "ended after 1 s" in " ".join(found["sections"]["checks"]["notes"])
  found, _ = run(tmp_path, "--only", "checks", "--reference", str(tmp_path))
  notes = found["sections"]["checks"]["notes"]
  assert len(notes) == 6 and all("`--reference` names the folder" in note for note in notes)

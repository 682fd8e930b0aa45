"""Measured numbers: pages show what the files of `docs/results` hold, and scripts write these files."""

import argparse
import importlib
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MARK = "<!-- results: {} -->\n{}\n<!-- end -->"


def _load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


tables = _load(ROOT / "docs" / "tables.py")
results = tables.results
health, hybrid, replicas, run = map(importlib.import_module, ("health", "hybrid", "replicas", "run"))
FILES = sorted(path.stem for path in (ROOT / "docs" / "results").glob("*.json"))


@pytest.fixture(name="folder")
def fixture_folder(tmp_path, monkeypatch):
  """A folder other than that of the pages."""
  monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
  return results.FOLDER


def _write(name, columns, *rows):
  results.write(name, {"columns": columns, "rows": rows})


def test_pages_show_the_measured_numbers():
  differing = [path.name for path in tables.differing_pages()]
  assert not differing, f"`python docs/tables.py` writes these from docs/results: {differing}"


def test_every_file_is_shown_and_every_mark_has_its_file():
  used = set().union(*(tables.used_files(path.read_text(encoding="utf-8")) for path in tables.pages()))
  assert used == set(FILES), "a file without a `<!-- results: ... -->` in a page, or the other way round"


@pytest.mark.parametrize("path", tables.pages(), ids=lambda path: path.stem)
def test_pages_have_no_placeholders(path):
  assert not _placeholders(path.read_text(encoding="utf-8"))


def test_placeholders_are_noticed():
  page = "# MNIST\n\n  RESULTS\n\n| a |\n\nIt takes XXX s, or TODO.\n\n```sh\nEOF\n```\n"
  assert _placeholders(page) == ["RESULTS", "XXX", "TODO"]


def _placeholders(text):
  """Placeholders: a word in capitals on a line of its own, outside of code, and usual marks."""
  text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
  return [found.strip() for found in re.findall(r"^ *[A-Z_]{3,} *$|\b(?:TODO|TBD|FIXME|XXX)\b", text, re.M)]


@pytest.mark.parametrize("name", FILES)
def test_files_say_where_the_numbers_come_from(name):
  found = results.read(name)
  assert {"command", "date", "machine", "columns", "rows"} <= found.keys() and found["rows"]
  assert re.match(r"20\d\d-\d\d-\d\d", found["date"]) and found["machine"]
  script = re.match(r"python ((?:benchmarks|examples)/\w+\.py)", found["command"])
  assert (ROOT / script[1]).exists()


@pytest.mark.parametrize("page, shown", [("README.md", "| `tfp_glow` | {} |"), ("docs/speed.md", "autodiff | {} (")])
def test_numbers_written_by_hand_are_noticed(page, shown, tmp_path, monkeypatch):
  text = (ROOT / page).read_text(encoding="utf-8")
  number = tables.values.cell("speed", "`tfp_glow`, autodiff", "training step")
  assert text.count(shown.format(number)) == 1
  edited = tmp_path / "page.md"
  edited.write_text(text.replace(shown.format(number), shown.format("0.50")), encoding="utf-8")
  monkeypatch.setattr(tables, "pages", lambda: [edited])
  assert tables.differing_pages() == {edited: text}


@pytest.mark.usefixtures("folder")
def test_other_numbers_of_a_file_reach_all_pages():
  columns = ["", "training step", "log_prob", "sample"]
  names = ("`tfp_glow`, autodiff", "`tfb.Glow`", "normflows")
  _write("speed", columns, *([name, "7.00 (6.00 to 8.00)", "5", "6.5"] for name in names))
  texts = [tables.with_tables(MARK.format(name, "| old |"), "page") for name in ("speed", "summary_speed")]
  assert "| old |" not in "".join(texts)
  assert "\n| normflows | 7.00 (6.00 to 8.00) | 5 | 6.5 |\n" in texts[0]
  assert "\n| normflows (PyTorch) | 7.00 | 5 | 6.5 |\n" in texts[1]


@pytest.mark.usefixtures("folder")
def test_tables_keep_blank_lines_around():
  _write("one", ["", "a"], ["x", ""])
  text = tables.with_tables(f"before\n\n{MARK.format('one', '')}\n\nafter\n", "page")
  assert text == ("before\n\n<!-- results: one -->\n\n| | a |\n|---|---|\n| x | |\n\n<!-- end -->\n\nafter\n")
  assert tables.with_tables(text, "page") == text and tables.used_files(text) == {"one"}


@pytest.mark.usefixtures("folder")
def test_tables_in_one_mark():
  _write("first", ["", "a"], ["x", "1"], ["y", "2"])
  _write("below", ["", "a"], ["z", "3"])
  _write("beside", ["other", "b"], ["x", "4"], ["y", "5"])
  assert tables.joined("first, below")[1] == [["x", "1"], ["y", "2"], ["z", "3"]]
  assert tables.joined("first, beside") == (["", "a", "b"], [["x", "1", "4"], ["y", "2", "5"]])
  with pytest.raises(ValueError, match="same columns.* Received: below, beside"):
    tables.joined("below, beside")


@pytest.mark.usefixtures("folder")
def test_marks_that_do_not_fit_are_errors():
  with pytest.raises(ValueError, match="must have its `<!-- end -->`. Received: page.md"):
    tables.with_tables("<!-- results: speed -->\n\ntext", "page.md")
  with pytest.raises(FileNotFoundError, match=r"unknown\.json"):
    tables.with_tables(MARK.format("unknown", ""), "page.md")
  _write("speed", ["", "training step"], ["normflows", "1"])
  with pytest.raises(ValueError, match=r"docs/results/speed\.json. Received: `tfp_glow`, autodiff, training step"):
    tables.with_tables(MARK.format("summary_speed", ""), "page.md")


@pytest.mark.usefixtures("folder")
def test_numbers_in_sentences_are_those_of_the_files(monkeypatch):
  _write("quality", ["", "steps"], ["ours", "1,000"], ["theirs", "400 (300 to 500)"])
  ratio = tables.values.VALUES["steps_beside_normflows"][0]
  cells = ("quality", "ours", "steps"), ("quality", "theirs", "steps")
  monkeypatch.setitem(tables.values.VALUES, "more", (ratio, *cells))
  text = tables.with_tables("It takes <!--=more-->9.9<!--/--> times as many, <!--=more-->1<!--/-->.\n", "page")
  assert text == "It takes <!--=more-->2.5<!--/--> times as many, <!--=more-->2.5<!--/-->.\n"
  assert tables.with_tables(text, "page") == text and tables.used_files(text) == {"quality"}


@pytest.mark.parametrize("name, expected", [
    ("python", "3.10"), ("tensorflow", "2.21"), ("tfp", "0.25"), ("mnist_on_gpu_minutes", "6"),
    ("rate_beside_normflows", "4"), ("speed_rounds", "3"), ("gpu_images", "1,300"), ("replicas_processor_before", "10"),
    ("hybrid_bits", "0.23"), ("residual_step", "6.6"), ("breast_cancer", "2.8")])
def test_values_of_several_kinds(name, expected):
  assert tables.values.text_of(name) == expected


def test_every_value_is_used_and_can_be_made():
  pages = "".join(path.read_text(encoding="utf-8") for path in tables.pages())
  for name in tables.values.VALUES:
    assert f"<!--={name}-->{tables.values.text_of(name)}<!--/-->" in pages, name
    assert tables.values.files_of(name) <= set(FILES)


@pytest.mark.parametrize("text", ["<!--=tfp-->0.25<!--/--> begins a line", "no end: <!--=tfp-->0.25 or",
                                  "over <!--=tfp-->0.25\n<!--/--> two lines", "an end: 0.25<!--/-->"])
def test_marks_in_sentences_that_do_not_fit_are_errors(text):
  with pytest.raises(ValueError, match="on the same line, and not begin the line. Received: page.md"):
    tables.with_tables(f"First.\n{text}\n", "page.md")


def test_unknown_values_are_errors():
  with pytest.raises(ValueError, match=r"`VALUES` in docs/values.py. Received: unknown"):
    tables.with_tables("It is <!--=unknown-->1<!--/-->.", "page.md")


def test_command_names_pages_that_differ(tmp_path, monkeypatch, capsys):
  page = tmp_path / "page.md"
  old = MARK.format("speed", "| 1 |")
  page.write_text(old)
  monkeypatch.setattr(tables, "ROOT", tmp_path)
  monkeypatch.setattr(tables, "pages", lambda: [page])
  codes = []
  for options in (["--check"], [], ["--check"]):
    monkeypatch.setattr(sys, "argv", ["tables.py", *options])
    with pytest.raises(SystemExit) as caught:
      tables.main()
    codes.append(caught.value.code)
    assert (page.read_text() == old) == (len(codes) == 1)
  assert codes == [1, 0, 0] and capsys.readouterr().out == "page.md\npage.md\n"


def test_saved_tables_are_read_again_as_they_were_shown(folder, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["/somewhere/run.py", "--only", "speed", "--save"])
  parser = argparse.ArgumentParser()
  results.add_save(parser)
  table = results.Table("", "ratio ×")
  table.add("`one`", 1.25)
  table.add("two", "")
  shown = capsys.readouterr().out
  table.save(parser.parse_args([]), "new")
  assert not folder.exists()
  table.save(parser.parse_args(["--save"]), "new")
  found = results.read("new")
  assert (found["columns"], found["rows"]) == (["", "ratio ×"], [["`one`", "1.25"], ["two", ""]])
  assert results.markdown(found["columns"], found["rows"]) + "\n" == shown
  assert found["command"] == "python benchmarks/run.py --only speed --save"
  assert found["machine"].endswith(" CPU cores") and re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
  assert found["versions"]["keras"].startswith("3.")
  results.write("again", found)
  assert (folder / "again.json").read_bytes() == (folder / "new.json").read_bytes()
  assert json.loads((folder / "new.json").read_text(encoding="utf-8")) == found


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("script, section, name, first", [
    (run, "start", "start", ["`tfp_glow`, autodiff", "2.00 (2.00 to 2.00)", "1.00 (1.00 to 1.00)"]),
    (run, "memory", "memory", ["`tfp_glow`, autodiff", *4 * ["12 (2)"], "0.0 %"]),
    (run, "operations", "operations", ["step", "1,234", "1,234"]),
    (health, "invertibility", "invertibility", ["noise", "5.0e-01", "7"]),
    (replicas, "start", "replicas_start", ["1", *2 * ["3.00 (3.00 to 3.00)"], "12.00 (12.00 to 12.00)"])])
def test_tables_are_saved_as_they_are_shown(script, section, name, first, monkeypatch, capsys):
  found = {"start": {"first_step": 2., "later_step": 1.}, "memory": {"peak": 12., "parameters": 2.},
           "operations": {"step": 1234.}, "invertibility": {"images": {"noise": {"error": 0.5, "changed": 7}}},
           "replicas": {"seconds": 3., "processor": 3., "peak": 12.}}
  monkeypatch.setattr(run, "measure", lambda system, measurement, *_: found[measurement])
  monkeypatch.setattr(run, "peers", lambda: ["tfb.Glow", "normflows"])
  monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--only", section, "--save"])
  script.main()
  kept = results.read(name)
  assert kept["rows"][0] == first
  shown = f"\n### {section}\n\n{results.markdown(kept['columns'], kept['rows'])}\n"
  assert capsys.readouterr().out.startswith(shown)


@pytest.mark.usefixtures("folder")
def test_tables_of_hybrid_models(monkeypatch, capsys):
  numbers = {"num_parameters": 9876, "accuracy": 0.984, "bits_per_dim": 2.281, "steps": 3834}
  monkeypatch.setattr(hybrid, "train_all", lambda settings, args: dict.fromkeys(settings, numbers))
  monkeypatch.setattr(sys, "argv", ["hybrid.py", "--data", "digits", "--seconds", "30", "--save"])
  hybrid.main()
  kept = results.read("hybrid_digits")
  assert kept["columns"] == ["digits, 30 s", "weight 0", "weight 1/D", "weight 1"]
  assert kept["rows"][0] == ["residual, 9,876 parameters", "98.4 %, 3834 steps",
                             *2 * ["98.4 %, 2.28 bits per dim, 3834 steps"]]
  assert capsys.readouterr().out == f"\n{results.markdown(kept['columns'], kept['rows'])}\n"


@pytest.mark.parametrize("row", [("a",), ("a", "b", "c"), ("a", "b|c"), ("a", "b\nc")])
def test_what_is_no_table_is_not_saved(folder, row):
  with pytest.raises(ValueError, match="2 cells each.* Received: "):
    results.save(argparse.Namespace(save=True), "new", ("", "x"), [row])
  assert not folder.exists()


@pytest.mark.parametrize("name", ["residual", "page", "hybrid", "ablation", "replicas", "vectors", "gpu"])
def test_scripts_have_the_same_option(name):
  script = ROOT / "benchmarks" / f"{name}.py"
  done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
  assert re.search(r"--save +keep the tables that a page shows in\s+docs/results", done.stdout)

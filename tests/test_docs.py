"""Every snippet of the README, of `docs` and of the docstrings runs; its commands are those that `.ci/run` runs."""

import json
import pathlib
import re
import runpy
import shlex
import sys
import textwrap

import pytest

import tfp_glow

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def _snippets():
  found = [(f"{page}-{i}", code) for page, text in PAGES.items()
           for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))]
  for path in sorted(pathlib.Path(tfp_glow.__file__).parent.rglob("*.py")):
    code = re.findall(r"^ *```python\n(.*?)^ *```", path.read_text(), re.M | re.S)
    found += [(f"{path.stem}-{i}", textwrap.dedent(snippet)) for i, snippet in enumerate(code)]
  return found


SNIPPETS = _snippets()


def test_there_are_snippets():
  assert len(SNIPPETS) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for _, code in SNIPPETS], ids=[name for name, _ in SNIPPETS])
def test_snippet_runs(code, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "tests").symlink_to(ROOT / "tests")  # As in a clone, for snippets that read from there.
  exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})  # pylint: disable=exec-used


def test_commands_are_those_of_continuous_integration():
  commands = re.findall(r"^```sh ci\n(.*?)^```", README, re.M | re.S)
  assert len(commands) == 2
  assert "python examples/train_glow.py\n" in commands[0] and "pytest -n 2 --dist loadfile\n" in commands[1]
  assert "sh ci" in (ROOT / ".ci" / "run").read_text()


def test_files_that_the_readme_names_exist():
  for name in set(re.findall(r"(?:docs|tests|examples)/[\w/.]+\w", "".join(PAGES.values()))):
    assert (ROOT / name).exists(), name


_COMMANDS = sorted(set(re.findall(r"python (examples/.+?)(?:`|\n)", "".join(PAGES.values()))))


@pytest.mark.parametrize("command", _COMMANDS)
def test_example_takes_the_options_of_the_pages(command, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  script, *options = shlex.split(command)
  monkeypatch.setattr(sys, "argv", [script, *(option for option in options if option != "--help")])
  runpy.run_path(str(ROOT / script))["parse_args"]()


def test_workers_of_the_pages_are_one_cluster():
  configurations = [json.loads(text) for text in re.findall(r"TF_CONFIG='(.+?)'\n", PAGES["distributed"], re.S)]
  (workers,) = {tuple(configuration["cluster"]["worker"]) for configuration in configurations}
  assert [configuration["task"] for configuration in configurations] == [
      {"type": "worker", "index": index} for index in range(len(workers))]

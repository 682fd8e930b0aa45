"""Every snippet of the README and of the docstrings runs; its commands are those that `.ci/run` runs."""

import pathlib
import re
import textwrap

import pytest

import tfp_glow

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _snippets():
  found = [(f"README-{i}", code) for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", README, re.M | re.S))]
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
  exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})  # pylint: disable=exec-used


def test_commands_are_those_of_continuous_integration():
  commands = re.findall(r"^```sh ci\n(.*?)^```", README, re.M | re.S)
  assert len(commands) == 2
  assert "python examples/train_glow.py\n" in commands[0] and "pytest\n" in commands[1]
  assert "sh ci" in (ROOT / ".ci" / "run").read_text()


def test_files_that_the_readme_names_exist():
  for name in set(re.findall(r"(?:docs|tests|examples)/[\w/.]+\w", README)):
    assert (ROOT / name).exists(), name

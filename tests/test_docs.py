"""Every snippet of the README, of `docs` and of the docstrings runs, or a smaller version of it.

The README's commands for tests are those of `.ci/run`.
"""

import argparse
import functools
import inspect
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
# Only compiled, because they take long; other snippets run what they call.
_LIKE_OTHERS = {"residual_flow-0": "ResidualFlowBijector("}


def test_no_snippet_is_overlooked():
  """Whatever its indentation. Blocks marked `py` are parts of programs."""
  modules = pathlib.Path(tfp_glow.__file__).parent.rglob("*.py")
  texts = [*PAGES.values(), *(path.read_text() for path in modules)]
  assert len(SNIPPETS) == sum(len(re.findall(r"(?i)``` *python", text)) for text in texts)
  names = {name for name, _ in SNIPPETS}
  assert {"README-0", "coming_from-0", "glow-0", "model-0", *_LIKE_OTHERS} <= names


@pytest.mark.parametrize("name", _LIKE_OTHERS)
def test_what_is_compiled_only_is_run_elsewhere(name):
  called = _LIKE_OTHERS[name]
  others = [code for other, code in SNIPPETS if other not in _LIKE_OTHERS]
  assert called in dict(SNIPPETS)[name] and any(called in code for code in others)


def _with_at_most(name, most, function):
  """The function, with an argument of this name limited to `most`."""

  @functools.wraps(function)
  def call(*args, **kwargs):
    return function(*args, **{key: min(value, most) if key == name else value for key, value in kwargs.items()})

  return call


@pytest.fixture
def cheaply(eagerly, monkeypatch):
  """Limits programs to one batch of any data, one step of flow at each level, two epochs, and no graphs."""
  for cls, name in ((tfp_glow.GlowBijector, "num_steps_per_block"),
                    (tfp_glow.ResidualFlowBijector, "num_blocks_per_scale"),
                    (tfp_glow.VectorFlowBijector, "num_steps")):
    monkeypatch.setattr(cls, "__init__", _with_at_most(name, 1, cls.__init__))
  monkeypatch.setattr(tfp_glow.FlowModel, "fit", _with_at_most("epochs", 2, tfp_glow.FlowModel.fit))
  load_images = tfp_glow.data.load_images
  monkeypatch.setattr(tfp_glow.data, "load_images", lambda *args, **kwargs: load_images(*args, **kwargs).take(1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
@pytest.mark.usefixtures("cheaply")
@pytest.mark.parametrize("name, code", SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_snippet_runs(name, code, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "tests").symlink_to(ROOT / "tests")  # For snippets that read files of a clone.
  snippet = compile(code, "snippet", "exec")
  if name not in _LIKE_OTHERS:
    exec(snippet, {"__name__": "snippet"})


def test_commands_are_those_of_continuous_integration():
  commands = re.findall(r"^```sh ci\n(.*?)^```", README, re.M | re.S)
  assert len(commands) == 2
  assert "python examples/train_glow.py\n" in commands[0]
  assert "pytest -n 2 --dist loadfile\npytest -m benchmark\n" in commands[1]
  assert "sh ci" in (ROOT / ".ci" / "run").read_text()


def test_files_that_the_readme_names_exist():
  for name in set(re.findall(r"(?:docs|tests|examples|benchmarks)/[\w/.]+\w", "".join(PAGES.values()))):
    assert (ROOT / name).exists(), name


def _commands():
  """Commands in blocks and in running text, where a line may end within a command."""
  join_lines = lambda match: match[0].replace("\n", " ")
  text = "".join(re.sub(r"`[^`\n]+\n[^`\n]+`", join_lines, page) for page in PAGES.values())
  return sorted(set(re.findall(r"python ((?:examples|benchmarks)/.+?)(?:`|\n)", text)))


class _Parsed(Exception):
  pass


def _parse_only(script, monkeypatch):
  """Makes `main` of a script end after it has parsed its options without an error."""
  name = "parse_known_args" if "parse_known_args" in script.read_text() else "parse_args"
  parse = getattr(argparse.ArgumentParser, name)

  def parse_only(self):
    parse(self)
    raise _Parsed

  monkeypatch.setattr(argparse.ArgumentParser, name, parse_only)


@pytest.mark.parametrize("command", _commands())
def test_script_takes_the_options_of_the_pages(command, monkeypatch, tmp_path):
  name, *options = shlex.split(command)
  script = ROOT / name
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(script.parent)
  monkeypatch.setattr(sys, "argv", [name, *(option for option in options if option != "--help")])
  names = runpy.run_path(str(script))
  if "parse_args" in names:
    names["parse_args"]()
  else:
    _parse_only(script, monkeypatch)
    with pytest.raises(_Parsed):
      names["main"]()


def test_workers_of_the_pages_are_one_cluster():
  configurations = [json.loads(text) for text in re.findall(r"TF_CONFIG='(.+?)'\n", PAGES["distributed"], re.S)]
  (workers,) = {tuple(configuration["cluster"]["worker"]) for configuration in configurations}
  assert [configuration["task"] for configuration in configurations] == [
      {"type": "worker", "index": index} for index in range(len(workers))]


def test_page_has_the_signature_of_load_images():
  shown = re.search(r"^```none\n(load_images\(.*?\))\n```", PAGES["data"], re.M | re.S)[1]
  signature = inspect.signature(tfp_glow.data.load_images)
  bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
  signature = signature.replace(parameters=bare, return_annotation=signature.empty)
  assert " ".join(shown.split()) == f"load_images{signature}"

"""A hook of MkDocs: adds the pages that are made of other files, the front page and the API reference."""

import ast
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "tfp_glow"


def on_files(files, config):
  """Called by MkDocs with the files that it has found."""
  names = public_names()
  modules = sorted(name for name in names if is_module(name))
  pages = {"index.md": front_page(), "reference/index.md": reference(
      "tfp_glow", [f"tfp_glow.{name}" for name in names if not is_module(name) and not name.startswith("_")])}
  pages |= {f"reference/{name}.md": reference(f"tfp_glow.{name}") for name in modules}
  pages |= {name: with_links((ROOT / name).read_text(encoding="utf-8")) for name in ("CHANGELOG.md", "CONTRIBUTING.md")}
  for path, content in pages.items():
    files.append(File.generated(config, path, content=content))
  return files


def public_names():
  """`tfp_glow.__all__`, without importing TensorFlow."""
  for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
    if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
      return ast.literal_eval(node.value)
  raise ValueError("`tfp_glow/__init__.py` must assign `__all__`")


def is_module(name):
  """Whether a name of the package is that of a module."""
  return (PACKAGE / f"{name}.py").exists() or (PACKAGE / name / "__init__.py").exists()


def front_page():
  """The README."""
  return with_links((ROOT / "README.md").read_text(encoding="utf-8")).replace("```sh ci", "```sh")


def with_links(text):
  """Links of a file of the top folder, as seen from the folder of the pages; those to other files are none."""
  text = re.sub(r"\]\(docs/", "](", text)
  return re.sub(r"\[([^]]+)\]\((?:examples|tests|benchmarks|tfp_glow)/[^)]*\)", r"\1", text)


def reference(title, names=None):
  """A page of the docstrings of these names; `None`: those of the module `title`."""
  own_heading = "" if names else "\n    options:\n      show_root_heading: false"
  return f"# `{title}`\n\n" + "\n\n".join(f"::: {name}{own_heading}" for name in names or [title]) + "\n"

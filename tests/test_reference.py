"""The reference: what docstrings must describe, and that it is built without a warning."""

import ast
import html
import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import types

import pytest

import tfp_glow

ROOT = pathlib.Path(__file__).parent.parent
MODULES = [value for name in tfp_glow.__all__ if isinstance(value := getattr(tfp_glow, name), types.ModuleType)]


def _public_names():
  """From full names to classes and functions."""
  found = {f"tfp_glow.{name}": getattr(tfp_glow, name) for name in tfp_glow.__all__}
  for module in MODULES:
    found |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
  return {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)}


NAMES = _public_names()


def test_there_are_names():
  assert {"tfp_glow.FlowModel", "tfp_glow.callbacks.SampleGrid", "tfp_glow.data.load_images"} <= NAMES.keys()


def _documented(text):
  """The arguments that a docstring describes."""
  section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", inspect.cleandoc(text), re.M | re.S)
  return re.findall(r"^  \**(\w+): ", section[1], re.M) if section else []


def _functions(value):
  """A function, or the public methods of a class without those documented by the method they override."""
  if inspect.isfunction(value):
    return [value]
  is_public = lambda key: key == "__init__" or not key.startswith("_")
  return [function for cls in value.__mro__ if _is_own(cls) for key, function in vars(cls).items()
          if inspect.isfunction(function) and is_public(key) and not _leaves_it_to_another(cls, key, function)]


def _is_own(cls):
  return cls.__module__.startswith("tfp_glow.")


def _leaves_it_to_another(cls, key, function):
  """A method of this package without a docstring, or of TFP or Keras without sections in it."""
  overridden = [base for base in cls.__mro__[1:] if hasattr(base, key)]
  is_foreign = any(not _is_own(base) for base in overridden)
  return bool(overridden) and (not function.__doc__ or is_foreign and "Args:" not in function.__doc__)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_docstrings_describe_all_arguments(name):
  assert NAMES[name].__doc__, name
  for function in _functions(NAMES[name]):
    arguments = [argument for argument in inspect.signature(function).parameters if argument != "self"]
    assert _documented(function.__doc__ or "") == arguments, function


@pytest.mark.parametrize("name", sorted(NAMES))
def test_docstrings_say_what_is_returned_and_raised(name):
  for function in _functions(NAMES[name]):
    source = ast.parse(textwrap.dedent(inspect.getsource(function)))
    returns = any(isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)) and node.value is not None
                  for node in ast.walk(source))
    assert not returns or re.search("^ *(Returns|Yields):\n", function.__doc__, re.M), function
    raises = any(isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) for node in ast.walk(source))
    assert not raises or re.search("^ *Raises:\n", function.__doc__, re.M), function


def test_layouts_of_docstrings(monkeypatch):
  pytest.importorskip("griffe", reason="needs mkdocstrings: pip install -e .[docs]")
  monkeypatch.syspath_prepend(ROOT / "docs")
  import docstrings
  text = "A list:\n\n* one\n  - first\n    of two\n\nReturns:\n  y: Of one\n  line.\n  x: Another.\n\nRaises:\n  E: if."
  value = types.SimpleNamespace(docstring=types.SimpleNamespace(value=text))
  docstrings.Layouts().on_object(obj=value)
  assert value.docstring.value == text.replace("  - first", "    - first").replace("  line", "    line")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The folder of the documentation, which is built without warnings."""
  if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings_handlers") is None:
    pytest.skip("needs MkDocs and mkdocstrings: pip install -e .[docs]")
  folder = tmp_path_factory.mktemp("site")
  environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # It switches off a warning of the theme about MkDocs 2.
  done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--site-dir", folder], cwd=ROOT, env=environment,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
  return folder


def _pages(site):
  return {path.relative_to(site).parent.as_posix(): path.read_text(encoding="utf-8")
          for path in site.rglob("index.html")}


@pytest.mark.slow
def test_site_has_all_pages_and_names(site):
  pages = _pages(site)
  assert {".", "CHANGELOG", "CONTRIBUTING", "reference", "reference/data"} <= pages.keys()
  assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= pages.keys()
  links = {(site / link).resolve() for link in re.findall(r'href="([^":#?]*)[#"]', pages["."])}
  missing = {name for name in pages if (site / name).resolve() not in links}
  assert not missing, "not in the navigation of mkdocs.yml"
  anchors = set(re.findall(r'id="(tfp_glow[\w.]*)"', "".join(pages.values())))
  assert NAMES.keys() <= anchors


@pytest.mark.slow
def test_site_understands_docstrings_and_markdown(site):
  for name, page in _pages(site).items():
    # Sections of docstrings and Markdown that were not understood and are left as text.
    fault = re.search(r"<p>\s*(Args|Returns|Raises|Attributes|References):", page)
    assert not fault, f"{name}: {page[fault.start():][:500]}"
    text = html.unescape(re.sub(r"<(code|style|script)\b.*?</\1>|<[^>]+>", "", page, flags=re.S))
    fault = re.search(r"```|\*\*\w|^ *[-*] \w|^\|.*\|$|:::", text, re.M)
    assert not fault, f"{name}: {text[max(0, fault.start() - 200):][:500]}"


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_pages_fit_into_a_browser(site, browser, width, scheme):
  """In a wide window and on a phone, only tables and code are wider than the page, and all pictures load."""
  metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
  browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
  browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
      "features": [{"name": "prefers-color-scheme", "value": scheme}]})
  for page in sorted(site.rglob("index.html")):
    browser.get(page.as_uri())
    name = page.relative_to(site)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width, name
    broken = browser.execute_script(
        "return [...document.images].filter(image => !image.naturalWidth).map(image => image.src)")
    assert not broken, name

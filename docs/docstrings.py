"""An extension of Griffe, which reads the docstrings for the reference: layouts that it would take for others."""

import re

import griffe


class Layouts(griffe.Extension):
  """Lists within lists, and descriptions of returned values that take several lines."""

  def on_object(self, *, obj, **_):
    if obj.docstring:
      # The Markdown of MkDocs nests lists by four spaces, that of GitHub by two.
      text = re.sub(r"^  (?=[-*] )", "    ", obj.docstring.value, flags=re.M)
      obj.docstring.value = re.sub(r"^(Returns:\n  .*\n)((?:  .*\n?)+)", _with_indented_lines, text, flags=re.M)


def _with_indented_lines(match):
  """Lines that begin no value of their own (`name: ...`) belong to the one before."""
  return match[1] + re.sub(r"^(?=  )(?!  \w+: )", "  ", match[2], flags=re.M)

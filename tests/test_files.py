"""Files and folders are written as a whole or not at all."""

import os

import pytest
import tensorflow as tf

from tfp_glow._core import files


def _write(path, text, is_folder):
  if is_folder:
    os.mkdir(path)
    path = os.path.join(path, "inside")
  with open(path, "w", encoding="utf-8") as file:
    file.write(text)


def _read(path):
  path = path / "inside" if path.is_dir() else path
  return path.read_text()


@pytest.fixture(params=[False, True], ids=["file", "folder"])
def is_folder(request):
  return request.param


@pytest.fixture(params=["thing.keras", "link"])
def path(request, is_folder, tmp_path):
  """A place with older contents, or a link to it."""
  (tmp_path / "here").mkdir()
  old = tmp_path / "here" / "thing.keras"
  _write(old, "old", is_folder)
  (tmp_path / "here" / "link").symlink_to(old)
  return tmp_path / "here" / request.param


def _only_these_are_left(path):
  names = {other.name for other in path.parent.iterdir()}
  return names == {"thing.keras", "link"} and (path.parent / "link").is_symlink()


def test_something_new(is_folder, tmp_path):
  with files.written_as_a_whole(f"{tmp_path / 'new.h5'}{'/' * is_folder}") as new:
    _write(new, "new", is_folder)
    assert not (tmp_path / "new.h5").exists() and new.endswith(".h5")
  assert _read(tmp_path / "new.h5") == "new" and [other.name for other in tmp_path.iterdir()] == ["new.h5"]


def test_in_place_of_something(path, is_folder):
  with files.written_as_a_whole(path) as new:
    _write(new, "new", is_folder)
    assert _read(path) == "old"
  assert _read(path) == "new" and _only_these_are_left(path)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_while_writing(path, is_folder, error):
  with pytest.raises(error):
    with files.written_as_a_whole(path) as new:
      _write(new, "new", is_folder)
      raise error
  assert _read(path) == "old" and _only_these_are_left(path)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_while_renaming(path, is_folder, error, monkeypatch):
  """By then the old folder has been moved aside."""
  rename = tf.io.gfile.rename

  def fail(source, target, **kwargs):
    if "incomplete-" in source:
      raise error
    rename(source, target, **kwargs)

  monkeypatch.setattr(tf.io.gfile, "rename", fail)
  with pytest.raises(error):
    with files.written_as_a_whole(path) as new:
      _write(new, "new", is_folder)
  assert _read(path) == "old" and _only_these_are_left(path)


def test_an_old_folder_that_cannot_be_restored_is_kept(tmp_path, monkeypatch):
  _write(tmp_path / "thing", "old", True)
  rename = tf.io.gfile.rename

  def fail(source, target, **kwargs):
    if os.path.basename(source) != "thing":
      raise OSError(f"no way from {source}")
    rename(source, target, **kwargs)

  monkeypatch.setattr(tf.io.gfile, "rename", fail)
  with pytest.raises(OSError, match="no way from .*replaced-.*-thing"):
    with files.written_as_a_whole(tmp_path / "thing") as new:
      _write(new, "new", True)
  kept, = tmp_path.iterdir()
  assert _read(kept) == "old"

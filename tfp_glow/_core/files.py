"""Files and folders that are written completely or not at all."""

import contextlib
import os
import secrets

import tensorflow as tf


def checked_path(name, path):
  """The path given as the argument `name`, as a string; `~` becomes the home folder.

  Raises:
    TypeError: if it is not a path.
  """
  if not isinstance(path, (str, os.PathLike)) or not str(path):
    raise TypeError(f"`{name}` must be a path, a `str` or `os.PathLike`. Received: {path!r}")
  return os.path.expanduser(os.fspath(path))


@contextlib.contextmanager
def written_as_a_whole(path):
  """Yields a temporary path to write a file or a folder to; at the end it replaces `path`.

  Until then, and after an error, the old file or folder stays. The temporary path has the same ending as `path`.

  Args:
    path: On any file system that TensorFlow knows. If it is a link, its target is replaced.
  """
  path = os.fspath(path).rstrip("/")
  path = os.path.realpath(path) if os.path.islink(path) else path
  folder, name = os.path.split(path)
  new, old = (os.path.join(folder, f"{state}-{secrets.token_hex(4)}-{name}") for state in ("incomplete", "replaced"))
  try:
    yield new
    _replace(path, new, old)
  finally:
    _remove(new)


def _replace(path, new, old):
  if not tf.io.gfile.isdir(path):
    tf.io.gfile.rename(new, path, overwrite=True)
    return
  try:
    tf.io.gfile.rename(path, old)
    tf.io.gfile.rename(new, path)
  except BaseException:
    if tf.io.gfile.exists(old) and not tf.io.gfile.exists(path):
      tf.io.gfile.rename(old, path)
    raise
  _remove(old)


def _remove(path):
  if tf.io.gfile.isdir(path):
    tf.io.gfile.rmtree(path)
  elif tf.io.gfile.exists(path):
    tf.io.gfile.remove(path)

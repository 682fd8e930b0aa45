"""Files as PyTorch writes them, made without it: pickles of any instructions, and storages."""

import pathlib
import pickle
import zipfile
from typing import Any, NamedTuple

import numpy as np
import pytest

from tfp_glow.checkpoints.torch_file import read_torch_file

MAGIC_NUMBER = 0x1950a86a20f9469cfc6c


class Name(NamedTuple):
  """A class or function, as a pickle names it."""

  module: str
  name: str


class Call(NamedTuple):
  """What a pickle makes of a function and arguments, or of a class if `is_new`."""

  function: Name
  args: tuple
  state: Any = None
  is_new: bool = False


class Reference(NamedTuple):
  identity: tuple


class Storage(NamedTuple):
  """A reference to a storage, or in old files to a view of it."""

  key: str
  kind: str
  count: int
  view: tuple | None = None


def instructions_of(value, is_zip):
  """The instructions of a pickle of protocol 2 that makes a value. Python writes what is not of the classes above."""
  write = lambda part: instructions_of(part, is_zip)
  if isinstance(value, Name):
    return f"c{value.module}\n{value.name}\n".encode()
  if isinstance(value, Call):
    made = write(value.function) + write(value.args) + (b"\x81" if value.is_new else b"R")
    return made if value.state is None else made + write(value.state) + b"b"
  if isinstance(value, Reference):
    return write(value.identity) + b"Q"
  if isinstance(value, Storage):
    kind = Name("torch", f"{value.kind}Storage")
    return write(Reference(("storage", kind, value.key, "cuda:0", value.count) + (() if is_zip else (value.view,))))
  if type(value) is tuple:
    return b"(" + b"".join(map(write, value)) + b"t"
  if type(value) is list:
    return b"](" + b"".join(map(write, value)) + b"e"
  if type(value) is dict:
    return b"}(" + b"".join(write(part) for item in value.items() for part in item) + b"u"
  return pickle.dumps(value, 2)[2:-1]


def _write_zip(path, contents, storages, compression=zipfile.ZIP_STORED, byte_order=b"little"):
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("saved/data.pkl", contents)
    archive.writestr("saved/byteorder", byte_order)
    for key, values in storages.items():
      archive.writestr(f"saved/data/{key}", values.tobytes())


def _write_pickles(path, contents, storages, is_little=True):
  system = {"protocol_version": 1001, "little_endian": is_little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
  with open(path, "wb") as file:
    for value in (MAGIC_NUMBER, 1001, system):
      pickle.dump(value, file, 2)
    file.write(contents)
    pickle.dump(list(storages), file, 2)
    for values in storages.values():
      file.write(np.int64(values.size).tobytes() + values.tobytes())


class Writer(NamedTuple):
  folder: pathlib.Path
  is_zip: bool

  def __call__(self, value, storages=None, **options):
    """Writes a file from a value, or from the `bytes` of a pickle, with arrays as storages; returns its path."""
    contents = value if type(value) is bytes else b"\x80\x02" + instructions_of(value, self.is_zip) + b"."
    path = self.folder / "model.pth"
    (_write_zip if self.is_zip else _write_pickles)(path, contents, storages or {}, **options)
    return path


def make_tensor(storage, offset, shape, strides):
  hooks = Call(Name("collections", "OrderedDict"), ())
  return Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, offset, shape, strides, False, hooks))


def check_refused(path, reason=None):
  with pytest.raises(ValueError, match=reason) as caught:
    read_torch_file(path)
  assert str(caught.value).startswith("`path` must be a ") and str(caught.value).endswith(f"Received: {path}")

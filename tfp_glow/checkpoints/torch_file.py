"""A reader of PyTorch files that needs no PyTorch and runs nothing in them.

`torch.save` writes a pickle, with the numbers of the tensors beside it.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfp_glow._core.files import checked_path
from tfp_glow._core.validation import is_int
from tfp_glow.checkpoints.restricted_unpickler import Budget, Opaque, Refusal, Unpickler, expect, is_name

_MAGIC_NUMBER, _PROTOCOL = 0x1950a86a20f9469cfc6c, 1001  # Of the older format.
# A file that names other packages is not a model, or tries to do more than be read.
_PACKAGES = ("__main__", "lib", "numpy", "resflows", "torch")
_MAX_DIMS, _MAX_REASON = 64, 300


def read_torch_file(path: str | os.PathLike) -> Any:
  """Reads a file written by PyTorch's `torch.save`, in the current format or the one before version 1.6.

  Nothing in the file is run or imported. Keys of dicts are strings, bytes, numbers, bools or `None`.

  Args:
    path: A file such as `"most_recent.pth"`. `~` is the home folder.

  Returns:
    The saved object. Tensors and parameters are NumPy arrays, each with memory of its own; bfloat16 becomes float32.
    `OrderedDict`s are dicts, without attributes such as `_metadata`; an `argparse.Namespace` is a
    `types.SimpleNamespace`; NumPy's scalars are Python's. Any other class, function or object is an `Opaque`, also
    sparse tensors, tensors of subclasses, and NumPy's arrays.

  Raises:
    FileNotFoundError: if there is nothing at `path`.
    TypeError: if `path` is neither a string nor an `os.PathLike`.
    ValueError: if `path` is a folder; if the file is of another kind, damaged, or from a machine with big-endian
      numbers; if it names a function or class from outside PyTorch, NumPy, `resflows`, `lib` and `__main__`; or if its
      contents would take far more memory than the file has bytes.
  """
  path = checked_path("path", path)
  if not os.path.exists(path):
    raise FileNotFoundError(f"`path` must be an existing file of PyTorch. Received: {path}")
  if not os.path.isfile(path):
    raise ValueError(f"`path` must be a file of PyTorch, not a folder. Received: {path}")
  with open(path, "rb") as file:
    try:
      return _read(file)
    except Exception as error:  # The kind depends on where the damage is: zipfile, zlib, NumPy, ...
      reason = str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
      raise ValueError("`path` must be a whole file of PyTorch's `torch.save`, of tensors and plain data: "
                       f"{reason[:_MAX_REASON]}. Received: {path}") from error


def _read(file):
  budget = Budget(os.fstat(file.fileno()).st_size)
  head = file.read(2)
  file.seek(0)
  if head == b"PK":
    return _read_zip(file, budget)
  expect(head[:1] == b"\x80", "it begins neither like a zip file nor like a pickle")
  return _read_pickles(file, budget)


def _read_zip(file, budget):
  """The current format: `<name>/data.pkl` and a file `<name>/data/<key>` for each storage."""
  storages = _Storages(budget)
  with zipfile.ZipFile(file) as archive:
    folder = _folder(archive)
    byte_order = f"{folder}/byteorder"
    expect(byte_order not in archive.namelist() or _contents(archive, byte_order, budget) == b"little",
           "it is not little-endian")
    value = _unpickler(storages, budget).run(io.BytesIO(_contents(archive, f"{folder}/data.pkl", budget)))
    for key, storage in storages.roots.items():
      name = f"{folder}/data/{key}"
      expect(archive.getinfo(name).file_size == storage.num_bytes, f"{name!r} does not have the size in the pickle")
      storage.fill(_contents(archive, name, budget))
  return value


def _unpickler(storages, budget):
  return Unpickler(_PACKAGES, _FUNCTIONS, storages.load, budget)


def _folder(archive):
  names = archive.namelist()
  folders = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
  expect(len(folders) == 1, "it is a zip file without one `<name>/data.pkl`")
  expect(f"{folders[0]}/constants.pkl" not in names, "it is a program of TorchScript")
  return folders[0]


def _contents(archive, name, budget):
  entry = archive.getinfo(name)
  expect(entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), f"{name!r} is compressed in a rare way")
  budget.spend(entry.file_size)
  with archive.open(entry) as member:
    # An unlimited read would inflate more than the size in the entry.
    contents = member.read(entry.file_size)
  expect(len(contents) == entry.file_size, f"{name!r} ends early")
  return contents


def _read_pickles(file, budget):
  """The older format: five pickles, then the number of elements and the bytes of each storage."""
  storages = _Storages(budget)
  unpickler = _unpickler(storages, budget)
  expect(unpickler.run(file) == _MAGIC_NUMBER, "it is a pickle, but not one of PyTorch")
  expect(unpickler.run(file) == _PROTOCOL, f"the version of its format is not {_PROTOCOL}")
  system = unpickler.run(file)
  expect(isinstance(system, dict) and system.get("little_endian") is True, "it is not little-endian")
  value, keys = unpickler.run(file), unpickler.run(file)
  expect(sorted(keys) == sorted(storages.roots), "its list of storages is not that of its tensors")
  for key in keys:
    storage = storages.roots[key]
    count = int.from_bytes(_next_bytes(file, 8), "little")
    expect(count * storage.element.stored.itemsize == storage.num_bytes,
           f"storage {key!r} does not have the size in the pickle")
    storage.fill(_next_bytes(file, storage.num_bytes))
  return value


def _next_bytes(file, count):
  contents = file.read(count)
  expect(len(contents) == count, "it ends early")
  return contents


class _Element(NamedTuple):
  """How a number is stored, and its type when read."""

  stored: np.dtype
  read: np.dtype

  def decode(self, values):
    if self.stored.itemsize == self.read.itemsize:
      return values
    return (values.astype(np.uint32) << 16).view(np.float32)  # A bfloat16 is the upper half of a float32.


_ELEMENTS = {name: _Element(np.dtype(name).newbyteorder("<"), np.dtype(name))
             for name in ("float64", "float32", "float16", "complex128", "complex64", "int64", "int32", "int16", "int8",
                          "uint64", "uint32", "uint16", "uint8")}
_ELEMENTS["bfloat16"] = _Element(np.dtype("<u2"), np.dtype(np.float32))
_ELEMENTS["bool"] = _Element(np.dtype(np.uint8), np.dtype(np.bool_))

_STORAGES = {f"torch.{name}Storage": _ELEMENTS[dtype] for name, dtype in (
    ("Double", "float64"), ("Float", "float32"), ("Half", "float16"), ("BFloat16", "bfloat16"), ("Long", "int64"),
    ("Int", "int32"), ("Short", "int16"), ("Char", "int8"), ("Byte", "uint8"), ("Bool", "bool"),
    ("ComplexDouble", "complex128"), ("ComplexFloat", "complex64"), ("storage.Untyped", "uint8"))}


class _Fill(NamedTuple):
  """An array, and its part of its storage: `num_elements` from the byte `start`, with `strides`."""

  array: np.ndarray
  element: _Element
  start: int
  num_elements: int
  strides: list


class _Storage(Opaque):
  """Numbers that tensors look at. They come after the pickle, so arrays are made first and filled later."""

  def __init__(self, name, key, num_bytes, budget, start=0, fills=None):
    super().__init__(name, (key,))
    self.element, self.num_bytes = _STORAGES[name], num_bytes
    self._budget, self._start, self._fills = budget, start, [] if fills is None else fills

  def part(self, start, num_bytes):
    """A view, in the words of old versions: its own storage in the pickle, without its own numbers."""
    return _Storage(self.name, *self.args, num_bytes, self._budget, start, self._fills)

  def tensor(self, element, offset, shape, strides):
    size = element.stored.itemsize
    num_elements = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides)) if math.prod(shape) else 0
    expect((offset + num_elements) * size <= self.num_bytes, "a tensor reaches beyond its storage")
    self._budget.spend(max(num_elements, math.prod(shape)) * element.read.itemsize)
    array = np.empty(shape, element.read)
    # The stride of a single number means nothing, and may be too large for NumPy.
    strides = [stride * element.read.itemsize if n > 1 else 0 for n, stride in zip(shape, strides)]
    self._fills.append(_Fill(array, element, self._start + offset * size, num_elements, strides))
    return array

  def fill(self, contents):
    for array, element, start, num_elements, strides in self._fills:
      values = element.decode(np.frombuffer(contents, element.stored, num_elements, start))
      array[...] = np.lib.stride_tricks.as_strided(values, array.shape, strides)


class _Storages:
  """The storages that a pickle names, by their keys."""

  def __init__(self, budget):
    self.roots = {}
    self._budget = budget

  def load(self, identity):
    """The objects that PyTorch keeps outside of the pickle: storages and, in old files, source code of classes."""
    expect(isinstance(identity, tuple) and identity and isinstance(identity[0], str), "a reference is damaged")
    if identity[0] == "module" and len(identity) == 4:
      return identity[1]
    expect(identity[0] == "storage" and len(identity) in (5, 6), "a reference is neither to a storage nor to a module")
    _, kind, key, _, count, *view = identity
    expect(isinstance(key, str) and is_int(count, 0) and is_name(kind), "a reference is damaged")
    expect(kind.name in _STORAGES, f"a tensor's numbers are of a kind that is unknown here, {kind.name}")
    storage = self._root(kind.name, key, count)
    return storage if not view or view[0] is None else self._part(storage, view[0])

  def _root(self, name, key, count):
    num_bytes = count * _STORAGES[name].stored.itemsize
    if key not in self.roots:
      self._budget.spend(num_bytes)
      self.roots[key] = _Storage(name, key, num_bytes, self._budget)
    root = self.roots[key]
    expect((root.name, root.num_bytes) == (name, num_bytes), "a storage is said to be of two kinds")
    return root

  def _part(self, storage, view):
    expect(isinstance(view, tuple) and len(view) == 3 and all(is_int(n, 0) for n in view[1:]), "a view is damaged")
    start, num_bytes = (n * storage.element.stored.itemsize for n in view[1:])
    expect(start + num_bytes <= storage.num_bytes, "a view reaches beyond its storage")
    return storage.part(start, num_bytes)


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
  del requires_grad, hooks
  expect(isinstance(storage, _Storage), "a tensor has no storage")
  return _tensor_of(storage, storage.element, offset, shape, strides, metadata)


def _tensor_with_dtype(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
  """For dtypes without a storage type of their own; the storage counts bytes."""
  del requires_grad, hooks
  name = dtype.name.removeprefix("torch.") if is_name(dtype) else None
  expect(isinstance(storage, _Storage) and name in _ELEMENTS, f"a tensor is of the type {name}, which is unknown here")
  return _tensor_of(storage, _ELEMENTS[name], offset, shape, strides, metadata)


def _tensor_of(storage, element, offset, shape, strides, metadata):
  expect(not metadata, "a tensor is stored as the conjugate or the negative of its values, which is unknown here")
  expect(isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= _MAX_DIMS
         and all(is_int(n, 0) for n in (offset, *shape, *strides)), "a tensor's shape is damaged")
  return storage.tensor(element, offset, shape, strides)


def _parameter(tensor, requires_grad, hooks, state=None):
  del requires_grad, hooks, state
  return tensor


def _sizes(sizes=()):
  expect(isinstance(sizes, (list, tuple)), "a size is damaged")
  return tuple(sizes)


# The functions of PyTorch that a pickle may call, and what is called in their place.
_FUNCTIONS: dict[str, Callable] = {
    "torch.Size": _sizes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
}

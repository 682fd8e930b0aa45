"""A reader of PyTorch files that needs no PyTorch and runs nothing in them.

`torch.save` writes a pickle, with the numbers of the tensors beside it. A pickle can call any function when Python's
own `pickle` reads it. So this module reads the pickle with a machine that makes only data (`_Machine`). Objects of
classes become `Opaque`.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import types
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfp_glow._core.files import checked_path
from tfp_glow._core.validation import is_int

_MAGIC_NUMBER, _PROTOCOL = 0x1950a86a20f9469cfc6c, 1001  # Of the older format.
# Contents may take this many bytes for each byte of the file, and some more if it is tiny. Files made to fill the
# memory take more: numbers packed by deflation, or a few numbers shared by many large tensors. Models take about 4.
_GROWTH, _LEAST_BUDGET = 16, 2**20
_NUM_BYTES_OF_OBJECT = 200  # Of an empty container, or of the result of a call.
_NUM_BYTES_OF_ITEM = 8  # Of a Python reference. Its object may take more, but not without bounds.
_MAX_BITS = 128  # Of an integer; the magic number has 77.
_MAX_NAME, _MAX_DIMS, _MAX_REASON = 1000, 64, 300


class Opaque:
  """A class or function that a file names, or an object that it makes with one: a record, which does nothing.

  Attributes:
    name: Python `str`, its module and name, such as `"torch.nn.modules.container.Sequential"`.
    args: Tuple of the arguments of the call, or `None` for the class or function itself.
    state: The state from which the object was to restore itself, mostly its dict of attributes; `None` if it has none.
    items: List of the items put into the object as into a list, or of pairs as into a dict.
  """

  __slots__ = ("args", "items", "name", "state")

  def __init__(self, name: str, args: tuple | None = None):
    self.name, self.args, self.state, self.items = name, args, None, []

  def __repr__(self):
    return f"Opaque({self.name!r})"


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
      reason = str(error) if isinstance(error, _Refusal) else f"{type(error).__name__}: {error}"
      raise ValueError("`path` must be a whole file of PyTorch's `torch.save`, of tensors and plain data: "
                       f"{reason[:_MAX_REASON]}. Received: {path}") from error


class _Refusal(ValueError):
  """Reports what is wrong with a file."""


def _expect(is_right, reason):
  if not is_right:
    raise _Refusal(reason)


def _read(file):
  budget = _Budget(os.fstat(file.fileno()).st_size)
  head = file.read(2)
  file.seek(0)
  if head == b"PK":
    return _read_zip(file, budget)
  _expect(head[:1] == b"\x80", "it begins neither like a zip file nor like a pickle")
  return _read_pickles(file, budget)


def _read_zip(file, budget):
  """The current format: `<name>/data.pkl` and a file `<name>/data/<key>` for each storage."""
  storages = _Storages(budget)
  with zipfile.ZipFile(file) as archive:
    folder = _folder(archive)
    byte_order = f"{folder}/byteorder"
    _expect(byte_order not in archive.namelist() or _contents(archive, byte_order, budget) == b"little",
            "it is not little-endian")
    value = _Machine(storages.load, budget).run(io.BytesIO(_contents(archive, f"{folder}/data.pkl", budget)))
    for key, storage in storages.roots.items():
      name = f"{folder}/data/{key}"
      _expect(archive.getinfo(name).file_size == storage.num_bytes, f"{name!r} does not have the size in the pickle")
      storage.fill(_contents(archive, name, budget))
  return value


def _folder(archive):
  names = archive.namelist()
  folders = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
  _expect(len(folders) == 1, "it is a zip file without one `<name>/data.pkl`")
  _expect(f"{folders[0]}/constants.pkl" not in names, "it is a program of TorchScript")
  return folders[0]


def _contents(archive, name, budget):
  entry = archive.getinfo(name)
  _expect(entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), f"{name!r} is compressed in a rare way")
  budget.spend(entry.file_size)
  with archive.open(entry) as member:
    # An unlimited read would inflate more than the size in the entry.
    contents = member.read(entry.file_size)
  _expect(len(contents) == entry.file_size, f"{name!r} ends early")
  return contents


def _read_pickles(file, budget):
  """The older format: five pickles, then the number of elements and the bytes of each storage."""
  storages = _Storages(budget)
  machine = _Machine(storages.load, budget)
  _expect(machine.run(file) == _MAGIC_NUMBER, "it is a pickle, but not one of PyTorch")
  _expect(machine.run(file) == _PROTOCOL, f"the version of its format is not {_PROTOCOL}")
  system = machine.run(file)
  _expect(isinstance(system, dict) and system.get("little_endian") is True, "it is not little-endian")
  value, keys = machine.run(file), machine.run(file)
  _expect(sorted(keys) == sorted(storages.roots), "its list of storages is not that of its tensors")
  for key in keys:
    storage = storages.roots[key]
    count = int.from_bytes(_next_bytes(file, 8), "little")
    _expect(count * storage.element.stored.itemsize == storage.num_bytes,
            f"storage {key!r} does not have the size in the pickle")
    storage.fill(_next_bytes(file, storage.num_bytes))
  return value


def _next_bytes(file, count):
  contents = file.read(count)
  _expect(len(contents) == count, "it ends early")
  return contents


class _Budget:
  """The memory that the contents of a file may take."""

  def __init__(self, num_bytes):
    self._left = max(_GROWTH * num_bytes, _LEAST_BUDGET)

  def spend(self, num_bytes):
    self._left -= num_bytes
    _expect(self._left >= 0, "what is in it would take far more memory than the file has bytes")


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
    _expect((offset + num_elements) * size <= self.num_bytes, "a tensor reaches beyond its storage")
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
    _expect(isinstance(identity, tuple) and identity and isinstance(identity[0], str), "a reference is damaged")
    if identity[0] == "module" and len(identity) == 4:
      return identity[1]
    _expect(identity[0] == "storage" and len(identity) in (5, 6), "a reference is neither to a storage nor to a module")
    _, kind, key, _, count, *view = identity
    _expect(isinstance(key, str) and is_int(count, 0) and _is_global(kind), "a reference is damaged")
    _expect(kind.name in _STORAGES, f"a tensor's numbers are of a kind that is unknown here, {kind.name}")
    storage = self._root(kind.name, key, count)
    return storage if not view or view[0] is None else self._part(storage, view[0])

  def _root(self, name, key, count):
    num_bytes = count * _STORAGES[name].stored.itemsize
    if key not in self.roots:
      self._budget.spend(num_bytes)
      self.roots[key] = _Storage(name, key, num_bytes, self._budget)
    root = self.roots[key]
    _expect((root.name, root.num_bytes) == (name, num_bytes), "a storage is said to be of two kinds")
    return root

  def _part(self, storage, view):
    _expect(isinstance(view, tuple) and len(view) == 3 and all(is_int(n, 0) for n in view[1:]), "a view is damaged")
    start, num_bytes = (n * storage.element.stored.itemsize for n in view[1:])
    _expect(start + num_bytes <= storage.num_bytes, "a view reaches beyond its storage")
    return storage.part(start, num_bytes)


def _is_global(value):
  return isinstance(value, Opaque) and value.args is None


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
  del requires_grad, hooks
  _expect(isinstance(storage, _Storage), "a tensor has no storage")
  return _tensor_of(storage, storage.element, offset, shape, strides, metadata)


def _tensor_with_dtype(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
  """For dtypes without a storage type of their own; the storage counts bytes."""
  del requires_grad, hooks
  name = dtype.name.removeprefix("torch.") if _is_global(dtype) else None
  _expect(isinstance(storage, _Storage) and name in _ELEMENTS, f"a tensor is of the type {name}, which is unknown here")
  return _tensor_of(storage, _ELEMENTS[name], offset, shape, strides, metadata)


def _tensor_of(storage, element, offset, shape, strides, metadata):
  _expect(not metadata, "a tensor is stored as the conjugate or the negative of its values, which is unknown here")
  _expect(isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= _MAX_DIMS
          and all(is_int(n, 0) for n in (offset, *shape, *strides)), "a tensor's shape is damaged")
  return storage.tensor(element, offset, shape, strides)


def _parameter(tensor, requires_grad, hooks, state=None):
  del requires_grad, hooks, state
  return tensor


def _mapping(pairs=()):
  _expect(isinstance(pairs, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs)
          or pairs == (), "a dict is damaged")
  return {_checked_key(key): value for key, value in pairs}


def _sizes(sizes=()):
  _expect(isinstance(sizes, (list, tuple)), "a size is damaged")
  return tuple(sizes)


def _members(values=()):
  _expect(isinstance(values, (list, tuple)), "a set is damaged")
  return [_checked_key(value) for value in values]


def _encoded(text, encoding):
  """How protocol 2 writes bytes."""
  _expect(isinstance(text, str) and encoding in ("latin1", "latin-1"), "bytes are damaged")
  return text.encode("latin1")


def _numpy_scalar(dtype, contents):
  _expect(isinstance(dtype, Opaque) and dtype.name == "numpy.dtype" and dtype.args and isinstance(contents, bytes)
          and isinstance(dtype.state, tuple) and len(dtype.state) > 1, "a number of NumPy's is damaged")
  name, order = dtype.args[0], dtype.state[1]
  _expect(name in _NUMPY_SCALARS and order in ("<", ">", "|"), "a number of NumPy's is of a type that is unknown here")
  value, = np.frombuffer(contents, order + name)
  return value.item()


_NUMPY_SCALARS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")

# The functions that a pickle may call, and this file's replacements.
_FUNCTIONS: dict[str, Callable] = {
    "_codecs.encode": _encoded,
    "argparse.Namespace": lambda: types.SimpleNamespace(),
    "builtins.frozenset": lambda *args: frozenset(_members(*args)),
    "builtins.set": lambda *args: set(_members(*args)),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda factory=None: {},
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "torch.Size": _sizes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
}
# Other packages that it may name. A file that names anything else is not a model, or tries to do more than be read.
_PACKAGES = ("__main__", "lib", "numpy", "resflows", "torch")
_NAMES = {f"builtins.{name}" for name in ("bool", "bytes", "complex", "dict", "float", "int", "list", "object", "range",
                                          "slice", "str", "tuple", "type")}


def _named(module, name):
  module = {"__builtin__": "builtins"}.get(module, module)  # Protocol 2 writes the names of Python 2.
  full_name = f"{module}.{name}"
  _expect(module.partition(".")[0] in _PACKAGES or full_name in _FUNCTIONS or full_name in _NAMES,
          f"it asks for {full_name[:100]!r}, which no model needs")
  return Opaque(full_name)


def _checked_key(key):
  """Checks a key of a dict or set. Tuples nested in tuples could be so deep that their hash crashes Python."""
  _expect(key is None or isinstance(key, (str, bytes, int, float)), "a key is neither a string nor a number")
  return key


_MAKERS = {"EMPTY_DICT", "EMPTY_SET", "DICT", "FROZENSET", "GLOBAL", "STACK_GLOBAL", "REDUCE",
           "NEWOBJ", "NEWOBJ_EX"}


class _Machine:
  """Reads pickles as `torch.save` writes them, of protocol 2 and up.

  Its instructions are those of Python's own machine, and `pickletools` parses them. Python's imports names, calls what
  it finds, and sets attributes. This one only makes containers and calls `_FUNCTIONS`.
  """

  def __init__(self, load_reference, budget):
    self._load_reference, self._budget = load_reference, budget

  def run(self, stream):
    """The object of one pickle; leaves the stream at the end of the pickle."""
    self._stack, self._marks, self._memo = [], [], {}
    for instruction, argument, _ in pickletools.genops(stream):
      self._budget.spend(_NUM_BYTES_OF_OBJECT if instruction.name in _MAKERS else _NUM_BYTES_OF_ITEM)
      _expect(not isinstance(argument, int) or argument.bit_length() <= _MAX_BITS, "an integer is too large")
      if instruction.name in _VALUES:
        self._stack.append(argument)
      else:
        _expect(instruction.name in _INSTRUCTIONS, f"its pickle has the instruction {instruction.name}")
        _INSTRUCTIONS[instruction.name](self, argument)
    return self._stack.pop()

  def pop(self, count=1):
    """The `count` topmost values."""
    start = len(self._stack) - count
    _expect(start >= 0, "its pickle is damaged")
    return self._pop_from(start)

  def pop_marked(self):
    """The values above the last mark."""
    _expect(self._marks, "its pickle is damaged")
    return self._pop_from(self._marks.pop())

  def _pop_from(self, start):
    values = self._stack[start:]
    del self._stack[start:]
    return values

  def push(self, value):
    self._stack.append(value)

  def mark(self):
    self._marks.append(len(self._stack))

  def recall(self, index):
    self._stack.append(self._memo[index])

  def memoize(self, index=None):
    self._memo[len(self._memo) if index is None else index] = self._stack[-1]

  def load_reference(self):
    self.push(self._load_reference(*self.pop()))

  def name(self, module, name):
    _expect(isinstance(module, str) and isinstance(name, str) and len(module) + len(name) < _MAX_NAME,
            "a name is damaged")
    self.push(_named(module, name))

  def call(self):
    function, args = self.pop(2)
    _expect(_is_global(function) and isinstance(args, tuple), "it calls something that is not a function")
    make = _FUNCTIONS.get(function.name)
    if make is None:
      self.push(Opaque(function.name, args))
      return
    # A long object that was read once may be copied many times.
    self._budget.spend(_NUM_BYTES_OF_ITEM * sum(len(arg) for arg in args if isinstance(arg, (list, str, tuple))))
    self.push(make(*args))

  def build(self):
    target, state = self._stack[-2], *self.pop()
    if isinstance(target, Opaque) and target.args is not None:
      target.state = state
    elif isinstance(target, types.SimpleNamespace):
      _expect(isinstance(state, dict) and all(isinstance(key, str) for key in state), "a namespace is damaged")
      vars(target).update(state)
    else:  # Attributes of an `OrderedDict`.
      _expect(isinstance(target, dict), "it gives a state to an object without one")

  def extend(self, values):
    target = self._stack[-1]
    if isinstance(target, set):
      target.update(_members(values))
      return
    _expect(isinstance(target, (list, Opaque)), "it appends to something that is not a list")
    (target.items if isinstance(target, Opaque) else target).extend(values)

  def update(self, values):
    target = self._stack[-1]
    _expect(isinstance(target, (dict, Opaque)) and len(values) % 2 == 0, "it sets items of a thing that is not a dict")
    pairs = list(zip(values[::2], values[1::2]))
    if isinstance(target, Opaque):
      target.items.extend(pairs)
    else:
      target.update(_mapping(pairs))


_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
           "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}

_INSTRUCTIONS: dict[str, Callable] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_marked())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(_members(machine.pop_marked()))),
    "APPEND": lambda machine, _: machine.extend(machine.pop()),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_marked()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_marked()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_marked()),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.pop_marked(),
    "BINGET": lambda machine, index: machine.recall(index),
    "LONG_BINGET": lambda machine, index: machine.recall(index),
    "BINPUT": lambda machine, index: machine.memoize(index),
    "LONG_BINPUT": lambda machine, index: machine.memoize(index),
    "MEMOIZE": lambda machine, _: machine.memoize(),
    "BINPERSID": lambda machine, _: machine.load_reference(),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
    "NEWOBJ": lambda machine, _: machine.call(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}

"""A reader of pickles that runs nothing in them.

A pickle can call any function when Python's own `pickle` reads it. `Unpickler` makes only data. Objects of classes
become `Opaque`.
"""

from __future__ import annotations

import pickletools
import types
from collections.abc import Callable

import numpy as np

# Contents may take this many bytes for each byte of the file, and some more if it is tiny. Files made to fill the
# memory take more: numbers packed by deflation, or a few numbers shared by many large tensors. Models take about 4.
_GROWTH, _LEAST_BUDGET = 16, 2**20
_NUM_BYTES_OF_OBJECT = 200  # Of an empty container, or of the result of a call.
_NUM_BYTES_OF_ITEM = 8  # Of a Python reference. Its object may take more, but not without bounds.
_MAX_BITS = 128  # Of an integer; the magic number of PyTorch has 77.
_MAX_NAME = 1000


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


class Refusal(ValueError):
  """Reports what is wrong with a file."""


def expect(is_right, reason):
  """Raises a `Refusal` unless what a file holds is right."""
  if not is_right:
    raise Refusal(reason)


class Budget:
  """The memory that the contents of a file may take."""

  def __init__(self, num_bytes):
    """Creates the budget of a file of `num_bytes` bytes."""
    self._left = max(_GROWTH * num_bytes, _LEAST_BUDGET)

  def spend(self, num_bytes):
    """Raises a `Refusal` when more is spent than there is."""
    self._left -= num_bytes
    expect(self._left >= 0, "what is in it would take far more memory than the file has bytes")


def is_name(value):
  """Whether a value is a class or function that a file names, not an object made with one."""
  return isinstance(value, Opaque) and value.args is None


def _mapping(pairs=()):
  expect(isinstance(pairs, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs)
         or pairs == (), "a dict is damaged")
  return {_checked_key(key): value for key, value in pairs}


def _members(values=()):
  expect(isinstance(values, (list, tuple)), "a set is damaged")
  return [_checked_key(value) for value in values]


def _encoded(text, encoding):
  """How protocol 2 writes bytes."""
  expect(isinstance(text, str) and encoding in ("latin1", "latin-1"), "bytes are damaged")
  return text.encode("latin1")


def _numpy_scalar(dtype, contents):
  expect(isinstance(dtype, Opaque) and dtype.name == "numpy.dtype" and dtype.args and isinstance(contents, bytes)
         and isinstance(dtype.state, tuple) and len(dtype.state) > 1, "a number of NumPy's is damaged")
  name, order = dtype.args[0], dtype.state[1]
  expect(name in _NUMPY_SCALARS and order in ("<", ">", "|"), "a number of NumPy's is of a type that is unknown here")
  value, = np.frombuffer(contents, order + name)
  return value.item()


_NUMPY_SCALARS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")

# The functions of plain data that a pickle may call, and what is called in their place.
_FUNCTIONS: dict[str, Callable] = {
    "_codecs.encode": _encoded,
    "argparse.Namespace": lambda: types.SimpleNamespace(),
    "builtins.frozenset": lambda *args: frozenset(_members(*args)),
    "builtins.set": lambda *args: set(_members(*args)),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda factory=None: {},
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
# What else of Python's own it may name.
_NAMES = {f"builtins.{name}" for name in ("bool", "bytes", "complex", "dict", "float", "int", "list", "object", "range",
                                          "slice", "str", "tuple", "type")}


def _checked_key(key):
  """Checks a key of a dict or set. Tuples nested in tuples could be so deep that their hash crashes Python."""
  expect(key is None or isinstance(key, (str, bytes, int, float)), "a key is neither a string nor a number")
  return key


class Unpickler:
  """Reads pickles of protocol 2 and up.

  Its instructions are those of Python's own machine, and `pickletools` parses them. Python's imports names, calls what
  it finds, and sets attributes. This one only makes containers, and calls functions of this package in place of those
  that a pickle names.
  """

  def __init__(self, packages, functions, load_reference, budget):
    """Creates the reader.

    Args:
      packages: Tuple of the packages that a pickle may name. A file that names others tries to do more than be read.
      functions: Dict, from the names of functions in these packages to what is called in their place.
      load_reference: Callable, from an identity to the object that is kept outside of the pickle.
      budget: `Budget`.
    """
    self._packages, self._functions = packages, _FUNCTIONS | functions
    self._load_reference, self._budget = load_reference, budget

  def run(self, stream):
    """The object of one pickle; leaves the stream at the end of the pickle."""
    self._stack, self._marks, self._memo = [], [], {}
    for instruction, argument, _ in pickletools.genops(stream):
      self._budget.spend(_NUM_BYTES_OF_OBJECT if instruction.name in _MAKERS else _NUM_BYTES_OF_ITEM)
      expect(not isinstance(argument, int) or argument.bit_length() <= _MAX_BITS, "an integer is too large")
      if instruction.name in _VALUES:
        self._stack.append(argument)
      else:
        expect(instruction.name in _INSTRUCTIONS, f"its pickle has the instruction {instruction.name}")
        _INSTRUCTIONS[instruction.name](self, argument)
    return self._stack.pop()

  def pop(self, count=1):
    """The `count` topmost values."""
    start = len(self._stack) - count
    expect(start >= 0, "its pickle is damaged")
    return self._pop_from(start)

  def pop_marked(self):
    """The values above the last mark."""
    expect(self._marks, "its pickle is damaged")
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
    expect(isinstance(module, str) and isinstance(name, str) and len(module) + len(name) < _MAX_NAME,
           "a name is damaged")
    module = {"__builtin__": "builtins"}.get(module, module)  # Protocol 2 writes the names of Python 2.
    full_name = f"{module}.{name}"
    expect(module.partition(".")[0] in self._packages or full_name in self._functions or full_name in _NAMES,
           f"it asks for {full_name[:100]!r}, which no model needs")
    self.push(Opaque(full_name))

  def call(self):
    function, args = self.pop(2)
    expect(is_name(function) and isinstance(args, tuple), "it calls something that is not a function")
    make = self._functions.get(function.name)
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
      expect(isinstance(state, dict) and all(isinstance(key, str) for key in state), "a namespace is damaged")
      vars(target).update(state)
    else:  # Attributes of an `OrderedDict`.
      expect(isinstance(target, dict), "it gives a state to an object without one")

  def extend(self, values):
    target = self._stack[-1]
    if isinstance(target, set):
      target.update(_members(values))
      return
    expect(isinstance(target, (list, Opaque)), "it appends to something that is not a list")
    (target.items if isinstance(target, Opaque) else target).extend(values)

  def update(self, values):
    target = self._stack[-1]
    expect(isinstance(target, (dict, Opaque)) and len(values) % 2 == 0, "it sets items of a thing that is not a dict")
    pairs = list(zip(values[::2], values[1::2]))
    if isinstance(target, Opaque):
      target.items.extend(pairs)
    else:
      target.update(_mapping(pairs))


_MAKERS = {"EMPTY_DICT", "EMPTY_SET", "FROZENSET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ"}
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

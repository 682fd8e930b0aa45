"""`read_torch_file`: files of PyTorch are read, and nothing that is in them is run."""

import argparse
import collections
import csv
import io
import pathlib
import pickle
import random
import struct
import sys
import tracemalloc
import types
import zipfile
from typing import Any, NamedTuple

import numpy as np
import pytest

from tfp_glow.checkpoints.torch_file import Opaque, read_torch_file

CHECKPOINT = pathlib.Path(__file__).parent / "reference" / "residual_flow_checkpoints" / "m1"
_MAGIC_NUMBER = 0x1950a86a20f9469cfc6c


class _Name(NamedTuple):
  """A class or function, as a pickle names it."""

  module: str
  name: str


class _Call(NamedTuple):
  """What a pickle makes of a function and arguments, or of a class if `is_new`."""

  function: _Name
  args: tuple
  state: Any = None
  is_new: bool = False


class _Reference(NamedTuple):
  identity: tuple


class _Storage(NamedTuple):
  """A reference to a storage, of a view of it in old files."""

  key: str
  kind: str
  count: int
  view: tuple | None = None


def _instructions(value, is_zip):
  """The instructions of a pickle of protocol 2 that makes a value; what is not of the classes above Python writes."""
  write = lambda part: _instructions(part, is_zip)
  if isinstance(value, _Name):
    return f"c{value.module}\n{value.name}\n".encode()
  if isinstance(value, _Call):
    made = write(value.function) + write(value.args) + (b"\x81" if value.is_new else b"R")
    return made if value.state is None else made + write(value.state) + b"b"
  if isinstance(value, _Reference):
    return write(value.identity) + b"Q"
  if isinstance(value, _Storage):
    kind = _Name("torch", f"{value.kind}Storage")
    return write(_Reference(("storage", kind, value.key, "cuda:0", value.count) + (() if is_zip else (value.view,))))
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
    for value in (_MAGIC_NUMBER, 1001, system):
      pickle.dump(value, file, 2)
    file.write(contents)
    pickle.dump(list(storages), file, 2)
    for values in storages.values():
      file.write(np.int64(values.size).tobytes() + values.tobytes())


class _Writer(NamedTuple):
  folder: pathlib.Path
  is_zip: bool

  def __call__(self, value, storages=None, **options):
    """Writes a file of a value, or of the `bytes` of a pickle, and arrays as storages; gives its path."""
    contents = value if type(value) is bytes else b"\x80\x02" + _instructions(value, self.is_zip) + b"."
    path = self.folder / "model.pth"
    (_write_zip if self.is_zip else _write_pickles)(path, contents, storages or {}, **options)
    return path


@pytest.fixture(params=[True, False], ids=["zip", "pickles"])
def write(request, tmp_path):
  """Writes files of each of the two formats."""
  return _Writer(tmp_path, request.param)


@pytest.fixture
def write_zip(tmp_path):
  return _Writer(tmp_path, True)


@pytest.fixture
def write_pickles(tmp_path):
  return _Writer(tmp_path, False)


def _tensor(storage, offset, shape, strides):
  hooks = _Call(_Name("collections", "OrderedDict"), ())
  return _Call(_Name("torch._utils", "_rebuild_tensor_v2"), (storage, offset, shape, strides, False, hooks))


def _check_refused(path, reason=None):
  with pytest.raises(ValueError, match=reason) as caught:
    read_torch_file(path)
  assert str(caught.value).startswith("`path` must be a ") and str(caught.value).endswith(f"Received: {path}")


# What the authors' code wrote.


@pytest.fixture(scope="module", params=["model.pth", "model_legacy.pth"])
def checkpoint(request):
  return read_torch_file(CHECKPOINT / request.param)


def _keys():
  with open(CHECKPOINT / "keys.tsv", newline="") as file:
    return {row["key"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def _total(tensors):
  """A number that depends on the order within the tensors, too."""
  return sum(np.sum(values.ravel() * np.cos(np.arange(values.size))) for values in tensors)


def test_state_dict_of_residual_flow(checkpoint):
  keys, tensors = _keys(), checkpoint["state_dict"]
  assert list(tensors) == list(keys)
  for key, row in keys.items():
    shape = () if row["shape"] == "scalar" else tuple(map(int, row["shape"].split("x")))
    assert (type(tensors[key]), tensors[key].shape, tensors[key].dtype) == (np.ndarray, shape, row["dtype"]), key
  np.testing.assert_allclose(_total(tensors.values()), 441.2410114646708, rtol=1e-9)  # By PyTorch.


def test_averages_of_residual_flow(checkpoint):
  ema = checkpoint["ema"]
  assert isinstance(ema, Opaque) and ema.name.endswith(".utils.ExponentialMovingAverage") and ema.state["decay"] == 0.93
  averages = ema.state["shadow_params"]
  assert set(averages) == {key for key, row in _keys().items() if row["in_ema"] == "y"}
  np.testing.assert_allclose(_total(averages.values()), -1.976246081790737, rtol=1e-9)  # By PyTorch.


def test_model_object_of_residual_flow(checkpoint):
  part = checkpoint["ema"].state["module"]
  for key in ("transforms", "0", "chain", "1"):
    part = part.state["_modules"][key]
  assert part.name.endswith(".layers.act_norm.ActNorm2d")
  np.testing.assert_array_equal(part.state["_parameters"]["bias"],
                                checkpoint["state_dict"]["transforms.0.chain.1.bias"])


def test_options_and_optimizer_of_residual_flow(checkpoint):
  assert isinstance(checkpoint["args"], types.SimpleNamespace)
  options = vars(checkpoint["args"])
  assert (options["data"], options["nblocks"], options["actnorm"], options["lr"]) == ("cifar10", "3-3", True, 0.01)
  state = checkpoint["optimizer_state_dict"]["state"].values()
  moments = [moment for slots in state for moment in (slots["exp_avg"], slots["exp_avg_sq"])]
  np.testing.assert_allclose(_total(moments), -0.030243244269251675, rtol=1e-9)  # By PyTorch.


# Tensors.


@pytest.mark.parametrize("offset, shape, strides, expected", [
    (0, (3, 4), (4, 1), np.arange(12).reshape(3, 4)),
    (0, (4, 3), (1, 4), np.arange(12).reshape(3, 4).T),
    (1, (2, 2), (8, 2), [[1, 3], [9, 11]]),
    (3, (3, 2), (0, 1), [[3, 4]] * 3),
    (2, (3, 4), (2, 2), [[2, 4, 6, 8], [4, 6, 8, 10], [6, 8, 10, 12]]),
    (11, (), (), 11),
    (11, (1, 1), (2**100, 0), [[11]]),
    (12, (0, 5), (1, 1), np.zeros([0, 5])),
])
def test_tensors_of_one_storage(write, offset, shape, strides, expected):
  storage = _Storage("0", "Float", 13)
  path = write([_tensor(storage, offset, shape, strides), _tensor(storage, 0, (13,), (1,))],
               {"0": np.arange(13, dtype=np.float32)})
  actual, whole = read_torch_file(path)
  assert actual.dtype == np.float32
  np.testing.assert_array_equal(actual, np.asarray(expected, np.float32), strict=True)
  assert actual.flags.owndata and actual.flags.writeable
  actual[...] = -1
  np.testing.assert_array_equal(whole, np.arange(13))


def test_types_of_tensors(write):
  arrays = {"Double": np.float64, "Float": np.float32, "Half": np.float16, "Long": np.int64, "Int": np.int32,
            "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_, "ComplexFloat": np.complex64,
            "ComplexDouble": np.complex128}
  arrays = {kind: np.array([1.5, -3, 100]).astype(np.int64 if dtype == np.uint8 else dtype).astype(dtype)
            for kind, dtype in arrays.items()}
  path = write({kind: _tensor(_Storage(kind, kind, 3), 0, (3,), (1,)) for kind in arrays}, arrays)
  for kind, actual in read_torch_file(path).items():
    np.testing.assert_array_equal(actual, arrays[kind], strict=True)


def test_bools_are_of_one_bit(write):
  path = write(_tensor(_Storage("0", "Bool", 2), 0, (2,), (1,)), {"0": np.uint8([0, 2])})
  assert read_torch_file(path).tobytes() == b"\0\1"


def test_bfloat16(write):
  values = np.array([1, -2.5, 0, np.inf], np.float32)
  halves = (values.view(np.uint32) >> 16).astype("<u2")
  path = write(_tensor(_Storage("0", "BFloat16", 4), 1, (3,), (1,)), {"0": halves})
  np.testing.assert_array_equal(read_torch_file(path), values[1:], strict=True)


def test_type_without_a_storage_of_its_own(write):
  storage, contents = _Storage("0", "storage.Untyped", 12), {"0": np.arange(6, dtype="<u2").view(np.uint8)}
  tensor = lambda dtype: _Call(_Name("torch._utils", "_rebuild_tensor_v3"),
                               (storage, 1, (2,), (2,), False, {}, _Name("torch", dtype)))
  np.testing.assert_array_equal(read_torch_file(write(tensor("uint16"), contents)), np.uint16([1, 3]), strict=True)
  _check_refused(write(tensor("float8_e4m3fn"), contents), "of the type float8_e4m3fn, which is unknown")


def test_parameters_and_tensors_of_old_versions(write):
  old = _Call(_Name("torch._utils", "_rebuild_tensor"), (_Storage("0", "Float", 2), 0, (2,), (1,)))
  path = write(_Call(_Name("torch._utils", "_rebuild_parameter"), (old, True, {})), {"0": np.float32([1, 2])})
  np.testing.assert_array_equal(read_torch_file(path), np.float32([1, 2]), strict=True)


def test_views_of_old_versions(write_pickles):
  values = np.arange(6, dtype=np.float32)
  view = _Storage("0", "Float", 6, ("1", 2, 3))
  path = write_pickles([_tensor(view, 1, (2,), (1,)), _tensor(_Storage("0", "Float", 6), 0, (6,), (1,))], {"0": values})
  part, whole = read_torch_file(path)
  np.testing.assert_array_equal(part, [3, 4])
  np.testing.assert_array_equal(whole, values)
  _check_refused(write_pickles(_tensor(view, 2, (2,), (1,)), {"0": values}), "beyond its storage")
  _check_refused(write_pickles(_tensor(_Storage("0", "Float", 6, ("1", 4, 3)), 0, (1,), (1,)), {"0": values}),
                 "a view reaches beyond")


def test_classes_of_old_versions(write_pickles):
  net = _Reference(("module", _Name("lib.nets", "Net"), "nets.py", "class Net: pass"))
  backend = _Call(_Name("torch.nn.backends.thnn", "_get_thnn_function_backend"), ())
  read = read_torch_file(write_pickles(_Call(net, (), {"_backend": backend}, is_new=True)))
  assert (read.name, read.args, read.state["_backend"].name) == ("lib.nets.Net", (), "torch.nn.backends.thnn."
                                                                 "_get_thnn_function_backend")


@pytest.mark.parametrize("offset, shape, strides", [
    (0, (7,), (1,)),
    (1, (6,), (1,)),
    (0, (2, 3), (4, 1)),
    (7, (0,), (1,)),
    (-1, (2,), (1,)),
    (5, (2,), (-1,)),
    (0, (-1, -1), (1, 1)),
    (0, (2**62, 2**62), (2**62, 1)),
    (0, (2, 3), (1,)),
    (0, (2.,), (1,)),
    (0, (1,) * 100, (1,) * 100),
    ("0", (2,), (1,)),
    (0, [2], [1]),
])
def test_refuses_tensors_beyond_their_storage(write, offset, shape, strides):
  _check_refused(write(_tensor(_Storage("0", "Float", 6), offset, shape, strides), {"0": np.zeros(6, np.float32)}),
                 "a tensor reaches beyond its storage|a tensor's shape is damaged")


@pytest.mark.parametrize("count, reason", [
    (5, "does not have the size"), (7, "does not have the size"), (2**61, "more memory")])
def test_refuses_storages_of_another_size(write, count, reason):
  _check_refused(write(_tensor(_Storage("0", "Float", count), 0, (5,), (1,)), {"0": np.zeros(6, np.float32)}), reason)


def test_refuses_missing_and_contradictory_storages(write):
  tensor = _tensor(_Storage("0", "Float", 2), 0, (2,), (1,))
  _check_refused(write(tensor), "no item named|list of storages")
  _check_refused(write([tensor, _tensor(_Storage("0", "Int", 2), 0, (2,), (1,))], {"0": np.float32([1, 2])}),
                 "two kinds")
  _check_refused(write(_tensor(_Storage("0", "QInt8", 2), 0, (2,), (1,)), {"0": np.int8([1, 2])}),
                 "unknown here, torch.QInt8Storage")
  _check_refused(write(_tensor(1, 0, (2,), (1,))), "no storage")


def test_messages_stay_short(write_zip):
  path = write_zip(_tensor(_Storage("key" * 10**4, "Float", 2), 0, (2,), (1,)))
  with pytest.raises(ValueError, match="key") as caught:
    read_torch_file(path)
  assert len(str(caught.value)) < 1000


def test_refuses_what_is_stored_as_its_conjugate(write):
  tensor = _tensor(_Storage("0", "ComplexFloat", 1), 0, (1,), (1,))
  tensor = tensor._replace(args=(*tensor.args, {"conj": True}))
  _check_refused(write(tensor, {"0": np.complex64([1j])}), "conjugate")


# Everything else in a file.


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data(write, protocol):
  value = {"none": None, "flags": [True, False], "ints": (0, 255, -1, 65536, 2**40, -2**70), "pair": (1.5, ("ä",)),
           "bytes": b"\x00\xff", "text": "x" * 300, "set": {1, "a"}, "frozen": frozenset([2]), 3: {None: [[], {}, ()]}}
  assert read_torch_file(write(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_there_twice_or_within_itself(write_pickles, protocol):
  inner = [[], []]
  short, long = (inner[0],), (1, 2, 3, inner[1])
  inner[0].append(short)
  inner[1].append(long)
  read = read_torch_file(write_pickles(pickle.dumps([short, long, short], protocol)))
  assert read[0] is read[2] is read[0][0][0] and read[1] is read[1][3][0]
  assert list(map(len, read)) == [1, 4, 1]


def test_known_classes(write):
  ordered, args = collections.OrderedDict(a=1, b=2), argparse.Namespace(data="cifar10")
  ordered._metadata = {"version": 1}
  vars(args)["__class__"] = 3
  read = read_torch_file(write({
      "ordered": ordered, "default": collections.defaultdict(list, {"k": [1]}), "args": args,
      "size": _Call(_Name("torch", "Size"), ((2, 3),)),
      "scalars": [np.float64(2.5), np.float32(0.5), np.int64(-7), np.bool_(True)]}))
  args = read.pop("args")
  assert type(args) is types.SimpleNamespace and vars(args) == {"data": "cifar10", "__class__": 3}
  assert read == {"ordered": {"a": 1, "b": 2}, "default": {"k": [1]}, "size": (2, 3), "scalars": [2.5, 0.5, -7, True]}
  assert {type(read["ordered"]), type(read["default"])} == {dict}


def test_other_objects_are_records(write):
  net, other = _Name("resflows.nets", "Net"), _Name("__main__", "Other")
  path = write([net, _Call(net, (1,), {"a": 2}, is_new=True), _Call(other, (), ({"a": 2}, ["slot"])),
                _Call(_Name("torch", "device"), ("cuda", 0)), _Name("torch", "float32")])
  read = read_torch_file(path)
  assert all(type(item) is Opaque and item.items == [] for item in read)
  assert [(item.name, item.args, item.state) for item in read] == [
      ("resflows.nets.Net", None, None), ("resflows.nets.Net", (1,), {"a": 2}),
      ("__main__.Other", (), ({"a": 2}, ["slot"])), ("torch.device", ("cuda", 0), None), ("torch.float32", None, None)]


def test_items_of_other_objects(write_pickles):
  made = b"\x80\x02clib.a\nA\n)\x81"
  assert read_torch_file(write_pickles(made + b"(K\x01K\x02e.")).items == [1, 2]
  assert read_torch_file(write_pickles(made + b"(K\x01K\x02u.")).items == [(1, 2)]


# What does harm.


def test_runs_no_command(write, tmp_path):
  marker = tmp_path / "marker"
  path = write(_Call(_Name("posix", "system"), (f"touch {marker}",)))
  _check_refused(path, "posix.system")
  assert not marker.exists()
  pickle.loads(b"\x80\x02" + _instructions(_Call(_Name("posix", "system"), (f"touch {marker}",)), True) + b".")
  assert marker.exists(), "the file does no harm, whoever reads it"


def test_imports_and_calls_nothing_of_known_packages(write, monkeypatch):
  calls = []
  module = types.SimpleNamespace(layer=lambda *args: calls.append(args))
  monkeypatch.setitem(sys.modules, "lib", module)
  contents = b"\x80\x02" + _instructions(_Call(_Name("lib", "layer"), (1,)), True) + b"."
  assert (read_torch_file(write(contents)).name, calls) == ("lib.layer", [])
  pickle.loads(contents)
  assert calls, "the file does no harm, whoever reads it"


@pytest.mark.parametrize("module, name", [
    ("builtins", "eval"), ("__builtin__", "eval"), ("builtins", "getattr"), ("builtins", "list.append"),
    ("operator", "attrgetter"), ("subprocess", "Popen"), ("os", "system"), ("importlib", "import_module"),
    ("collections", "abc"), ("argparse", "FileType"), ("torchvision", "x"), ("", "x")])
def test_refuses_other_names(write_pickles, module, name):
  _check_refused(write_pickles(_Name(module, name)), f"asks for '{module.replace('__builtin__', 'builtins')}.{name}'")
  long = f"\x8c{chr(len(module))}{module}\x8c{chr(len(name))}{name}\x93".encode("latin1")
  _check_refused(write_pickles(b"\x80\x04" + long + b"."), "asks for ")


@pytest.mark.parametrize("instructions, reason", [
    (b"K\x01)R", "calls something that is not a function"),
    (b"clib\nA\n)R)R", "calls something that is not a function"),
    (b"clib\nA\nK\x01R", "calls something that is not a function"),
    (b"clib\nA\n}b", "gives a state"),
    (b"]}b", "gives a state"),
    (b"cargparse\nNamespace\n)R}K\x01K\x02sb", "namespace"),
    (b"cargparse\nNamespace\n(K\x01tR", "TypeError"),
    (b"}K\x01a", "not a list"),
    (b"]K\x01K\x02s", "not a dict"),
    (b"}(K\x01u", "not a dict"),
    (b"clib\n" + b"x" * 1000 + b"\n", "a name"),
    (b"c_codecs\nencode\n(X\x01\0\0\0xX\x05\0\0\0rot13tR", "bytes"),
    (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\0\0\0O8tR(K\x03X\x01\0\0\0|tbC\x08" + bytes(8) + b"tR",
     "a number of NumPy"),
    (b"}(K\x01K\x02K\x03u", "not a dict"),
    (b"}]K\x01s", "a key"),
    (b"}" + b")" + b"\x85" * 10**5 + b"K\x01s", "a key"),
    (b"\x8f()\x90", "a key"),
    (b"\x8a\x20" + b"\x01" * 32, "integer"),
    (b"K\x01Q", "reference"),
    (b"U\x01xQ", "reference"),
    (b"Pid\n", "PERSID"),
    (b"(ios\nsystem\n", "INST"),
    (b"\x82\x01", "EXT1"),
    (b"h\x05", "KeyError"),
    (b"0", "damaged"),
    (b"", "IndexError"),
    (b"t", "damaged"),
    (b"\x86", "damaged"),
])
def test_refuses_other_instructions(write_pickles, instructions, reason):
  _check_refused(write_pickles(b"\x80\x02" + instructions + b"."), reason)


def test_deep_lists_are_read(write_pickles):
  read, depth = read_torch_file(write_pickles(b"\x80\x02" + b"]" * 10**4 + b"a" * (10**4 - 1) + b".")), 0
  while read:
    read, depth = read[0], depth + 1
  assert depth == 10**4 - 1


def test_refuses_what_fills_the_memory(write):
  zeros = {"0": np.zeros(2**14, np.float32)}
  storage = _Storage("0", "Float", 2**14)
  _check_refused(write(_tensor(storage, 0, (2**40,), (0,)), zeros), "far more memory")
  _check_refused(write([_tensor(storage, n, (2**14 - n,), (1,)) for n in range(100)], zeros), "far more memory")
  copies = b"\x80\x02](" + b"K\x01" * 10**4 + b"eq\x00" + b"ctorch\nSize\nq\x01" + b"h\x01h\x00\x85R" * 10**3 + b"."
  _check_refused(write(copies), "far more memory")


def test_deflated_files(write_zip):
  numbers = np.arange(2**12, dtype=np.float32)
  tensor = _tensor(_Storage("0", "Float", numbers.size), 0, (numbers.size,), (1,))
  path = write_zip(tensor, {"0": numbers}, compression=zipfile.ZIP_DEFLATED)
  np.testing.assert_array_equal(read_torch_file(path), numbers)
  _check_refused(write_zip(tensor, {"0": numbers}, compression=zipfile.ZIP_BZIP2), "rare way")


@pytest.mark.parametrize("contents, storages", [
    (_tensor(_Storage("0", "Float", 2**20), 0, (1,), (1,)), {"0": np.zeros(2**20, np.float32)}),
    (pickle.dumps("x" * 2**21, 2), {}),
    (b"\x80\x02](" + b"N" * 2**18 + b"e.", {}),
], ids=["numbers", "text", "instructions"])
def test_refuses_what_inflates_to_far_more(write_zip, contents, storages):
  _check_refused(write_zip(contents, storages, compression=zipfile.ZIP_DEFLATED), "far more memory")


def test_sizes_in_zip_files_are_what_is_inflated(write_zip):
  contents = pickle.dumps("x" * 2**23, 2)
  path = write_zip(contents, compression=zipfile.ZIP_DEFLATED)
  written, true_size = path.read_bytes(), struct.pack("<I", len(contents))
  assert written.count(true_size) == 2
  path.write_bytes(written.replace(true_size, struct.pack("<I", 10)))
  tracemalloc.start()
  try:
    _check_refused(path)
    assert tracemalloc.get_traced_memory()[1] < 2**21
  finally:
    tracemalloc.stop()
  contents = pickle.dumps(list(range(300)), 2)
  path = write_zip(contents, compression=zipfile.ZIP_DEFLATED)
  path.write_bytes(path.read_bytes().replace(struct.pack("<I", len(contents)), struct.pack("<I", len(contents) + 1)))
  _check_refused(path, "ends early")


# What is damaged, or something else.


@pytest.fixture
def small(write):
  """A file of some tensors and some data, and what is in it."""
  values = {"0": np.arange(5, dtype=np.float32), "1": np.arange(3), "2": np.float64([])}
  path = write({"a": _tensor(_Storage("0", "Float", 5), 0, (5,), (1,)), "b": [1, "text", {2: None}],
                "c": _tensor(_Storage("1", "Long", 3), 0, (3,), (1,)),
                "d": _tensor(_Storage("2", "Double", 0), 0, (0,), (1,))}, values)
  return path, values


def _is_as_written(read, values):
  return (list(read) == ["a", "b", "c", "d"] and read["b"] == [1, "text", {2: None}]
          and all(np.array_equal(read[name], values[key]) for name, key in (("a", "0"), ("c", "1"), ("d", "2"))))


def test_truncations_are_noticed(small):
  path, values = small
  assert _is_as_written(read_torch_file(path), values)
  contents = path.read_bytes()
  for length in (*range(0, len(contents), 7), *range(len(contents) - 30, len(contents))):
    path.write_bytes(contents[:length])
    _check_refused(path)


def test_damage_is_noticed_or_harmless(small):
  path, values = small
  contents, draw = path.read_bytes(), random.Random(0)
  num_refused = 0
  for _ in range(150):
    damaged = bytearray(contents)
    for _ in range(draw.randint(1, 3)):
      damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    path.write_bytes(damaged)
    try:
      read = read_torch_file(path)
    except ValueError as error:
      assert str(error).endswith(f"Received: {path}")
      num_refused += 1
    else:  # Zip files have check sums, the older ones do not.
      assert contents[:2] != b"PK" or _is_as_written(read, values)
  assert num_refused > 30


def test_refuses_big_endian_files(write_zip, write_pickles):
  _check_refused(write_zip([1], byte_order=b"big"), "little-endian")
  _check_refused(write_pickles([1], is_little=False), "little-endian")


def _zipped(**members):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, contents in members.items():
      archive.writestr(name, contents)
  return buffer.getvalue()


def _npz():
  buffer = io.BytesIO()
  np.savez(buffer, x=np.zeros(3))
  return buffer.getvalue()


@pytest.mark.parametrize("contents, reason", [
    (b"", "begins neither"),
    (b"\x89PNG\r\n\x1a\n", "begins neither"),
    (np.random.default_rng(0).bytes(1000), "begins neither"),
    (pickle.dumps({"a": 1}), "not one of PyTorch"),
    (pickle.dumps(_MAGIC_NUMBER, 2) + pickle.dumps(1000, 2), "version"),
    (_npz(), "without one `<name>/data.pkl`"),
    (_zipped(**{"config.json": b"{}", "model.weights.h5": b""}), "without one `<name>/data.pkl`"),
    (_zipped(**{"a/data.pkl": b"", "b/data.pkl": b""}), "without one `<name>/data.pkl`"),
    (_zipped(**{"net/data.pkl": b"\x80\x02N.", "net/constants.pkl": b"\x80\x02)."}), "TorchScript"),
], ids=["empty", "PNG", "random", "pickle", "version", "npz", "keras", "two", "TorchScript"])
def test_refuses_other_files(tmp_path, contents, reason):
  path = tmp_path / "model.pth"
  path.write_bytes(contents)
  _check_refused(path, reason)


def test_paths(write, tmp_path, monkeypatch):
  path = write([1])
  monkeypatch.setenv("HOME", str(tmp_path))
  assert read_torch_file("~/model.pth") == read_torch_file(str(path)) == [1]
  _check_refused(tmp_path, "not a folder")
  with pytest.raises(FileNotFoundError, match=r"`path` must .* Received: .*missing.pth"):
    read_torch_file(tmp_path / "missing.pth")
  for wrong in (None, 3, b"model.pth"):
    with pytest.raises(TypeError, match="`path` must be a path"):
      read_torch_file(wrong)

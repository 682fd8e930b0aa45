"""`read_torch_file`: the tensors and the data that it reads from files of PyTorch."""

import argparse
import collections
import csv
import pathlib
import pickle
import types
import zipfile

import numpy as np
import pytest
from torch_pickles import Call, Name, Reference, Storage, check_refused, make_tensor

from tfp_glow.checkpoints.restricted_unpickler import Opaque
from tfp_glow.checkpoints.torch_file import read_torch_file

CHECKPOINT = pathlib.Path(__file__).parent / "reference" / "residual_flow_checkpoints" / "m1"


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
  storage = Storage("0", "Float", 13)
  path = write([make_tensor(storage, offset, shape, strides), make_tensor(storage, 0, (13,), (1,))],
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
  path = write({kind: make_tensor(Storage(kind, kind, 3), 0, (3,), (1,)) for kind in arrays}, arrays)
  for kind, actual in read_torch_file(path).items():
    np.testing.assert_array_equal(actual, arrays[kind], strict=True)


def test_bools_are_of_one_bit(write):
  path = write(make_tensor(Storage("0", "Bool", 2), 0, (2,), (1,)), {"0": np.uint8([0, 2])})
  assert read_torch_file(path).tobytes() == b"\0\1"


def test_bfloat16(write):
  values = np.array([1, -2.5, 0, np.inf], np.float32)
  halves = (values.view(np.uint32) >> 16).astype("<u2")
  path = write(make_tensor(Storage("0", "BFloat16", 4), 1, (3,), (1,)), {"0": halves})
  np.testing.assert_array_equal(read_torch_file(path), values[1:], strict=True)


def test_type_without_a_storage_of_its_own(write):
  storage, contents = Storage("0", "storage.Untyped", 12), {"0": np.arange(6, dtype="<u2").view(np.uint8)}
  tensor = lambda dtype: Call(Name("torch._utils", "_rebuild_tensor_v3"),
                               (storage, 1, (2,), (2,), False, {}, Name("torch", dtype)))
  np.testing.assert_array_equal(read_torch_file(write(tensor("uint16"), contents)), np.uint16([1, 3]), strict=True)
  check_refused(write(tensor("float8_e4m3fn"), contents), "of the type float8_e4m3fn, which is unknown")


def test_parameters_and_tensors_of_old_versions(write):
  old = Call(Name("torch._utils", "_rebuild_tensor"), (Storage("0", "Float", 2), 0, (2,), (1,)))
  path = write(Call(Name("torch._utils", "_rebuild_parameter"), (old, True, {})), {"0": np.float32([1, 2])})
  np.testing.assert_array_equal(read_torch_file(path), np.float32([1, 2]), strict=True)


def test_views_of_old_versions(write_pickles):
  values = np.arange(6, dtype=np.float32)
  view = Storage("0", "Float", 6, ("1", 2, 3))
  path = write_pickles([make_tensor(view, 1, (2,), (1,)), make_tensor(Storage("0", "Float", 6), 0, (6,), (1,))],
                       {"0": values})
  part, whole = read_torch_file(path)
  np.testing.assert_array_equal(part, [3, 4])
  np.testing.assert_array_equal(whole, values)
  check_refused(write_pickles(make_tensor(view, 2, (2,), (1,)), {"0": values}), "beyond its storage")
  check_refused(write_pickles(make_tensor(Storage("0", "Float", 6, ("1", 4, 3)), 0, (1,), (1,)), {"0": values}),
                 "a view reaches beyond")


def test_classes_of_old_versions(write_pickles):
  net = Reference(("module", Name("lib.nets", "Net"), "nets.py", "class Net: pass"))
  backend = Call(Name("torch.nn.backends.thnn", "_get_thnn_function_backend"), ())
  read = read_torch_file(write_pickles(Call(net, (), {"_backend": backend}, is_new=True)))
  assert (read.name, read.args, read.state["_backend"].name) == ("lib.nets.Net", (), "torch.nn.backends.thnn."
                                                                 "_get_thnn_function_backend")


# Other data.


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
      "size": Call(Name("torch", "Size"), ((2, 3),)),
      "scalars": [np.float64(2.5), np.float32(0.5), np.int64(-7), np.bool_(True)]}))
  args = read.pop("args")
  assert type(args) is types.SimpleNamespace and vars(args) == {"data": "cifar10", "__class__": 3}
  assert read == {"ordered": {"a": 1, "b": 2}, "default": {"k": [1]}, "size": (2, 3), "scalars": [2.5, 0.5, -7, True]}
  assert {type(read["ordered"]), type(read["default"])} == {dict}


def test_other_objects_are_records(write):
  net, other = Name("resflows.nets", "Net"), Name("__main__", "Other")
  path = write([net, Call(net, (1,), {"a": 2}, is_new=True), Call(other, (), ({"a": 2}, ["slot"])),
                Call(Name("torch", "device"), ("cuda", 0)), Name("torch", "float32")])
  read = read_torch_file(path)
  assert all(type(item) is Opaque and item.items == [] for item in read)
  assert [(item.name, item.args, item.state) for item in read] == [
      ("resflows.nets.Net", None, None), ("resflows.nets.Net", (1,), {"a": 2}),
      ("__main__.Other", (), ({"a": 2}, ["slot"])), ("torch.device", ("cuda", 0), None), ("torch.float32", None, None)]


def test_items_of_other_objects(write_pickles):
  made = b"\x80\x02clib.a\nA\n)\x81"
  assert read_torch_file(write_pickles(made + b"(K\x01K\x02e.")).items == [1, 2]
  assert read_torch_file(write_pickles(made + b"(K\x01K\x02u.")).items == [(1, 2)]


def test_deep_lists_are_read(write_pickles):
  read, depth = read_torch_file(write_pickles(b"\x80\x02" + b"]" * 10**4 + b"a" * (10**4 - 1) + b".")), 0
  while read:
    read, depth = read[0], depth + 1
  assert depth == 10**4 - 1


def test_deflated_files(write_zip):
  numbers = np.arange(2**12, dtype=np.float32)
  tensor = make_tensor(Storage("0", "Float", numbers.size), 0, (numbers.size,), (1,))
  path = write_zip(tensor, {"0": numbers}, compression=zipfile.ZIP_DEFLATED)
  np.testing.assert_array_equal(read_torch_file(path), numbers)
  check_refused(write_zip(tensor, {"0": numbers}, compression=zipfile.ZIP_BZIP2), "rare way")


def test_paths(write, tmp_path, monkeypatch):
  path = write([1])
  monkeypatch.setenv("HOME", str(tmp_path))
  assert read_torch_file("~/model.pth") == read_torch_file(str(path)) == [1]
  check_refused(tmp_path, "not a folder")
  with pytest.raises(FileNotFoundError, match=r"`path` must .* Received: .*missing.pth"):
    read_torch_file(tmp_path / "missing.pth")
  for wrong in (None, 3, b"model.pth"):
    with pytest.raises(TypeError, match="`path` must be a path"):
      read_torch_file(wrong)

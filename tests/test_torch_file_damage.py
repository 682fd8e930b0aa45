"""`read_torch_file` refuses files that are damaged, contradict themselves or are not PyTorch's."""

import io
import pickle
import random
import zipfile

import numpy as np
import pytest
from torch_pickles import MAGIC_NUMBER, Storage, check_refused, make_tensor

from tfp_glow.checkpoints.torch_file import read_torch_file

# Tensors.


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
  check_refused(write(make_tensor(Storage("0", "Float", 6), offset, shape, strides), {"0": np.zeros(6, np.float32)}),
                 "a tensor reaches beyond its storage|a tensor's shape is damaged")


@pytest.mark.parametrize("count, reason", [
    (5, "does not have the size"), (7, "does not have the size"), (2**61, "more memory")])
def test_refuses_storages_of_another_size(write, count, reason):
  check_refused(write(make_tensor(Storage("0", "Float", count), 0, (5,), (1,)), {"0": np.zeros(6, np.float32)}), reason)


def test_refuses_missing_and_contradictory_storages(write):
  tensor = make_tensor(Storage("0", "Float", 2), 0, (2,), (1,))
  check_refused(write(tensor), "no item named|list of storages")
  check_refused(write([tensor, make_tensor(Storage("0", "Int", 2), 0, (2,), (1,))], {"0": np.float32([1, 2])}),
                 "two kinds")
  check_refused(write(make_tensor(Storage("0", "QInt8", 2), 0, (2,), (1,)), {"0": np.int8([1, 2])}),
                 "unknown here, torch.QInt8Storage")
  check_refused(write(make_tensor(1, 0, (2,), (1,))), "no storage")


def test_messages_stay_short(write_zip):
  path = write_zip(make_tensor(Storage("key" * 10**4, "Float", 2), 0, (2,), (1,)))
  with pytest.raises(ValueError, match="key") as caught:
    read_torch_file(path)
  assert len(str(caught.value)) < 1000


def test_refuses_what_is_stored_as_its_conjugate(write):
  tensor = make_tensor(Storage("0", "ComplexFloat", 1), 0, (1,), (1,))
  tensor = tensor._replace(args=(*tensor.args, {"conj": True}))
  check_refused(write(tensor, {"0": np.complex64([1j])}), "conjugate")


# Whole files.


@pytest.fixture
def small(write):
  """A file of some tensors and some data, and what is in it."""
  values = {"0": np.arange(5, dtype=np.float32), "1": np.arange(3), "2": np.float64([])}
  path = write({"a": make_tensor(Storage("0", "Float", 5), 0, (5,), (1,)), "b": [1, "text", {2: None}],
                "c": make_tensor(Storage("1", "Long", 3), 0, (3,), (1,)),
                "d": make_tensor(Storage("2", "Double", 0), 0, (0,), (1,))}, values)
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
    check_refused(path)


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
    else:  # Zip files have checksums, older files have not.
      assert contents[:2] != b"PK" or _is_as_written(read, values)
  assert num_refused > 30


def test_refuses_big_endian_files(write_zip, write_pickles):
  check_refused(write_zip([1], byte_order=b"big"), "little-endian")
  check_refused(write_pickles([1], is_little=False), "little-endian")


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
    (pickle.dumps(MAGIC_NUMBER, 2) + pickle.dumps(1000, 2), "version"),
    (_npz(), "without one `<name>/data.pkl`"),
    (_zipped(**{"config.json": b"{}", "model.weights.h5": b""}), "without one `<name>/data.pkl`"),
    (_zipped(**{"a/data.pkl": b"", "b/data.pkl": b""}), "without one `<name>/data.pkl`"),
    (_zipped(**{"net/data.pkl": b"\x80\x02N.", "net/constants.pkl": b"\x80\x02)."}), "TorchScript"),
], ids=["empty", "PNG", "random", "pickle", "version", "npz", "keras", "two", "TorchScript"])
def test_refuses_other_files(tmp_path, contents, reason):
  path = tmp_path / "model.pth"
  path.write_bytes(contents)
  check_refused(path, reason)

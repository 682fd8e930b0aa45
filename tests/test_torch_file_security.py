"""`read_torch_file` runs nothing that is in a file, and refuses what would fill the memory."""

import pickle
import struct
import sys
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
from torch_pickles import Call, Name, Storage, check_refused, instructions_of, make_tensor

from tfp_glow.checkpoints.torch_file import read_torch_file


def test_runs_no_command(write, tmp_path):
  marker = tmp_path / "marker"
  path = write(Call(Name("posix", "system"), (f"touch {marker}",)))
  check_refused(path, "posix.system")
  assert not marker.exists()
  pickle.loads(b"\x80\x02" + instructions_of(Call(Name("posix", "system"), (f"touch {marker}",)), True) + b".")
  assert marker.exists(), "the file is harmless, so this test shows nothing"


def test_imports_and_calls_nothing_of_known_packages(write, monkeypatch):
  calls = []
  module = types.SimpleNamespace(layer=lambda *args: calls.append(args))
  monkeypatch.setitem(sys.modules, "lib", module)
  contents = b"\x80\x02" + instructions_of(Call(Name("lib", "layer"), (1,)), True) + b"."
  assert (read_torch_file(write(contents)).name, calls) == ("lib.layer", [])
  pickle.loads(contents)
  assert calls, "the file is harmless, so this test shows nothing"


@pytest.mark.parametrize("module, name", [
    ("builtins", "eval"), ("__builtin__", "eval"), ("builtins", "getattr"), ("builtins", "list.append"),
    ("operator", "attrgetter"), ("subprocess", "Popen"), ("os", "system"), ("importlib", "import_module"),
    ("collections", "abc"), ("argparse", "FileType"), ("torchvision", "x"), ("", "x")])
def test_refuses_other_names(write_pickles, module, name):
  check_refused(write_pickles(Name(module, name)), f"asks for '{module.replace('__builtin__', 'builtins')}.{name}'")
  long = f"\x8c{chr(len(module))}{module}\x8c{chr(len(name))}{name}\x93".encode("latin1")
  check_refused(write_pickles(b"\x80\x04" + long + b"."), "asks for ")


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
  check_refused(write_pickles(b"\x80\x02" + instructions + b"."), reason)


def test_refuses_what_fills_the_memory(write):
  zeros = {"0": np.zeros(2**14, np.float32)}
  storage = Storage("0", "Float", 2**14)
  check_refused(write(make_tensor(storage, 0, (2**40,), (0,)), zeros), "far more memory")
  check_refused(write([make_tensor(storage, n, (2**14 - n,), (1,)) for n in range(100)], zeros), "far more memory")
  copies = b"\x80\x02](" + b"K\x01" * 10**4 + b"eq\x00" + b"ctorch\nSize\nq\x01" + b"h\x01h\x00\x85R" * 10**3 + b"."
  check_refused(write(copies), "far more memory")


@pytest.mark.parametrize("contents, storages", [
    (make_tensor(Storage("0", "Float", 2**20), 0, (1,), (1,)), {"0": np.zeros(2**20, np.float32)}),
    (pickle.dumps("x" * 2**21, 2), {}),
    (b"\x80\x02](" + b"N" * 2**18 + b"e.", {}),
], ids=["numbers", "text", "instructions"])
def test_refuses_what_inflates_to_far_more(write_zip, contents, storages):
  check_refused(write_zip(contents, storages, compression=zipfile.ZIP_DEFLATED), "far more memory")


def test_sizes_in_zip_files_are_what_is_inflated(write_zip):
  contents = pickle.dumps("x" * 2**23, 2)
  path = write_zip(contents, compression=zipfile.ZIP_DEFLATED)
  written, true_size = path.read_bytes(), struct.pack("<I", len(contents))
  assert written.count(true_size) == 2
  path.write_bytes(written.replace(true_size, struct.pack("<I", 10)))
  tracemalloc.start()
  try:
    check_refused(path)
    assert tracemalloc.get_traced_memory()[1] < 2**21
  finally:
    tracemalloc.stop()
  contents = pickle.dumps(list(range(300)), 2)
  path = write_zip(contents, compression=zipfile.ZIP_DEFLATED)
  path.write_bytes(path.read_bytes().replace(struct.pack("<I", len(contents)), struct.pack("<I", len(contents) + 1)))
  check_refused(path, "ends early")

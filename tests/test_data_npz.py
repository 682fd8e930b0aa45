"""`load_images` from an `.npz` file."""

import re
import subprocess
import sys

import numpy as np
import options
import pytest
import training_data
from image_files import arrays

from tfp_glow import data

RNG = np.random.default_rng(0)


def write(folder, **changes):
  """A file of 40 and 10 grey images of 6x6, whose first value is their number; `None` leaves an array out."""
  found = {}
  for split, count in (("train", 40), ("test", 10)):
    found[f"x_{split}"] = RNG.integers(0, 256, (count, 6, 6), np.uint8)
    found[f"x_{split}"][:, 0, 0] = np.arange(count)
    found[f"y_{split}"] = (np.arange(count) % 4).astype(np.uint8)
  path = folder / "images.npz"
  np.savez(path, **{name: value for name, value in (found | changes).items() if value is not None})
  return path


def numbers(dataset):
  return arrays(dataset)[:, 0, 0, 0]


@pytest.mark.slow
def test_splits_and_shapes(tmp_path):
  path = write(tmp_path)
  with np.load(path) as file:
    expected = file["x_test"][..., np.newaxis]
  test = data.load_images(path, "test", 4)
  assert test.element_spec.shape.as_list() == [None, 6, 6, 1] and len(test) == 3
  np.testing.assert_array_equal(arrays(test), expected)
  train = numbers(data.load_images(str(path), "train", 16, seed=0))
  assert not np.array_equal(train, np.arange(40))
  np.testing.assert_array_equal(np.sort(train), np.arange(40))
  np.testing.assert_array_equal(numbers(data.load_images(path, "train[95%:]", 4, shuffle=False)), [38, 39])
  np.testing.assert_array_equal(np.sort(numbers(data.load_images(path, "train[:95%]", 4))), np.arange(38))
  np.testing.assert_array_equal(numbers(data.load_images(path, "test[2:5]", 4)), [2, 3, 4])


@pytest.mark.slow
def test_labels_colours_sizes_and_epochs(tmp_path):
  path = write(tmp_path, x_train=RNG.integers(0, 256, (40, 6, 8, 3), np.uint8),
               y_train=(np.arange(40) % 5)[:, np.newaxis])  # The shape of the labels of Keras' CIFAR-10.
  images, labels = next(iter(data.load_images(path, "train", 40, image_size=4, with_labels=True, shuffle=False)))
  assert images.shape == (40, 4, 4, 3) and labels.dtype.name == "int64"
  np.testing.assert_array_equal(labels, np.arange(40) % 5)
  assert data.num_classes(path) == 5 and data.num_classes(str(path)) == 5
  padded = arrays(data.load_images(path, "test", 10, image_size=8))
  assert padded.shape == (10, 8, 8, 1) and not padded[:, 0].any()
  epochs = lambda *which: arrays(data.load_images(path, "train", 16, image_size=4, seed=1, epochs=range(*which)))
  np.testing.assert_array_equal(epochs(0, 3)[40:], epochs(1, 3))


@pytest.mark.parametrize("changes, arguments, message", [
    ({}, {"split": "validation"}, "`split` must be 'train' or 'test' .*: split='validation'"),
    ({}, {"split": "train[a:]"}, r"`split` must be .*Received: split='train\[a:\]'"),
    ({}, {"split": "train[50:]"}, r"`split` must not be empty; there are 40 .*Received: split='train\[50:\]'"),
    ({"x_test": None}, {}, "`split` must be .* but the arrays there are .*'x_train'.*without 'x_test'.*: split='test'"),
    ({"x_test": RNG.normal(size=(10, 6, 6))}, {}, "uint8 images .* as 'x_test'. Received: float64, shape"),
    ({"x_test": np.zeros([10, 6], np.uint8)}, {}, r"uint8 images .*Received: uint8, shape \(10, 6\)"),
    ({"y_test": None}, {"with_labels": True}, "`with_labels` needs .*'y_test'.*Received: with_labels=True"),
    ({"y_test": np.zeros(9, int)}, {"with_labels": True}, r"integer label .*Received: int64, shape \(9,\) for 10"),
    ({"y_test": np.full(10, -1)}, {"with_labels": True}, "integer label of at least 0 .*Received: int64"),
    ({"y_test": np.zeros(10)}, {"with_labels": True}, "integer label .*Received: float64"),
    ({"x_test": np.array([{}] * 10)}, {}, "`name_or_folder` must be a readable .npz .*Received: name_or_folder=")])
def test_errors_name_the_argument(tmp_path, changes, arguments, message):
  path = write(tmp_path, **changes)
  with pytest.raises(ValueError, match=f"(?s){message}"):
    data.load_images(**{"name_or_folder": path, "split": "test", "batch_size": 4, **arguments})


def test_files_that_are_no_npz_files(tmp_path):
  missing = tmp_path / "none.npz"
  for name in (missing, "none.npz"):
    for ask in (lambda name: data.load_images(name, "train", 4), data.num_classes):
      with pytest.raises(FileNotFoundError, match=rf"`name_or_folder` .*Received: .*{re.escape(str(name))}"):
        ask(name)
  for content in (b"", b"PK\x03\x04", b"no archive"):
    missing.write_bytes(content)
    with pytest.raises(ValueError, match="`name_or_folder` must be a readable .npz") as caught:
      data.load_images(missing, "train", 4)
    assert "pickle" not in str(caught.value)


@pytest.mark.slow
def test_example_splits_it(tmp_path, monkeypatch):
  """The last twentieth of the training images chooses the best epoch."""
  monkeypatch.setattr(sys, "argv", ["train_glow.py", "--data", str(write(tmp_path)), "--batch-size", "8"])
  args = options.parse(options.make_parser(""))
  assert args.num_bits == 8 and args.max_shift == 0.
  splits = training_data.load_splits(args)
  assert set(numbers(splits["validation"])) == {38, 39}
  assert set(numbers(splits["train"])) == set(numbers(splits["train_epochs"](epochs=range(2)))) == set(range(38))
  np.testing.assert_array_equal(numbers(splits["test"]), np.arange(10))
  assert training_data.image_shape(splits["train"]) == (6, 6, 1)


_WITHOUT = """
import sys
class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in {"tensorflow_datasets", "tensorflow_serving", "sklearn", "lmdb", "flask"}:
      raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from tfp_glow import data
print(len(data.load_images(sys.argv[1], "train", 4)), data.num_classes(sys.argv[1]))
"""


@pytest.mark.slow
def test_needs_no_other_library(tmp_path):
  done = subprocess.run([sys.executable, "-c", _WITHOUT, str(write(tmp_path))], capture_output=True, text=True,
                        check=False)
  assert done.stdout.split() == ["10", "4"], done.stderr

"""Tests of folders of images as a source of `tfp_glow.data`."""

import concurrent.futures
import hashlib
import pathlib
import threading

import numpy as np
import pytest
import tensorflow as tf
from image_files import SPLITS, arrays, fill, keys, pixels, save
from PIL import Image

from tfp_glow import data
from tfp_glow.data import decoded_once, image_file


def test_folder_of_mixed_sizes_modes_and_formats(tmp_path):
  images = {"wide.png": pixels(10, 30, 3), "tall.jpg": pixels(40, 20, 3), "small.bmp": pixels(5, 5, 3),
            "deep/er/grey.PNG": pixels(12, 12), "transparent.png": pixels(12, 12, 4), "moving.gif": pixels(12, 12, 3),
            "grey.jpeg": pixels(9, 12), "bits.png": pixels(12, 12).astype(np.uint16) * 257}
  for name, image in images.items():
    save(tmp_path / "train" / name, image)
  save(tmp_path / "train" / ".hidden.png", pixels(8, 8, 3))
  (tmp_path / "train" / "._broken.jpg").write_bytes(b"left behind by a file manager")
  (tmp_path / "train" / "notes.txt").write_text("not an image")
  for folder in (tmp_path, str(tmp_path)):
    dataset = data.load_images(folder, "train", 3, image_size=12)
    assert dataset.element_spec == tf.TensorSpec([None, 12, 12, 3], tf.uint8)
    assert arrays(dataset).shape == (len(images), 12, 12, 3)


def test_folder_crops_the_centre_and_keeps_pixels_of_the_right_size(tmp_path):
  image = pixels(10, 31, 3)
  save(tmp_path / "train" / "a.png", image)
  result = arrays(data.load_images(tmp_path, "train", 1, image_size=10))[0]
  np.testing.assert_array_equal(result, image[:, 10:20])


def test_folder_resizes_up_and_down_with_antialiasing(tmp_path):
  stripes = np.zeros([64, 64, 3], np.uint8)
  stripes[:, ::2] = 255
  save(tmp_path / "train" / "stripes.png", stripes)
  save(tmp_path / "train" / "tiny.png", np.full([2, 2, 3], 50, np.uint8))
  down, up = arrays(data.load_images(tmp_path, "train", 2, image_size=16, shuffle=False))
  assert 110 < down.min() and down.max() < 145
  np.testing.assert_array_equal(up, np.full([16, 16, 3], 50))


def test_folder_shrinks_a_large_jpeg(tmp_path):
  ramp = np.broadcast_to(np.linspace(0, 255, 800).astype(np.uint8)[:, None, None], [800, 800, 3])
  save(tmp_path / "train" / "a.jpg", ramp, quality=95)
  result = arrays(data.load_images(tmp_path, "train", 1, image_size=20))[0, :, 0, 0].astype(int)
  np.testing.assert_allclose(result, np.linspace(0, 255, 800).reshape(20, 40).mean(1), atol=4)


def test_folder_keeps_the_detail_of_a_jpeg_that_fits(tmp_path):
  stripes = np.tile(np.repeat(np.array([0, 255], np.uint8), 4), [80, 10])
  save(tmp_path / "train" / "a.jpg", stripes, quality=95)
  result = arrays(data.load_images(tmp_path, "train", 1, image_size=20))[0, :, 1:-1, 0]
  assert result[:, 1::2].max() < 80 and result[:, ::2].min() > 175


def test_folder_is_grey_only_if_every_image_is(tmp_path):
  grey = pixels(8, 8)
  save(tmp_path / "train" / "a.png", grey)
  save(tmp_path / "test" / "b.png", pixels(8, 8, seed=1).astype(np.uint16) * 256 + 255)
  np.testing.assert_array_equal(arrays(data.load_images(tmp_path, "train", 1))[0], grey[..., None])
  np.testing.assert_array_equal(arrays(data.load_images(tmp_path, "test", 1))[0], pixels(8, 8, 1, seed=1))
  save(tmp_path / "test" / "c.png", pixels(8, 8, 3, seed=2))
  np.testing.assert_array_equal(arrays(data.load_images(tmp_path, "train", 1))[0], np.stack([grey] * 3, -1))


def test_folder_transparency_becomes_white(tmp_path):
  image = pixels(8, 8, 4)
  image[..., 3] = np.where(np.arange(8) < 4, 0, 255)
  save(tmp_path / "train" / "a.png", image)
  result = arrays(data.load_images(tmp_path, "train", 1))[0]
  np.testing.assert_array_equal(result[:, 4:], image[:, 4:, :3])
  assert (result[:, :4] == 255).all()


def test_folder_applies_exif_orientation(tmp_path):
  image = np.zeros([16, 32], np.uint8)
  image[:, 24:] = 255  # Bright at the right; turned by 90 degrees, bright at the bottom.
  exif = Image.Exif()
  exif[0x0112] = 6
  save(tmp_path / "train" / "a.jpg", image, exif=exif, quality=95)
  result = arrays(data.load_images(tmp_path, "train", 1))[0, ..., 0]
  assert result.shape == (32, 16)
  assert result[24:].min() > 200 and result[:16].max() < 50


def test_folder_uses_the_first_frame_of_an_animation(tmp_path):
  frames = [Image.fromarray(np.full([8, 8, 3], value, np.uint8)) for value in (0, 255)]
  (tmp_path / "train").mkdir()
  frames[0].save(tmp_path / "train" / "a.gif", save_all=True, append_images=frames[1:])
  assert arrays(data.load_images(tmp_path, "train", 1)).max() == 0


def test_folder_without_image_size_needs_one_size(tmp_path):
  save(tmp_path / "train" / "a.png", pixels(8, 10, 3))
  save(tmp_path / "train" / "b.png", pixels(8, 10, 3, seed=1))
  assert data.load_images(tmp_path, "train", 2).element_spec.shape == [None, 8, 10, 3]
  save(tmp_path / "test" / "c.png", pixels(8, 12, 3))
  with pytest.raises(ValueError, match=r"`image_size`.*c\.png \(8, 12\) and .*(a|b)\.png \(8, 10\).*"
                     "Received: image_size=None$"):
    data.load_images(tmp_path, "train", 2)


@pytest.mark.slow
def test_folder_split_by_content(tmp_path):
  fill(tmp_path, 200)
  splits = {split: keys(arrays(data.load_images(tmp_path, split, 50))) for split in SPLITS}
  assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 200
  assert 140 <= len(splits["train"]) <= 178 and min(map(len, splits.values())) >= 8
  for index in range(0, 200, 3):  # Copies under other names ...
    source = tmp_path / f"{index:03}.png"
    (tmp_path / f"copy{200 - index}.png").write_bytes(source.read_bytes())
  fill(tmp_path, 50, start=200)  # ... and new images move none.
  after = {split: keys(arrays(data.load_images(tmp_path, split, 50))) for split in SPLITS}
  assert all(splits[split] <= after[split] for split in SPLITS)
  assert sum(map(len, after.values())) == len(set.union(*after.values())) == 250


def test_folder_split_by_subfolders(tmp_path):
  for count, name in enumerate(("train", "val", "Test", "extras"), start=2):
    fill(tmp_path / name, count, start=10 * count)
  sizes = [len(arrays(data.load_images(tmp_path, split, 50))) for split in SPLITS]
  assert sizes == [2, 3, 4]


def test_folder_test_split_is_validation_where_there_is_none(tmp_path):
  fill(tmp_path / "train", 2)
  fill(tmp_path / "validation", 3, start=5)
  assert len(arrays(data.load_images(tmp_path, "test", 50))) == 3


def test_folder_without_the_split(tmp_path):
  fill(tmp_path / "train", 2)
  (tmp_path / "test").mkdir()
  for split in ("test", "validation", "train[:50%]"):
    with pytest.raises(ValueError, match=r"`split` must be one of \['train'\].*Received: split="):
      data.load_images(tmp_path, split, 50)


def test_folder_split_by_content_never_replaces_an_empty_test_split(tmp_path):
  index = 0
  while not (tmp_path / "a.png").exists():  # Until the hash says validation.
    path = save(tmp_path / "b.png", pixels(8, 8, seed=index))
    if int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8], "big") % 10 == 1:
      path.rename(tmp_path / "a.png")
    index += 1
  (tmp_path / "b.png").unlink(missing_ok=True)
  assert len(arrays(data.load_images(tmp_path, "validation", 1))) == 1
  with pytest.raises(ValueError, match="`split`.*Received: split='test'"):
    data.load_images(tmp_path, "test", 1)


def test_folder_class_named_like_a_split(tmp_path):
  for count, name in enumerate(("train", "boat", "car")):
    fill(tmp_path / name, 40, start=100 * count)
  labels = np.concatenate([labels for split in SPLITS
                           for _, labels in data.load_images(tmp_path, split, 50, with_labels=True)])
  assert np.bincount(labels).tolist() == [40, 40, 40]


def test_folder_image_in_two_split_folders(tmp_path):
  fill(tmp_path / "train", 3)
  (tmp_path / "test").mkdir()
  (tmp_path / "test" / "other.png").write_bytes((tmp_path / "train" / "001.png").read_bytes())
  with pytest.raises(ValueError, match=r"two splits.*(001|other)\.png.*(001|other)\.png.*Received: name_or_folder="):
    data.load_images(tmp_path, "train", 1)


def test_folder_labels(tmp_path):
  for split, names in (("train", ("cat", "dog/puppy")), ("test", ("ant", "dog"))):
    for index, name in enumerate(names):
      value = {"ant": 0, "cat": 100, "dog": 200}[name[:3]]
      save(tmp_path / split / name / "x.png", np.full([8, 8, 3], value + index + 5 * (split == "test"), np.uint8))
  for split, expected in (("train", {1, 2}), ("test", {0, 2})):
    (images, labels), = data.load_images(tmp_path, split, 5, with_labels=True)
    assert labels.dtype == tf.int64 and set(labels.numpy()) == expected
    np.testing.assert_array_equal(images.numpy()[:, 0, 0, 0] // 100, labels)


def test_folder_without_classes(tmp_path):
  save(tmp_path / "cat" / "a.png", pixels(8, 8, 3))
  save(tmp_path / "b.png", pixels(8, 8, 3, seed=1))
  with pytest.raises(ValueError, match=r"`with_labels`.*b\.png.*Received: with_labels=True$"):
    data.load_images(tmp_path, "train", 1, with_labels=True)


@pytest.mark.parametrize("name", ["missing", "./missing", "~/missing/folder", "data/missing"])
def test_missing_folder(name, tmp_path):
  folder = tmp_path / name if name == "missing" else name
  expected = ValueError if name == "data/missing" else FileNotFoundError  # It could have been a TFDS name.
  with pytest.raises(expected, match=r"`name_or_folder`.*existing folder.*Received: name_or_folder='.*missing"):
    data.load_images(folder, "train", 1)


@pytest.mark.slow
def test_relative_folder(tmp_path, monkeypatch):
  fill(tmp_path / "cifar10" / "train", 3)
  monkeypatch.chdir(tmp_path)
  for name in ("cifar10", "./cifar10", pathlib.Path("cifar10")):
    assert len(arrays(data.load_images(name, "train", 4))) == 3


def test_home_folder(tmp_path, monkeypatch):
  fill(tmp_path / "faces" / "train", 3)
  monkeypatch.setenv("HOME", str(tmp_path))
  for name in ("~/faces", pathlib.Path("~/faces")):
    assert len(arrays(data.load_images(name, "train", 4))) == 3


def test_file_instead_of_folder(tmp_path):
  path = save(tmp_path / "a.png", pixels(8, 8))
  with pytest.raises(NotADirectoryError, match=r"`name_or_folder`.*Received: name_or_folder='.*a\.png'$"):
    data.load_images(path, "train", 1)


def test_empty_folder(tmp_path):
  (tmp_path / "train").mkdir()
  (tmp_path / "train" / "notes.txt").write_text("no image")
  with pytest.raises(ValueError, match=r"`name_or_folder` must contain image files.*\.jpg.*Received: name_or_folder="):
    data.load_images(tmp_path, "train", 1)


def truncated(suffix):
  def write(path):
    complete = save(path.with_name("complete" + suffix), pixels(64, 64, 3)).read_bytes()
    path.with_suffix(suffix).write_bytes(complete[:len(complete) * 2 // 3])
  return write


def with_damaged_pixels(path):
  content = bytearray(save(path.with_name("complete.png"), pixels(64, 64, 3)).read_bytes())
  content[len(content) // 2] ^= 255
  path.with_suffix(".png").write_bytes(content)


@pytest.mark.parametrize("write", [
    truncated(".jpg"), truncated(".png"), truncated(".bmp"), truncated(".gif"), with_damaged_pixels,
    lambda path: path.with_suffix(".png").write_text("text"), lambda path: path.with_suffix(".jpg").write_bytes(b""),
    lambda path: path.with_suffix(".png").symlink_to("nothing.png"),
], ids=["jpg", "png", "bmp", "gif", "damaged", "text", "empty", "dangling"])
def test_unreadable_images_are_named_up_front(write, tmp_path):
  fill(tmp_path / "train", 3)
  write(tmp_path / "train" / "broken")
  with pytest.raises(ValueError, match=r"`name_or_folder`.*1 of .*train/broken\.\w+ \(.*Received: name_or_folder='"):
    data.load_images(tmp_path, "train", 1, image_size=8)


def test_all_unreadable_images_are_counted(tmp_path):
  for index in range(30):
    (tmp_path / f"{index}.png").write_bytes(b"")
  with pytest.raises(ValueError, match="30 of 30") as caught:
    data.load_images(tmp_path, "train", 1)
  assert str(caught.value).count(".png (") == 10


def test_image_that_breaks_later_is_named(tmp_path):
  path = save(tmp_path / "train" / "a.jpg", pixels(64, 64, 3))
  dataset = data.load_images(tmp_path, "train", 1)
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(tf.errors.OpError, match=r"cannot be decoded.*Received: .*a\.jpg"):
    arrays(dataset)


def test_jpeg_with_more_data_behind_it(tmp_path):
  path = save(tmp_path / "train" / "a.jpg", pixels(64, 64, 3))
  path.write_bytes(path.read_bytes() + b"written by a camera")
  assert arrays(data.load_images(tmp_path, "train", 1)).shape == (1, 64, 64, 3)


def test_folder_is_decoded_once(tmp_path, monkeypatch):
  for i in range(6):
    save(tmp_path / "train" / f"{i}.png", pixels(8, 8, 3, seed=i))
  decoded, read = [], image_file.read
  monkeypatch.setattr(image_file, "read", lambda path, *args: decoded.append(path) or read(path, *args))
  first, second = np.split(arrays(data.load_images(tmp_path, "train", 2, epochs=range(2))), 2)
  assert sorted(decoded) == [str(tmp_path / "train" / f"{i}.png") for i in range(6)]
  np.testing.assert_array_equal(*(np.sort(images.reshape(6, -1), axis=0) for images in (first, second)))
  assert np.any(first != second)  # In another order.


def test_folder_is_decoded_again_where_there_is_no_room(tmp_path, monkeypatch):
  for i in range(6):
    save(tmp_path / "train" / f"{i}.png", pixels(8, 8, 3, seed=i))
  decoded, read = [], image_file.read
  monkeypatch.setattr(image_file, "read", lambda path, *args: decoded.append(path) or read(path, *args))
  monkeypatch.setattr(decoded_once, "_all", set())  # Images of other tests do not count.
  monkeypatch.setattr(decoded_once, "MAX_BYTES", 4 * (8 * 8 * 3 + 600))
  dataset = data.load_images(tmp_path, "train", 2, shuffle=False)
  np.testing.assert_array_equal(arrays(dataset), arrays(dataset))
  assert len(decoded) == 6 + 2
  decoded.clear()
  squares = data.load_images(tmp_path, "train", 2, image_size=4, shorter_side=6)
  assert len(arrays(squares)) == len(arrays(squares)) == 6 and len(decoded) == 12  # Each at another place.


def test_two_threads_decode_an_image_once(monkeypatch):
  monkeypatch.setattr(decoded_once, "_all", set())
  calls, another = [], threading.Event()

  def decode(number):
    calls.append(number)
    if len(calls) > 1:
      another.set()
    another.wait(0.2)  # Decoding takes long: meanwhile the other thread has asked.
    return np.full(8, number)

  once = decoded_once.DecodedOnce(decode)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first, second = pool.map(once, [0, 0])
  assert calls == [0] and first is second is once(0)


def test_folder_is_checked_once(tmp_path, monkeypatch):
  fill(tmp_path, 30)
  read, read_bytes = [], pathlib.Path.read_bytes
  monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
  for split in ("train", "validation", "train"):
    data.load_images(tmp_path, split, 2)
  assert sorted(read) == sorted(path.name for path in tmp_path.iterdir())
  (changed := min(tmp_path.iterdir())).write_bytes(b"another")
  with pytest.raises(ValueError, match=changed.name):
    data.load_images(tmp_path, "train", 2)


def test_folder_is_decoded_lazily(tmp_path, monkeypatch):
  fill(tmp_path / "train", 64)
  decoded = []
  read = image_file.read
  monkeypatch.setattr(image_file, "read", lambda *args: decoded.append(args) or read(*args))
  dataset = data.load_images(tmp_path, "train", 2)
  assert not decoded
  next(iter(dataset))
  assert 2 <= len(decoded) < 64

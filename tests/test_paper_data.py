"""The data sets of the paper's experiments: TFDS's own builders prepare small imitations of the original files."""

import importlib
import io
import re
import socket
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from image_files import arrays, fill, keys, pixels, save
from PIL import Image

from tfp_glow import data
from tfp_glow.data import crop, preparation


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  """Hosts seem to answer, but only `file://` URLs can be read."""

  def refuse(*_, **__):
    raise socket.gaierror("there is no network in these tests")

  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  monkeypatch.setattr(preparation, "_host_answers", lambda builder: True)


def encoded(image, image_format):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, image_format)
  return buffer.getvalue()


def write_tar(path, members):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as archive:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))


def set_url(monkeypatch, module, name, url):
  """Makes a builder download from elsewhere; TFDS does not check sums of unknown files."""
  monkeypatch.setattr(importlib.import_module(f"tensorflow_datasets.{module}"), name, url)


# CelebA-HQ: by hand.


@pytest.mark.slow
def test_celeb_a_hq(tmp_path):
  images = [pixels(256, 256, 3, seed=seed) for seed in range(20)]
  members = {f"{index}.png": encoded(image, "PNG") for index, image in enumerate(images)}
  write_tar(tmp_path / "downloads" / "manual" / "data256x256.tar", members)
  load = lambda split: arrays(data.load_images("celeb_a_hq/256", split, 8, image_size=256, data_dir=tmp_path))
  parts = [load(split) for split in ("train[:85%]", "train[85%:90%]", "train[90%:]")]
  assert [len(part) for part in parts] == [17, 1, 2]
  assert keys(np.concatenate(parts)) == keys(images)
  with pytest.raises(ValueError, match=r"`split` must be one of \['train'\]"):
    load("test")
  with pytest.raises(ValueError, match="`with_labels`"):
    data.num_classes("celeb_a_hq/256", tmp_path)


@pytest.mark.parametrize("is_empty", [True, False])
def test_celeb_a_hq_that_is_missing_says_what_to_do(is_empty, tmp_path, monkeypatch):
  monkeypatch.setattr(preparation, "_host_answers", lambda builder: pytest.fail("there is no host to ask"))
  if not is_empty:
    write_tar(tmp_path / "downloads" / "manual" / "other.tar", {})
  folder = re.escape(str(tmp_path / "downloads" / "manual"))
  with pytest.raises(RuntimeError, match=rf"(?s)`name_or_folder`.*downloaded by hand and put into {folder};.*"
                     r"data1024x1024.tar.*preparing-datasets-for-training.*Received: name_or_folder='celeb_a_hq/256'$"):
    data.load_images("celeb_a_hq/256", "train", 8, data_dir=tmp_path)


# ImageNet of 32x32 and 64x64.


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_downsampled_imagenet(size, tmp_path, monkeypatch):
  for split, count in (("train", 5), ("valid", 3)):
    members = {f"{split}_{size}x{size}/{index}.png": encoded(pixels(size, size, 3, seed=count + index), "PNG")
               for index in range(count)}
    write_tar(tmp_path / f"{split}_{size}x{size}.tar", members)
  set_url(monkeypatch, "datasets.downsampled_imagenet.downsampled_imagenet_dataset_builder", "_DL_URL",
          tmp_path.as_uri() + "/")
  load = lambda split: arrays(data.load_images(
      f"downsampled_imagenet/{size}x{size}", split, 8, image_size=size, data_dir=tmp_path))
  train, validation, test = (load(split) for split in ("train", "validation", "test"))
  assert len(train) == 5 and keys(train) == keys([pixels(size, size, 3, seed=5 + index) for index in range(5)])
  assert len(validation) == 3 and (validation == test).all()


def test_files_that_users_downloaded_are_not_downloaded_again(tmp_path, monkeypatch):
  """The address of ImageNet's files no longer exists."""
  monkeypatch.setattr(preparation, "_host_answers", lambda builder: pytest.fail("asks hosts for files that are there"))
  for name in ("train_32x32.tar", "valid_32x32.tar"):
    write_tar(tmp_path / "downloads" / "manual" / name, {})
  with pytest.raises(RuntimeError, match=r"(?s)train_32x32.tar, has wrong checksum.*were downloaded by hand from "):
    data.load_images("downsampled_imagenet/32x32", "train", 8, image_size=32, data_dir=tmp_path)


@pytest.mark.slow
def test_imagenet_resized(tmp_path, monkeypatch):
  for split, count in (("train", 6), ("val", 3)):
    images = pixels(count, 32, 32, 3, seed=count)
    buffer = io.BytesIO()
    np.savez(buffer, data=images.transpose(0, 3, 1, 2).reshape(count, -1), labels=np.arange(count) * 100 + 1)
    with zipfile.ZipFile(tmp_path / f"Imagenet32_{split}_npz.zip", "w") as archive:
      archive.writestr(f"Imagenet32_{split}.npz", buffer.getvalue())
  set_url(monkeypatch, "datasets.imagenet_resized.imagenet_resized_dataset_builder", "_URL_PREFIX", tmp_path.as_uri())
  name = "imagenet_resized/32x32"
  (images, labels), = data.load_images(name, "train", 8, 32, with_labels=True, data_dir=tmp_path)
  expected = pixels(6, 32, 32, 3, seed=6)
  np.testing.assert_array_equal(images, expected[labels.numpy() // 100])
  assert sorted(labels.numpy()) == [0, 100, 200, 300, 400, 500]
  assert data.num_classes(name, tmp_path) == 1000
  assert len(arrays(data.load_images(name, "test", 8, 32, data_dir=tmp_path))) == 3


# LSUN.


def lsun_image(height, width):
  """A smooth image: red is the row, green the column."""
  rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
  return np.stack([255 * rows / height, 255 * columns / width, np.full([height, width], 128)], -1).astype(np.uint8)


@pytest.fixture
def lsun(tmp_path, monkeypatch):
  """The folder of TFDS, before the first use."""
  lmdb = pytest.importorskip("lmdb", reason="an extra, `data`")
  for split, count in (("train", 12), ("val", 3)):
    folder = tmp_path / f"church_outdoor_{split}_lmdb"
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
      for index in range(count):
        transaction.put(f"{split}{index}".encode(), encoded(lsun_image(256, 341), "JPEG"))
    with zipfile.ZipFile(tmp_path / f"{folder.name}.zip", "w") as archive:
      archive.write(folder / "data.mdb", f"{folder.name}/data.mdb")
  set_url(monkeypatch, "image.lsun", "LSUN_SCENE_URL", tmp_path.as_uri() + "/%s_%s_lmdb.zip")
  return tmp_path / "tfds"


def places(images, height=96, width=128):
  """The upper left corners of squares, in pixels of the reduced image."""
  return np.round(images[:, 0, 0, :2] / 255. * [height, width]).astype(int)


@pytest.mark.slow
def test_lsun(lsun):
  load = lambda split, **options: data.load_images(
      "lsun/church_outdoor", split, 4, image_size=64, shorter_side=96, data_dir=lsun, **options)
  central = arrays(load("test"))
  assert central.shape == (3, 64, 64, 3)
  # The middle of 96x128.
  np.testing.assert_allclose(places(central), [[16, 32]] * 3, atol=2)
  np.testing.assert_array_equal(central, arrays(load("validation")))
  train = arrays(load("train"))
  # The scale is that of the reduced image, not of one that would fit.
  np.testing.assert_allclose(np.diff(train[..., 0].astype(float), axis=1).mean((1, 2)), 255 / 96, rtol=0.1)
  np.testing.assert_allclose(np.diff(train[..., 1].astype(float), axis=2).mean((1, 2)), 255 / 128, rtol=0.1)
  assert len({tuple(place) for place in places(train)}) > 6
  epochs = arrays(load("train", epochs=range(3)))
  np.testing.assert_array_equal(arrays(load("train", epochs=range(1, 3))), epochs[12:])
  assert (epochs[:12] != epochs[12:24]).any()


def test_lsun_without_lmdb_fails_before_the_download(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "lmdb", None)
  with pytest.raises(ImportError, match=r"lmdb.*pip install tfp_glow\[data\].*Received: name_or_folder='lsun/tower'"):
    data.load_images("lsun/tower", "train", 4, image_size=64, shorter_side=96, data_dir=tmp_path)
  assert not list(tmp_path.iterdir())


# Squares of images of any source.


def cut(image, image_size, shorter_side, place):
  place = None if place is None else tf.constant(place, tf.float32)
  return crop.fit(tf.constant(image), image_size, shorter_side, place).numpy()


def test_squares_lie_at_their_place():
  image = pixels(20, 30, 3)
  np.testing.assert_array_equal(cut(image, 8, 20, None), image[6:14, 11:19])
  np.testing.assert_array_equal(cut(image, 8, 20, [0., 0.]), image[:8, :8])
  np.testing.assert_array_equal(cut(image, 8, 20, [1. - 2**-23] * 2), image[12:, 22:])
  np.testing.assert_array_equal(cut(image, 8, 20, [0.5, 0.]), image[6:14, :8])


def test_squares_of_reduced_images():
  flat = np.full([50, 31, 1], 200, np.uint8)
  np.testing.assert_array_equal(cut(flat, 7, 10, [0.9, 0.1]), np.full([7, 7, 1], 200))
  image = pixels(40, 60, 3)
  reduced = crop.crop_and_fit(tf.constant(image[:, 10:50]), 20).numpy()
  np.testing.assert_allclose(cut(image, 12, 20, None), reduced[4:16, 4:16], atol=2)
  assert cut(image, 8, 8, [0.3, 0.3]).shape == (8, 8, 3)


def test_smaller_images_are_padded():
  image = pixels(5, 12, 3)
  np.testing.assert_array_equal(cut(image, 8, 20, [0., 0.]), np.pad(image[:, 1:6], [(1, 2), (1, 2), (0, 0)]))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["digits", "folder"])
def test_random_squares_where_images_are_shuffled(source, tmp_path):
  size, name = 5, "digits" if source == "digits" else fill(tmp_path / "test", 160).parent
  load = lambda **options: arrays(data.load_images(name, "test", 16, image_size=size, shorter_side=8, **options))
  images = arrays(data.load_images(name, "test", 64))
  squares = [keys(images[:, i:i + size, j:j + size]) for i in range(4) for j in range(4)]
  shuffled = keys(load(shuffle=True))
  found = [len(shuffled & square) for square in squares]
  assert len(images) == sum(found) and min(found) >= 1
  assert keys(load()) == squares[5]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["digits", "folder"])
def test_the_squares_of_an_epoch_depend_on_its_number_alone(source, tmp_path):
  name = source if source == "digits" else fill(tmp_path, 40)
  load = lambda epochs, seed=1: arrays(data.load_images(
      name, "train", 16, image_size=4, shorter_side=8, seed=seed, epochs=epochs))
  epochs = np.split(load(range(3)), 3)
  np.testing.assert_array_equal(load(range(1, 3)), np.concatenate(epochs[1:]))
  assert (epochs[0] != load(range(1), seed=2)).any()
  # Other squares of the same images.
  assert keys(epochs[0]) != keys(epochs[1])


@pytest.mark.slow
def test_squares_of_photographs(tmp_path):
  save(tmp_path / "train" / "0.png", lsun_image(192, 256))
  save(tmp_path / "test" / "0.png", lsun_image(384, 512))
  load = lambda split, **options: data.load_images(
      tmp_path, split, 4, image_size=64, shorter_side=96, **options)
  np.testing.assert_allclose(places(arrays(load("test"))), [[16, 32]], atol=1)
  found = places(arrays(load("train", epochs=range(100))))
  assert found.min(0).tolist() <= [4, 8] and (found.max(0) >= [28, 56]).all() and (found.max(0) <= [33, 65]).all()


def test_images_keep_their_middle_without_it(tmp_path):
  images = [pixels(8, 14, 3, seed=seed) for seed in range(20)]
  for index, image in enumerate(images):
    save(tmp_path / f"{index}.png", image)
  middles = keys([image[:, 3:11] for image in images])
  assert keys(arrays(data.load_images(tmp_path, "train", 4, image_size=8))) <= middles


@pytest.mark.parametrize("image_size, shorter_side, message", [
    (None, 96, "`shorter_side` must be at least `image_size`.*Received: image_size=None, shorter_side=96$"),
    (64, 63, "`shorter_side` must be at least `image_size`.*Received: image_size=64, shorter_side=63$"),
    (64, 96., "`shorter_side` must be a positive integer.*Received: shorter_side=96.0$"),
    (64, 0, "`shorter_side` must be a positive integer.*Received: shorter_side=0$")])
def test_bad_sizes(image_size, shorter_side, message):
  with pytest.raises(ValueError, match=message):
    data.load_images("digits", "train", 4, image_size=image_size, shorter_side=shorter_side)


# Classes.


@pytest.mark.slow
def test_num_classes(tmp_path):
  assert data.num_classes("digits") == data.num_classes("cifar10", tmp_path) == 10
  for name in ("b", "a", "c"):
    fill(tmp_path / "images" / name, 2, start=ord(name))
  assert data.num_classes(tmp_path / "images") == 3
  fill(tmp_path / "images", 1)
  with pytest.raises(ValueError, match="`with_labels` needs a folder with one sub-folder per class"):
    data.num_classes(tmp_path / "images")

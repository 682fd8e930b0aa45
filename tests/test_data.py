"""Tests of `tfp_glow.data`; none of them needs a network."""

import gzip
import pathlib
import socket
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from image_files import SPLITS, arrays, fill, keys, pixels

from tfp_glow import data
from tfp_glow.data import crop, preparation
from tfp_glow.data import tfds as tfds_source

DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  """Any attempt to reach a host fails at once, as without a network."""
  calls = []

  def refuse(*args, **kwargs):
    calls.append(args)
    raise socket.gaierror("there is no network in these tests")

  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  monkeypatch.setattr(socket.socket, "connect", refuse)
  return calls


# Every source.


@pytest.mark.parametrize("argument, value", [
    ("batch_size", 0), ("batch_size", -1), ("batch_size", 2.0), ("batch_size", True), ("batch_size", None),
    ("image_size", 0), ("image_size", (8, 8)), ("image_size", 8.0), ("split", ""), ("split", None), ("split", "all"),
    ("name_or_folder", ""), ("name_or_folder", None), ("name_or_folder", 3), ("epochs", 3), ("epochs", range(2, 2)),
    ("epochs", range(0, 4, 2)), ("epochs", range(-1, 2)), ("input_context", 2),
    ("input_context", tf.distribute.InputContext(2, 2, 2)), ("shuffle", "no"), ("with_labels", "yes"),
    ("drop_remainder", 1), ("seed", 1.5), ("seed", -1), ("seed", 2**70)])
def test_bad_arguments_are_named(argument, value):
  arguments = {"name_or_folder": "digits", "split": "train", "batch_size": 4, "image_size": 8, argument: value}
  with pytest.raises(ValueError, match=rf"`{argument}`.*Received: {argument}=") as caught:
    data.load_images(**arguments)
  assert str(caught.value).endswith(repr(value))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["digits", "folder"])
def test_shuffles_reproducibly_and_anew_on_each_pass(source, tmp_path):
  name = source if source == "digits" else fill(tmp_path, 40)

  def passes(seed):
    dataset = data.load_images(name, "train", 16, seed=seed)
    return arrays(dataset), arrays(dataset)

  first, second = passes(seed=1)
  again_first, again_second = passes(seed=1)
  np.testing.assert_array_equal(first, again_first)
  np.testing.assert_array_equal(second, again_second)
  assert (first != second).any() and (first != passes(seed=2)[0]).any()
  assert keys(first) == keys(second) and len(keys(first)) == len(first)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["digits", "folder", "tfds"])
def test_the_order_of_an_epoch_depends_on_its_number_alone(source, tiny_images, tmp_path, monkeypatch):
  if source == "tfds":  # Files and records are shuffled.
    import tensorflow_datasets as tfds
    monkeypatch.setattr(tfds_source, "_SHUFFLE_BUFFER", 7)
    tfds.builder(tiny_images, data_dir=tmp_path).download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=6))
  name = fill(tmp_path, 40) if source == "folder" else {"digits": "digits", "tfds": tiny_images}[source]
  load = lambda epochs, seed=1: data.load_images(name, "train", 16, seed=seed, data_dir=tmp_path, epochs=epochs)
  tf.random.set_seed(0)  # With 0, TensorFlow compares seeds.
  dataset = load(range(4))
  epochs = np.split(arrays(dataset), 4)
  assert len(dataset) == len(list(dataset)) == 4 * len(load(range(1)))
  np.testing.assert_array_equal(arrays(dataset), np.concatenate(epochs))  # On each pass.
  tf.random.set_seed(0)
  np.testing.assert_array_equal(arrays(load(range(2, 4))), np.concatenate(epochs[2:]))
  assert (epochs[0] != epochs[1]).any() and (epochs[0] != arrays(load(range(1), seed=2))).any()
  for epoch in epochs:
    assert keys(epoch) == keys(epochs[0]) and len(keys(epoch)) == len(epoch)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["digits", "folder"])
def test_fixed_order_where_not_shuffled(source, tmp_path):
  name = source if source == "digits" else fill(tmp_path, 200)
  for split, options in (("test", {}), ("validation", {}), ("train", {"shuffle": False})):
    dataset = data.load_images(name, split, 16, seed=1, **options)
    np.testing.assert_array_equal(arrays(dataset), arrays(dataset))
    np.testing.assert_array_equal(arrays(dataset), arrays(data.load_images(name, split, 16, seed=2, **options)))
  shuffled = data.load_images(name, "test", 16, shuffle=True)
  assert (arrays(shuffled) != arrays(shuffled)).any()


def test_length_and_remainder():
  num_images = len(arrays(data.load_images("digits", "test", 1)))
  kept = data.load_images("digits", "test", 7)
  dropped = data.load_images("digits", "test", 7, drop_remainder=True)
  assert num_images % 7 and len(kept) == len(list(kept)) == num_images // 7 + 1
  assert len(dropped) == len(list(dropped)) == num_images // 7
  assert dropped.element_spec == tf.TensorSpec([7, 8, 8, 1], tf.uint8)
  with pytest.raises(ValueError, match="`batch_size`.*Received: batch_size=1000"):
    data.load_images("digits", "test", 1000, drop_remainder=True)


def test_workers_share_each_batch():
  """With shares by files, TensorFlow's preference, batches would differ from those of one process."""
  policy = data.load_images("digits", "train", 7).options().experimental_distribute.auto_shard_policy
  assert policy == tf.data.experimental.AutoShardPolicy.DATA


@pytest.mark.slow
def test_keras_fits_on_it():
  import keras
  model = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(10)])
  model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
  history = model.fit(data.load_images("digits", "train", 64, with_labels=True), epochs=2, verbose=0)
  assert history.history["loss"][1] < history.history["loss"][0]


# Digits.


def test_digits_levels():
  dataset = data.load_images("digits", "train", 32)
  assert dataset.element_spec == tf.TensorSpec([None, 8, 8, 1], tf.uint8)
  levels = np.unique(arrays(dataset))
  np.testing.assert_array_equal(levels, [*range(0, 256, 16), 255])
  assert [len(np.unique(levels >> (8 - bits))) for bits in (8, 5, 4)] == [17, 17, 16]


def test_digits_splits_are_disjoint_complete_and_in_proportion():
  splits = {split: [np.concatenate(part) for part in zip(*data.load_images("digits", split, 64, with_labels=True))]
            for split in SPLITS}
  all_keys = [keys(images) for images, _ in splits.values()]
  assert len(set.union(*all_keys)) == sum(map(len, all_keys)) == 1797
  for split, low, high in (("train", .79, .82), ("validation", .08, .12), ("test", .08, .12)):
    counts = np.bincount(splits[split][1], minlength=10)
    totals = sum(np.bincount(labels, minlength=10) for _, labels in splits.values())
    assert ((low < counts / totals) & (counts / totals < high)).all(), (split, counts)


def test_digits_splits_do_not_depend_on_the_seed():
  assert (keys(arrays(data.load_images("digits", "train", 64, seed=0)))
          == keys(arrays(data.load_images("digits", "train", 64, seed=5))))


def test_digits_labels_belong_to_their_images():
  from sklearn.datasets import load_digits
  digits = load_digits()
  label_of = {np.minimum(16 * image, 255).astype(np.uint8).tobytes(): label
              for image, label in zip(digits.images, digits.target)}
  for images, labels in data.load_images("digits", "train", 64, with_labels=True):
    assert labels.dtype == tf.int64
    assert [label_of[image.tobytes()] for image in images.numpy()] == labels.numpy().tolist()


def test_digits_padded_and_shrunk():
  native = arrays(data.load_images("digits", "test", 64))
  padded = data.load_images("digits", "test", 64, image_size=13)
  assert padded.element_spec.shape == [None, 13, 13, 1]
  np.testing.assert_array_equal(arrays(padded), np.pad(native, [(0, 0), (2, 3), (2, 3), (0, 0)]))
  shrunk = arrays(data.load_images("digits", "test", 64, image_size=4))
  assert shrunk.shape[1:] == (4, 4, 1)
  boxes = native.reshape(-1, 4, 2, 4, 2).mean((2, 4))
  assert np.corrcoef(boxes.ravel(), shrunk.ravel())[0, 1] > .97


def test_crop_and_fit_handles_any_shape():
  image = pixels(9, 30, 3)
  fitted = crop.crop_and_fit(tf.constant(image), 12).numpy()
  np.testing.assert_array_equal(fitted, np.pad(image[:, 10:19], [(1, 2), (1, 2), (0, 0)]))
  np.testing.assert_array_equal(crop.crop_and_fit(tf.constant(image), 9).numpy(), image[:, 10:19])
  assert crop.crop_and_fit(tf.constant(pixels(64, 64, 3)), 8).numpy().std() < 20  # Antialiased: noise averages out.
  flat = np.full([50, 31, 1], 200, np.uint8)
  np.testing.assert_array_equal(crop.crop_and_fit(tf.constant(flat), 7).numpy(), np.full([7, 7, 1], 200))


# TFDS.


@pytest.fixture
def mock_data():
  import tensorflow_datasets as tfds
  with tfds.testing.mock_data(num_examples=20, policy=tfds.testing.MockPolicy.USE_CODE):
    yield


@pytest.mark.slow
@pytest.mark.usefixtures("mock_data")
def test_tfds():
  native = data.load_images("cifar10", "test", 8)
  assert native.element_spec == tf.TensorSpec([None, 32, 32, 3], tf.uint8) and len(native) == 3
  images = arrays(native)
  assert len(keys(images)) == 20
  labelled = data.load_images("cifar10", "test", 8, with_labels=True)
  assert labelled.element_spec == (native.element_spec, tf.TensorSpec([None], tf.int64))
  padded = arrays(data.load_images("cifar10", "test", 8, image_size=35))
  np.testing.assert_array_equal(padded, np.pad(images, [(0, 0), (1, 2), (1, 2), (0, 0)]))
  shrunk = arrays(data.load_images("cifar10", "test", 8, image_size=16))
  assert shrunk.shape == (20, 16, 16, 3) and images.std() > 1.5 * shrunk.std()


@pytest.mark.slow
@pytest.mark.usefixtures("mock_data")
def test_tfds_shuffles_train_and_parts_of_it():
  for split in ("train", "train[:50%]"):
    assert (arrays(data.load_images("cifar10", split, 8, seed=1))
            == arrays(data.load_images("cifar10", split, 8, seed=1))).all()
    assert (arrays(data.load_images("cifar10", split, 8, seed=1))
            != arrays(data.load_images("cifar10", split, 8, seed=2))).any()
  fixed = data.load_images("cifar10", "test", 8)
  np.testing.assert_array_equal(arrays(fixed), arrays(fixed))


@pytest.fixture(scope="module")
def tiny_images():
  """The name of a TFDS data set without a test split, with flat images."""
  import tensorflow_datasets as tfds

  class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Defining it makes it known to TFDS."""
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          "image": tfds.features.Image(shape=(6, 10, 3)), "label": tfds.features.ClassLabel(num_classes=2)}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(range(30)), "validation": self._generate_examples(range(30, 40))}

    def _generate_examples(self, indices):
      for index in indices:
        yield index, {"image": np.full([6, 10, 3], 2 * index + index % 2, np.uint8), "label": index % 2}

  return TinyImages.name


@pytest.mark.slow
def test_tfds_splits_and_labels(tiny_images, tmp_path):
  def load(split, **options):
    dataset = data.load_images(tiny_images, split, 40, with_labels=True, data_dir=tmp_path, **options)
    (images, labels), = dataset
    assert images.shape[1:] == dataset.element_spec[0].shape[1:]
    np.testing.assert_array_equal(images.numpy()[:, 2, 2, 0] % 2, labels)
    return sorted(images.numpy()[:, 2, 2, 0] // 2)

  assert load("train") == [*range(30)]
  assert load("validation") == load("test") == [*range(30, 40)]
  assert load("test", image_size=4) == [*range(30, 40)]
  assert len(load("train[:90%]")) == 27
  assert sorted(load("train[:90%]") + load("train[90%:]")) == [*range(30)]
  for split in ("nonsense", "train[", "train[:0%]"):
    with pytest.raises(ValueError, match=r"(?s)`split` must be one of \['train', 'validation'\].*'train\[90%:\]'.*"
                       r"'train\[:90%\]'.*Received: split='.*'$"):
      load(split)


@pytest.mark.slow
def test_tfds_shuffles_many_files_reproducibly(tiny_images, tmp_path, monkeypatch):
  import tensorflow_datasets as tfds
  monkeypatch.setattr(tfds_source, "_SHUFFLE_BUFFER", 1)  # Only the files are shuffled then.
  tfds.builder(tiny_images, data_dir=tmp_path).download_and_prepare(
      download_config=tfds.download.DownloadConfig(num_shards=6))

  def passes(**options):
    dataset = data.load_images(tiny_images, "train", 40, data_dir=tmp_path, **options)
    return [arrays(dataset)[:, 0, 0, 0].tolist() for _ in range(3)]

  assert passes(seed=1) == passes(seed=1) != passes(seed=2)
  assert len({tuple(images) for images in passes(seed=1)}) > 1
  fixed = passes(shuffle=False)
  assert fixed == passes(shuffle=False, seed=2) == fixed[:1] * 3


def find_features(names, supervised_keys, with_labels):
  import tensorflow_datasets as tfds
  features = {name: tfds.features.ClassLabel() if name in ("label", "kind", "mood") else tfds.features.Image()
              for name in names}
  builder = SimpleNamespace(info=SimpleNamespace(features=features, supervised_keys=supervised_keys))
  return tfds_source._feature_keys(tfds, builder, "some", with_labels)


@pytest.mark.parametrize("names, supervised_keys, expected", [
    (["image", "other", "label", "kind"], ("other", "kind"), ("image", "label")),
    (["picture", "other", "kind", "mood"], ("picture", "mood"), ("picture", "mood")),
    (["picture", "kind"], None, ("picture", "kind"))])
def test_tfds_features(names, supervised_keys, expected):
  assert find_features(names, supervised_keys, with_labels=True) == expected
  assert find_features(names, supervised_keys, with_labels=False) == expected[:1]


@pytest.mark.parametrize("names, argument", [
    (["picture", "other", "label"], "name_or_folder"), (["image", "kind", "mood"], "with_labels")])
def test_tfds_features_that_are_ambiguous(names, argument):
  with pytest.raises(ValueError, match=rf"`{argument}`.*Received: {argument}="):
    find_features(names, None, with_labels=True)


@pytest.mark.slow
@pytest.mark.usefixtures("mock_data")
def test_tfds_images_of_many_sizes():
  with pytest.raises(ValueError, match="`image_size`.*Received: image_size=None$"):
    data.load_images("cats_vs_dogs", "train", 4)
  dataset = data.load_images("cats_vs_dogs", "train", 4, image_size=24, with_labels=True)
  assert dataset.element_spec[0].shape == [None, 24, 24, 3]
  assert len(np.concatenate([images for images, _ in dataset])) == 20


@pytest.mark.usefixtures("mock_data")
def test_tfds_without_images_or_labels():
  with pytest.raises(ValueError, match="`name_or_folder`.*image.*Received: name_or_folder='imdb_reviews'$"):
    data.load_images("imdb_reviews", "train", 4)
  assert data.load_images("celeb_a", "train", 4).element_spec.shape == [None, 218, 178, 3]
  with pytest.raises(ValueError, match="`with_labels`.*Received: with_labels=True$"):
    data.load_images("celeb_a", "train", 4, with_labels=True)


@pytest.mark.parametrize("name, hint", [("cifarr10", "cifar10"), ("digit", "digits"), ("no such name", ""),
                                        ("lsun/church", "lsun/church_outdoor"), ("cifar10:0.0.7", r"only: 3\.")])
def test_unknown_name(name, hint, tmp_path):
  with pytest.raises(ValueError, match=rf"(?s)`name_or_folder`.*'digits'.*folder.*{hint}.*Received: ") as caught:
    data.load_images(name, "train", 1, data_dir=tmp_path)
  assert str(caught.value).endswith(repr(name))


def test_no_network_fails_soon(tmp_path, no_network):
  start = time.perf_counter()
  with pytest.raises(ConnectionError, match="`name_or_folder`.*no host.*Received: name_or_folder='cifar10'$"):
    data.load_images("cifar10", "train", 1, data_dir=tmp_path)
  assert time.perf_counter() - start < 20
  assert no_network and not list(tmp_path.rglob("*"))


def test_failing_preparation(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds
  monkeypatch.setattr(preparation, "_host_answers", lambda builder: True)
  monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda builder: 1 / 0)
  with pytest.raises(RuntimeError, match="`name_or_folder`.*division by zero.*Received: name_or_folder='cifar10'$"):
    data.load_images("cifar10", "train", 1, data_dir=tmp_path)


def test_incomplete_copy(tmp_path):
  import tensorflow_datasets as tfds
  pathlib.Path(tfds.builder("cifar10", data_dir=tmp_path).data_dir).mkdir(parents=True)
  with pytest.raises(RuntimeError, match="`name_or_folder`.*is incomplete.*Received: name_or_folder='cifar10'$"):
    data.load_images("cifar10", "train", 1, data_dir=tmp_path)


def test_local_sources_ask_no_host(tmp_path, no_network):
  arrays(data.load_images("digits", "train", 64))
  arrays(data.load_images(fill(tmp_path / "train", 3).parent, "train", 64))
  assert not no_network


@pytest.mark.parametrize("module, name", [("tensorflow_datasets", "cifar10"), ("sklearn.datasets", "digits"),
                                          ("PIL.Image", ".")])
def test_missing_library(module, name, monkeypatch):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=rf"{module}.*pip install tfp_glow\[data\].*Received: name_or_folder='{name}'"):
    data.load_images(name, "train", 1)


# Fashion-MNIST from Debian's package.

needs_fashion_mnist = pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(),
    reason="needs Debian's package dataset-fashion-mnist (/usr/share/datasets/fashion-mnist)")


def read_idx(name, header):
  return np.frombuffer(gzip.open(DEBIAN_FASHION_MNIST / name).read(), np.uint8, offset=header)


@pytest.fixture(scope="module")
def fashion_mnist_dir(tmp_path_factory):
  """TFDS's folder with Fashion-MNIST, prepared once for all tests, with the first images of its splits only."""
  from tensorflow_datasets.image_classification import mnist
  data_dir = tmp_path_factory.mktemp("tfds")
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 600)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 1_000)
    data.load_images("fashion_mnist", "test", 1, data_dir=data_dir)
  return data_dir


@needs_fashion_mnist
@pytest.mark.slow
def test_fashion_mnist_is_that_of_debian(fashion_mnist_dir, no_network):
  import tensorflow_datasets as tfds
  assert tfds.image_classification.FashionMNIST.URL.startswith("http")
  assert [path.name for path in fashion_mnist_dir.iterdir()] == ["fashion_mnist"]  # No copies of the downloads.
  native = read_idx("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1)[:1_000]
  label_of = {image.tobytes(): label for image, label in zip(native, read_idx("t10k-labels-idx1-ubyte.gz", 8))}
  dataset = data.load_images("fashion_mnist", "test", 500, image_size=32, with_labels=True, data_dir=fashion_mnist_dir)
  images, labels = (np.concatenate(part) for part in zip(*dataset))
  inner = images[:, 2:30, 2:30]
  assert len(images) == 1_000 and (np.pad(inner, [(0, 0), (2, 2), (2, 2), (0, 0)]) == images).all()
  assert sorted(image.tobytes() for image in inner) == sorted(image.tobytes() for image in native)
  assert [label_of[image.tobytes()] for image in inner] == labels.tolist()
  assert not no_network


@needs_fashion_mnist
@pytest.mark.slow
def test_fashion_mnist_splits(fashion_mnist_dir):
  def load(split, **options):
    return data.load_images("fashion_mnist", split, 10, data_dir=fashion_mnist_dir, **options)

  assert len(load("train")) == 60 and len(load("train[:90%]")) == 54
  with pytest.raises(ValueError, match=r"`split` must be one of \['train', 'test'\].*'train\[90%:\]'.*"
                     r"'train\[:90%\]'.*Received: split='validation'$"):
    load("validation")
  first, second = load("train[:20%]", seed=1), load("train[:20%]", seed=1)
  for _ in range(2):
    np.testing.assert_array_equal(arrays(first), arrays(second))
  assert (arrays(first) != arrays(first)).any()


@needs_fashion_mnist
@pytest.mark.slow
def test_fashion_mnist_that_is_prepared_needs_no_files(fashion_mnist_dir, monkeypatch, no_network):
  monkeypatch.setattr(preparation, "_DEBIAN_FASHION_MNIST", pathlib.Path("/nonexistent"))
  assert len(data.load_images("fashion_mnist", "test", 100, data_dir=fashion_mnist_dir)) == 10
  assert not no_network


def test_fashion_mnist_with_other_content_is_refused(tmp_path, monkeypatch):
  for name in preparation._FASHION_MNIST_SHA256:
    (tmp_path / name).write_bytes(gzip.compress(b"other bytes"))
  monkeypatch.setattr(preparation, "_DEBIAN_FASHION_MNIST", tmp_path)
  data_dir = tmp_path / "tfds"
  with pytest.raises(RuntimeError, match=r"train-images-idx3-ubyte\.gz.*SHA-256.*c59f468a.*"
                     r"Received: name_or_folder='fashion_mnist'$"):
    data.load_images("fashion_mnist", "train", 1, data_dir=data_dir)
  assert not data_dir.exists()

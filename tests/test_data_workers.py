"""What each of several workers reads and decodes of a source of `tfp_glow.data`; all in one process, one by one."""

import gc

import numpy as np
import pytest
import tensorflow as tf
from image_files import arrays, fill

from tfp_glow import data
from tfp_glow.data import crop, decoded_once, image_file, order

NUM_IMAGES, BATCH_SIZE = 43, 8


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """The same flat images as an `.npz` file, as a folder, and as a data set of TFDS in five files."""
  import tensorflow_datasets as tfds
  root = tmp_path_factory.mktemp("sources")
  images = np.tile(np.arange(NUM_IMAGES, dtype=np.uint8)[:, np.newaxis, np.newaxis, np.newaxis], [1, 6, 6, 3])
  np.savez(root / "images.npz", x_train=images, y_train=np.arange(NUM_IMAGES))
  fill(root / "folder" / "train", NUM_IMAGES, size=6)

  class FlatImages(tfds.core.GeneratorBasedBuilder):
    """Defining it makes it known to TFDS."""
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          "image": tfds.features.Image(shape=(6, 6, 3)), "label": tfds.features.ClassLabel(num_classes=NUM_IMAGES)}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(), "validation": self._generate_examples()}

    def _generate_examples(self):
      for index, image in enumerate(images):
        yield index, {"image": image, "label": index}

  tfds.builder(FlatImages.name, data_dir=root).download_and_prepare(
      download_config=tfds.download.DownloadConfig(num_shards=5))
  return {"npz": root / "images.npz", "folder": root / "folder", "tfds": FlatImages.name, "stream": FlatImages.name,
          "data_dir": root}


@pytest.fixture
def load(places, monkeypatch):
  """`load_images` of a source, of all images or of the share of a worker."""

  def load(source, worker=None, num_workers=3, num_replicas=None, split="train", **options):
    if source == "stream":
      monkeypatch.setattr(decoded_once, "MAX_BYTES", NUM_IMAGES * 3 * 3 * 3 - 1)
    context = None if worker is None else tf.distribute.InputContext(
        num_workers, worker, num_replicas or num_workers)
    return data.load_images(places[source], split, BATCH_SIZE, input_context=context, data_dir=places["data_dir"],
                            **{"seed": 1, **options})

  return load


def batches(dataset):
  return [[image.tobytes() for image in batch] for batch in dataset.as_numpy_iterator()]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["npz", "folder", "tfds", "stream"])
def test_workers_have_each_batch_of_one_process(load, source):
  """43 images, three workers, batches of 8 and of 3: shares are uneven, but all have the same number of batches."""
  expected = batches(load(source, epochs=range(2)))
  datasets = [load(source, worker, epochs=range(2)) for worker in range(3)]
  shares = [batches(dataset) for dataset in datasets]
  assert [len(share) for share in shares] == [len(dataset) for dataset in datasets] == [len(expected)] * 3 == [12] * 3
  for batch, *parts in zip(expected, *shares):
    assert sorted(batch) == sorted(sum(parts, [])) and max(map(len, parts)) <= 3
  first, second = sum(expected[:6], []), sum(expected[6:], [])
  assert first != second and len(expected[5]) == 3 and len(set(first)) == len(set(second)) == NUM_IMAGES
  # A resumed run, after an epoch and within it; a worker of two replicas has two elements a step.
  assert batches(load(source, 1, epochs=range(1, 2))) == shares[1][6:]
  assert batches(load(source, 1, epochs=range(2), skip_batches=4)) == shares[1][4:]
  pairs = {"worker": 1, "num_workers": 2, "num_replicas": 4, "epochs": range(2)}
  assert batches(load(source, **pairs, skip_batches=4)) == batches(load(source, **pairs))[8:]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["tfds", "stream"])
def test_workers_have_fixed_batches_in_their_order(load, source):
  expected = batches(load(source, shuffle=False))
  for batch, *parts in zip(expected, *(batches(load(source, worker, shuffle=False)) for worker in range(3))):
    assert batch == sum(parts, [])


@pytest.mark.parametrize("source", ["npz", "tfds"])
def test_labels_stay_with_the_images_of_a_worker(load, source):
  for images, labels in load(source, 1, with_labels=True):
    np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "stream"])
def test_random_squares_of_workers_are_those_of_one_process(load, source):
  options = {"image_size": 3, "shorter_side": 6, "epochs": range(1), "num_workers": 2}
  shares = [sum(batches(load(source, worker, **options)), []) for worker in range(2)]
  assert sorted(sum(shares, [])) == sorted(sum(batches(load(source, **options)), []))


@pytest.mark.parametrize("source, image_size", [("npz", None), ("npz", 3), ("folder", None), ("tfds", None),
                                                ("stream", 3)])
def test_a_worker_without_images_has_empty_batches(load, source, image_size):
  assert batches(load(source, 0, num_workers=9, image_size=image_size)) == [[]] * 6


def test_replicas_of_a_worker_take_turns(load):
  """The order in which `predict` concatenates the outputs of all replicas, so that they match the images."""
  first, second = (batches(load("npz", worker, num_workers=2, num_replicas=4, shuffle=False)) for worker in range(2))
  assert len(first) == len(second) == 2 * 6
  found = [image for i in range(0, 12, 2) for part in (first[i], second[i], first[i + 1], second[i + 1])
           for image in part]
  assert found == sum(batches(load("npz", shuffle=False)), [])


@pytest.mark.parametrize("skip_batches, message", [
    (7, r"number of batches of an epoch \(6\)"), (-1, "an integer of at least 0"), (True, "an integer of at least 0")])
def test_bad_numbers_of_batches_to_skip(load, skip_batches, message):
  with pytest.raises(ValueError, match=f"`skip_batches` must be .*{message}.*Received: skip_batches={skip_batches}"):
    load("npz", epochs=range(2), skip_batches=skip_batches)


def test_drop_remainder_of_shares(load):
  assert [len(batch) for batch in batches(load("npz", 1, drop_remainder=True))] == [3] * 5


@pytest.mark.slow
def test_a_worker_decodes_files_of_its_own_and_once(load, monkeypatch):
  decoded, read = [], image_file.read
  monkeypatch.setattr(image_file, "read", lambda path, *args: decoded.append(path) or read(path, *args))
  per_worker = []
  for worker in range(3):
    arrays(load("folder", worker, epochs=range(3)))
    per_worker.append(decoded[:])
    decoded.clear()
  for paths in per_worker:
    assert len(paths) == len(set(paths))  # Once in three epochs.
    assert len(paths) <= NUM_IMAGES * 3 / 8 + 2  # At most three of eight lanes, and the files at their ends.
  assert len(set(sum(per_worker, []))) == NUM_IMAGES
  for worker in range(3):
    arrays(load("folder", worker, shuffle=False))
  assert len(decoded) == len(set(decoded)) == NUM_IMAGES


def counted(monkeypatch):
  """Counts the records that TFDS reads and the images that are decoded or reduced, each in a list."""
  import tensorflow_datasets as tfds
  read, decoded = [], []
  as_dataset, fit = tfds.core.DatasetBuilder.as_dataset, crop.fit

  def count(value, calls):
    with tf.control_dependencies([tf.numpy_function(lambda: calls.append(1) or np.int64(0), [], tf.int64)]):
      return tf.nest.map_structure(tf.identity, value)

  monkeypatch.setattr(tfds.core.DatasetBuilder, "as_dataset", lambda self, **options: as_dataset(
      self, **options).map(lambda example: count(example, read)))
  monkeypatch.setattr(crop, "fit", lambda image, *args, **kwargs: count(fit(image, *args, **kwargs), decoded))
  return read, decoded


@pytest.mark.slow
def test_a_worker_reads_and_decodes_records_of_its_own_and_once(load, monkeypatch):
  read, decoded = counted(monkeypatch)
  numbers = []
  for worker in range(3):
    images = load("tfds", worker, split="train[:20]+train[23:]")
    numbers.append([len(arrays(images)) for _ in range(2)])
    assert 40 * 2 // 8 <= len(read) <= 40 * 3 // 8 + 1 and len(decoded) == len(read)
    read.clear(), decoded.clear()
  assert np.sum(numbers, axis=0).tolist() == [40] * 2
  for worker in range(3):  # Its shares come from many places.
    arrays(load("tfds", worker, shuffle=False))
  assert len(decoded) == NUM_IMAGES


@pytest.mark.slow
def test_data_too_large_for_memory_are_read_in_each_pass_and_each_share_is_decoded_alone(load, monkeypatch):
  read, decoded = counted(monkeypatch)
  for worker in range(2):
    images = load("stream", worker, num_workers=2)
    assert len(arrays(images)) == len(arrays(images))
  assert len(read) == 2 * 2 * NUM_IMAGES and len(decoded) == 2 * NUM_IMAGES


@pytest.mark.slow
def test_a_data_set_is_decoded_once_for_all_its_datasets(load, monkeypatch):
  read, decoded = counted(monkeypatch)
  first, second = load("tfds"), load("tfds", epochs=range(3))
  next(iter(first))  # A single batch, as for `adapt`.
  arrays(first), arrays(second)
  assert len(read) == len(decoded) == NUM_IMAGES


@pytest.mark.slow
def test_room_is_taken_as_long_as_there_are_images(load, monkeypatch):
  monkeypatch.setattr(decoded_once, "_all", decoded_once.weakref.WeakSet())
  num_bytes = NUM_IMAGES * 6 * 6 * 3
  monkeypatch.setattr(decoded_once, "MAX_BYTES", num_bytes)
  images = load("tfds")
  arrays(images)
  assert not decoded_once.is_room_for(1)
  _, reduced = counted(monkeypatch)
  grey = load("npz", image_size=3)
  assert arrays(grey).shape == arrays(grey).shape and len(reduced) > 1  # Not kept.
  del images
  gc.collect()
  assert decoded_once.is_room_for(num_bytes)


def test_reduced_arrays_are_kept(load, monkeypatch):
  _, reduced = counted(monkeypatch)
  images = load("npz", image_size=3)
  assert arrays(images).shape == arrays(images).shape == (NUM_IMAGES, 3, 3, 3)
  assert len(reduced) == 1


# The order.


def test_images_are_in_the_last_batch_equally_often():
  """Images in the last, smaller batch count more; some are there twice as often as others, where lanes meet."""
  shuffle = tf.function(lambda seed: order.shuffled(order.share_of(8, None), 43, [[0, 3 * seed + i] for i in range(3)]))
  passes = np.stack([shuffle(tf.constant(i)) for i in range(500)])
  assert passes.shape == (500, 6, 8)
  assert (np.sort(passes.reshape(500, 48)) == [*[-1] * 5, *range(43)]).all()
  last = np.bincount(passes[:, 5][passes[:, 5] >= 0], minlength=43)
  assert last.sum() == 1500 and (15 < last).all() and (last < 90).all()
  assert set(passes[:, 0, 0]) == set(passes[:, 4, 7]) == set(range(43))  # Each image may come at any place.


def test_numbers_that_a_worker_may_need_are_those_that_it_reads():
  share = order.share_of(8, tf.distribute.InputContext(3, 1, 3))
  (first, end), = share.parts
  rows = np.concatenate([order.shuffled(share, 43, 3 * [[0, i]])[:, first:end] for i in range(40)])
  np.testing.assert_array_equal(np.unique(rows[rows >= 0]), order.numbers_of(share, 43, shuffle=True))

"""`examples/training_data.py`: splits, shifts, flips, and the shares of workers."""

import argparse

import numpy as np
import pytest
import tensorflow as tf
import training_data


@pytest.mark.parametrize("fill, mode", [("zeros", "constant"), ("nearest", "edge")])
def test_shifts_are_whole_pixels_and_all_are_made(fill, mode):
  images = np.random.default_rng(0).integers(1, 256, (500, 6, 5, 1)).astype(np.uint8)
  args = argparse.Namespace(max_shift=1.49, shift_fill=fill, flip=False, seed=0)
  shifted = next(training_data.augment(tf.data.Dataset.from_tensors(images), args, 0).as_numpy_iterator())
  padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode)
  windows = [padded[:, i:i + 6, j:j + 5] for i in range(3) for j in range(3)]
  matches = np.array([(window == shifted).all((1, 2, 3)) for window in windows])
  assert shifted.dtype == np.uint8 and (matches.sum(0) == 1).all()
  assert (matches.sum(1) > 25).all()  # about 56 of each


@pytest.mark.slow
def test_shifts_and_flips_depend_on_the_step_alone():
  images = tf.data.Dataset.from_tensors(np.random.default_rng(0).integers(1, 256, (50, 6, 5, 1)).astype(np.uint8))
  args = argparse.Namespace(max_shift=1.49, shift_fill="zeros", flip=True, seed=0)
  augment = lambda images, first_step: list(
      training_data.augment(images, args, first_step).as_numpy_iterator())
  first, second, third = augment(images.repeat(3), 0)
  np.testing.assert_array_equal(augment(images.repeat(2), 1), [second, third])
  assert (first != second).any()


@pytest.mark.slow
def test_workers_of_several_replicas_augment_and_go_on_as_one_process(monkeypatch):
  """Two workers with two replicas each, whose datasets have two elements a step."""

  class Strategy:
    distribute_datasets_from_function = staticmethod(lambda load: [
        load(tf.distribute.InputContext(2, worker, 4)) for worker in range(2)])

  monkeypatch.setattr(training_data.replicas, "has_workers", lambda strategy: strategy is not None)
  args = argparse.Namespace(data="digits", batch_size=300, image_size=None, shorter_side=None, conditional=False,
                            seed=3, data_dir=None, max_shift=1.49, shift_fill="zeros", flip=True)
  splits = training_data.load_splits(args)
  sorted_rows = lambda *parts: np.sort(np.concatenate(parts).reshape(-1, 64), axis=0)
  alone = list(training_data.to_train(splits, None, args, range(2, 4), 0).as_numpy_iterator())
  for num_trained in (0, 3):
    shares = training_data.to_train(splits, Strategy, args, range(2, 4), num_trained)
    assert all(share.cardinality() == tf.data.INFINITE_CARDINALITY for share in shares)
    first, second = (list(share.take(2 * 7).as_numpy_iterator()) for share in shares)
    for step, expected in enumerate(alone[num_trained:num_trained + 7]):
      parts = slice(2 * step, 2 * step + 2)
      np.testing.assert_array_equal(sorted_rows(*first[parts], *second[parts]), sorted_rows(expected))


def test_flips_mirror_half_of_the_images():
  images = np.random.default_rng(0).integers(0, 256, (200, 6, 5, 3)).astype(np.uint8)
  args = argparse.Namespace(max_shift=0, flip=True, seed=0)
  flipped = next(training_data.augment(tf.data.Dataset.from_tensors(images), args, 0).as_numpy_iterator())
  same = (flipped == images).all((1, 2, 3))
  np.testing.assert_array_equal(flipped[~same], images[~same, :, ::-1])
  assert 60 < same.sum() < 140


@pytest.mark.slow
def test_labels_stay_with_their_images():
  labels = np.arange(1, 251, dtype=np.int64)
  images = np.tile(labels[:, np.newaxis, np.newaxis, np.newaxis], [1, 6, 5, 1]).astype(np.uint8)
  args = argparse.Namespace(max_shift=1.49, shift_fill="nearest", flip=True, seed=0)
  dataset = tf.data.Dataset.from_tensors((images, labels))
  (augmented, same_labels), = training_data.augment(dataset, args, 0)
  np.testing.assert_array_equal(same_labels, labels)
  np.testing.assert_array_equal(augmented, images)


@pytest.mark.parametrize("missing, expected", [
    (["validation"], {"train": "train[:95%]", "validation": "train[95%:]", "test": "test"}),
    (["validation", "test"], {"train": "train[:85%]", "validation": "train[85%:90%]", "test": "train[90%:]"}),
    ([], {"train": "train", "validation": "validation", "test": "test"})])
def test_missing_splits_are_parts_of_train(missing, expected, monkeypatch):
  def load_images(name, split, **_):
    if split in missing:
      raise ValueError("`split`")
    return tf.data.Dataset.from_tensors(np.frombuffer(split.encode().ljust(16), np.uint8).reshape(1, 4, 4, 1))

  monkeypatch.setattr(training_data.data, "load_images", load_images)
  args = argparse.Namespace(data="x", batch_size=1, image_size=None, shorter_side=None, conditional=False, seed=0,
                            data_dir=None, max_shift=0, flip=False)
  splits = training_data.load_splits(args)
  loaded = {split: load().element_spec for split, load in splits.pop("load").items()}
  assert loaded == {split: splits[split].element_spec for split in expected}
  splits["train_epochs"] = splits["train_epochs"](epochs=range(1))
  found = {key: next(iter(split)).numpy().tobytes().decode().strip() for key, split in splits.items()}
  assert found.pop("train_epochs") == found["train"]
  assert found == expected

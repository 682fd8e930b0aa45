"""`examples/run_pictures.py`: rows of samples and of interpolations, and their pictures."""

import types

import numpy as np
import pytest
import run_pictures
from PIL import Image


def test_interpolations_of_classes_begin_and_end_at_their_images():
  """Also if neighbours have different classes."""
  def encode(images, labels):
    return images.reshape(len(images), -1).astype(np.float32) + 1000 * labels[:, np.newaxis]

  def decode(z, labels):
    return (z - 1000 * labels[:, np.newaxis]).reshape(-1, 4, 4, 1)

  model = types.SimpleNamespace(encode=encode, decode=decode)
  images, labels = np.random.default_rng(0).integers(0, 256, [3, 4, 4, 1]), np.array([2, 0, 1])
  rows = run_pictures._interpolations(model, images, labels)
  np.testing.assert_allclose(rows[:, 0], images, atol=1e-3)
  np.testing.assert_allclose(rows[:, -1], np.roll(images, -1, axis=0), atol=1e-3)


@pytest.mark.parametrize("num_classes, expected", [(3, [0, 1, 2]), (1000, [*range(10)])])
def test_samples_of_classes_are_a_row_for_each(num_classes, expected):
  sample = lambda count, temperature, labels, seed: np.full([count, 1], labels)
  rows, names = run_pictures._samples(types.SimpleNamespace(sample=sample), num_classes, seed=0)
  assert [row[0, 0] for row in rows] == expected and names == [f"class {label}" for label in expected]


def test_pictures_enlarge_pixel_by_pixel(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3)).astype(np.uint8)
  run_pictures.save_grid(tmp_path / "grid.png", images)
  picture = np.asarray(Image.open(tmp_path / "grid.png"))
  assert picture.shape == (4 + 2 * 68, 4 + 3 * 68, 3)
  np.testing.assert_array_equal(picture[72:136, 140:204], images[1, 2].repeat(4, 0).repeat(4, 1))
  assert (picture[:4] == 255).all() and (picture[:, 68:72] == 255).all()

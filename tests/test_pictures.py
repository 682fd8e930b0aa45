"""Tests of `tfp_glow.pictures`."""

import image_files
import numpy as np
import pytest

from tfp_glow import pictures


@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_lie_side_by_side_enlarged_pixel_by_pixel(num_channels):
  rows = [image_files.pixels(3, 16, 32, num_channels), image_files.pixels(2, 16, 32, num_channels, seed=1)]
  picture = pictures.tile(rows)
  assert picture.dtype == np.uint8 and picture.shape == (4 + 2 * 68, 4 + 3 * 132, num_channels)
  for i, row in enumerate(rows):
    for j, image in enumerate(row):
      top, left = 4 + 68 * i, 4 + 132 * j
      np.testing.assert_array_equal(picture[top:top + 64, left:left + 128], image.repeat(4, 0).repeat(4, 1))
      picture[top:top + 64, left:left + 128] = 255
  assert (picture == 255).all()  # Gaps, and the place of the missing image of the second row.


def test_large_images_keep_their_size():
  images = image_files.pixels(1, 65, 100, 3)
  picture = pictures.tile([images])
  assert picture.shape == (4 + 69, 4 + 104, 3)
  np.testing.assert_array_equal(picture[4:69, 4:104], images[0])


@pytest.mark.parametrize("rows, error, match", [
    ([], ValueError, r"`rows` must be arrays \[n, H, W, C\].*Received: shapes \[\]"),
    ([np.zeros([8, 8, 1], np.uint8)], ValueError, r"`rows`.*Received: shapes \[\(8, 8, 1\)\]"),
    ([np.zeros([1, 8, 8, 1], np.uint8), np.zeros([1, 8, 8, 3], np.uint8)], ValueError, "`rows`.*one size"),
    ([np.zeros([1, 8, 8, 1])], TypeError, r"`rows` must be uint8. Received: \['float64'\]"),
])
def test_bad_rows(rows, error, match):
  with pytest.raises(error, match=match):
    pictures.tile(rows)

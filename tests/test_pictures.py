"""Tests of `tfp_glow.pictures`."""

import itertools
import pathlib
import subprocess
import sys

import image_files
import matplotlib
import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from tfp_glow import pictures

DOCS = pathlib.Path(__file__).parent.parent / "docs"


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


def _linear(color):
  """Light of red, green and blue, from 0 to 1: sRGB without its gamma."""
  values = np.array(colors.to_rgb(color))
  return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055)**2.4)


def _contrast(*pair):
  """The ratio of WCAG 2, from 1 to 21."""
  dark, light = sorted(_linear(color) @ [0.2126, 0.7152, 0.0722] + 0.05 for color in pair)
  return light / dark


def test_text_and_lines_can_be_read():
  background = pictures.STYLE["figure.facecolor"]
  assert colors.to_rgba(background)[3] == 1. and _contrast(pictures.TEXT, background) > 7.
  assert all(_contrast(color, background) >= 3. for color in (*pictures.COLORS, pictures.FRAME))
  assert pictures.tile([np.zeros([1, 8, 8, 1], np.uint8)])[0, 0] == 255. * colors.to_rgb(background)[0]


def test_no_text_is_readable_on_white_and_on_the_dark_page():
  """Why pictures have a background: the greys are all there is to try, as only lightness counts."""
  greys = [colors.to_hex([level / 255.] * 3) for level in range(256)]
  assert not any(min(_contrast(grey, page) for page in ("#ffffff", "#1e2129")) >= 4.5 for grey in greys)


def test_colour_blind_people_can_tell_lines_apart():
  """As they see them by Vienot, Brettel, Mollon, "Digital video colourmaps for checking the legibility of displays by
  dichromats" (1999)."""
  to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
  kinds = ([[0., 2.02344, -2.52581], [0., 1., 0.], [0., 0., 1.]], [[1., 0., 0.], [0.494207, 0., 1.24827], [0., 0., 1.]])
  seen = lambda color, kind: np.clip(np.linalg.inv(to_lms) @ kind @ to_lms @ _linear(color), 0., 1.)**(1. / 2.2)
  least = lambda *found: min(np.linalg.norm(seen(a, kind) - seen(b, kind))
                             for a, b in itertools.combinations(found, 2) for kind in kinds)
  assert least(*pictures.COLORS) > 0.25 > least("tab:red", "tab:green")


def test_style_needs_no_matplotlib_and_matplotlib_takes_it():
  folder = pathlib.Path(pictures.__file__).parent / "data"
  code = "import sys; sys.modules['matplotlib'] = None; import pictures; pictures.STYLE"
  subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
  with matplotlib.rc_context(pictures.STYLE):
    assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(pictures.COLORS)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.png")), ids=lambda path: path.stem)
def test_pictures_of_the_pages_are_opaque_on_white_and_shown(path):
  picture = np.asarray(Image.open(path).convert("RGBA"))
  assert np.all(picture[..., 3] == 255) and np.all(picture[[0, 0, -1, -1], [0, -1, 0, -1]] == 255)
  assert any(f"]({path.name})" in page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))

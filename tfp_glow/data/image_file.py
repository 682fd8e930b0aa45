"""Image files: what is known of one before it is decoded, and its decoding, by Pillow."""

import hashlib
import io
import pathlib
from typing import NamedTuple

import numpy as np

from tfp_glow.data.source import SPLIT_OF_TENTH

_FORMATS = ("JPEG", "PNG", "BMP", "GIF")
_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: what cameras write, with more pictures behind the first.
_EXIF_ORIENTATION, _EXIF_QUARTER_TURNS = 0x0112, (5, 6, 7, 8)


class ImageFile(NamedTuple):
  """What a folder needs to know of a file."""

  path: str
  split: str
  class_name: str | None  # None: the file is in no sub-folder
  digest: bytes
  size: tuple[int, int]  # height, width
  is_grey: bool


def inspect(path, root, split):
  """Describes an image file, or returns the error if it is not readable; without a split the bytes decide it."""
  from PIL import Image
  try:
    content = pathlib.Path(path).read_bytes()
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
      width, height = image.size
      if image.format in _JPEG_FORMATS and image.getexif().get(_EXIF_ORIENTATION) in _EXIF_QUARTER_TURNS:
        width, height = height, width
      is_grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
      if image.format == "PNG":
        image.verify()  # Its checksums, without decoding.
      elif not content.endswith(b"\xff\xd9"):  # A JPEG with its end marker is complete.
        image.load()
  except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others.
    return ValueError(f"{path} ({type(error).__name__}: {str(error).partition(' <_io.BytesIO')[0]})")
  digest = hashlib.sha256(content).digest()
  if split is None:
    split = SPLIT_OF_TENTH[int.from_bytes(digest[:8], "big") % 10]
  parts = pathlib.Path(path).relative_to(root).parts
  return ImageFile(path, split, parts[0] if len(parts) > 1 else None, digest, (height, width), is_grey)


def read(path, image_size, shorter_side, place, num_channels):
  """Decodes an image file to a uint8 array `[H, W, C]`.

  Args:
    path: Python `str`.
    image_size: Python `int`, side of the square that is cut out and resized, up or down; None: the image as it is.
    shorter_side: Python `int`, what the shorter side of the image is reduced to before; None: `image_size`.
    place: Of the square, two numbers in [0, 1), from top and left to bottom and right; None: the middle.
    num_channels: Python `int`, 1 or 3.

  Raises:
    ValueError: if the file cannot be decoded.
  """
  from PIL import Image
  try:
    with Image.open(path, formats=_FORMATS) as image:
      if image_size is not None:  # Lets libjpeg skip detail far below a pixel of the result.
        image.draft(None, (2 * (shorter_side or image_size),) * 2)
      image = _upright_and_opaque(image).convert("L" if num_channels == 1 else "RGB")
  except Exception as error:  # As in `inspect`.
    raise ValueError(f"`name_or_folder` has an image that cannot be decoded ({error}). Received: {path}") from error
  if image_size is not None:
    side = min(image.size)
    if shorter_side is not None:
      side = round(side * image_size / shorter_side)
    image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=_square(image, side, place))
  return np.asarray(image).reshape(image.height, image.width, num_channels)


def _upright_and_opaque(image):
  """Turned as its file says, on white, with 8 bits."""
  from PIL import Image, ImageOps
  if image.format in _JPEG_FORMATS:
    image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I"):
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image


def _square(image, side, place):
  """The left, upper, right and lower edge of a square of the image."""
  free = image.width - side, image.height - side
  left, top = (n // 2 for n in free) if place is None else (int(p * (n + 1)) for p, n in zip(place[::-1], free))
  return left, top, left + side, top + side

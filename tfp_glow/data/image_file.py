"""Image files: their description before decoding, and their decoding, by Pillow."""

import hashlib
import io
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfp_glow.data.source import SPLIT_OF_TENTH

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF")
_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: written by cameras, with more pictures after the first.
_EXIF_ORIENTATION, _EXIF_QUARTER_TURNS = 0x0112, (5, 6, 7, 8)
# The start of a PNG file, and the positions of its bit depth and its colour type (grey with opacity or not).
_PNG_SIGNATURE, _PNG_BIT_DEPTH, _PNG_COLOUR_TYPE, _GREY_WITH_OPACITY = b"\x89PNG\r\n\x1a\n", 24, 25, 4
# Pillow reads 16-bit TIFF files that are not grey as 8-bit ones, and keeps the upper bits.
_TIFF_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B")
_TIFF_BITS, _TIFF_PHOTOMETRY, _TIFF_NUM_BANDS, _MIN_IS_BLACK = 258, 262, 277, 1
_OF_TIFF = ("TIFF files must be of unsigned numbers of at most 8 bits, or of 16, and of 1 to 4 bands: grey, a palette, "
            "RGB or CMYK, with transparency or without; put others into an `.npz` file")


class ImageFile(NamedTuple):
  """What a folder needs to know about a file."""

  path: str
  split: str
  class_name: str | None  # None: the file is in no sub-folder
  digest: bytes
  size: tuple[int, int]  # height, width
  is_grey: bool
  is_deep: bool  # it can give 16 bits


def inspect(path, root, split):
  """Describes an image file, or returns the error if it is unreadable. Without a split, its bytes decide the split."""
  from PIL import Image
  try:
    content = pathlib.Path(path).read_bytes()
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
      is_deep = _is_deep(image, content)
      width, height = image.size
      if image.format in _JPEG_FORMATS and image.getexif().get(_EXIF_ORIENTATION) in _EXIF_QUARTER_TURNS:
        width, height = height, width
      is_grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I") or (
          image.format == "PNG" and content[_PNG_COLOUR_TYPE] == _GREY_WITH_OPACITY)  # Pillow says RGB for 16 bits.
      if image.format == "PNG":
        image.verify()  # Checksums, without decoding.
      elif image.format not in _JPEG_FORMATS or not content.endswith(b"\xff\xd9"):  # A JPEG with this end is complete.
        image.load()
        if image.format == "TIFF":
          width, height = image.size  # Pillow has turned the image.
  except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others.
    hint = f"; {_OF_TIFF}" if path.lower().endswith((".tif", ".tiff")) and _OF_TIFF not in str(error) else ""
    return ValueError(f"{path} ({type(error).__name__}: {str(error).partition(' <_io.BytesIO')[0]}{hint})")
  digest = hashlib.sha256(content).digest()
  if split is None:
    split = SPLIT_OF_TENTH[int.from_bytes(digest[:8], "big") % 10]
  parts = pathlib.Path(path).relative_to(root).parts
  return ImageFile(path, split, parts[0] if len(parts) > 1 else None, digest, (height, width), is_grey, is_deep)


def _is_deep(image, content):
  """Whether an image can give 16 bits; raises `ValueError` for a TIFF file that would be misread."""
  if image.format == "PNG":
    return content[_PNG_BIT_DEPTH] == 16
  if image.format != "TIFF":
    return False
  is_deep = image.mode.startswith("I;16")
  # Pillow drops further bands, reads 12 bits as 16, and swaps dark and bright if 0 is white.
  if (image.mode not in _TIFF_MODES or image.tag_v2.get(_TIFF_NUM_BANDS, 1) != len(image.getbands())
      or is_deep and (image.tag_v2.get(_TIFF_BITS) != (16,) or image.tag_v2.get(_TIFF_PHOTOMETRY) != _MIN_IS_BLACK)):
    raise ValueError(_OF_TIFF)
  return is_deep


def read(path, image_size, shorter_side, place, num_channels, dtype=np.uint8):
  """Decodes an image file to an array `[H, W, C]`.

  Args:
    path: Python `str`.
    image_size: Python `int`, side of the square to cut out and resize, up or down; None: the image stays as it is.
    shorter_side: Python `int`, the length to which the shorter side of the image is reduced first; None: `image_size`.
    place: Place of the square, two numbers in [0, 1), top to bottom and left to right; None: the middle.
    num_channels: Python `int`, 1 or 3.
    dtype: `np.uint8`; or `np.uint16` for files that can give 16 bits.

  Raises:
    ValueError: if the file cannot be decoded.
  """
  def fit(image):
    if image_size is None:
      return image
    from PIL import Image
    side = min(image.size)
    if shorter_side is not None:
      side = round(side * image_size / shorter_side)
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=_square(image, side, place))

  if dtype == np.uint16:
    return _fitted_planes(_decoded(_deep, path, num_channels), fit)
  draft_size = None if image_size is None else (2 * (shorter_side or image_size),) * 2
  image = fit(_decoded(_shallow, path, num_channels, draft_size))
  return np.asarray(image).reshape(image.height, image.width, num_channels)


def _decoded(decode, path, *args):
  try:
    return decode(path, *args)
  except Exception as error:  # As in `inspect`.
    raise ValueError(f"`name_or_folder` has an image that cannot be decoded ({error}). Received: {path}") from error


def _shallow(path, num_channels, draft_size):
  """An image of Pillow, with 8 bits."""
  from PIL import Image
  with Image.open(path, formats=_FORMATS) as image:
    if draft_size is not None:  # Lets libjpeg skip detail far below a pixel of the result.
      image.draft(None, draft_size)
    return _upright_and_opaque(image).convert("L" if num_channels == 1 else "RGB")


def _upright_and_opaque(image):
  """The image turned as its file says, on white, with 8 bits."""
  from PIL import Image, ImageOps
  if image.format in _JPEG_FORMATS:  # TIFF files have been turned already.
    image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I"):
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image


def _deep(path, num_channels):
  """A uint16 array `[H, W, C]`, on white."""
  from PIL import Image
  content = pathlib.Path(path).read_bytes()
  if not content.startswith(_PNG_SIGNATURE):
    with Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
      return np.repeat(np.asarray(image).astype(np.uint16)[..., np.newaxis], num_channels, axis=-1)
  # TensorFlow decodes these: Pillow keeps 8 bits of colours. The result always has an opacity.
  colours, opacity = np.split(tf.io.decode_png(content, 4, tf.uint16).numpy(), [3], axis=-1)
  opacity = opacity / 65535.
  return np.rint(opacity * colours[..., :num_channels] + (1. - opacity) * 65535.).astype(np.uint16)


def _fitted_planes(image, fit):
  """Fits channel by channel, as floats: the only images of more than 8 bits that Pillow resizes."""
  from PIL import Image
  planes = [np.asarray(fit(Image.fromarray(image[..., i].astype(np.float32)))) for i in range(image.shape[-1])]
  return np.clip(np.rint(np.stack(planes, axis=-1)), 0, 65535).astype(np.uint16)


def _square(image, side, place):
  """The left, upper, right and lower edge of a square of the image."""
  free = image.width - side, image.height - side
  left, top = (n // 2 for n in free) if place is None else (int(p * (n + 1)) for p, n in zip(place[::-1], free))
  return left, top, left + side, top + side

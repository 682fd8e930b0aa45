"""Images in memory and in files, for the tests of `tfp_glow.data`."""

import struct

import numpy as np
from PIL import Image

SPLITS = ("train", "validation", "test")


def arrays(dataset):
  """All images of a dataset in one array."""
  return np.concatenate([batch.numpy() for batch in dataset])


def pixels(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(path, image, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path, **options)
  return path


def fill(folder, count, size=8, channels=(3,), start=0):
  """Writes `count` different PNG files."""
  for index in range(start, start + count):
    save(folder / f"{index:03}.png", pixels(size, size, *channels, seed=index))
  return folder


def keys(images):
  return {image.tobytes() for image in images}


def write_tiff(path, image, sample_format=1, photometry=1):
  """Writes a TIFF file with the bands of an array `[H, W, C]`; those after the grey or RGB ones have no colour.

  Args:
    path: `pathlib.Path`.
    image: Array.
    sample_format: Python `int`: 1 for unsigned, 2 for signed numbers, 3 for floats.
    photometry: Python `int`: 0 where 0 is white, 1 where it is black, 2 for RGB.
  """
  height, width, num_bands = image.shape
  content = image.astype(image.dtype.newbyteorder("<")).tobytes()
  tags = {256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8 * image.itemsize] * num_bands), 259: ("H", [1]),
          262: ("H", [photometry]), 273: ("I", [8]), 277: ("H", [num_bands]), 278: ("I", [height]),
          279: ("I", [len(content)]), 338: ("H", [0] * max(num_bands - (3 if photometry == 2 else 1), 0)),
          339: ("H", [sample_format] * num_bands)}
  header, places = content, b""
  tags = {tag: value for tag, value in tags.items() if value[1]}
  for tag, (kind, values) in sorted(tags.items()):
    packed = struct.pack(f"<{len(values)}{kind}", *values)
    if len(packed) > 4:  # Longer values stand before the list, and the list says where.
      header, packed = header + packed, struct.pack("<I", 8 + len(header))
    places += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + packed.ljust(4, b"\0")
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(header)) + header + struct.pack("<H", len(tags)) + places
                   + b"\0\0\0\0")
  return path

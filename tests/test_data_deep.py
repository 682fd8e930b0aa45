"""Images of 16 bits from files, and how transparency, palettes and CMYK are read."""

import numpy as np
import pytest
import tensorflow as tf
from image_files import arrays, pixels, save, write_tiff
from PIL import Image

import tfp_glow
from tfp_glow import data

pytest.importorskip("PIL.Image", reason="an extra, `data`")


def deep(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)


def save_png(path, image):
  """Writes a PNG file of 16 bits and any number of channels, which Pillow cannot write."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(tf.io.encode_png(image).numpy())


def load(folder, split="train", **kwargs):
  return arrays(data.load_images(folder, split, 8, **{"shuffle": False, **kwargs}))


# Folders.


@pytest.mark.parametrize("num_channels", [1, 3])
def test_png_files_keep_all_bits(tmp_path, num_channels):
  images = deep(3, 6, 8, num_channels)
  for i, image in enumerate(images):
    save_png(tmp_path / "train" / f"{i}.png", image)
  dataset = data.load_images(tmp_path, "train", 3, shuffle=False, dtype="uint16")
  assert dataset.element_spec == tf.TensorSpec([None, 6, 8, num_channels], tf.uint16)
  np.testing.assert_array_equal(arrays(dataset), images)
  np.testing.assert_array_equal(load(tmp_path), images >> 8)  # As without the argument.


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_tiff_files_keep_all_bits(tmp_path, order):
  image = deep(6, 8)
  save(tmp_path / "train" / "a.tif", image.astype(order))
  save(tmp_path / "train" / "b.TIFF", image[::-1].astype(order), compression="tiff_lzw")
  expected = np.stack([image, image[::-1]])[..., np.newaxis]
  np.testing.assert_array_equal(load(tmp_path, dtype=np.uint16), expected)
  np.testing.assert_array_equal(load(tmp_path), expected >> 8)


def test_grey_and_coloured_files_of_16_bits(tmp_path):
  grey, colours = deep(6, 6), deep(6, 6, 3, seed=1)
  save(tmp_path / "train" / "a.tif", grey)
  save_png(tmp_path / "train" / "b.png", grey[::-1, :, np.newaxis])
  save_png(tmp_path / "train" / "c.png", colours)
  expected = np.stack([np.stack([image] * 3, -1) for image in (grey, grey[::-1])] + [colours])
  np.testing.assert_array_equal(load(tmp_path, dtype=tf.uint16), expected)


@pytest.mark.parametrize("num_channels", [2, 4])
def test_transparency_of_16_bits_becomes_white(tmp_path, num_channels):
  image = deep(6, 6, num_channels)
  image[:2, :, -1], image[2:4, :, -1] = 0, 65535
  save_png(tmp_path / "train" / "a.png", image)
  found = load(tmp_path, dtype="uint16")[0]
  assert (found[:2] == 65535).all()
  np.testing.assert_array_equal(found[2:4], image[2:4, :, :-1])
  opacity = image[4:, :, -1:] / 65535
  np.testing.assert_allclose(found[4:], 65535 - opacity * (65535. - image[4:, :, :-1]), atol=0.51)


def test_squares_of_16_bits(tmp_path):
  image = deep(6, 10)
  ramp = np.tile(np.arange(64, dtype=np.uint16) * 1000 + 7, [64, 1])
  save(tmp_path / "a" / "train" / "a.tif", image)
  np.testing.assert_array_equal(load(tmp_path / "a", dtype="uint16", image_size=6)[0, ..., 0], image[:, 2:8])
  save(tmp_path / "b" / "train" / "b.png", ramp)
  reduced = load(tmp_path / "b", dtype="uint16", image_size=16)[0, :, :, 0]
  np.testing.assert_allclose(reduced[:, 1:-1], np.tile(ramp[0].reshape(16, 4).mean(1), [16, 1])[:, 1:-1], atol=1)
  cut = load(tmp_path / "b", dtype="uint16", image_size=16, shorter_side=64, shuffle=True, seed=3)[0, :, :, 0]
  assert cut[0, 0] in ramp and (np.diff(cut.astype(int)) == 1000).all()


def test_dtypes_that_a_folder_cannot_have(tmp_path):
  save(tmp_path / "train" / "a.png", deep(6, 6))
  save(tmp_path / "train" / "b.png", pixels(6, 6))
  write_tiff(tmp_path / "train" / "c.tif", deep(6, 6, 3), photometry=2)
  with pytest.raises(ValueError, match=r"`dtype` must be 'uint8' for a folder .* 2 of 3 are not: .*b\.png, .*c\.tif; "
                     r"uint16 images .* `\.npz` file. Received: dtype='uint16'"):
    data.load_images(tmp_path, "train", 1, dtype="uint16")
  assert load(tmp_path, dtype="uint8").shape == (3, 6, 6, 3)


UNREADABLE = {
    "13 bands": (deep(6, 6, 13), {}), "2 bands": (deep(6, 6, 2), {}),
    "near infrared": (pixels(6, 6, 4), {"photometry": 2}),  # A fourth band, which Pillow leaves out.
    "signed": (deep(6, 6, 1).astype(np.int16), {"sample_format": 2}),
    "floats": (np.ones([6, 6, 1], np.float32), {"sample_format": 3}),
    "32 bits": (np.ones([6, 6, 1], np.uint32), {}), "0 is white": (deep(6, 6, 1), {"photometry": 0})}


@pytest.mark.parametrize("image, options", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiff_files_that_would_be_misread(tmp_path, image, options, dtype):
  write_tiff(tmp_path / "train" / "a.tif", image, **options)
  with pytest.raises(ValueError, match=r"a\.tif \(.*TIFF files must be .* put others into an `.npz` file\)"):
    data.load_images(tmp_path, "train", 1, dtype=dtype)


def test_the_tiff_writer_of_these_tests(tmp_path):
  image = deep(6, 6, 1)
  write_tiff(tmp_path / "train" / "a.tif", image)
  np.testing.assert_array_equal(load(tmp_path, dtype="uint16")[0], image)


def test_broken_tiff_files(tmp_path):
  path = save(tmp_path / "train" / "a.tif", deep(40, 40))
  path.write_bytes(path.read_bytes()[:-1000] + b"\xff\xd9")  # The end marker of a JPEG, which has no meaning here.
  with pytest.raises(ValueError, match="must contain only readable images, but 1 of 1 are not"):
    data.load_images(tmp_path, "train", 1)


# What files of 8 bits become.


def test_orientation_of_a_tiff(tmp_path):
  image = pixels(4, 8, 3)
  save(tmp_path / "train" / "a.tif", image, tiffinfo={0x0112: 6})
  np.testing.assert_array_equal(load(tmp_path)[0], np.rot90(image, -1))


def test_transparency_of_a_colour_and_of_a_palette(tmp_path):
  image = Image.fromarray(pixels(4, 4, 3))
  image.putpixel((1, 2), (10, 20, 30))
  (tmp_path / "train").mkdir()
  image.save(tmp_path / "train" / "a.png", transparency=(10, 20, 30))
  expected = np.array(image)
  expected[2, 1] = 255
  palette = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 3).convert("P")
  palette.putpalette([200, 10, 20, 30, 40, 250, 0, 90, 0])
  palette.save(tmp_path / "train" / "b.png", transparency=1)
  colours = np.uint8([[200, 10, 20], [255, 255, 255], [0, 90, 0]])
  found = load(tmp_path)
  np.testing.assert_array_equal(found[0], expected)
  np.testing.assert_array_equal(found[1], colours[np.arange(16).reshape(4, 4) % 3])


def test_half_transparent_colours(tmp_path):
  image = pixels(6, 6, 4)
  save(tmp_path / "train" / "a.png", image)
  opacity = image[..., 3:] / 255
  np.testing.assert_allclose(load(tmp_path)[0], opacity * image[..., :3] + (1 - opacity) * 255, atol=1)


def test_palettes_become_their_colours_even_if_these_are_grey(tmp_path):
  image = Image.fromarray(np.uint8([[0, 1], [1, 0]])).convert("P")
  image.putpalette([7, 7, 7, 99, 99, 99])
  (tmp_path / "train").mkdir()
  image.save(tmp_path / "train" / "a.gif")
  np.testing.assert_array_equal(load(tmp_path)[0], np.stack([np.uint8([[7, 99], [99, 7]])] * 3, -1))


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_cmyk_becomes_rgb(tmp_path, name):
  inks = (10, 120, 200, 40)
  (tmp_path / "train").mkdir()
  Image.new("CMYK", (8, 8), inks).save(tmp_path / "train" / name)
  expected = [(255 - ink) * (255 - inks[3]) / 255 for ink in inks[:3]]
  np.testing.assert_allclose(load(tmp_path)[0], np.broadcast_to(expected, [8, 8, 3]), atol=3 if name == "a.jpg" else 1)


# Arrays.


def write_npz(folder, **arrays_):
  np.savez(folder / "images.npz", **arrays_)
  return folder / "images.npz"


def test_many_bands_of_an_npz_file(tmp_path):
  images, labels = deep(10, 6, 6, 13), np.arange(10)
  path = write_npz(tmp_path, x_train=images, y_train=labels, x_test=images[:3].astype(">u2"))
  dataset = data.load_images(path, "train", 10, with_labels=True, shuffle=False)
  assert dataset.element_spec[0] == tf.TensorSpec([None, 6, 6, 13], tf.uint16)
  found, found_labels = next(iter(dataset))
  np.testing.assert_array_equal(found, images)
  np.testing.assert_array_equal(found_labels, labels)
  np.testing.assert_array_equal(load(path, "test", dtype="uint16"), images[:3])  # In the other byte order.
  padded = load(path, "test", image_size=8)
  np.testing.assert_array_equal(padded, np.pad(images[:3], [(0, 0), (1, 1), (1, 1), (0, 0)]))


def test_reduced_arrays_of_16_bits(tmp_path):
  ramp = np.uint16(np.arange(16) * 4000 + 3)
  path = write_npz(tmp_path, x_train=np.broadcast_to(ramp[:, np.newaxis, np.newaxis], [4, 16, 16, 2]))
  means = ramp.reshape(4, 4).mean(axis=1)
  for how in ({"image_size": 4}, {"image_size": 4, "shorter_side": 4, "shuffle": True}):
    found = load(path, **how)
    assert found.dtype == np.uint16 and found.shape == (4, 4, 4, 2)
    # At the borders the mean is taken over fewer pixels.
    np.testing.assert_allclose(found[:, 1:3], np.broadcast_to(means[1:3, np.newaxis, np.newaxis], [4, 2, 4, 2]), atol=1)


@pytest.mark.parametrize("dtype, found", [("uint8", "uint16"), ("uint16", "uint8")])
def test_dtypes_that_a_file_cannot_have(tmp_path, dtype, found):
  path = write_npz(tmp_path, x_train=np.ones([4, 6, 6], found))
  with pytest.raises(ValueError, match=f"`dtype` must be None or '{found}' .* Received: dtype='{dtype}'"):
    data.load_images(path, "train", 1, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "int16", "deep", 16])
def test_no_other_dtypes(dtype):
  with pytest.raises(ValueError, match=f"`dtype` must be 'uint8', 'uint16' or None. Received: dtype={dtype!r}"):
    data.load_images("digits", "train", 1, dtype=dtype)


def test_sources_of_8_bits():
  with pytest.raises(ValueError, match="`dtype` must be 'uint8' or None for 'digits'.*Received: dtype='uint16'"):
    data.load_images("digits", "train", 1, dtype="uint16")
  assert data.load_images("digits", "train", 1, dtype="uint8").element_spec.dtype == tf.uint8


@pytest.mark.slow
def test_a_model_trains_on_a_folder(tmp_path):
  for i in range(4):
    save_png(tmp_path / "train" / f"{i}.png", deep(4, 4, 3, seed=i))
  model = tfp_glow.FlowModel(tfp_glow.GlowBijector((4, 4, 3), 1, 1, 4, seed=0), num_bits=16)
  model.compile("adam", run_eagerly=True)
  history = model.fit(data.load_images(tmp_path, "train", 2, dtype="uint16"), verbose=0)
  assert 10. < history.history["bits_per_dim"][0] < 30.

"""Serves a web page for an exported Glow: bits per dimension, sliders, interpolations, samples.

  python examples/train_glow.py
  python examples/edit_latents.py output
  python examples/serve.py output/saved_model --images output/test_images --directions output/edits/directions.npz

Any SavedModel written by `FlowModel.export` works, if it has latents and its images are uint8, grey or RGB. The page
needs only TensorFlow and that folder.

If a model takes a context, as for super-resolution, it must be a grey or RGB image. The page asks for one, and gives
the model its values between -1 (black) and 1 (white).

Each slider is a direction in latent space, as returned by `tfp_glow.latent.attribute_direction`. The file written by
edit_latents.py holds directions between classes. Write others by

  np.savez("directions.npz", **{"name of the slider": direction, ...})
"""

import argparse
import base64
import io
import math
import pathlib
import reprlib
import sys

import flask
import numpy as np
import tensorflow as tf
import waitress
from PIL import Image, ImageOps
from werkzeug import exceptions

PAGE = pathlib.Path(__file__).parent / "serve"  # index.html and what it refers to

MAX_FILE_BYTES = 20 * 2**20
MAX_REQUEST_BYTES = 2 * MAX_FILE_BYTES  # Base64 takes a third more than the file; the rest is small.
# Reading a picture takes at most 300 MB in each of the four threads of waitress: 16 bytes for each pixel with
# transparency, and 6 for a JPEG file, which is then decoded at a fraction of its size.
MAX_PIXELS, MAX_JPEG_PIXELS = 16_000_000, 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # No format whose reader calls other programs.
JPEG_FORMATS = ("JPEG", "MPO")  # MPO: what cameras write, with more pictures behind the first.

MAX_EXAMPLES = 24
STRENGTHS = (-2., 2.)  # 1 is the distance between the means of images without and with an attribute.
TEMPERATURES = (0., 1.2)
MAX_SEED = 2**31 - 1
NUM_STEPS = 9  # Images of an interpolation.
NUM_SAMPLES = 16

EXIT_USAGE = 2


def main():
  """Parses the command line, loads everything, serves until Ctrl-C; returns the exit code."""
  args = parse_args()
  try:
    model = ServedModel(args.saved_model, args.classes)
    app = make_app(model, load_directions(args.directions, model), load_examples(args.images, model),
                   load_contexts(args.images, model))
    server = waitress.create_server(app, host=args.host, port=args.port, max_request_body_size=MAX_REQUEST_BYTES)
  except (ValueError, OSError, tf.errors.OpError) as error:
    print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
    return EXIT_USAGE
  print(f"Open http://{args.host}:{args.port}/ in a browser. Ctrl-C ends the server.", flush=True)
  server.run()
  return 0


def parse_args():
  """The settings; argparse ends the program with a message if one of them is invalid."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("saved_model", type=pathlib.Path, nargs="?", default=pathlib.Path("output/saved_model"),
      help="folder of the SavedModel (%(default)s)")
  add("--images", type=pathlib.Path,
      help=f"folder whose images, the first {MAX_EXAMPLES} by name, can be picked on the page (none)")
  add("--directions", type=pathlib.Path, help="npz file of directions in latent space, a slider for each (none)")
  add("--classes", nargs="+", default=[], metavar="NAME",
      help="names of the classes 0, 1, ... of a class-conditional model")
  add("--host", default="127.0.0.1",
      help="address to listen at; by default only this machine can open the page, with 0.0.0.0 everyone who reaches "
      "this machine (%(default)s)")
  add("--port", type=port_number, default=8000, help="(%(default)s)")
  return parser.parse_args()


def port_number(text):
  """An argparse type."""
  if not (text.isdecimal() and 0 < int(text) < 2**16):  # The system would map larger ones to other ports.
    raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {2**16 - 1}. Received: {text!r}")
  return int(text)


class ServedModel:
  """A SavedModel of a flow: NumPy arrays in, NumPy arrays out."""

  def __init__(self, path, classes):
    """Loads the model, and calls each signature once, because the first call takes longer.

    Args:
      path: Folder of the SavedModel.
      classes: List of names of classes; empty if the model is not class-conditional.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is not a SavedModel of a flow over uint8 images, grey or RGB, or `classes` do not fit it.
    """
    self._loaded = tf.saved_model.load(str(path))  # Signatures alone do not keep their variables.
    needed = {"log_prob", "encode", "decode", "sample", "interpolate"}
    if not needed <= set(self._loaded.signatures):
      raise ValueError(f"the SavedModel must have the signatures {sorted(needed)}. "
                       f"Received: {sorted(self._loaded.signatures)} in {path}")
    specs = {name: self._loaded.signatures[name].structured_input_signature[1] for name in needed}
    images = specs["log_prob"]["images"]
    if images.dtype != tf.uint8 or images.shape.rank != 4 or images.shape[-1] not in (1, 3):
      raise ValueError("the SavedModel must be one of uint8 images [N, H, W, C] with 1 or 3 channels. "
                       f"Received: {images.dtype.name} {images.shape} in {path}")
    if ("labels" in specs["log_prob"]) != bool(classes):
      raise ValueError("--classes must be given if, and only if, the SavedModel takes `labels`. "
                       f"Received: --classes={classes}, and {path} {'does not' if classes else 'does'}")
    contexts = {name: tuple(spec.shape[1:]) for name, spec in specs["log_prob"].items() if name.startswith("context")}
    if any(name != "context" or len(shape) != 3 or shape[-1] not in (1, 3) for name, shape in contexts.items()):
      raise ValueError("the context of the SavedModel must be an image with 1 or 3 channels. "
                       f"Received: {contexts} in {path}")
    self.image_shape = tuple(images.shape[1:])
    self.context_shape = contexts.get("context")  # `None`: it takes none.
    self.latent_shape = tuple(specs["decode"]["latent"].shape[1:])
    self.classes = classes
    self._warm_up()

  def _warm_up(self):
    condition = self.condition(len(self.classes) - 1 if self.classes else None,
                               None if self.context_shape is None else np.zeros(self.context_shape, np.uint8))
    try:
      images = self.sample(1, 1., 0, condition)
      self.decode(self.encode(images, condition), condition)
      self.interpolate(images, images, condition)
      self.bits_per_dim(images, condition)
    except tf.errors.InvalidArgumentError as error:
      raise ValueError(f"--classes must not name more classes than the model has ({error.message.splitlines()[0]}). "
                       f"Received: {self.classes}") from error

  def condition(self, label, context):
    """The arguments that all images of a call below share, by name.

    Args:
      label: Python `int`, or `None` if there are no classes.
      context: uint8 array `[h, w, c]`, or `None` if the model takes none.
    """
    condition = {"labels": None if label is None else np.int32(label),
                 "context": None if context is None else np.float32(context / 127.5 - 1.)}
    return {name: value for name, value in condition.items() if value is not None}

  def bits_per_dim(self, images, condition):
    """Bits per dimension `[N]` of images `[N, H, W, C]`."""
    return self._call("log_prob", "bits_per_dim", len(images), condition, images=tf.constant(images))

  def encode(self, images, condition):
    """Latents `[N, ...]` of images `[N, H, W, C]`."""
    return self._call("encode", "latent", len(images), condition, images=tf.constant(images))

  def decode(self, latents, condition):
    """Images `[N, H, W, C]` of latents `[N, ...]`."""
    return self._call("decode", "images", len(latents), condition, latent=tf.constant(latents))

  def interpolate(self, first, second, condition):
    """Images `[N, NUM_STEPS, H, W, C]` on the paths between images `[N, H, W, C]`."""
    return self._call("interpolate", "images", len(first), condition, first=tf.constant(first),
                      second=tf.constant(second), num_steps=tf.constant(NUM_STEPS))

  def sample(self, num_samples, temperature, seed, condition):
    """New images `[num_samples, H, W, C]`."""
    return self._call("sample", "images", num_samples, condition, num_samples=tf.constant(num_samples),
                      temperature=tf.constant(temperature, tf.float32), seed=tf.constant([seed, 0]))

  def _call(self, signature, output, num_images, condition, **inputs):
    for name, value in condition.items():
      inputs[name] = tf.constant(np.stack([value] * num_images))
    return self._loaded.signatures[signature](**inputs)[output].numpy()


def load_directions(path, model):
  """Dict from names to arrays of the shape of a latent; empty if the path is `None`.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is not as above.
  """
  if path is None:
    return {}
  try:
    arrays = np.load(path)
    directions = {name: arrays[name] for name in arrays.files}
  except OSError:
    raise
  except Exception as error:  # Damaged files raise errors of zipfile, of NumPy and of Python.
    raise ValueError("--directions must be an npz file of floating arrays "
                     f"({type(error).__name__}: {error}). Received: {path}") from error
  for name, direction in directions.items():
    is_floating = np.issubdtype(direction.dtype, np.floating)
    if not is_floating or direction.shape != model.latent_shape or not np.isfinite(direction).all():
      raise ValueError(f"--directions must be floating, finite and of shape {list(model.latent_shape)}, like the "
                       f"latents. Received: {name!r} {direction.dtype} {list(direction.shape)} in {path}")
  return directions


def load_examples(folder, model):
  """List of images `[H, W, C]`, as many as the page shows; empty if the folder is `None`.

  Raises:
    OSError: if the folder cannot be read.
    ValueError: if a file is not an image that `read_image` reads, or there are none.
  """
  return [] if folder is None else _images_in(folder, model.image_shape)


def load_contexts(folder, model):
  """As `load_examples`, in the shape of contexts. Without a folder, one grey image; without contexts, none."""
  if model.context_shape is None:
    return []
  return [np.full(model.context_shape, 127, np.uint8)] if folder is None else _images_in(folder, model.context_shape)


def _images_in(folder, shape):
  paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))[:MAX_EXAMPLES]
  if not paths:
    raise ValueError(f"--images must be a folder with images. Received: {folder}")
  examples = []
  for path in paths:
    try:
      examples.append(read_image(path.read_bytes(), shape))
    except ValueError as error:
      raise ValueError(f"--images must be a folder of images only. Received: {path} ({error})") from error
  return examples


def read_image(content, shape):
  """Decodes a file of unknown origin as `tfp_glow.data.load_images` decodes those of a folder.

  Args:
    content: `bytes`.
    shape: Tuple `(H, W, C)`.

  Returns:
    uint8 array `[H, W, C]`: the middle of the picture, of the same aspect ratio, resized.

  Raises:
    ValueError: if it is not a complete image in one of `FORMATS`, or has too many pixels: a JPEG file more than
      `MAX_JPEG_PIXELS`, another more than `MAX_PIXELS`.
  """
  height, width, num_channels = shape
  _check_file(content)
  try:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
      image.draft(None, (2 * width, 2 * height))  # Lets libjpeg skip detail far below a pixel of the result.
      if image.format in JPEG_FORMATS:
        image = ImageOps.exif_transpose(image)
      if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
      image = image.convert("L" if num_channels == 1 else "RGB")
  except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others.
    raise ValueError("The image file is damaged, or not complete.") from error
  crop_width = min(image.width, image.height * width // height)
  crop_height = min(image.height, image.width * height // width)
  if not (crop_width and crop_height):
    raise ValueError(f"The image must not be so narrow. Received: {image.width} x {image.height} pixels")
  left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
  image = image.resize((width, height), Image.Resampling.BILINEAR,
                       box=(left, top, left + crop_width, top + crop_height))
  return np.asarray(image).reshape(shape)


def _check_file(content):
  """Checks an image file as far as possible without decoding it."""
  num_pixels, limit = math.inf, MAX_JPEG_PIXELS
  try:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
      num_pixels, limit = math.prod(image.size), MAX_JPEG_PIXELS if image.format in JPEG_FORMATS else MAX_PIXELS
      if num_pixels <= limit:
        image.verify()
  except Image.DecompressionBombError:
    pass
  except Exception as error:  # As in `read_image`.
    raise ValueError(f"The file must be an image: {', '.join(FORMATS)}. Received: another file, or a damaged "
                     "one") from error
  if num_pixels > limit:
    received = f"{num_pixels / 1e6:.0f} million" if math.isfinite(num_pixels) else "many more"
    raise ValueError(f"The image must have at most {limit / 1e6:.0f} million pixels. Received: {received}")


def make_app(model, directions, examples, contexts=()):
  """The Flask application: the page, and the requests that it sends to /api/, as JSON in both directions.

  Images are data URLs in both directions; returned images have the size of the model's images. The answer to a request
  that is not as below has the status 400, 413 or 415, and a message in `error`.

  ```none
  GET  /api/model                                   what the page needs to know: names, limits, images to pick
  POST /api/image        {image}                 -> {image, bits_per_dim}
  POST /api/edit         {image, strengths}      -> {image, bits_per_dim}   strengths: {name of direction: number}
  POST /api/interpolate  {first, second}         -> {images}
  POST /api/sample       {temperature, seed}     -> {images}
  ```

  For a class-conditional model all of them also take `label`, an index, and for a model with a context `context`, an
  image. POST /api/context {image} -> {image} resizes an image to a context; it alone takes neither.

  Args:
    model: `ServedModel`.
    directions: Dict from names to arrays of the shape of a latent.
    examples: List of images `[H, W, C]`.
    contexts: List of images in the shape of the model's contexts.
  """
  app = flask.Flask(__name__, static_folder=PAGE, static_url_path="")
  app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES
  fields = RequestFields(model, directions)

  @app.get("/")
  def index():
    return app.send_static_file("index.html")

  @app.get("/api/model")
  def describe():
    return {"image_shape": model.image_shape, "classes": model.classes, "directions": list(directions),
            "strengths": STRENGTHS, "temperatures": TEMPERATURES, "num_steps": NUM_STEPS, "num_samples": NUM_SAMPLES,
            "max_file_bytes": MAX_FILE_BYTES, "images": [to_data_url(image) for image in examples],
            "contexts": [to_data_url(image) for image in contexts]}

  @app.post("/api/image")
  def image():
    body = fields.read("image")
    return scored(body["image"], body["condition"])

  @app.post("/api/context")
  def context():
    return {"image": to_data_url(fields.read_context())}

  @app.post("/api/edit")
  def edit():
    body = fields.read("image", "strengths")
    latent = model.encode(body["image"][np.newaxis], body["condition"])
    for name, strength in body["strengths"].items():
      latent += strength * directions[name].astype(latent.dtype)
    return scored(model.decode(latent, body["condition"])[0], body["condition"])

  @app.post("/api/interpolate")
  def interpolate():
    body = fields.read("first", "second")
    (images,) = model.interpolate(body["first"][np.newaxis], body["second"][np.newaxis], body["condition"])
    return {"images": [to_data_url(image) for image in images]}

  @app.post("/api/sample")
  def sample():
    body = fields.read("temperature", "seed")
    images = model.sample(NUM_SAMPLES, body["temperature"], body["seed"], body["condition"])
    return {"images": [to_data_url(image) for image in images]}

  @app.errorhandler(exceptions.HTTPException)
  def explain(error):
    return {"error": error.description}, error.code

  @app.after_request
  def forbid_other_sources(response):
    response.headers["Content-Security-Policy"] = "default-src 'self'; img-src 'self' data:"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response

  def scored(image, condition):
    bits_per_dim = float(model.bits_per_dim(image[np.newaxis], condition)[0])
    # JSON has neither NaN nor infinity.
    return {"image": to_data_url(image), "bits_per_dim": bits_per_dim if math.isfinite(bits_per_dim) else None}

  return app


class RequestFields:
  """Reads the JSON of requests; errors in it become answers of status 400, 413 or 415."""

  def __init__(self, model, directions):
    self._model = model
    self._directions = directions
    self._readers = {"image": self._image, "first": self._image, "second": self._image, "strengths": self._strengths,
                     "temperature": self._temperature, "seed": self._seed, "label": self._label,
                     "context": self._context}

  def read(self, *names):
    """Dict of the fields of the current request, and the `condition` that it names, for the model."""
    conditions = {"label": bool(self._model.classes), "context": self._model.context_shape is not None}
    body = self._read({*names, *(name for name, is_taken in conditions.items() if is_taken)})
    return body | {"condition": self._model.condition(body.get("label"), body.get("context"))}

  def read_context(self):
    """The image of a request that has nothing else, in the shape of the model's contexts."""
    if self._model.context_shape is None:
      raise exceptions.NotFound("The model takes no context.")
    return self._context("image", self._read({"image"}, as_they_are=True)["image"])

  def _read(self, expected, as_they_are=False):
    try:
      body = flask.request.get_json()
    except exceptions.RequestEntityTooLarge as error:
      raise _too_large() from error
    if not isinstance(body, dict) or set(body) != expected:
      raise _bad_request(f"The request must be an object with the fields {sorted(expected)}.", body)
    return body if as_they_are else {name: self._readers[name](name, body[name]) for name in expected}

  def _image(self, name, value):
    return self._decoded(name, value, self._model.image_shape)

  def _context(self, name, value):
    return self._decoded(name, value, self._model.context_shape)

  def _decoded(self, name, value, shape):
    header, _, data = value.partition(",") if isinstance(value, str) else ("", "", "")
    if not (header.startswith("data:") and header.endswith(";base64")):
      raise _bad_request(f"`{name}` must be a data URL in base64.", value)
    try:
      content = base64.b64decode(data, validate=True)
    except ValueError as error:
      raise _bad_request(f"`{name}` must be a data URL in base64.", value) from error
    if len(content) > MAX_FILE_BYTES:
      raise _too_large()
    try:
      return read_image(content, shape)
    except ValueError as error:
      raise exceptions.BadRequest(str(error)) from error

  def _strengths(self, name, value):
    if not isinstance(value, dict) or not set(value) <= set(self._directions):
      raise _bad_request(f"`{name}` must be an object with fields of {list(self._directions)}.", value)
    return {direction: _number(f"{name}.{direction}", strength, *STRENGTHS) for direction, strength in value.items()}

  def _temperature(self, name, value):
    return _number(name, value, *TEMPERATURES)

  def _seed(self, name, value):
    return _whole_number(name, value, MAX_SEED)

  def _label(self, name, value):
    return _whole_number(name, value, len(self._model.classes) - 1)


def _number(name, value, lowest, highest):
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= highest:
    raise _bad_request(f"`{name}` must be a number from {lowest:g} to {highest:g}.", value)
  return float(value)


def _whole_number(name, value, highest):
  if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= highest:
    raise _bad_request(f"`{name}` must be a whole number from 0 to {highest}.", value)
  return value


def _bad_request(expected, received):
  return exceptions.BadRequest(f"{expected} Received: {reprlib.repr(received)}")


def _too_large():
  return exceptions.RequestEntityTooLarge(f"The file must have at most {MAX_FILE_BYTES / 2**20:.0f} MB.")


def to_data_url(image):
  """An image `[H, W, C]` as a data URL of a PNG file."""
  file = io.BytesIO()
  Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image).save(file, "PNG")
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


if __name__ == "__main__":
  sys.exit(main())

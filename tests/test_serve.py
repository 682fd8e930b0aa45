"""The web page of examples/serve.py: what its server answers, and refuses."""

import base64
import concurrent.futures
import http.client
import io
import json
import re
import socket
import struct
import sys
import zlib

import image_files
import numpy as np
import pytest
import served_models
import tensorflow as tf
from PIL import Image

from tfp_glow import data

serve = served_models.load_script()
GREY = image_files.pixels(*served_models.GREY_SHAPE)
OTHER = image_files.pixels(*served_models.GREY_SHAPE, seed=1)
COLOUR = image_files.pixels(*served_models.COLOUR_SHAPE)


def from_data_url(url):
  assert url.startswith("data:image/png;base64,")
  with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
    return np.asarray(image).reshape(image.height, image.width, -1)


def to_data_url(content, mime="image/png"):
  return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def to_file(image, file_format="PNG", **options):
  file = io.BytesIO()
  Image.fromarray(image).save(file, file_format, **options)
  return file.getvalue()


def png_of_size(width, height):
  """A PNG file whose header promises so many pixels, without any."""
  chunk = lambda kind, content: (struct.pack(">I", len(content)) + kind + content
                                 + struct.pack(">I", zlib.crc32(kind + content)))
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PHOTO = to_file(image_files.pixels(40, 30, 3), "JPEG")


@pytest.fixture(scope="module")
def grey_model(grey_path):
  return serve.ServedModel(grey_path, [])


@pytest.fixture(scope="module")
def colour_model(colour_path):
  return serve.ServedModel(colour_path, list(served_models.CLASSES))


@pytest.fixture(scope="module")
def grey(grey_model):
  """A client of a server of grey images without classes."""
  return serve.make_app(grey_model, served_models.directions(), [GREY, OTHER]).test_client()


@pytest.fixture(scope="module")
def colour(colour_model):
  """A client of a server of wide colour images with classes."""
  return serve.make_app(colour_model, {}, []).test_client()


@pytest.fixture(scope="module")
def signatures(grey_path):
  """The SavedModel by itself."""
  loaded = tf.saved_model.load(str(grey_path))

  def call(name, output, **inputs):
    return loaded.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})[output].numpy()
  return call


def ask(client, path, **body):
  answer = client.post(path, json=body)
  assert answer.status_code == 200, answer.text
  return answer.json


@pytest.mark.slow
def test_page_refers_to_nothing_but_its_own_files(grey):
  page = grey.get("/")
  assert page.status_code == 200 and page.mimetype == "text/html"
  names = re.findall(r"""(?:src|href)="([^"]+)\"""", page.text)
  files = [name for name in names if name != "data:,"]
  assert sorted(files) == ["app.js", "style.css"]
  for text in [page.text, *(grey.get(f"/{name}").text for name in files)]:
    assert text and "//" not in re.sub(r"// [A-Z-]", "", text), "a URL"
  assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")


@pytest.mark.slow
def test_page_gets_to_know_the_model(grey, colour):
  answer = grey.get("/api/model").json
  assert answer["image_shape"] == list(served_models.GREY_SHAPE) and answer["classes"] == []
  assert answer["directions"] == list(served_models.directions())
  np.testing.assert_array_equal([from_data_url(url) for url in answer["images"]], [GREY, OTHER])
  answer = colour.get("/api/model").json
  assert answer["classes"] == list(served_models.CLASSES) and answer["directions"] == answer["images"] == []


@pytest.mark.slow
def test_image_is_scored(grey, signatures):
  answer = ask(grey, "/api/image", image=to_data_url(to_file(GREY[..., 0])))
  np.testing.assert_array_equal(from_data_url(answer["image"]), GREY)
  np.testing.assert_allclose(answer["bits_per_dim"], signatures("log_prob", "bits_per_dim", images=GREY[None])[0], 1e-5)


def test_image_is_cropped_and_resized_as_those_of_a_folder(grey, tmp_path):
  path = tmp_path / "train" / "0.png"
  image_files.save(path, image_files.pixels(40, 30))
  (expected,) = image_files.arrays(data.load_images(tmp_path, "train", 1, image_size=8, shuffle=False))
  answer = ask(grey, "/api/image", image=to_data_url(path.read_bytes()))
  np.testing.assert_array_equal(from_data_url(answer["image"]), expected)


_TURNED = Image.Exif()
_TURNED[0x0112] = 6
_TRANSPARENT = np.dstack([image_files.pixels(20, 30, 3), image_files.pixels(20, 30, 1, seed=1)])


@pytest.mark.parametrize("name, image, options", [
    ("photo.jpg", image_files.pixels(400, 300, 3), {}),
    ("turned.jpg", image_files.pixels(20, 30, 3), {"exif": _TURNED}),
    ("grey.png", image_files.pixels(20, 30), {}),
    ("grey16.png", image_files.pixels(20, 30).astype(np.uint16) << 8, {}),
    ("transparent.png", _TRANSPARENT, {}),
    ("small.bmp", image_files.pixels(5, 3, 3), {}),
    ("palette.gif", image_files.pixels(20, 30), {}),
    ("as_it_is.png", image_files.pixels(8, 8, 3), {}),
])
def test_files_are_read_as_load_images_reads_them(tmp_path, name, image, options):
  content = image_files.save(tmp_path / "train" / name, image, **options).read_bytes()
  (expected,) = image_files.arrays(data.load_images(tmp_path, "train", 1, image_size=8, shuffle=False))
  np.testing.assert_array_equal(serve.read_image(content, expected.shape), expected)


def test_photos_may_be_larger_than_other_images():
  photo = to_file(np.full([4_000, 5_000], 200, np.uint8), "JPEG")
  assert (serve.read_image(photo, (8, 8, 1)) == 200).all()
  with pytest.raises(ValueError, match="at most 50 million pixels. Received: 56 million"):
    serve.read_image(to_file(np.zeros([7_000, 8_000], np.uint8), "JPEG"), (8, 8, 1))


def test_grey_becomes_colour_colour_becomes_grey_and_the_middle_is_kept():
  image = np.zeros([8, 40, 3], np.uint8)
  image[:, 11:29] = [0, 255, 0]  # The bilinear filter reaches one pixel beyond the middle 16.
  green = serve.read_image(to_file(image), (4, 8, 3))
  np.testing.assert_array_equal(green, np.broadcast_to(np.uint8([0, 255, 0]), [4, 8, 3]))
  assert (serve.read_image(to_file(image), (8, 8, 1)) == 150).all()  # The luma of ITU-R 601.
  assert (serve.read_image(to_file(image[..., 1]), (4, 8, 3)) == 255).all()
  tall = np.zeros([30, 8], np.uint8)
  tall[12:18] = 200
  assert (serve.read_image(to_file(tall), (4, 8, 1)) == 200).all()


def test_sliders_move_the_latent(grey, signatures):
  directions = served_models.directions()
  latent = signatures("encode", "latent", images=GREY[None])
  moved = latent + 1.5 * directions["darker"] - 0.5 * directions["3 to 8"]
  expected = signatures("decode", "images", latent=moved.astype(np.float32))
  image = to_data_url(to_file(GREY[..., 0]))
  answer = ask(grey, "/api/edit", image=image, strengths={"darker": 1.5, "3 to 8": -0.5})
  np.testing.assert_array_equal(from_data_url(answer["image"]), expected[0])
  assert (expected[0] != GREY).any()
  np.testing.assert_allclose(answer["bits_per_dim"], signatures("log_prob", "bits_per_dim", images=expected)[0], 1e-5)
  untouched = ask(grey, "/api/edit", image=image, strengths={})
  np.testing.assert_array_equal(from_data_url(untouched["image"]), GREY)


def test_interpolation_goes_along_a_straight_line(grey, signatures):
  first, second = (to_data_url(to_file(image[..., 0])) for image in (GREY, OTHER))
  images = [from_data_url(url) for url in ask(grey, "/api/interpolate", first=first, second=second)["images"]]
  ends = signatures("encode", "latent", images=np.stack([GREY, OTHER]))
  np.testing.assert_array_equal(images, signatures("decode", "images", latent=np.linspace(*ends, 9, dtype=np.float32)))
  np.testing.assert_array_equal([images[0], images[-1]], [GREY, OTHER])


def test_samples_are_those_of_the_seed_and_the_temperature(grey, signatures):
  images = lambda **body: ask(grey, "/api/sample", **body)["images"]
  expected = signatures("sample", "images", num_samples=16, temperature=np.float32(0.7), seed=[3, 0])
  np.testing.assert_array_equal([from_data_url(url) for url in images(temperature=0.7, seed=3)], expected)
  assert images(temperature=0.7, seed=3) != images(temperature=0.7, seed=4)
  assert images(temperature=0.7, seed=3) != images(temperature=1, seed=3)
  assert len(set(images(temperature=0, seed=3))) == 1  # The mean.


@pytest.mark.slow
def test_class_is_that_of_the_label(colour, colour_path):
  loaded = tf.saved_model.load(str(colour_path))
  url = to_data_url(to_file(COLOUR))
  for label in (0, 2):
    expected = loaded.signatures["log_prob"](images=tf.constant(COLOUR[None]), labels=tf.constant([label]))
    answer = ask(colour, "/api/image", image=url, label=label)
    np.testing.assert_allclose(answer["bits_per_dim"], expected["bits_per_dim"][0], 1e-5)
  for path, body in (("/api/edit", {"image": url, "strengths": {}}),
                     ("/api/interpolate", {"first": url, "second": url}),
                     ("/api/sample", {"temperature": 0., "seed": 0})):
    first, second = (ask(colour, path, **body, label=label) for label in (0, 2))
    assert (first == second) == (path == "/api/interpolate"), path  # The ends are the given images, whatever the class.


@pytest.mark.slow
def test_context_is_that_of_the_request(tmp_path):
  served_models.export_conditional(tmp_path)
  model, loaded = serve.ServedModel(tmp_path, []), tf.saved_model.load(str(tmp_path))
  contexts = [image_files.pixels(*served_models.CONTEXT_SHAPE, seed=seed) for seed in (0, 1)]
  client = serve.make_app(model, {}, [GREY], contexts).test_client()
  offered = client.get("/api/model").json["contexts"]
  np.testing.assert_array_equal(list(map(from_data_url, offered)), contexts)
  for url, context in zip(offered, contexts):
    expected = loaded.signatures["log_prob"](
        images=tf.constant(GREY[None]), context=tf.constant(context[None] / 127.5 - 1., tf.float32))
    answer = ask(client, "/api/image", image=_IMAGE, context=url)
    np.testing.assert_allclose(answer["bits_per_dim"], expected["bits_per_dim"][0], 1e-5)
  samples = [ask(client, "/api/sample", temperature=0.7, seed=0, context=url)["images"] for url in offered]
  assert samples[0] != samples[1]
  assert from_data_url(ask(client, "/api/context", image=to_data_url(PHOTO))["image"]).shape == (4, 4, 3)
  check_message(client.post("/api/sample", json=_SAMPLE), 400, "fields ['context', 'seed', 'temperature']")
  check_message(client.post("/api/image", json={"image": _IMAGE, "context": "a"}), 400, "`context` must be a data URL")
  assert [context.tolist() for context in serve.load_contexts(None, model)] == [np.full([4, 4, 3], 127).tolist()]


@pytest.mark.slow
def test_context_must_be_an_image(grey, tmp_path):
  served_models.export_conditional(tmp_path, (3,))
  with pytest.raises(ValueError, match=r"context of the SavedModel must be an image with 1 or 3 channels.*Received"):
    serve.ServedModel(tmp_path, [])
  check_message(grey.post("/api/context", json={"image": _IMAGE}), 404, "takes no context")


_IMAGE = to_data_url(to_file(GREY[..., 0]))
_EDIT, _SAMPLE = {"image": _IMAGE, "strengths": {}}, {"temperature": 0.7, "seed": 0}
_REFUSED = {
    "no field": ("image", {}, "fields ['image']"),
    "a field too many": ("image", {"image": _IMAGE, "colour": 1}, "fields ['image']"),
    "a field too few": ("interpolate", {"first": _IMAGE}, "fields ['first', 'second']"),
    "a label where there are no classes": ("image", {"image": _IMAGE, "label": 0}, "fields ['image']"),
    "a list": ("image", [_IMAGE], "must be an object"),
    "no image but a number": ("image", {"image": 3}, "`image` must be a data URL"),
    "a URL": ("image", {"image": "file:///etc/passwd"}, "`image` must be a data URL"),
    "no base64": ("image", {"image": "data:image/png;base64,???"}, "`image` must be a data URL"),
    "no content": ("image", {"image": to_data_url(b"")}, "must be an image"),
    "a text": ("image", {"image": to_data_url(b"Dear madam,")}, "must be an image"),
    "a drawing": ("image", {"image": to_data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}, "must be an image"),
    "an image of another format": ("image", {"image": to_data_url(to_file(GREY[..., 0], "TIFF"))}, "must be an image"),
    "half a PNG": ("image", {"image": to_data_url(to_file(image_files.pixels(40, 30))[:500])}, "damaged"),
    "half a JPEG": ("image", {"image": to_data_url(PHOTO[:len(PHOTO) // 2])}, "damaged"),
    "a PNG of other bytes": ("image", {"image": to_data_url(to_file(GREY[..., 0])[:-20] + bytes(20))}, "damaged"),
    "a PNG without pixels": ("image", {"image": to_data_url(png_of_size(30, 30))}, "damaged"),
    "many pixels": ("image", {"image": to_data_url(png_of_size(8_000, 8_000))}, "Received: 64 million"),
    "more pixels than may be transparent": ("image", {"image": to_data_url(png_of_size(5_000, 4_000))},
                                            "at most 16 million pixels. Received: 20 million"),
    "too many pixels for Pillow": ("image", {"image": to_data_url(png_of_size(30_000, 30_000))}, "Received: many more"),
    "a bad second image": ("interpolate", {"first": _IMAGE, "second": to_data_url(b"?")}, "must be an image"),
    "strengths in a list": ("edit", {**_EDIT, "strengths": [1.]}, "`strengths` must be an object"),
    "an unknown direction": ("edit", {**_EDIT, "strengths": {"smile": 1.}}, "`strengths` must be an object"),
    "a strength out of range": ("edit", {**_EDIT, "strengths": {"darker": 2.1}}, "`strengths.darker` must be a number"),
    "a strength of NaN": ("edit", {**_EDIT, "strengths": {"darker": float("nan")}}, "Received: nan"),
    "an infinite strength": ("edit", {**_EDIT, "strengths": {"darker": float("-inf")}}, "Received: -inf"),
    "a strength in words": ("edit", {**_EDIT, "strengths": {"darker": "1"}}, "Received: '1'"),
    "no strength": ("edit", {**_EDIT, "strengths": {"darker": None}}, "Received: None"),
    "a true strength": ("edit", {**_EDIT, "strengths": {"darker": True}}, "Received: True"),
    "a negative temperature": ("sample", {**_SAMPLE, "temperature": -0.1}, "`temperature` must be a number from 0"),
    "a temperature of NaN": ("sample", {**_SAMPLE, "temperature": float("nan")}, "Received: nan"),
    "a huge temperature": ("sample", {**_SAMPLE, "temperature": 10**400}, "`temperature` must be a number"),
    "half a seed": ("sample", {**_SAMPLE, "seed": 0.5}, "`seed` must be a whole number"),
    "a seed of 64 bits": ("sample", {**_SAMPLE, "seed": 2**31}, "`seed` must be a whole number"),
    "a negative seed": ("sample", {**_SAMPLE, "seed": -1}, "`seed` must be a whole number"),
}


def check_message(answer, status, message):
  assert answer.status_code == status
  assert list(answer.json) == ["error"] and message in answer.json["error"]
  assert len(answer.json["error"]) < 300 and "Traceback" not in answer.text and ".py" not in answer.text


@pytest.mark.parametrize("path, body, message", _REFUSED.values(), ids=_REFUSED)
def test_bad_request_gets_a_message(grey, path, body, message):
  check_message(grey.post(f"/api/{path}", json=body), 400, message)


@pytest.mark.parametrize("label", [None, -1, 3, 1.5, "0", True])
def test_bad_label_gets_a_message(colour, label):
  body = {"temperature": 0.7, "seed": 0}
  check_message(colour.post("/api/sample", json={**body, "label": label}), 400, "`label` must be a whole number from 0")
  check_message(colour.post("/api/sample", json=body), 400, "fields ['label', 'seed', 'temperature']")


def test_image_that_is_too_narrow_for_its_middle_gets_a_message(colour):
  line = to_data_url(to_file(image_files.pixels(300, 1)))
  check_message(colour.post("/api/image", json={"image": line, "label": 0}), 400, "must not be so narrow")


def test_what_is_not_json_gets_a_message(grey):
  check_message(grey.post("/api/image", data="{", content_type="application/json"), 400, "")
  check_message(grey.post("/api/image", data={"image": "x"}), 415, "")
  check_message(grey.get("/api/image"), 404, "")
  check_message(grey.get("/api/nothing"), 404, "")
  check_message(grey.get("/../serve.py"), 404, "")


@pytest.mark.slow
def test_too_large_file_gets_a_message(grey):
  file = to_data_url(bytes(serve.MAX_FILE_BYTES + 1))
  assert len(file) < serve.MAX_REQUEST_BYTES
  check_message(grey.post("/api/image", json={"image": file}), 413, "at most 20 MB")
  request = b'{"image": "' + bytes(serve.MAX_REQUEST_BYTES) + b'"}'
  check_message(grey.post("/api/image", data=request, content_type="application/json"), 413, "at most 20 MB")


def test_failure_of_the_server_gets_a_message(grey, grey_model, monkeypatch):
  def fail(*_):
    raise RuntimeError("secret")

  monkeypatch.setattr(grey_model, "encode", fail)
  answer = grey.post("/api/edit", json=_EDIT)
  check_message(answer, 500, "internal error")
  assert "secret" not in answer.text
  nested = "[" * 100_000 + "]" * 100_000  # More than Python's parser takes.
  check_message(grey.post("/api/image", data=nested, content_type="application/json"), 500, "internal error")


def test_bits_that_are_not_finite_are_null_in_json(grey, grey_model, monkeypatch):
  monkeypatch.setattr(grey_model, "bits_per_dim", lambda *_: np.array([np.nan], np.float32))
  assert json.loads(grey.post("/api/image", json={"image": _IMAGE}).text)["bits_per_dim"] is None


def test_eight_at_once_get_what_one_gets(grey):
  asked = [("/api/image", {"image": _IMAGE}), ("/api/edit", {**_EDIT, "strengths": {"darker": 1.}}),
           ("/api/interpolate", {"first": _IMAGE, "second": _IMAGE}), ("/api/sample", _SAMPLE)]
  alone = [ask(grey, path, **body) for path, body in asked]

  def client(number):
    own = grey.application.test_client()
    order = np.random.default_rng(number).permutation(len(asked) * 3) % len(asked)
    return all(ask(own, asked[i][0], **asked[i][1]) == alone[i] for i in order)

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert all(pool.map(client, range(8)))


@pytest.mark.slow
def test_saved_model_must_fit(grey_path, colour_path, tmp_path):
  with pytest.raises(OSError):
    serve.ServedModel(tmp_path / "nothing", [])
  with pytest.raises(ValueError, match="--classes must be given if, and only if, .* does not"):
    serve.ServedModel(grey_path, ["a"])
  with pytest.raises(ValueError, match="--classes must be given if, and only if, .* does$"):
    serve.ServedModel(colour_path, [])
  with pytest.raises(ValueError, match="--classes must not name more classes than the model has"):
    serve.ServedModel(colour_path, ["a", "b", "c", "d"])
  tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
  with pytest.raises(ValueError, match=r"must have the signatures .* Received: \[\] in"):
    serve.ServedModel(tmp_path / "empty", [])


@pytest.mark.slow
def test_saved_model_must_be_one_of_images(tmp_path):
  served_models.export_continuous(tmp_path)
  with pytest.raises(ValueError, match=r"must be one of uint8 images .* Received: float32 \(None, 4, 4, 2\)"):
    serve.ServedModel(tmp_path, [])


@pytest.mark.slow
def test_saved_model_must_be_one_of_bytes(tmp_path):
  served_models.export_deep(tmp_path)
  with pytest.raises(ValueError, match=r"must be one of uint8 images .* Received: uint16 \(None, 4, 4, 1\)"):
    serve.ServedModel(tmp_path, [])


def test_directions_must_fit(grey_model, tmp_path):
  def load(**arrays):
    np.savez(tmp_path / "directions.npz", **arrays)
    return serve.load_directions(tmp_path / "directions.npz", grey_model)

  assert list(load(b=np.ones(64), a=np.zeros(64))) == ["b", "a"]  # In the order of the file.
  for bad in (np.ones(63), np.ones([1, 64]), np.ones(64, int), np.full(64, np.nan), np.array([None] * 64)):
    with pytest.raises(ValueError, match="--directions must be .*Received: .*directions.npz"):
      load(bad=bad)
  for content in (b"", b"not a zip", (tmp_path / "directions.npz").read_bytes()[:100]):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match="--directions must be an npz file .*Received: .*bad.npz"):
      serve.load_directions(tmp_path / "bad.npz", grey_model)
  np.save(tmp_path / "one.npy", np.ones(64))
  with pytest.raises(ValueError, match="--directions must be an npz file .*Received: .*one.npy"):
    serve.load_directions(tmp_path / "one.npy", grey_model)
  with pytest.raises(FileNotFoundError):
    serve.load_directions(tmp_path / "nothing.npz", grey_model)


def test_examples_must_be_images(grey_model, tmp_path):
  with pytest.raises(ValueError, match="--images must be a folder with images"):
    serve.load_examples(tmp_path, grey_model)
  image_files.fill(tmp_path, serve.MAX_EXAMPLES + 1)
  (tmp_path / ".hidden").write_text("")
  (tmp_path / "folder").mkdir()
  examples = serve.load_examples(tmp_path, grey_model)
  assert len(examples) == serve.MAX_EXAMPLES and {example.shape for example in examples} == {(8, 8, 1)}
  (tmp_path / "000.txt").write_text("Dear madam,")
  with pytest.raises(ValueError, match=r"--images must be a folder of images only. Received: .*000.txt \(The file"):
    serve.load_examples(tmp_path, grey_model)
  with pytest.raises(FileNotFoundError):
    serve.load_examples(tmp_path / "nothing", grey_model)


@pytest.mark.slow
def test_what_is_wrong_at_the_start_is_a_message_and_exit_code_2(monkeypatch, capsys, grey_path, tmp_path):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    for options in ([tmp_path], [grey_path, "--images", tmp_path / "nothing"],
                    [grey_path, "--port", taken.getsockname()[1]]):
      monkeypatch.setattr(sys, "argv", ["serve.py", *map(str, options)])
      assert serve.main() == serve.EXIT_USAGE
      output = capsys.readouterr()
      assert output.err.startswith("serve.py: error: ") and "Open" not in output.out


def test_listens_to_this_machine_only_unless_told_otherwise(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["serve.py"])
  assert serve.parse_args().host == "127.0.0.1"


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_port_must_be_one(monkeypatch, capsys, port):
  monkeypatch.setattr(sys, "argv", ["serve.py", f"--port={port}"])
  with pytest.raises(SystemExit):
    serve.parse_args()
  assert f"must be a whole number from 1 to 65535. Received: '{port}'" in capsys.readouterr().err


@pytest.mark.slow
def test_process_needs_tensorflow_and_the_saved_model_only(grey_path):
  with served_models.running(grey_path) as port:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/api/sample", json.dumps(_SAMPLE), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200 and len(json.load(answer)["images"]) == 16
    # This address is also of this machine, but the server does not listen at it.
    with pytest.raises(ConnectionRefusedError):
      socket.create_connection(("127.0.0.2", port))

"""The SavedModel: with TensorFlow alone, from many threads, with bad requests, and on disk."""

import concurrent.futures
import json
import resource
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow import export
from tfp_glow._core import numerics

tfb = tfp.bijectors
tfd = tfp.distributions
IMAGES = small_models.images(6)
LABELS = np.arange(6, dtype=np.int32) % 3
NUM_STEPS = 4

# The other process: for each model it reads the questions, asks them, and writes the answers. Then it does what
# `saved_model_cli` does, which only calls this function with its arguments.
_ELSEWHERE = """
import json
import sys
import numpy as np

class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("tfp_glow", "tensorflow_probability", "keras", "tf_keras"):
      raise ImportError(name + " must not be needed")

import tensorflow as tf
from tensorflow.python.tools import saved_model_cli
sys.meta_path.insert(0, Refuse())
assert "tfp_glow" not in sys.modules
paths, commands = json.loads(sys.argv[1])
for index, path in enumerate(paths):
  inputs = dict(np.load(f"inputs{index}.npz"))
  labels = {"labels": tf.constant(inputs["labels"])} if "labels" in inputs else {}
  model = tf.saved_model.load(path)
  images = tf.constant(inputs["images"])
  results = dict(model.signatures["log_prob"](images=images, **labels))
  results.update(model.signatures["encode"](images=images, **labels))
  results["decoded"] = model.signatures["decode"](latent=results["latent"], **labels)["images"]
  results["samples"] = model.signatures["sample"](
      num_samples=tf.constant(len(inputs["images"])), temperature=tf.constant(.7), seed=tf.constant([1, 2]),
      **labels)["images"]
  results["between"] = model.signatures["interpolate"](
      first=images, second=images[::-1], num_steps=tf.constant(4), **labels)["images"]
  results["default"] = model.signatures["serving_default"](images=images, **labels)["log_prob"]
  np.savez(f"outputs{index}.npz", **{key: value.numpy() for key, value in results.items()})
for command in commands:
  sys.argv = ["saved_model_cli", *command]
  try:
    saved_model_cli.main()
  except SystemExit as ending:
    assert not ending.code
"""


@pytest.fixture(scope="module")
def elsewhere(exported, residual, tmp_path_factory):
  """The folder with another process's answers for the models in their order, and the output of `saved_model_cli`."""
  folder = tmp_path_factory.mktemp("elsewhere")
  np.savez(folder / "inputs0.npz", images=IMAGES, labels=LABELS)
  np.savez(folder / "inputs1.npz", images=IMAGES)
  path = str(residual[1])
  commands = [["show", "--dir", path, "--all"],
              ["run", "--dir", path, "--tag_set", "serve", "--signature_def", "serving_default",
               "--inputs", "images=inputs1.npz[images]", "--outdir", "."]]
  done = subprocess.run([sys.executable, "-c", _ELSEWHERE, json.dumps([[str(exported[1]), path], commands])],
                        capture_output=True, text=True, check=False, cwd=folder,
                        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""})
  assert done.returncode == 0, done.stderr
  return folder, done.stdout


def _live_interpolation(model, first, second, **labels):
  """The expected answers of the signature, by the methods of the live model."""
  z0, z1 = model.encode(first, **labels), model.encode(second, **labels)
  lines = np.swapaxes(tfp_glow.latent.interpolate(z0, z1, NUM_STEPS), 0, 1)
  images = model.decode(lines.reshape(-1, *lines.shape[2:]), **{k: np.repeat(v, NUM_STEPS) for k, v in labels.items()})
  return images.reshape(*lines.shape[:2], *first.shape[1:])


def _trained(**kwargs):
  model = tfp_glow.FlowModel(small_models.distribution(**kwargs), num_bits=8)
  model.adapt(IMAGES)
  for v in model.distribution.trainable_variables:
    if v.shape.num_elements() < 1e5:  # The largest variables of a wide model have random values already.
      v.assign_add(0.05 * tf.random.stateless_normal(v.shape, [1, 2]))
  return model


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
  """A residual flow, and where it was exported to."""
  path = tmp_path_factory.mktemp("residual") / "saved_model"
  flow = tfp_glow.ResidualFlowBijector(small_models.SHAPE, 1, 1, 4, 0, seed=0)
  model = small_models.compiled(tfp_glow.FlowModel(small_models.of_standard_normal(flow)), run_eagerly=True)
  model.fit(IMAGES, batch_size=3, verbose=0)
  model.export(path)
  return model, path


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
  """A model with many parameters, and where it was exported to."""
  path = tmp_path_factory.mktemp("wide") / "saved_model"
  model = _trained(num_steps_per_block=1, num_hidden=2048)
  model.export(path)
  return model, path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A class-conditional model, and where it was exported to, with requests to warm TensorFlow Serving up."""
  pytest.importorskip("tensorflow_serving.apis", reason="an extra, `warm_up`")
  path = tmp_path_factory.mktemp("export") / "saved_model"
  model = _trained(num_steps_per_block=1, num_hidden=4, num_classes=3)
  model.export(path, warm_up_batch_sizes=(1, 3))
  return model, path


@pytest.fixture(scope="module")
def signatures(exported):
  return tf.saved_model.load(str(exported[1])).signatures


def _check_answers(served, model, **labels):
  log_prob = model.log_prob(IMAGES, **labels)
  np.testing.assert_allclose(served["log_prob"], log_prob, rtol=1e-5)
  np.testing.assert_allclose(served["default"], log_prob, rtol=1e-5)
  np.testing.assert_allclose(served["bits_per_dim"], -log_prob / (np.log(2.) * IMAGES[0].size), rtol=1e-5)
  np.testing.assert_allclose(served["latent"], model.encode(IMAGES, **labels), atol=1e-5)
  np.testing.assert_array_equal(served["decoded"], IMAGES)
  np.testing.assert_array_equal(served["samples"], model.sample(6, temperature=0.7, seed=(1, 2), **labels))
  np.testing.assert_array_equal(served["between"], _live_interpolation(model, IMAGES, IMAGES[::-1], **labels))
  np.testing.assert_array_equal(served["between"][:, 0], IMAGES)
  np.testing.assert_array_equal(served["between"][:, -1], IMAGES[::-1])


@pytest.mark.slow
def test_a_process_with_tensorflow_alone_gets_equal_results(exported, residual, elsewhere):
  for index, ((model, _), labels) in enumerate([(exported, {"labels": LABELS}), (residual, {})]):
    _check_answers(np.load(elsewhere[0] / f"outputs{index}.npz"), model, **labels)


@pytest.mark.slow
def test_any_batch_size(exported, signatures):
  model, _ = exported
  for count in (0, 1, 5):
    images, labels = tf.constant(IMAGES[:count]), tf.constant(LABELS[:count])
    answer = signatures["log_prob"](images=images, labels=labels)
    np.testing.assert_allclose(answer["log_prob"], model.log_prob(IMAGES[:count], LABELS[:count]), rtol=1e-5)
    latent = signatures["encode"](images=images, labels=labels)["latent"]
    np.testing.assert_array_equal(signatures["decode"](latent=latent, labels=labels)["images"], IMAGES[:count])
    between = signatures["interpolate"](first=images, second=images, num_steps=tf.constant(2), labels=labels)["images"]
    np.testing.assert_array_equal(between, np.stack([IMAGES[:count]] * 2, axis=1))


@pytest.mark.slow
def test_many_threads_at_once(signatures):
  images, labels = tf.constant(IMAGES), tf.constant(LABELS)
  latent = signatures["encode"](images=images, labels=labels)["latent"]
  calls = {
      "log_prob": {"images": images}, "encode": {"images": images}, "decode": {"latent": latent},
      "sample": {"num_samples": tf.constant(6), "temperature": tf.constant(1.), "seed": tf.constant([0, 1])},
      "interpolate": {"first": images, "second": images[::-1], "num_steps": tf.constant(3)},
      "serving_default": {"images": images}}
  assert calls.keys() == signatures.keys()
  ask = lambda name: {key: value.numpy() for key, value in signatures[name](**calls[name], labels=labels).items()}
  alone = {name: ask(name) for name in calls}
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    # Each thread begins with another request.
    rows = pool.map(lambda i: [(name, ask(name)) for name in np.roll(list(calls), i)], range(8))
    for name, answer in (item for row in rows for item in row):
      for key, value in answer.items():
        np.testing.assert_allclose(value, alone[name][key], rtol=1e-5, atol=1e-5)


_TWO, _LABELS = tf.zeros([2, 4, 4, 2], tf.uint8), {"labels": tf.constant([0, 1])}


def _sampling(num_samples=2, temperature=1., seed=(0, 1), **labels):
  return {"num_samples": tf.constant(num_samples), "temperature": tf.constant(temperature), "seed": tf.constant(seed),
          **(labels or _LABELS)}


_BAD = [
    ("log_prob", {"images": tf.zeros([2, 4, 3, 2], tf.uint8), **_LABELS}, "shape"),
    ("log_prob", {"images": tf.zeros([4, 4, 2], tf.uint8), **_LABELS}, "rank|shape"),
    ("log_prob", {"images": tf.zeros([2, 4, 4, 2]), **_LABELS}, "float|dtype"),
    ("log_prob", _LABELS, "images"),
    ("log_prob", {"images": _TWO}, "labels"),
    ("log_prob", {"images": _TWO, "labels": tf.constant([0, 3])}, r"`labels` must lie in 0 \.\. 2"),
    ("log_prob", {"images": _TWO, "labels": tf.constant([-1, 0])}, r"`labels` must lie in 0 \.\. 2"),
    ("log_prob", {"images": _TWO, "labels": tf.constant([0])}, "`labels` must be one integer for each image"),
    ("encode", {"images": _TWO, "labels": tf.constant([0, 0, 0])}, "`labels` must be one integer for each image"),
    ("encode", {"images": tf.zeros([2, 4, 4, 1], tf.uint8), **_LABELS}, "shape"),
    ("decode", {"latent": tf.zeros([2, 31]), **_LABELS}, "shape"),
    ("decode", {"latent": tf.zeros([2, 32], tf.float64), **_LABELS}, "double|float64"),
    ("decode", {"latent": tf.fill([2, 32], np.nan), **_LABELS}, "must be finite to be uint8"),
    ("sample", _sampling([2]), "shape|rank"),
    ("sample", _sampling(-1), "`num_samples` must be at least 0"),
    ("sample", _sampling(seed=1), "shape|rank"),
    ("sample", _sampling(3), "`labels` must be one integer for each image"),
    ("sample", _sampling(labels=tf.constant([0])), "`labels` must be one integer for each image"),
    ("sample", _sampling(temperature=np.nan), "`temperature` must be finite and at least 0"),
    ("sample", _sampling(temperature=np.inf), "`temperature` must be finite and at least 0"),
    ("sample", _sampling(temperature=-1.), "`temperature` must be finite and at least 0"),
    ("interpolate", {"first": _TWO, "second": _TWO, "num_steps": tf.constant(1), **_LABELS}, "must be at least 2"),
    ("interpolate", {"first": _TWO, "second": tf.zeros([3, 4, 4, 2], tf.uint8), "num_steps": tf.constant(2), **_LABELS},
     "`labels` must be one integer for each image"),
    ("interpolate", {"first": _TWO, "second": _TWO, "num_steps": tf.constant(2), "labels": tf.constant([0])},
     "`labels` must be one integer for each image"),
]


@pytest.mark.slow
def test_a_bad_request_is_an_error_of_tensorflow_and_the_next_one_is_answered(signatures):
  good = lambda: signatures["log_prob"](images=tf.constant(IMAGES), labels=tf.constant(LABELS))["log_prob"].numpy()
  before = good()
  for name, inputs, match in _BAD:
    with pytest.raises((tf.errors.InvalidArgumentError, TypeError, ValueError), match=match):
      signatures[name](**inputs)
  np.testing.assert_array_equal(good(), before)


@pytest.mark.slow
def test_one_image_is_not_paired_with_many(tmp_path):
  tfp_glow.FlowModel(small_models.gaussian()).export(tmp_path / "saved_model")
  signatures = tf.saved_model.load(str(tmp_path / "saved_model")).signatures
  with pytest.raises(tf.errors.InvalidArgumentError, match="`first` and `second` must have the same number of images"):
    signatures["interpolate"](first=_TWO[:1], second=_TWO, num_steps=tf.constant(2))


@pytest.mark.slow
def test_saved_model_cli(residual, elsewhere):
  folder, shown = elsewhere
  for name, inputs in {"log_prob": ["images"], "encode": ["images"], "decode": ["latent"],
                       "sample": ["num_samples", "temperature", "seed"], "serving_default": ["images"],
                       "interpolate": ["first", "second", "num_steps"]}.items():
    signature = shown.split(f"signature_def['{name}']:")[1].split("signature_def")[0]
    assert sorted(line.split("'")[1] for line in signature.splitlines() if "inputs[" in line) == sorted(inputs)
  np.testing.assert_allclose(np.load(folder / "log_prob.npy"), residual[0].log_prob(IMAGES), rtol=1e-5)


# What can be exported.


@pytest.mark.slow
def test_continuous_data(tmp_path):
  model = tfp_glow.FlowModel(small_models.gaussian(), num_bits=None)
  model.export(tmp_path / "saved_model")
  signatures = tf.saved_model.load(str(tmp_path / "saved_model")).signatures
  data = np.random.default_rng(0).normal(size=[6, *small_models.SHAPE]).astype(np.float32)
  np.testing.assert_allclose(signatures["log_prob"](images=tf.constant(data))["log_prob"],
                             model.distribution.log_prob(data), rtol=1e-5)
  between = signatures["interpolate"](
      first=tf.constant(data[:3]), second=tf.constant(data[3:]), num_steps=tf.constant(4))["images"]
  np.testing.assert_allclose(between, _live_interpolation(model, data[:3], data[3:]), atol=1e-5)


@pytest.mark.slow
def test_a_bare_distribution_whose_networks_are_not_built(tmp_path):
  network = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
  flow = tfb.Chain([tfb.Shift(tf.Variable([1., 2., 3., 4.])), tfp_glow.AdditiveCoupling(network, 1)])
  distribution = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [4]), flow)
  export.export_distribution(distribution, tmp_path / "saved_model", num_bits=None)
  assert network.built
  signatures = tf.saved_model.load(str(tmp_path / "saved_model")).signatures
  data = np.random.default_rng(0).normal(size=[5, 4]).astype(np.float32)
  np.testing.assert_allclose(signatures["encode"](images=tf.constant(data))["latent"], flow.inverse(data), atol=1e-5)


@pytest.mark.slow
def test_a_bare_distribution_of_images(tmp_path):
  distribution = small_models.gaussian()
  export.export_distribution(distribution, tmp_path / "saved_model", num_bits=5)
  answer = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["log_prob"](images=tf.constant(IMAGES))
  expected = tfp_glow.FlowModel(distribution, num_bits=5).log_prob(IMAGES)
  np.testing.assert_allclose(answer["log_prob"], expected, rtol=1e-5)


def test_a_distribution_without_latents(tmp_path):
  loc = tf.Variable([1., 2.])
  path = str(tmp_path / "new" / "saved_model")
  export.export_distribution(tfd.Independent(tfd.Normal(loc, 1.), 1), path, num_bits=None)
  signatures = tf.saved_model.load(path).signatures
  assert signatures.keys() == {"log_prob", "sample", "serving_default"}


@pytest.mark.slow
def test_weights_are_stored_once(wide):
  model, path = wide
  stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
  held = sum(v.numpy().nbytes for v in model.distribution.variables)
  assert held < stored < 1.1 * held


@pytest.mark.slow
def test_gradients_are_left_out_of_the_saved_model_alone(wide, tmp_path):
  with_gradients = tf.Module()
  with_gradients.variables_ = list(wide[0].distribution.variables)
  with_gradients.f = tf.function(wide[0].distribution.log_prob, input_signature=[tf.TensorSpec([None, 4, 4, 2])])
  tf.saved_model.save(with_gradients, tmp_path)
  assert b"_gradient_op_type" in (tmp_path / "saved_model.pb").read_bytes()
  assert b"_gradient_op_type" not in (wide[1] / "saved_model.pb").read_bytes()
  x = tf.constant(2. * numerics.MAX_LOG_SCALE)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = numerics.bounded(x)
  assert float(tape.gradient(y, x)) == 1.  # A registered gradient: that of clipping is 0.


# Where it is written.


@pytest.mark.parametrize("path", [None, "", 3, b"saved_model"])
def test_bad_paths(path):
  with pytest.raises(TypeError, match="`path` must be a path.*Received: "):
    tfp_glow.FlowModel(small_models.gaussian()).export(path)


def _everything_in(folder):
  return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["notes.txt", "."])
def test_other_files_are_left_alone(name, tmp_path):
  (tmp_path / "notes.txt").write_text("of yesterday")
  (tmp_path / "saved_model.pb").write_text("another one")
  before = _everything_in(tmp_path)
  with pytest.raises(FileExistsError, match=rf"`path` must be a new or empty folder.*Received: {tmp_path / name}"):
    tfp_glow.FlowModel(small_models.gaussian()).export(tmp_path / name)
  assert _everything_in(tmp_path) == before


@pytest.mark.slow
def test_a_folder_below_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  tfp_glow.FlowModel(small_models.gaussian()).export("~/models/1")
  assert (tmp_path / "models" / "1" / "saved_model.pb").exists()


def test_a_file_in_place_of_the_parent_folder(tmp_path):
  (tmp_path / "notes.txt").write_text("of yesterday")
  with pytest.raises(OSError, match=rf"`path`.*Received: {tmp_path / 'notes.txt' / 'saved_model'}"):
    tfp_glow.FlowModel(small_models.gaussian()).export(tmp_path / "notes.txt" / "saved_model")


@pytest.mark.slow
def test_a_saved_model_is_replaced_as_a_whole_or_not_at_all(tmp_path):
  path = tmp_path / "saved_model"
  path.mkdir()  # An empty folder is enough.
  model = tfp_glow.FlowModel(small_models.gaussian())
  model.export(path, warm_up_batch_sizes=[1])
  assert (path / "assets.extra" / "tf_serving_warmup_requests").exists()
  before = _everything_in(path)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # No file may grow beyond so many bytes.
  try:
    with pytest.raises(OSError, match=rf"(?s)`path` must be a folder that can be written.*Received: {path}"):
      model.export(path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
  assert _everything_in(path) == before and [p.name for p in tmp_path.iterdir()] == ["saved_model"]
  for v in model.distribution.trainable_variables:
    v.assign_add(tf.ones(v.shape))
  model.export(path)
  assert not (path / "assets.extra").exists() and [p.name for p in tmp_path.iterdir()] == ["saved_model"]
  answer = tf.saved_model.load(str(path)).signatures["log_prob"](images=tf.constant(IMAGES))["log_prob"]
  np.testing.assert_allclose(answer, model.log_prob(IMAGES), rtol=1e-5)


# Requests to warm TensorFlow Serving up.


@pytest.mark.slow
def test_warm_up_requests_are_answered(exported, signatures):
  from tensorflow_serving.apis import prediction_log_pb2
  asked = []
  for record in tf.data.TFRecordDataset(str(exported[1] / "assets.extra" / "tf_serving_warmup_requests")):
    request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
    inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
    answer = signatures[request.model_spec.signature_name](**inputs)
    asked += [(request.model_spec.signature_name, len(next(iter(answer.values()))))]
  names = signatures.keys() - {"serving_default"}  # It is another name for `log_prob`.
  assert sorted(asked) == sorted((name, size) for name in names for size in (1, 3))


def test_without_the_package_for_warm_up_requests(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
  with pytest.raises(ImportError, match=r'`warm_up_batch_sizes`.*pip install "tfp_glow\[warm_up\]"'):
    tfp_glow.FlowModel(small_models.gaussian()).export(tmp_path / "saved_model", warm_up_batch_sizes=[1])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [None, 4, [0], [1.5], [True], ["1"]])
def test_bad_warm_up_batch_sizes(sizes, tmp_path):
  with pytest.raises(ValueError, match="`warm_up_batch_sizes` must be positive `int`s. Received: "):
    tfp_glow.FlowModel(small_models.gaussian()).export(tmp_path / "saved_model", warm_up_batch_sizes=sizes)
  assert not list(tmp_path.iterdir())

"""Tests of the callbacks that draw: `SampleGrid`, `LatentInterpolation` and `BitsPerDimCurve`."""

import csv
import importlib.util
import shutil
import sys

import distributed_runs
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
from PIL import Image

import tfp_glow
from tfp_glow import callbacks, pictures
from tfp_glow.training import replicas

SHAPE = (4, 4, 1)
IMAGES = small_models.images(24, SHAPE)


def _model(optimizer=None, **kwargs):
  distribution = (small_models.distribution(SHAPE, num_steps_per_block=1, **kwargs) if kwargs
                  else small_models.gaussian(SHAPE))
  return small_models.compiled(tfp_glow.FlowModel(distribution), optimizer, run_eagerly=True)


def _fit(*chosen, model=None, epochs=2, **kwargs):
  model = model or _model()
  model.fit(IMAGES, batch_size=24, shuffle=False, epochs=epochs, verbose=0, callbacks=list(chosen), **kwargs)
  return model


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def _picture(path):
  """As an array [H, W, C]."""
  with Image.open(path) as image:
    assert image.format == "PNG"
    return np.asarray(image).reshape(image.height, image.width, -1)


def _make_all(folder):
  return [callbacks.SampleGrid(folder), callbacks.LatentInterpolation(folder, IMAGES[:2]),
          callbacks.BitsPerDimCurve(folder)]


# Samples.


@pytest.mark.slow
def test_samples_of_each_epoch_are_from_the_same_noise(tmp_path):
  model = _model()
  sample = lambda: [model.sample(3, temperature, seed=5) for temperature in (0.5, 1.)]
  before = sample()
  _fit(callbacks.SampleGrid(tmp_path / "new" / "folder", [0.5, 1.], num_columns=3, seed=5), model=model)
  folder = tmp_path / "new" / "folder"
  assert _names(folder) == [f"samples_{epoch:04}.png" for epoch in range(3)]
  np.testing.assert_array_equal(_picture(folder / "samples_0000.png"), pictures.tile(before))
  np.testing.assert_array_equal(_picture(folder / "samples_0002.png"), pictures.tile(sample()))
  assert (_picture(folder / "samples_0001.png") != _picture(folder / "samples_0002.png")).any()


def test_samples_of_an_unchanged_model_stay(tmp_path):
  _fit(callbacks.SampleGrid(tmp_path), model=_model(keras.optimizers.SGD(0.)))
  first, *others = [_picture(path) for path in sorted(tmp_path.iterdir())]
  for other in others:
    np.testing.assert_array_equal(first, other)


@pytest.mark.slow
def test_training_is_the_same_without_callbacks(tmp_path):
  drawn, plain = _fit(*_make_all(tmp_path)), _fit()
  for a, b in zip(small_models.weights_of(drawn), small_models.weights_of(plain), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_class_conditional_model_has_a_row_for_each_class(tmp_path):
  model, labels = _model(keras.optimizers.SGD(0.), num_classes=3), np.arange(24) % 3
  model.adapt((IMAGES, labels))
  class_kernel = model.distribution.bijector.top.class_kernel  # Zero until it is trained.
  class_kernel.assign(np.random.default_rng(0).normal(size=class_kernel.shape))
  model.fit(IMAGES, labels, batch_size=24, epochs=1, verbose=0, callbacks=[
      callbacks.SampleGrid(tmp_path / "all", [0.7, 1.], num_columns=2),
      callbacks.SampleGrid(tmp_path / "two", [1.], num_columns=2, labels=[2, 0]),
      callbacks.LatentInterpolation(tmp_path / "ways", IMAGES[:2], labels[:2], num_steps=3)])
  rows = [[model.sample(2, temperature, label, seed=0) for label in range(3)] for temperature in (0.7, 1.)]
  np.testing.assert_array_equal(_picture(tmp_path / "all" / "samples_0001.png"), pictures.tile(rows[0] + rows[1]))
  np.testing.assert_array_equal(_picture(tmp_path / "two" / "samples_0001.png"),
                                pictures.tile([rows[1][2], rows[1][0]]))
  assert (rows[0][0] != rows[0][1]).any()
  ends = _picture(tmp_path / "ways" / "interpolations_0001.png")
  np.testing.assert_array_equal(ends, pictures.tile([model.decode(np.linspace(
      *model.encode(IMAGES[:2], labels[:2]), 3), np.array([0, 0, 1]))]))


@pytest.mark.slow
def test_only_the_first_ten_of_many_classes_are_drawn(tmp_path):
  model = _model(num_classes=12)
  model.fit(IMAGES, np.arange(24) % 12, batch_size=24, verbose=0, callbacks=[
      callbacks.SampleGrid(tmp_path, [1.], num_columns=2)])
  assert _picture(tmp_path / "samples_0001.png").shape == pictures.tile([IMAGES[:2]] * 10).shape


# Interpolations.


def test_interpolations_lead_from_image_to_image(tmp_path):
  model = _fit(callbacks.LatentInterpolation(tmp_path, tf.constant(IMAGES[:3]), num_steps=5))
  assert _names(tmp_path) == [f"interpolations_{epoch:04}.png" for epoch in range(3)]
  z = model.encode(IMAGES[:3])
  rows = [model.decode(np.linspace(start, end, 5)) for start, end in zip(z[:-1], z[1:])]
  np.testing.assert_array_equal([row[0] for row in rows], IMAGES[:2])
  np.testing.assert_array_equal([row[-1] for row in rows], IMAGES[1:3])
  np.testing.assert_array_equal(_picture(tmp_path / "interpolations_0002.png"), pictures.tile(rows))


@pytest.mark.parametrize("num_steps, expected", [(4, [0, 0, 1, 1]), (5, [0, 0, 0, 1, 1])])
def test_labels_along_an_interpolation_are_those_of_the_nearer_end(tmp_path, monkeypatch, num_steps, expected):
  seen = []
  model = _model()
  monkeypatch.setattr(model, "encode", lambda images, labels: np.zeros([3, *SHAPE], np.float32))
  monkeypatch.setattr(model, "decode", lambda z, labels: seen.append(labels) or np.zeros([len(z), *SHAPE], np.uint8))
  _fit(callbacks.LatentInterpolation(tmp_path, IMAGES[:3], [0, 1, 2], num_steps), model=model, epochs=1)
  np.testing.assert_array_equal(seen[-1].reshape(num_steps, 2).T, [expected, np.add(expected, 1)])


# Names, and TensorBoard.


@pytest.mark.slow
def test_a_resumed_run_continues_the_names(tmp_path):
  model = _fit(*_make_all(tmp_path))
  before = _picture(tmp_path / "samples_0002.png")
  (tmp_path / "samples_0002.png").unlink()
  _fit(*_make_all(tmp_path), model=model, initial_epoch=2, epochs=4)
  assert [name for name in _names(tmp_path) if name.startswith("samples")] == [
      f"samples_{epoch:04}.png" for epoch in range(5)]
  assert [name for name in _names(tmp_path) if name.startswith("interpolations")] == [
      f"interpolations_{epoch:04}.png" for epoch in range(5)]
  np.testing.assert_array_equal(_picture(tmp_path / "samples_0002.png"), before)


@pytest.mark.slow
def test_pictures_now_and_then(tmp_path):
  _fit(callbacks.SampleGrid(tmp_path, every=3), epochs=7)
  assert _names(tmp_path) == ["samples_0000.png", "samples_0003.png", "samples_0006.png"]


@pytest.mark.slow
def test_tensorboard_has_the_pictures(tmp_path):
  accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  folder, log_dir = tmp_path / "folder", tmp_path / "logs"
  _fit(callbacks.SampleGrid(folder, log_dir=log_dir),
       callbacks.LatentInterpolation(folder, IMAGES[:2], log_dir=log_dir / "ways"))
  for path, name in ((log_dir, "samples"), (log_dir / "ways", "interpolations")):
    accumulator = accumulators.EventAccumulator(str(path), size_guidance={accumulators.TENSORS: 0}).Reload()
    assert accumulator.Tags()["tensors"] == [name]
    events = accumulator.Tensors(name)
    assert [event.step for event in events] == [0, 1, 2]
    for event in events:
      found = tf.io.decode_png(event.tensor_proto.string_val[2]).numpy()  # After width and height.
      np.testing.assert_array_equal(found, _picture(folder / f"{name}_{event.step:04}.png"))


# The curve.


def _table(folder):
  with (folder / "bits_per_dim.csv").open(newline="") as file:
    return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def _lines(curve):
  """Dict from the labels of the picture's legend to the points of their curves."""
  axes, = curve._figure.axes
  return {line.get_label(): list(zip(*line.get_data())) for line in axes.lines
          if line.get_label() in {text.get_text() for text in axes.get_legend().get_texts()}}


@pytest.mark.slow
def test_curve_is_that_of_training_and_validation(tmp_path):
  curve = callbacks.BitsPerDimCurve(tmp_path)
  history = _fit(curve, validation_data=(IMAGES[:8],)).history.history
  assert _names(tmp_path) == ["bits_per_dim.csv", "bits_per_dim.png"]
  expected = {"training": history["bits_per_dim"], "validation": history["val_bits_per_dim"]}
  drawn = _lines(curve)
  assert drawn.keys() == expected.keys()
  for label, values in expected.items():
    np.testing.assert_allclose(drawn[label], list(enumerate(values, start=1)), rtol=1e-6)
  np.testing.assert_allclose([list(row.values()) for row in _table(tmp_path)],
                             [[1., *next(zip(*expected.values()))], [2., *list(zip(*expected.values()))[1]]], rtol=1e-6)
  assert _picture(tmp_path / "bits_per_dim.png").shape[:2] == (500, 800)


@pytest.mark.slow
def test_curve_without_validation_or_with_some(tmp_path):
  curve = callbacks.BitsPerDimCurve(tmp_path)
  _fit(curve, epochs=1)
  assert [row.keys() for row in _table(tmp_path)] == [{"epoch", "bits_per_dim"}]
  _fit(curve, epochs=4, validation_data=(IMAGES[:8],), validation_freq=3)
  drawn = _lines(curve)
  assert [epoch for epoch, _ in drawn["training"]] == [1, 2, 3, 4]
  assert [epoch for epoch, _ in drawn["validation"]] == [3]


@pytest.mark.slow
def test_curve_goes_on_or_begins_anew(tmp_path):
  _fit(callbacks.BitsPerDimCurve(tmp_path), epochs=3)
  before = _table(tmp_path)
  _fit(callbacks.BitsPerDimCurve(tmp_path), initial_epoch=2, epochs=4)  # The third epoch had not been kept.
  after = _table(tmp_path)
  assert [row["epoch"] for row in after] == [1, 2, 3, 4] and after[:2] == before[:2] and after[2] != before[2]
  _fit(callbacks.BitsPerDimCurve(tmp_path), epochs=1)
  assert _table(tmp_path) == before[:1]


# The chief alone.


def test_other_workers_leave_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(replicas, "is_chief", lambda strategy: False)
  model = _model()
  monkeypatch.setattr(model, "sample", None)
  _fit(*_make_all(tmp_path / "folder"), model=model)
  assert not (tmp_path / "folder").exists()


@pytest.mark.slow
def test_replicas(tmp_path):
  with distributed_runs.mirrored(2).scope():
    model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(SHAPE)))
  model.fit(IMAGES, batch_size=8, epochs=1, verbose=0, callbacks=_make_all(tmp_path))
  np.testing.assert_array_equal(
      _picture(tmp_path / "samples_0001.png"), pictures.tile([model.sample(8, t, seed=0) for t in (0.7, 1.)]))
  assert len(_names(tmp_path)) == 6


# Errors: all of them before training.


@pytest.mark.parametrize("make, error, match", [
    (lambda: callbacks.SampleGrid("x", temperatures=[]), ValueError, r"`temperatures` must be a list.*Received: \[\]"),
    (lambda: callbacks.SampleGrid("x", temperatures=0.7), ValueError, "`temperatures`.*Received: 0.7"),
    (lambda: callbacks.SampleGrid("x", num_columns=0), ValueError, "`num_columns` must be a positive.*Received: 0"),
    (lambda: callbacks.SampleGrid("x", labels=[]), ValueError, r"`labels` must be a list.*Received: \[\]"),
    (lambda: callbacks.SampleGrid("x", seed=None), ValueError, "`seed` must not be None"),
    (lambda: callbacks.SampleGrid("x", every=0), ValueError, "`every` must be a positive `int`. Received: every=0"),
    (lambda: callbacks.SampleGrid("x", temperatures="1"), ValueError, "`temperatures`.*Received: '1'"),
    (lambda: callbacks.SampleGrid("x", labels=3), ValueError, "`labels` must be a list.*Received: 3"),
    (lambda: callbacks.SampleGrid("x", labels="abc"), ValueError, "`labels` must be a list.*Received: 'abc'"),
    (lambda: callbacks.SampleGrid(None), TypeError, "`folder` must be a path.*Received: None"),
    (lambda: callbacks.BitsPerDimCurve(3), TypeError, "`folder` must be a path.*Received: 3"),
    (lambda: callbacks.TrainingState(None), TypeError, "`folder` must be a path.*Received: None"),
    (lambda: callbacks.TrainingState("x", {"a": {1}}), TypeError, r"`settings` must be.*Received: \{'a': \{1\}\}"),
    (lambda: callbacks.TimeLimit("a"), ValueError, "`seconds` must be positive. Received: seconds='a'"),
    (lambda: callbacks.LatentInterpolation("x", IMAGES, [1]), ValueError, r"`labels` must be 24.*Received: \[1\]"),
    (lambda: callbacks.LatentInterpolation("x", IMAGES, num_steps=1), ValueError, "`num_steps` must be an `int`"),
    (lambda: callbacks.LatentInterpolation("x", IMAGES[:1]), ValueError, "`images` must be two images.*Received"),
    (lambda: callbacks.LatentInterpolation("x", IMAGES[0]), ValueError, "`images`.*Received: shape"),
    (lambda: callbacks.LatentInterpolation("x", IMAGES, every=1.5), ValueError, "`every`.*Received: every=1.5"),
])
def test_bad_arguments(make, error, match):
  with pytest.raises(error, match=match):
    make()


def _continuous():
  return small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(SHAPE), num_bits=None), run_eagerly=True)


@pytest.mark.parametrize("make, make_model, error, match", [
    (lambda d: callbacks.SampleGrid(d, [0.7, -1.]), _model, ValueError, "`temperature` must be .*Received: -1"),
    (lambda d: callbacks.SampleGrid(d, labels=[0]), _model, ValueError, "`labels` must be None"),
    (lambda d: callbacks.SampleGrid(d, seed="a"), _model, ValueError, "`seed` must be"),
    (lambda d: callbacks.LatentInterpolation(d, IMAGES / 255), _model, TypeError, "`images` must be uint8.*float64"),
    (lambda d: callbacks.LatentInterpolation(d, IMAGES[:, :3]), _model, ValueError, "`images` must have shape"),
    (callbacks.SampleGrid, _continuous, ValueError, "`model` must be of uint8 or uint16 images.*num_bits=None"),
])
def test_bad_models(tmp_path, make, make_model, error, match):
  model = make_model()
  images = IMAGES if model.num_bits else IMAGES.astype(np.float32)
  before = small_models.weights_of(model)
  with pytest.raises(error, match=match):
    model.fit(images, batch_size=8, verbose=0, callbacks=[make(tmp_path)])
  for a, b in zip(before, small_models.weights_of(model), strict=True):
    np.testing.assert_array_equal(a, b)


def test_two_channels_cannot_be_drawn(tmp_path):
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), run_eagerly=True)
  with pytest.raises(ValueError, match="`model` must be .* 1 or 3 channels.*Received: num_bits=8, 2 channels"):
    model.fit(small_models.images(), verbose=0, callbacks=[callbacks.SampleGrid(tmp_path)])


@pytest.mark.parametrize("index", range(3))
def test_other_models(tmp_path, index):
  model = keras.Sequential([keras.layers.Dense(1)])
  model.compile("sgd", "mse")
  with pytest.raises(TypeError, match="`model` must be a `FlowModel`. Received: <Sequential"):
    model.fit(np.ones([4, 1]), np.ones([4, 1]), verbose=0, callbacks=[_make_all(tmp_path)[index]])


@pytest.mark.parametrize("index", range(3))
def test_a_bad_folder(tmp_path, index):
  (tmp_path / "file").write_text("")
  for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
    with pytest.raises(OSError, match=f"`folder` must be one that files can be written to.*Received: {folder}$"):
      _fit(_make_all(folder)[index])


def test_a_bad_log_dir(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=f"`log_dir` must be a folder.*Received: {tmp_path / 'file'}$"):
    _fit(callbacks.SampleGrid(tmp_path, log_dir=tmp_path / "file"))


@pytest.mark.parametrize("content", ["epoch,bits\n1,2.0\n", "epoch,bits_per_dim,val_bits_per_dim\none,2.0,\n", "\xff"])
def test_a_damaged_table(tmp_path, content):
  (tmp_path / "bits_per_dim.csv").write_text(content + "1,2,3\n", encoding="latin-1")
  with pytest.raises(ValueError, match=f"`folder` must hold the table of an earlier run.*Received: {tmp_path}$"):
    _fit(callbacks.BitsPerDimCurve(tmp_path))
  assert (tmp_path / "bits_per_dim.csv").read_text(encoding="latin-1").startswith(content)


@pytest.mark.slow
def test_a_folder_that_is_lost_is_a_warning(tmp_path):
  lose = keras.callbacks.LambdaCallback(
      on_epoch_begin=lambda epoch, logs: shutil.rmtree(tmp_path / "folder") if epoch == 1 else None)
  with pytest.warns(RuntimeWarning, match="after epoch 2 is missing in .*folder.*Training goes on") as warned:
    model = _fit(*_make_all(tmp_path / "folder"), lose)
  assert {str(warning.message).split()[1] for warning in warned} == {
      "SampleGrid", "LatentInterpolation", "BitsPerDimCurve"}
  assert model.optimizer.iterations.numpy() == 2


@pytest.mark.slow
def test_event_files_that_cannot_be_written_are_a_warning(tmp_path):
  grid = callbacks.SampleGrid(tmp_path / "folder", log_dir=tmp_path / "logs")

  def fail():
    raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

  spoil = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(grid._writer, "flush", fail))
  with pytest.warns(RuntimeWarning, match="SampleGrid writes after epoch 1 is missing.*No space left"):
    assert _fit(grid, spoil, epochs=1).optimizer.iterations.numpy() == 1


@pytest.mark.slow
def test_event_files_of_a_run_that_failed_are_closed(tmp_path):
  grid = callbacks.SampleGrid(tmp_path / "folder", log_dir=tmp_path / "logs")
  writers = []

  def fail(epoch, logs):
    writers.append(grid._writer)
    raise RuntimeError("of something else")

  with pytest.raises(RuntimeError, match="of something else"):
    _fit(grid, keras.callbacks.LambdaCallback(on_epoch_end=fail))
  _fit(grid, epochs=1)
  with pytest.raises(RuntimeError, match="already closed"):
    writers[0].flush()
    writers[0].init()


def test_a_table_is_written_as_a_whole(tmp_path, monkeypatch):
  _fit(callbacks.BitsPerDimCurve(tmp_path))
  before = (tmp_path / "bits_per_dim.csv").read_text()

  def fail(self, rows):
    raise OSError("No space left on device")

  monkeypatch.setattr(csv.DictWriter, "writerows", fail)
  with pytest.raises(OSError, match="`folder` must be one that files can be written to.*No space left"):
    _fit(callbacks.BitsPerDimCurve(tmp_path))
  assert (tmp_path / "bits_per_dim.csv").read_text() == before


def test_libraries_that_are_missing(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  with pytest.raises(ImportError, match="needs Matplotlib.*pip install matplotlib"):
    callbacks.BitsPerDimCurve(tmp_path)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ImportError, match="`log_dir` needs TensorBoard.*pip install tensorboard.*Received: log_dir="):
    callbacks.SampleGrid(tmp_path, log_dir=tmp_path)
  callbacks.SampleGrid(tmp_path)

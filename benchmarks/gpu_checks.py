"""The parts of `gpu.py` that check numbers: `checks`, `exactness`, `finite`."""

import dataclasses
import functools
import json
import pathlib
import sys
import time

import gpu_common as common
import keras
import numpy as np
import tensorflow as tf
from gpu_common import PRECISIONS, machine  # noqa: F401  For `gpu_worker.py`.

import tfp_glow
from tfp_glow import dequantize

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests"))
import reference_models

# Bounds of the objective's relative error, and of absolute errors of latents and decoded images. For float32, twice
# those of `tests/test_original.py`, as a GPU sums in another order; then those for operands of 10 bits.
_TOLERANCES = {"float32": (2e-6, 2e-5, 2e-5), "TF32": (1e-3, 3e-2, 3e-2)}
_LEARNING_RATE = 1e-3
_TRAINING_SECONDS = 20.  # At most, for the model that encodes and decodes.


def checks(session):
  """Compares with numbers of the original code."""
  for name in "abd":
    path = pathlib.Path(session.reference) / f"{name}.npz"
    for precision in _TOLERANCES:
      yield f"reference {name}, {precision}", lambda path=path, precision=precision: _check(session, path, precision)


def _check(session, path, precision):
  if not path.exists():
    session.notes.append(f"left out, because there is no {path}: `--reference` names the folder")
    return {}
  common.switch(precision)
  with np.load(path) as file:
    reference = dict(file)
  glow = reference_models.make_glow(reference)
  labels = reference_models.labels_of(reference, glow)
  log_prob = reference_models.make_distribution(glow).log_prob(reference["xz"], bijector_kwargs=labels)
  objective = log_prob.numpy() + reference["objective_const"]
  parts = glow.split_latent(glow.inverse(reference["xz"], **labels))
  z = glow.join_latent([reference[f"given_eps/{level}"] for level in range(3)])
  errors = (np.max(np.abs(objective / reference["objective"] - 1.)),
            max(np.max(np.abs(part - reference[f"eps/{level}"])) for level, part in enumerate(parts)),
            np.max(np.abs(glow.forward(z, **labels) - reference["decoded"])))
  columns = {}
  for what, error, tolerance in zip(("objective", "latents", "decoded"), errors, _TOLERANCES[precision]):
    columns |= {what: float(error), f"at most, {what}": tolerance}
  columns["right"] = all(error <= tolerance for error, tolerance in zip(errors, _TOLERANCES[precision]))
  columns["right as float32"] = all(error <= tolerance for error, tolerance in zip(errors, _TOLERANCES["float32"]))
  return {f"reference {path.stem}, {precision}": columns}


def exactness_trips(session):
  """Trains a model, also for the next two parts; encodes and decodes images with it in each precision."""
  trained = _Trained(session)
  yield "training", trained.train
  for name in ("float32", "bfloat16") if session.tiny else PRECISIONS:
    yield f"{name}, model", functools.partial(trained.round_trip, name, "model")
    yield f"{name}, tf.function", functools.partial(trained.round_trip, name, "tf.function")
  for precision in ("float32",) if session.tiny else ("TF32", "bfloat16", "float32"):
    yield f"{precision}, XLA", functools.partial(trained.round_trip, precision, "XLA")


def exactness_unusual(session):
  """Encodes and decodes with a residual flow, with unusual images, with the networks of training, and eagerly."""
  yield "residual flow", functools.partial(_residual_flow, session)
  trained = _Trained(session)
  yield "constant images and noise, TF32", functools.partial(trained.unusual_images, "TF32")
  for name in ("float32",) if session.tiny else ("TF32", "bfloat16"):
    yield f"{name}, as in training", functools.partial(trained.round_trip, name, "as in training")
  yield "TF32, eager", functools.partial(trained.round_trip, "TF32", "eager")


def exactness_gradients(session):
  """Checks the gradients of `gradient="reversible"`, in each precision."""
  trained = _Trained(session)
  for precision in ("float32",) if session.tiny else PRECISIONS:
    yield f"{precision}, gradients", functools.partial(trained.reversible_gradients, precision)


class _Trained:
  """A model that one process trains for a while, and that this or another process rebuilds in each precision."""

  def __init__(self, session):
    architecture = common.Architecture((32, 32, 1), num_steps=32, num_hidden=32, batch_size=64)
    if session.tiny:
      architecture = dataclasses.replace(common.TINY, image_shape=(4, 4, 1))
    self._session = session
    self._architecture = architecture
    self._path = session.folder / "trained.npz"
    self._expected = None
    size = architecture.batch_size
    found = common.images(size * 33, architecture.image_shape, session.data)
    self._train_images, self._images = found[size:], found[:size]

  def train(self):
    """Trains in TensorFloat-32, TensorFlow's default."""
    architecture = self._architecture
    common.switch("TF32")
    model = common.make_model(common.make_glow(architecture, "TF32"), architecture.num_dims,
                              learning_rate=_LEARNING_RATE)
    data = tf.data.Dataset.from_tensor_slices(self._train_images).repeat().batch(architecture.batch_size)
    model.fit(data, steps_per_epoch=1, verbose=0)
    start = time.perf_counter()
    stop = lambda batch, logs: setattr(model, "stop_training", time.perf_counter() - start > _TRAINING_SECONDS)
    model.fit(data, steps_per_epoch=4 if self._session.tiny else 200, verbose=0,
              callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=stop)])
    temporary = self._path.with_suffix(".new.npz")
    np.savez(temporary, *[v.numpy() for v in model.distribution.bijector.variables])
    temporary.replace(self._path)
    return {f"trained: {architecture}": {"steps": int(model.optimizer.iterations),
                                         "bits per dim": float(model.history.history["bits_per_dim"][-1])}}

  @functools.cached_property
  def _weights(self):
    """Waits for the weights."""
    while not self._path.exists():
      if self._session.left() < 0.:
        raise TimeoutError("no model has been trained yet")
      time.sleep(0.2)
    with np.load(self._path) as file:
      return list(file.values())

  def _model(self, precision, dtype=None, gradient="autodiff"):
    glow = common.make_glow(self._architecture, precision, gradient, dtype)
    for variable, value in zip(glow.variables, self._weights):
      variable.assign(tf.cast(value, variable.dtype))
    return common.make_model(glow, self._architecture.num_dims)

  def _need(self):
    """The log-densities of the images in float64."""
    if self._expected is None:
      x = dequantize.dequantize(tf.constant(self._images), 8, 0.5, tf.float64)
      model = self._model("float32", tf.float64)
      self._expected = tf.function(model.distribution.log_prob, autograph=False)(x).numpy()
    return self._expected

  def round_trip(self, precision, mode):
    """Encodes and decodes by the model, by its bijector (eagerly, in a function, with XLA), or `"as in training"`."""
    expected = self._need()
    common.switch(precision)
    model = self._model(precision)
    glow = model.distribution.bijector
    x = dequantize.dequantize(tf.constant(self._images), 8, 0.5)
    if mode == "model":
      z = np.asarray(model.encode(self._images))
      decoded = model.decode(z)
      # A density of the values, like the others: a probability of pixels also has the size of their bins.
      log_prob = model.log_prob(self._images) - dequantize.discrete_log_prob(0., self._architecture.num_dims, 8)
    else:
      compiled = (lambda f: f) if mode == "eager" else functools.partial(
          tf.function, autograph=False, jit_compile=mode == "XLA")
      training = mode == "as in training"
      z, log_det = compiled(lambda x: glow.inverse_and_log_det(x, training=training))(x)
      decoded = dequantize.quantize(compiled(lambda z: glow.forward_and_log_det(z, training=training)[0])(z), 8)
      log_prob = model.distribution.distribution.log_prob(z) + log_det
    difference = np.abs(np.asarray(decoded, np.int64) - self._images)
    shift = np.abs(np.asarray(log_prob) - expected)
    return {f"{precision}, {mode}": {
        "changed": int((difference > 0).sum()), "of": int(difference.size), "by up to": int(difference.max()),
        "log-prob moved from float64's by up to, nats": float(shift.max())}}

  def unusual_images(self, precision):
    """Encodes and decodes constant images and noise."""
    common.switch(precision)
    model = self._model(precision)
    rows = {}
    shape = self._images.shape
    for name, batch in {"noise": np.random.default_rng(0).integers(0, 256, shape, np.uint8),
                        **{f"constant {value}": np.full(shape, value, np.uint8) for value in (0, 127, 255)}}.items():
      difference = np.abs(np.asarray(model.decode(model.encode(batch)), np.int64) - batch)
      rows[f"{name}, {precision}"] = {"changed": int((difference > 0).sum()), "of": int(difference.size),
                                      "by up to": int(difference.max())}
    return rows

  def reversible_gradients(self, precision):
    """Errors of the loss's gradients: of `gradient="reversible"` against autodiff, and of autodiff against float32."""
    found = {"float32": self._gradients("float32", "autodiff"), "autodiff": self._gradients(precision, "autodiff"),
             "reversible": self._gradients(precision, "reversible")}
    norm = np.linalg.norm
    return {f"gradients, {precision}": {
        "reversible from autodiff": float(norm(found["reversible"] - found["autodiff"]) / norm(found["autodiff"])),
        "autodiff from float32's": float(norm(found["autodiff"] - found["float32"]) / norm(found["float32"]))}}

  @functools.lru_cache(None)  # noqa: B019  There is only one object.
  def _gradients(self, precision, gradient):
    common.switch(precision)
    distribution = self._model(precision, gradient=gradient).distribution

    @functools.partial(tf.function, autograph=False)
    def gradients(x):
      with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(distribution.log_prob(x, bijector_kwargs={"training": True}))
      return [tf.convert_to_tensor(d) for d in tape.gradient(loss, distribution.trainable_variables)]

    x = dequantize.dequantize(tf.constant(self._images[:16]), 8, 0.5)
    return np.concatenate([np.ravel(d) for d in gradients(x)]).astype(np.float64)


def _residual_flow(session):
  """Inverts a residual flow by fixed-point iterations in TensorFloat-32."""
  shape, count, hidden = ((4, 4, 1), 8, 8) if session.tiny else ((16, 16, 1), 64, 128)
  batch = common.images(count, shape, session.data)
  flow = tfp_glow.ResidualFlowBijector(
      shape, num_scales=1, num_blocks_per_scale=1 if session.tiny else 16, num_hidden=hidden,
      num_dense_blocks=1, num_dense_hidden=hidden, seed=0)
  common.switch("float32")
  flow.initialize(dequantize.dequantize(tf.constant(batch), 8, 0.5))
  for variable in flow.trainable_variables:
    if "kernel" in variable.name:
      variable.assign(3. * variable)  # As after a training, they reach their bounds.
  flow.after_update()
  rows = {}
  for precision in ("float32", "TF32"):
    common.switch(precision)
    z = tf.function(flow.inverse, autograph=False)(dequantize.dequantize(tf.constant(batch), 8, 0.5)).numpy()
    back = tf.function(flow.forward, autograph=False)(z).numpy()
    difference = np.abs(np.asarray(dequantize.quantize(np.nan_to_num(back), 8), np.int64) - batch)
    rows[f"residual flow, {precision}"] = {
        "changed": int((difference > 0).sum()), "of": int(difference.size), "by up to": int(difference.max()),
        "NaN of": int(np.isnan(back).sum())}
  return rows


def finite(session):
  """Short trainings."""
  pairs = [("TF32", "reversible"), ("bfloat16", "autodiff"), ("float32", "autodiff"), ("TF32", "autodiff"),
           ("bfloat16", "reversible"), ("float32", "reversible")]
  for precision, gradient in pairs[:1 if session.tiny else None]:
    yield f"{precision}, {gradient}", functools.partial(_train, session, precision, gradient)


def _train(session, precision, gradient):
  """A training with the guards and the warm-up of the examples."""
  architecture = common.TINY if session.tiny else common.Architecture((16, 16, 3), 2, 8, 128, 64)
  num_steps = 4 if session.tiny else 100
  common.switch(precision)
  model = common.make_model(common.make_glow(architecture, precision, gradient), architecture.num_dims)
  rate = keras.optimizers.schedules.PolynomialDecay(1e-5, max(num_steps // 4, 1), end_learning_rate=_LEARNING_RATE)
  model.compile(keras.optimizers.Adam(rate, global_clipnorm=100.))
  size = architecture.batch_size
  found = common.images(size * 8, architecture.image_shape)
  data = tf.data.Dataset.from_tensor_slices(found).repeat().batch(size)
  history = model.fit(data, steps_per_epoch=num_steps // 4, epochs=4, verbose=0).history["bits_per_dim"]
  test = model.evaluate(data.take(2), verbose=0, return_dict=True)["bits_per_dim"]
  samples = np.asarray(model.sample(size, seed=0))
  return {f"{precision}, {gradient}": {
      "steps": num_steps, "bits per dim, first quarter": float(history[0]), "last quarter": float(history[-1]),
      "evaluate": float(test), "finite": bool(np.all(np.isfinite(history)) and np.isfinite(test)),
      "samples": json.dumps(list(samples.shape))}}

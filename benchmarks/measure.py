"""Makes one measurement of one system in this process; prints the result as a line of JSON.

`run.py`, `health.py` and `serving.py` call it.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import re
import statistics
import time

import numpy as np
import residual_systems
import systems

_MAKERS = {**systems.MAKERS, **residual_systems.MAKERS}
_WARM_UP_CALLS = 3
# Files that `export` writes.
_KERAS_FILE, _SAVED_MODEL = "model.keras", "saved_model"


def main():
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("system", choices=(*_MAKERS, "SavedModel"))
  parser.add_argument("measurement", choices=tuple(_MEASUREMENTS))
  parser.add_argument("--calls", type=int, default=10, help="timed calls (%(default)s)")
  stress = parser.add_argument_group("for `health`, where `--calls` are the training steps")
  stress.add_argument("--kinds", nargs="+", default=["real", "constant", "extreme"], help="images (%(default)s)")
  stress.add_argument("--bits", nargs="+", type=int, default=[1, 8], help="bits of the images (%(default)s)")
  stress.add_argument("--rates", nargs="+", type=float, default=[1e-4, 1e-3, 1e-2, 3e-2], help="(%(default)s)")
  stress.add_argument("--seeds", type=int, default=3, help="trainings of each setting (%(default)s)")
  parser.add_argument("--seconds", type=float, default=120., help="seconds of training, for `quality` (%(default)s)")
  parser.add_argument("--folder", type=pathlib.Path, help="folder that `export` writes, and `load` and `latency` read")
  parser.add_argument("--replicas", type=int, default=1, help="logical devices, for `replicas` (%(default)s)")
  for field in dataclasses.fields(systems.Architecture):
    if field.name != "image_shape":
      parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
  args = parser.parse_args()
  image_shape = {"quality": (32, 32, 1), "invertibility": (32, 32, 1), "health": (8, 8, 1)}.get(
      args.measurement, (32, 32, 3))
  fields = {field.name: getattr(args, field.name, image_shape) for field in dataclasses.fields(systems.Architecture)}
  print(json.dumps(_MEASUREMENTS[args.measurement](args, systems.Architecture(**fields))))


def _speed(args, architecture):
  """Milliseconds of a training step, `log_prob` and sampling: medians of calls in turn."""
  system = _MAKERS[args.system](architecture)
  images = architecture.images()
  calls = {"step": lambda: system.step(images), "log_prob": lambda: system.log_prob(images), "sample": system.sample}
  times = {name: [] for name in calls}
  for index in range(_WARM_UP_CALLS + args.calls):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      if index >= _WARM_UP_CALLS:
        times[name].append(1e3 * (time.perf_counter() - start))
  return {name: statistics.median(values) for name, values in times.items()}


def _start(args, architecture):
  """Seconds from construction to the end of the first training step, without imports, and seconds of a later step."""
  images = architecture.images()
  _import(args.system)
  start = time.perf_counter()
  system = _MAKERS[args.system](architecture)
  system.step(images)
  first = time.perf_counter()
  system.step(images)
  return {"first_step": first - start, "later_step": time.perf_counter() - first}


def _replicas(args, architecture):
  """From the start of `fit` to the end of its first step: seconds, CPU seconds, and peak MiB."""
  import keras
  import tensorflow as tf

  import tfp_glow
  if args.replicas > 1:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * args.replicas)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(args.replicas)])
  else:
    strategy = tf.distribute.get_strategy()
  with strategy.scope():
    model = tfp_glow.FlowModel(tfp_glow.GlowBijector(
        architecture.image_shape, architecture.num_levels, architecture.num_steps, architecture.num_hidden,
        gradient=architecture.gradient, seed=0))
    model.compile(keras.optimizers.Adam(architecture.learning_rate))
  images = _uint8_images(architecture)
  model.adapt(images)
  start, found = (time.perf_counter(), time.process_time()), {}

  def note(batch, logs):
    del batch, logs
    found.update(seconds=time.perf_counter() - start[0], processor=time.process_time() - start[1], peak=peak())

  model.fit(images, batch_size=len(images), verbose=0, callbacks=[
      keras.callbacks.LambdaCallback(on_train_batch_end=note)])
  return found


def _import(name):
  """Imports what a program of this system imports, to measure the imports."""
  libraries = ["normflows"] if name.startswith("normflows") else ["keras", "tensorflow_probability", "tf_keras"]
  for library in libraries:
    importlib.import_module(library)


def _memory(args, architecture):
  """Peak MiB of the process after some training steps, and MiB of parameters, gradients and Adam's two moments."""
  system = _MAKERS[args.system](architecture)
  images = architecture.images()
  for _ in range(_WARM_UP_CALLS):
    system.step(images)
  return {"peak": peak(), "parameters": 4 * 4 * system.num_parameters / 2**20}


def peak():
  """Peak MiB from Linux's counters, because `getrusage` would include the peak of the parent process."""
  return int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 2**10


def _working_memory(args, architecture):
  """MiB by which the peak of the process grows in some training steps, and from construction to their end."""
  _import(args.system)
  before = peak()
  system = _MAKERS[args.system](architecture)
  built = peak()
  images = architecture.images()
  for _ in range(args.calls):
    system.step(images)
  return {"steps": peak() - built, "all": peak() - before}


def _fit(args, architecture):
  """Milliseconds of a training step bare and in `FlowModel.fit`, of the same model on the same uint8 images."""
  import keras
  import tensorflow as tf
  import tensorflow_probability as tfp

  import tfp_glow
  glow = tfp_glow.GlowBijector(architecture.image_shape, architecture.num_levels, architecture.num_steps,
                               architecture.num_hidden, gradient=architecture.gradient, seed=0)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [architecture.num_dims])
  model = tfp_glow.FlowModel(tfp.distributions.TransformedDistribution(base, glow))
  model.compile(keras.optimizers.Adam(architecture.learning_rate))
  images = np.random.default_rng(0).integers(0, 256, (architecture.batch_size, *architecture.image_shape), np.uint8)
  num_steps = 10 * args.calls  # Many steps, because each call of `fit` has further costs.
  data = tf.data.Dataset.from_tensors(images).repeat(num_steps)
  model.fit(data.take(1), epochs=1, verbose=0)
  batch = tf.constant(images)
  train = tf.function(model.train_step, autograph=False, reduce_retracing=True)
  train(batch)
  bare, fit = [], []
  for _ in range(3):
    start = time.perf_counter()
    for _ in range(num_steps):
      float(train(batch)["loss"])
    bare.append(1e3 * (time.perf_counter() - start) / num_steps)
    start = time.perf_counter()
    model.fit(data, epochs=1, verbose=2)
    fit.append(1e3 * (time.perf_counter() - start) / num_steps)
  return {"bare": statistics.median(bare), "fit": statistics.median(fit)}


def _operations(args, architecture):
  """Operations that run for each further step of flow, and those that `FlowModel` adds; nodes of its training step.

  The numbers do not depend on the machine or the size.
  """
  import keras
  import tensorflow as tf
  import tensorflow_probability as tfp
  from executed_operations import executed

  import tfp_glow
  images = np.random.default_rng(0).integers(0, 256, (4, *architecture.image_shape), np.uint8)
  values = tfp_glow.dequantize.dequantize(tf.constant(images), 8)

  def make(num_steps, gradient):
    glow = tfp_glow.GlowBijector(architecture.image_shape, architecture.num_levels, num_steps, architecture.num_hidden,
                                 gradient=gradient, seed=0)
    base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [architecture.num_dims])
    return tfp.distributions.TransformedDistribution(base, glow)

  def descend(distribution):
    variables = distribution.trainable_variables
    with tf.GradientTape() as tape:
      loss = -tf.reduce_mean(distribution.log_prob(values, bijector_kwargs={"training": True}))
    for variable, gradient in zip(variables, tape.gradient(loss, variables)):
      variable.assign_sub(1e-9 * gradient)
    return loss

  def count(call, *args):
    function = tf.function(lambda: call(*args), autograph=False)
    return sum(executed(lambda: function().numpy()).values())

  calls = {"step, autodiff": (descend, "autodiff"), "step, reversible": (descend, "reversible"),
           "log_prob": (lambda distribution: distribution.log_prob(values), "autodiff"),
           "sample": (lambda distribution: distribution.sample(4, seed=0), "autodiff")}
  few, many = ({name: count(call, make(num_steps, gradient)) for name, (call, gradient) in calls.items()}
               for num_steps in (3, 5))
  found = {name: (many[name] - few[name]) / (2 * architecture.num_levels) for name in calls}
  model = tfp_glow.FlowModel(make(3, "autodiff"))
  model.compile(keras.optimizers.Adam(1e-4))
  model.fit(images, verbose=0)
  step = tf.function(model.train_step, autograph=False).get_concrete_function(tf.constant(images))
  graph = step.graph.as_graph_def()
  found["FlowModel, beside a loop with SGD"] = count(
      lambda: model.train_step(tf.constant(images))["loss"]) - few["step, autodiff"]
  found["nodes of FlowModel's training step"] = len(graph.node) + sum(len(f.node_def) for f in graph.library.function)
  return found


def _quality(args, architecture):
  """Test bits per dimension on Fashion-MNIST, 8 bits, after a time of training that includes start-up."""
  # In a separate process, because TensorFlow's pipelines and PyTorch in one process crash.
  with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    train, test = pool.map(_fashion_mnist, ("train", "test"))
  size = architecture.batch_size
  batches = itertools.cycle(train[i:i + size] for i in range(0, len(train) - size + 1, size))
  _import(args.system)
  rng = np.random.default_rng(args.seed)
  # The same uniform noise for all systems, for 8 bits.
  dequantize = lambda images: ((images + rng.random(images.shape)) / 256. - 0.5).astype(np.float32)
  start = time.perf_counter()
  system = _MAKERS[args.system](architecture)
  num_steps = 0
  while time.perf_counter() - start < args.seconds:
    loss = system.step(dequantize(next(batches)))
    num_steps += 1
    if not math.isfinite(loss):
      return {"bits_per_dim": math.nan, "steps": num_steps}
  nats = np.concatenate([system.log_prob(dequantize(test[i:i + size])) for i in range(0, 64 * size, size)])
  return {"bits_per_dim": float(8. - nats.mean() / architecture.num_dims / math.log(2.)), "steps": num_steps}


def _fashion_mnist(split):
  from tfp_glow import data
  return np.concatenate(list(data.load_images("fashion_mnist", split, 1000, image_size=32, seed=0).as_numpy_iterator()))


def _health(args, architecture):
  """Whether many short trainings, and 1,000 samples after each, stay finite; a dict for each training.

  The optimizer is Adam with the warm-up and the clipping of `examples/train_glow.py`; losses are bits per dimension.
  """
  clip_norm = 100. * architecture.num_dims * math.log(2.)
  system = _MAKERS[args.system](dataclasses.replace(architecture, clip_norm=clip_norm))
  results = []
  for kind, num_bits, rate, seed in itertools.product(args.kinds, args.bits, args.rates, range(args.seeds)):
    batches = _stress_batches(kind, num_bits, architecture, seed)
    system.restart(seed, next(batches))
    trained = _trains(system, batches, rate, args.calls)
    sampled = trained and all(np.isfinite(system.sample(100)).all() for _ in range(10))
    results.append({"kind": kind, "num_bits": num_bits, "learning_rate": rate, "seed": seed,
                    "batch_size": architecture.batch_size, "trained": trained, "sampled": sampled})
  return results


def _trains(system, batches, learning_rate, num_steps):
  """Whether the loss of every step, and the one after the last, is finite."""
  num_warm_up_steps = max(1, num_steps // 20)
  for step in range(num_steps):
    progress = max(0., (step - num_warm_up_steps) / (num_steps - num_warm_up_steps))
    rate = learning_rate * min(step / num_warm_up_steps, (1. + math.cos(math.pi * progress)) / 2.)
    system.set_learning_rate(rate)
    if not math.isfinite(system.step(next(batches))):
      return False
  return bool(np.isfinite(system.log_prob(next(batches))).all())


def _stress_batches(kind, num_bits, architecture, seed):
  """Yields dequantized batches without end: `"real"`, `"constant"` (all 128) or `"extreme"` (each value 0 or 255)."""
  from tfp_glow import data
  rng = np.random.default_rng(seed)
  shape = (architecture.batch_size, *architecture.image_shape)
  draw = {"constant": lambda: np.full(shape, 128), "extreme": lambda: 255 * rng.integers(0, 2, shape)}.get(kind)
  if kind == "real":
    images = data.load_images("fashion_mnist", "test", batch_size=architecture.batch_size, seed=seed,
                              image_size=architecture.image_shape[0]).repeat().as_numpy_iterator()
    draw = lambda: next(images)
  while True:
    values = draw().astype(np.int64) // 2**(8 - num_bits)
    yield ((values + rng.random(shape)) / 2**num_bits - 0.5).astype(np.float32)


def _invertibility(args, architecture):
  """Errors of the way to the latents and back, after training on Fashion-MNIST with the settings of the example."""
  import keras
  import tensorflow as tf
  import tensorflow_probability as tfp

  import tfp_glow
  from tfp_glow import data
  load = lambda split: data.load_images("fashion_mnist", split, batch_size=architecture.batch_size, image_size=32,
                                        seed=0)
  glow = tfp_glow.GlowBijector(architecture.image_shape, architecture.num_levels, architecture.num_steps,
                               architecture.num_hidden, gradient=architecture.gradient, seed=0)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [architecture.num_dims])
  model = tfp_glow.FlowModel(tfp.distributions.TransformedDistribution(base, glow))
  num_warm_up_steps = max(1, args.calls // 20)
  rates = keras.optimizers.schedules.CosineDecay(
      0., max(1, args.calls - num_warm_up_steps), warmup_steps=num_warm_up_steps,
      warmup_target=architecture.learning_rate)
  model.compile(keras.optimizers.Adam(rates, global_clipnorm=100.))
  history = model.fit(load("train").repeat().take(args.calls), verbose=0).history
  shape = (64, *architecture.image_shape)
  images = {"held-out images": np.concatenate(list(load("test").take(4).as_numpy_iterator())),
            "noise": np.random.default_rng(0).integers(0, 256, shape, np.uint8),
            **{f"constant {value}": np.full(shape, value, np.uint8) for value in (0, 127, 255)}}
  results = {}
  for name, batch in images.items():
    x = tfp_glow.dequantize.dequantize(tf.constant(batch), 8, 0.5)
    # As arrays, because TFP would recall the pass that made a tensor.
    error = np.abs(x - glow.forward(glow.inverse(x).numpy())).max()
    results[name] = {"error": float(error), "changed": int((model.decode(model.encode(batch)) != batch).sum())}
  return {"bits_per_dim": history["bits_per_dim"][-1], "images": results}


def _export(args, architecture):
  """Writes one model in both forms; returns their sizes, in MiB."""
  import tensorflow_probability as tfp

  import tfp_glow
  glow = tfp_glow.GlowBijector(architecture.image_shape, architecture.num_levels, architecture.num_steps,
                               architecture.num_hidden, seed=0)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [architecture.num_dims])
  model = tfp_glow.FlowModel(tfp.distributions.TransformedDistribution(base, glow))
  model.adapt(_uint8_images(architecture))
  model.save(args.folder / _KERAS_FILE)
  model.export(args.folder / _SAVED_MODEL)
  size = lambda path: sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) / 2**20
  return {"FlowModel": size(args.folder / _KERAS_FILE), "SavedModel": size(args.folder / _SAVED_MODEL)}


def _load(args, architecture):
  """Seconds from the file to the first result of `log_prob`, without imports."""
  importlib.import_module("tfp_glow" if args.system == "FlowModel" else "tensorflow")
  images = _uint8_images(architecture)
  start = time.perf_counter()
  _calls(args, images)["log_prob"]()
  return {"load": time.perf_counter() - start}


def _latency(args, architecture):
  """Milliseconds of each call, from NumPy to NumPy: medians of calls in turn."""
  calls = _calls(args, _uint8_images(architecture))
  times = {name: [] for name in calls}
  for index in range(_WARM_UP_CALLS + args.calls):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      if index >= _WARM_UP_CALLS:
        times[name].append(1e3 * (time.perf_counter() - start))
  return {name: statistics.median(values) for name, values in times.items()}


def _calls(args, images):
  """Functions that make the same calls to the loaded SavedModel or to the loaded `FlowModel`."""
  import tensorflow as tf
  latents, seed = np.zeros([len(images), images[0].size], np.float32), (0, 1)
  if args.system == "SavedModel":
    signatures = tf.saved_model.load(str(args.folder / _SAVED_MODEL)).signatures

    def ask(name, output, **arrays):
      return signatures[name](**{key: tf.constant(value) for key, value in arrays.items()})[output].numpy()

    return {"log_prob": lambda: ask("log_prob", "log_prob", images=images),
            "encode": lambda: ask("encode", "latent", images=images),
            "decode": lambda: ask("decode", "images", latent=latents),
            "sample": lambda: ask("sample", "images", num_samples=len(images), temperature=0.7, seed=seed),
            "interpolate": lambda: ask("interpolate", "images", first=images, second=images[::-1], num_steps=4)}
  import keras

  from tfp_glow import latent
  model = keras.models.load_model(args.folder / _KERAS_FILE)

  def interpolate():
    lines = latent.interpolate(model.encode(images), model.encode(images[::-1]), 4)
    return model.decode(np.swapaxes(lines, 0, 1).reshape(-1, lines.shape[-1]))

  return {"log_prob": lambda: model.log_prob(images), "encode": lambda: model.encode(images),
          "decode": lambda: model.decode(latents), "sample": lambda: model.sample(len(images), 0.7, seed=seed),
          "interpolate": interpolate}


def _uint8_images(architecture):
  shape = (architecture.batch_size, *architecture.image_shape)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


_MEASUREMENTS = {"speed": _speed, "start": _start, "replicas": _replicas, "memory": _memory,
                 "working_memory": _working_memory, "fit": _fit, "quality": _quality, "health": _health,
                 "invertibility": _invertibility, "operations": _operations, "export": _export, "load": _load,
                 "latency": _latency}

if __name__ == "__main__":
  main()

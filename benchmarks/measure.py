"""One measurement of one system, in this process; prints its result as a line of JSON. `run.py` calls it."""

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import resource
import statistics
import time

import numpy as np

import systems

_WARM_UP_CALLS = 3


def main():
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("system", choices=("convolutions", "tfp_glow", "tfb.Glow", "normflows"))
  parser.add_argument("measurement", choices=tuple(_MEASUREMENTS))
  parser.add_argument("--calls", type=int, default=10, help="timed calls (%(default)s)")
  parser.add_argument("--seconds", type=float, default=120., help="of training, for `quality` (%(default)s)")
  for field in dataclasses.fields(systems.Architecture):
    if field.name != "image_shape":
      parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
  args = parser.parse_args()
  image_shape = (32, 32, 1) if args.measurement == "quality" else (32, 32, 3)
  fields = {field.name: getattr(args, field.name, image_shape) for field in dataclasses.fields(systems.Architecture)}
  print(json.dumps(_MEASUREMENTS[args.measurement](args, systems.Architecture(**fields))))


def _speed(args, architecture):
  """Milliseconds of a training step, `log_prob` and sampling: medians of calls in turn."""
  system = systems.make(args.system, architecture)
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
  """Seconds from construction to the end of the first training step, and of a later step; imports come before."""
  images = architecture.images()
  _import(args.system)
  start = time.perf_counter()
  system = systems.make(args.system, architecture)
  system.step(images)
  first = time.perf_counter()
  system.step(images)
  return {"first_step": first - start, "later_step": time.perf_counter() - first}


def _import(name):
  # pylint: disable=import-outside-toplevel, unused-import
  if name == "normflows":
    import normflows
  else:
    import keras
    import tensorflow_probability
    import tf_keras


def _memory(args, architecture):
  """Peak MiB of the process after some training steps, and MiB of parameters, gradients and Adam's two averages."""
  system = systems.make(args.system, architecture)
  images = architecture.images()
  for _ in range(_WARM_UP_CALLS):
    system.step(images)
  return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
          "parameters": 4 * 4 * system.num_parameters / 2**20}


def _fit(args, architecture):
  """Milliseconds of a training step bare and in `FlowModel.fit`, of the same model on the same uint8 images."""
  # pylint: disable=import-outside-toplevel
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
  num_steps = 10 * args.calls  # A call of `fit` has costs of its own, which are not those of its steps.
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


def _quality(args, architecture):
  """Test bits per dimension on Fashion-MNIST, 8 bits, after so many seconds of training, start-up included."""
  # In a process of its own: TensorFlow's pipelines and PyTorch in one process crash.
  with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    train, test = pool.map(_fashion_mnist, ("train", "test"))
  size = architecture.batch_size
  batches = itertools.cycle(train[i:i + size] for i in range(0, len(train) - size + 1, size))
  _import(args.system)
  rng = np.random.default_rng(0)
  # The same uniform noise for all: 8 bits.
  dequantize = lambda images: ((images + rng.random(images.shape)) / 256. - 0.5).astype(np.float32)
  start = time.perf_counter()
  system = systems.make(args.system, architecture)
  num_steps = 0
  while time.perf_counter() - start < args.seconds:
    loss = system.step(dequantize(next(batches)))
    num_steps += 1
    if not math.isfinite(loss):
      return {"bits_per_dim": math.nan, "steps": num_steps}
  nats = np.concatenate([system.log_prob(dequantize(test[i:i + size])) for i in range(0, 64 * size, size)])
  return {"bits_per_dim": float(8. - nats.mean() / architecture.num_dims / math.log(2.)), "steps": num_steps}


def _fashion_mnist(split):
  from tfp_glow import data  # pylint: disable=import-outside-toplevel
  return np.concatenate(list(data.load_images("fashion_mnist", split, 1000, image_size=32, seed=0).as_numpy_iterator()))


_MEASUREMENTS = {"speed": _speed, "start": _start, "memory": _memory, "fit": _fit, "quality": _quality}

if __name__ == "__main__":
  main()

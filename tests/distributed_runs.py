"""What the tests of `tf.distribute` train, on one device, on replicas, and in worker processes on loopback."""

import contextlib
import functools
import json
import os
import signal
import socket

import example_runs
import forks
import image_files
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf

import tfp_glow
from tfp_glow import callbacks, data
from tfp_glow.data import image_file
from tfp_glow.training import replicas

IMAGES = small_models.images(19)
ONE_LAYER = {"make": example_runs.flow, "output_shape": small_models.SHAPE}


@functools.cache
def mirrored(count):
  """One strategy of each size: TensorFlow confuses the collective operations of two strategies."""

  class Strategy(tf.distribute.MirroredStrategy):
    _collective_key_base = 100 * count

  strategy = Strategy([f"CPU:{i}" for i in range(count)])
  assert strategy.num_replicas_in_sync == count
  return strategy


def train(strategy, first_batch=None, make=small_models.distribution, **kwargs):
  """A model trained on batches of 8, 8 and 3, and its history."""
  with strategy.scope():
    # Adam makes steps of full size from gradients that are rounding errors, such as those of a hidden unit that no
    # image reaches; not with this `epsilon`.
    model = small_models.compiled(tfp_glow.FlowModel(make(**kwargs)), keras.optimizers.Adam(1e-2, epsilon=1e-4))
  model.adapt(IMAGES[:8] if first_batch is None else first_batch)
  model.adapted_weights = values_of(model)
  history = model.fit(IMAGES, batch_size=8, epochs=2, shuffle=False, validation_data=(IMAGES[:7],), verbose=0).history
  return model, history


def train_gaussian(strategy):
  """As `train`, but fast, and with shuffled data."""
  tf.random.set_seed(0)  # The order depends on it, and other tests set it.
  with strategy.scope():
    model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()))
  images = tf.data.Dataset.from_tensor_slices(IMAGES).shuffle(len(IMAGES), seed=0).batch(8)
  return model, model.fit(images, epochs=2, verbose=0).history


def train_on_a_folder(strategy, folder):
  """Trains on 19 small image files, which are shuffled; each of several workers reads its own share."""
  load = lambda split, context: data.load_images(folder, split, batch_size=8, seed=3, input_context=context)
  with strategy.scope():
    model = small_models.compiled(tfp_glow.FlowModel(example_runs.flow((4, 4, 3))), keras.optimizers.Adam(
        1e-2, epsilon=1e-4))
  train, test = (strategy.distribute_datasets_from_function(functools.partial(load, split))
                 if replicas.has_workers(strategy) else load(split, None) for split in ("train", "test"))
  history = model.fit(train, epochs=2, validation_data=test, verbose=0).history
  return model, history, model.predict(test, verbose=0)


def fill_folder(folder):
  """Writes those files."""
  for split, images in (("train", small_models.images(19, (4, 4, 3))), ("test", small_models.images(7, (4, 4, 3), 1))):
    for index, image in enumerate(images):
      image_files.save(folder / split / f"{index:02}.png", image)


def train_residual(strategy, seed=0):
  """A residual flow of points."""
  with strategy.scope():
    model = small_models.residual_model(small_models.residual_flow(num_dense_blocks=1, seed=seed))
  return model, model.fit(small_models.points(), batch_size=16, epochs=2, shuffle=False, verbose=0).history


def numbers_of_exchanges(model):
  """Collective operations for each replica in the graphs of a training step and of a batch of evaluation.

  TensorFlow's iterators exchange one more number to learn whether all workers have got a batch, unless the dataset has
  no end.
  """

  def count(step):
    num_collective = sum("Collective" in node.op for node in nodes_of(model, step))
    return num_collective / len(model.distribute_strategy.extended.worker_devices)

  return {"train": count(model.train_step), "test": count(model.test_step)}


def nodes_of(model, step):
  """The nodes of the graph of a step, and those of its functions, each once."""
  strategy = model.distribute_strategy
  model.adapt(IMAGES[:8])
  model._build_optimizer()
  batch = next(iter(strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(IMAGES).batch(8))))
  run = tf.function(lambda: strategy.run(step, args=(batch,)), autograph=False)
  graph = run.get_concrete_function().graph.as_graph_def()
  return [*graph.node, *(node for function in graph.library.function for node in function.node_def)]


def values_of(model):
  return [v.numpy() for v in model.distribution.variables]


# What the workers do, and report.


def glow_worker(index, folder):
  """A worker that starts from other weights and other images than the chief."""
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  model, history = train(strategy, IMAGES[:8] if index == 0 else IMAGES[8:], **ONE_LAYER, seed=1 + index)
  residual, residual_history = train_residual(strategy, seed=index)
  report = {"adapted": model.adapted_weights, "weights": values_of(model), "history": history,
            "evaluation": model.evaluate(IMAGES, batch_size=8, verbose=0, return_dict=True),
            "residual": {"weights": values_of(residual), "history": residual_history}}
  if index == 0:
    report["sample"] = model.sample(2, seed=0)
    model.save_weights(folder / "model.weights.h5")
    model.save(folder / "model.keras")
    model.export(folder / "saved_model")
  _report(report, index, folder)


def gaussian_worker(index, folder):
  """At the end it trains on until it is killed."""
  model, history = train_gaussian(tf.distribute.MultiWorkerMirroredStrategy())
  images = (IMAGES / 256.).astype(np.float32)
  images[0, 0, 0, 0] = np.nan
  with model.distribute_strategy.scope():
    continuous = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(), num_bits=None), jit_compile=True)
  with pytest.raises(FloatingPointError) as failure:
    continuous.fit(images, batch_size=6, shuffle=False, verbose=0)
  with pytest.raises(ValueError) as state_error:
    replicas.run_on_chief(_fail, model.distribute_strategy)
  draw(model.distribute_strategy, index, folder)
  decoded, read = [], image_file.read
  image_file.read = lambda path, *args: decoded.append(path) or read(path, *args)
  of_folder, folder_history, prediction = train_on_a_folder(model.distribute_strategy, folder / "images")
  exchanges = numbers_of_exchanges(model)
  (folder / f"decoded_{index}").write_text("\n".join(decoded))
  _report({"failure": str(failure.value), "exchanges": exchanges, "state_error": str(state_error.value),
           "weights": values_of(model), "history": history,
           "folder": {"weights": values_of(of_folder), "history": folder_history, "prediction": prediction},
           "evaluation": model.evaluate(IMAGES, batch_size=7, verbose=0, return_dict=True),
           "prediction": model.predict(IMAGES, batch_size=8, verbose=0)}, index, folder)
  _train_on(model, index, folder)


def draw(strategy, index, folder):
  """Trains with the callbacks that draw, first on all workers, then on the chief alone."""
  images = IMAGES[..., :1]
  with strategy.scope():
    model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian(images.shape[1:])))
  for name, has_callbacks in ((f"drawn_by_{index}", True), ("drawn_by_the_chief", index == 0)):
    drawing = [callbacks.SampleGrid(folder / name), callbacks.LatentInterpolation(folder / name, images[:2]),
               callbacks.BitsPerDimCurve(folder / name)]
    model.fit(images, batch_size=8, shuffle=False, verbose=0, callbacks=drawing if has_callbacks else [])


def _fail():
  raise ValueError("`folder`: an error of the chief")


def example_worker(index, folder, ended, *options):
  """The script, each worker with an output folder of its own, as on machines of their own.

  Some may get a signal in the second epoch: `ended` maps their numbers to it.
  """
  output = folder / f"output_{index}"
  example_runs.run_script(*options, f"--output={output}", ended_by=ended.get(index))


def slurm_worker(index, folder, ended, *options):
  """The same as a task of SLURM, which says where the workers are."""
  del os.environ["TF_CONFIG"]
  os.environ |= {
      "SLURM_JOB_ID": str(os.getppid()), "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index),
      "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2",
      "SLURMD_NODENAME": "localhost"}
  example_worker(index, folder, ended, *options)


def _report(values, index, folder):
  as_lists = keras.tree.map_structure(lambda value: np.asarray(value).tolist(), values)
  (folder / f"unfinished_{index}").write_text(json.dumps(as_lists))
  (folder / f"unfinished_{index}").rename(folder / f"report_{index}")


def _train_on(model, index, folder):
  tell = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: (folder / f"training_{index}").touch())
  model.fit(IMAGES, batch_size=8, epochs=10**9, shuffle=False, verbose=0, callbacks=[tell])


# The processes.


class Workers:
  """Worker processes on loopback; none outlives the `with` block."""

  def __init__(self, count, work, folder, *args):
    addresses = _free_addresses(count)
    self._folder = folder
    self._forks = [forks.Fork(folder, _begin, work, index, addresses, folder, *args, name=f"_{index}")
                   for index in range(count)]

  def __enter__(self):
    for fork in self._forks:
      fork.__enter__()
    return self

  def __exit__(self, *_):
    for fork in self._forks:
      fork.__exit__()

  def reports(self):
    """What the workers reported."""
    self._wait_for("report")
    return [json.loads((self._folder / f"report_{index}").read_text()) for index in range(len(self._forks))]

  def kill(self, index):
    """Kills a worker in the middle of training."""
    self._wait_for("training")
    self._forks[index].send(signal.SIGKILL)

  def exit_code(self, index):
    return self._forks[index].exit_code()

  def output(self, index):
    """What a worker has printed."""
    return self._forks[index].output()

  def _wait_for(self, name):
    for index, fork in enumerate(self._forks):
      fork.wait_until((self._folder / f"{name}_{index}").exists, name)


def _begin(work, index, addresses, folder, *args):
  os.environ["TF_CONFIG"] = json.dumps(
      {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
  work(index, folder, *args)


def _free_addresses(count):
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(("127.0.0.1", 0))
    return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]

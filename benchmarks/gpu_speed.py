"""The parts of `gpu.py` that measure time and memory of what TensorFlow runs."""

import dataclasses
import functools
import itertools
import pathlib
import re
import statistics
import time

import gpu_common as common
import keras
import numpy as np
import systems
import tensorflow as tf
from gpu_common import PRECISIONS, machine  # noqa: F401  For `gpu_worker.py`.

_DEPTHS = (64, 4, 32, 16)  # The most important first, in case time runs out.
_BARE = "bare convolutions"
# Seconds of the first training step compiled by XLA, on an H100 with 16 CPU cores: bare convolutions, ours.
_SECONDS_OF_XLA = {"paper": (25., 85.), "small": (20., 45.)}


def speed_paper(session):
  """Systems with the paper's architecture for CIFAR-10."""
  return _speed(session, common.TINY if session.tiny else common.PAPER, *_SECONDS_OF_XLA["paper"])


def speed_small(session):
  """Systems so small that the number of operations matters more than their work."""
  small = dataclasses.replace(common.TINY, num_steps=1) if session.tiny else common.SMALL
  return _speed(session, small, *_SECONDS_OF_XLA["small"])


def _speed(session, architecture, xla_seconds_bare, xla_seconds):
  """Entries: each system is built and timed; then all take turns."""
  yield f"peak ({architecture})", functools.partial(_peak, session, architecture)
  contest = _Contest(session, architecture)
  kinds = [(_BARE, _make_convolutions)] + [
      (f"ours, {gradient}", functools.partial(_make_ours, gradient)) for gradient in ("autodiff", "reversible")]
  settings = [("TF32", False), ("TF32", True), ("bfloat16", True), ("float32", True), ("bfloat16", False),
              ("float32", False)]
  for precision, jit in settings[:1 if session.tiny else None]:
    for kind, make in kinds:
      label = f"{architecture}: {kind}, {precision}, {'XLA' if jit else 'no XLA'}"
      seconds = [xla_seconds_bare if kind == _BARE else xla_seconds] * jit
      yield label, functools.partial(contest.enter, kind, make, precision, jit), *seconds
    if (precision, jit) == settings[0]:
      yield f"{architecture}: turns of the first", contest.turns
  yield f"{architecture}: turns of all", contest.turns
  yield f"{architecture}: inference", contest.inference


_peaks = {}


def _peak(session, architecture):
  """Operations per second of a large matrix product, the best of several calls."""
  size = 256 if session.tiny else 8192
  rows = {}
  for precision in PRECISIONS:
    common.switch(precision)
    dtype = tf.bfloat16 if precision == "bfloat16" else tf.float32
    a, b = (tf.cast(tf.random.stateless_normal([size, size], [0, i]), dtype) for i in range(2))
    product = tf.function(lambda a, b: tf.reduce_sum(tf.cast(tf.matmul(a, b)[:8, :8], tf.float32)), autograph=False)
    product(a, b).numpy()
    best = np.inf
    for _ in range(4):
      start = time.perf_counter()
      for _ in range(5):
        result = product(a, b)
      result.numpy()
      best = min(best, (time.perf_counter() - start) / 5)
    _peaks[precision] = 2. * size**3 / best
    rows[f"matrix product {size}^3, {precision}"] = {"TFLOP/s": _peaks[precision] / 1e12}
  rows[f"a training step of {architecture}"] = {"TFLOP": architecture.flops() / 1e12}
  return rows


class _Contest:
  """Systems of one architecture, which take turns."""

  def __init__(self, session, architecture):
    self._session = session
    self._architecture = architecture
    self._steps, self._models = {}, {}

  def enter(self, kind, make, precision, jit):
    """Builds a system, and times it."""
    label = f"{self._architecture}: {kind}, {precision}, {'XLA' if jit else 'no XLA'}"
    common.switch(precision)
    start = time.perf_counter()
    step, model = make(self._architecture, precision, jit)
    step(1)
    first = time.perf_counter() - start
    step(1)
    start = time.perf_counter()
    step(2)
    seconds = (time.perf_counter() - start) / 2
    self._steps[label] = kind, precision, step, seconds
    if model is not None:
      self._models.setdefault(precision, model)
    return {label: {"first step, s": first, **self._columns(precision, seconds)}}

  def _columns(self, precision, seconds):
    architecture = self._architecture
    columns = {"step, ms": 1e3 * seconds, "images/s": architecture.batch_size / seconds}
    if precision in _peaks:
      columns["share of peak, %"] = 100. * architecture.flops() / seconds / _peaks[precision]
    return columns

  def turns(self):
    """Rounds in which all take turns. Ratios to the faster bare convolutions of the same precision are taken within a
    round.
    """
    all_seconds = sum(max(0.2, 2. * seconds) for *_, seconds in self._steps.values())
    num_rounds = 2 if self._session.tiny else int(np.clip(self._session.left() / 3. / all_seconds, 2, 5))
    rounds = []
    for _ in range(num_rounds):
      times = {}
      for label, (_, precision, step, seconds) in self._steps.items():
        common.switch(precision)
        count = 1 if self._session.tiny else int(np.clip(np.ceil(0.2 / seconds), 2, 50))
        start = time.perf_counter()
        step(count)
        times[label] = (time.perf_counter() - start) / count
      rounds.append(times)
    rows = {}
    for label, (_, precision, *_) in self._steps.items():
      median = statistics.median(times[label] for times in rounds)
      turns = [1e3 * times[label] for times in rounds]
      rows[label] = self._columns(precision, median) | {"least, ms": min(turns), "most, ms": max(turns)}
      bare = [other for other, (kind, of, *_) in self._steps.items() if kind == _BARE and of == precision]
      if bare:
        ratios = [times[label] / min(times[other] for other in bare) for times in rounds]
        rows[label] |= {"to bare": statistics.median(ratios), "from": min(ratios), "to": max(ratios)}
    return rows

  def inference(self):
    """Milliseconds of calls of a trained model."""
    images = common.noise_images(self._architecture)
    rows = {}
    for precision, model in self._models.items():
      common.switch(precision)
      calls = {"log_prob": functools.partial(model.log_prob, images), "encode": functools.partial(model.encode, images),
               "sample": functools.partial(model.sample, len(images), 0.7, seed=0)}
      row = {}
      for name, call in calls.items():
        start = time.perf_counter()
        np.asarray(call())
        row[f"{name}, first, s"] = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(2):
          np.asarray(call())
        row[f"{name}, ms"] = 500. * (time.perf_counter() - start)
      rows[f"{self._architecture}: inference, {precision}"] = row
    return rows


def _make_ours(gradient, architecture, precision, jit):
  """A function that trains for a number of steps, as `fit` does; and the model.

  A deep and wide model without a warm-up diverges at 1e-4: from 8 bits per dimension to 62 in its third step.
  """
  model = common.make_model(common.make_glow(architecture, precision, gradient), architecture.num_dims,
                            jit_compile=jit, learning_rate=1e-6)
  return _trainer(model, architecture), model


def _trainer(model, architecture, num_devices=1):
  batch = np.concatenate([common.noise_images(architecture)] * num_devices)
  data = tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2)
  model.fit(data, steps_per_epoch=1, verbose=0)
  strategy = model.distribute_strategy
  iterator = iter(strategy.experimental_distribute_dataset(data) if num_devices > 1 else data)

  def step(count):
    for _ in range(count):
      logs = model.train_function(iterator)
    return float(np.ravel(logs["loss"])[0])

  return step


def _make_convolutions(architecture, precision, jit):
  """The convolutions of the coupling networks with bias and relu, chained as in a flow, and Adam; nothing else.

  The steps of a level are a loop over stacked weights. If they were unrolled, XLA would compile for minutes.
  """
  rng = np.random.default_rng(0)
  dtype = tf.bfloat16 if precision == "bfloat16" else tf.float32
  height, width, channels = architecture.image_shape
  draw = lambda *shape: tf.Variable(rng.normal(0., 0.02, (architecture.num_steps, *shape)).astype(np.float32))
  levels, inputs = [], []
  for _ in range(architecture.num_levels):
    height, width, channels = height // 2, width // 2, channels * 4
    kept, hidden = channels // 2, architecture.num_hidden
    inputs.append(tf.constant(rng.normal(size=(architecture.batch_size, height, width, kept)), dtype))
    levels.append([draw(3, 3, kept, hidden), draw(hidden), draw(1, 1, hidden, hidden), draw(hidden),
                   draw(3, 3, hidden, channels), draw(channels)])
    channels = kept
  flat = tf.nest.flatten(levels)
  optimizer = keras.optimizers.Adam(1e-4)
  variables = [keras.Variable(v) for v in flat]
  optimizer.build(variables)

  def network(x, first, first_bias, second, second_bias, last, last_bias):
    convolve = lambda x, kernel, bias: tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)
    hidden = tf.nn.relu(convolve(tf.nn.relu(convolve(x, first, first_bias)), second, second_bias))
    return convolve(hidden, last, last_bias)

  def run(x, stacks):
    arrays = [tf.TensorArray(stack.dtype, architecture.num_steps, element_shape=stack.shape[1:]).unstack(stack)
              for stack in stacks]

    def body(k, x):
      weights = [tf.cast(array.read(k), dtype) for array in arrays]
      return k + 1, network(x, *weights)[..., :x.shape[-1]]

    return tf.while_loop(lambda k, _: k < architecture.num_steps, body, (0, x),
                         maximum_iterations=architecture.num_steps)[1]

  @functools.partial(tf.function, autograph=False, jit_compile=jit)
  def train():
    with tf.GradientTape() as tape:
      loss = 0.
      for x, stacks in zip(inputs, levels):
        with tf.control_dependencies([loss] if tf.is_tensor(loss) else []):  # Level after level, not side by side.
          x = tf.identity(x)
        loss += tf.reduce_sum(tf.cast(run(x, [tf.convert_to_tensor(v) for v in stacks]), tf.float32))
    optimizer.apply_gradients(zip(tape.gradient(loss, [v.value for v in variables]), variables))
    return loss

  def step(count):
    for _ in range(count):
      loss = train()
    return float(loss)

  return step, None


def start(session):
  """Seconds to the end of the first step, without those of imports."""
  architecture = common.TINY if session.tiny else common.PAPER
  for jit in (False, True)[:1 if session.tiny else 2]:
    label = f"{architecture}: ours, autodiff, TF32, jit_compile={jit}"
    yield label, functools.partial(_start, label, architecture, jit), *[_SECONDS_OF_XLA["paper"][1]] * jit


def _start(label, architecture, jit):
  tf.zeros([]).numpy()  # Initialises the card.
  begin = time.perf_counter()
  model = common.make_model(common.make_glow(architecture), architecture.num_dims, jit_compile=jit)
  built = time.perf_counter()
  batch = common.noise_images(architecture)
  model.adapt(batch)
  adapted = time.perf_counter()
  data = tf.data.Dataset.from_tensors(batch).repeat()
  model.fit(data, steps_per_epoch=1, verbose=0)
  return {label: {"construction, s": built - begin, "adapt, s": adapted - built,
                  "first step, s": time.perf_counter() - adapted, "all, s": time.perf_counter() - begin}}


def memory(session):
  """Peak of the card's memory in training, by depth."""
  for depth, gradient in itertools.product((2,) if session.tiny else _DEPTHS, ("reversible", "autodiff")):
    architecture = dataclasses.replace(common.TINY if session.tiny else common.PAPER, num_steps=depth)
    yield f"{gradient}, {depth}", functools.partial(_memory, architecture, gradient)


def _memory(architecture, gradient):
  common.switch("TF32")
  before = _peak_mib(reset=True)
  model = common.make_model(common.make_glow(architecture, "TF32", gradient), architecture.num_dims)
  data = tf.data.Dataset.from_tensors(common.noise_images(architecture)).repeat()
  model.fit(data, steps_per_epoch=2, verbose=0)
  parameters = 16 * sum(int(np.prod(v.shape)) for v in model.trainable_variables) / 2**20
  row = f"{gradient}, {architecture}, batch of {architecture.batch_size}"
  found = {row: {"peak, MiB": _peak_mib() - before, "parameters, gradients, Adam, MiB": parameters}}
  del model
  keras.backend.clear_session()
  return found


def _peak_mib(reset=False):
  """Peak memory of the card since its last reset (just after it, memory in use); without a card, of the process."""
  if not common.has_gpu():
    return int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 2**10
  if reset:
    tf.config.experimental.reset_memory_stats("GPU:0")
  return tf.config.experimental.get_memory_info("GPU:0")["current" if reset else "peak"] / 2**20


def scaling(session, count):
  """Images per second on a number of cards; without a card, on parts of the CPU."""
  if not common.has_gpu():
    cpu, *_ = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
  yield f"{count} cards", functools.partial(_scaling, common.TINY if session.tiny else common.PAPER, count)


def _scaling(architecture, count):
  devices = tf.config.list_logical_devices("GPU" if common.has_gpu() else "CPU")[:count]
  if len(devices) < count:
    raise ValueError(f"TensorFlow must have {count} devices. Received: {devices}")
  common.switch("TF32")
  strategy = tf.distribute.MirroredStrategy([d.name for d in devices]) if count > 1 else tf.distribute.get_strategy()
  with strategy.scope():
    model = common.make_model(common.make_glow(architecture, "TF32"), architecture.num_dims)
  step = _trainer(model, architecture, count)
  loss = step(1)  # All cards have the same images, so the loss does not depend on their number.
  step(2)
  begin = time.perf_counter()
  step(10)
  speed = 10 * count * architecture.batch_size / (time.perf_counter() - begin)
  return {f"{count} cards": {"images/s": speed, "loss": loss}}


def tfb(session):
  """`tfb.Glow`, which takes minutes to start if it is deep."""
  small = dataclasses.replace(common.TINY, num_steps=1) if session.tiny else dataclasses.replace(
      common.SMALL, num_steps=4)
  label = f"{small}: tfb.Glow, TF32, no XLA"
  yield label, functools.partial(_tfb, label, small)


def _tfb(label, small):
  common.switch("TF32")
  begin = time.perf_counter()
  system = systems.MAKERS["tfb.Glow"](systems.Architecture(
      small.image_shape, small.num_levels, small.num_steps, small.num_hidden, small.batch_size))
  images = np.random.default_rng(0).uniform(-0.5, 0.5, (small.batch_size, *small.image_shape)).astype(np.float32)
  system.step(images)
  first = time.perf_counter() - begin
  begin = time.perf_counter()
  for _ in range(3):
    system.step(images)
  seconds = (time.perf_counter() - begin) / 3
  return {label: {"first step, s": first, "step, ms": 1e3 * seconds, "images/s": small.batch_size / seconds}}

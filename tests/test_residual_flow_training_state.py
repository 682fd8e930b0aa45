"""`load_residual_flow_checkpoint(ema=False)`: training is resumed where the authors' code stopped."""

import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from residual_checkpoints import (
  FOLDER,
  NAMES,
  channels_last,
  contents,
  image_shape,
  layout,
  load_model,
  reference,
  values_of,
)

import tfp_glow
from tfp_glow.bijectors.log_det import SeriesEstimator
from tfp_glow.checkpoints.residual_flows import architecture as architectures
from tfp_glow.checkpoints.residual_flows import load
from tfp_glow.checkpoints.residual_flows.layout import parts_of
from tfp_glow.checkpoints.residual_flows.training_state import training_state
from tfp_glow.checkpoints.restricted_unpickler import Opaque
from tfp_glow.likelihood.image_likelihood import ImageLikelihood
from tfp_glow.networks import norms

slow = pytest.mark.slow
ORDERS = (".domain", ".codomain")
KERNEL, BIAS = "transforms.0.chain.2.nnet.2.weight", "transforms.0.chain.2.nnet.2.bias"


@functools.cache
def step(name):
  """Numbers of a further step of the authors' code."""
  return dict(np.load(FOLDER / name / "step.npz"))


@pytest.fixture
def in_float64():
  keras.config.set_floatx("float64")
  yield
  keras.config.set_floatx("float32")


def draw_as_reference(name, model, monkeypatch):
  """Makes the residual blocks draw the numbers of terms and the probes that the reference has drawn."""
  blocks = [slot for slot in architectures.slots(contents(name)[1], image_shape(name)) if slot.kind.endswith("block")]
  probes = {}  # From the shape of an event to the probes of all blocks; those of blocks of other shapes are 0.
  for index, block in enumerate(blocks):
    height, width, channels = block.shape
    probe = channels_last(step(name)[f"probe/{block.prefix}"].reshape(-1, channels, height, width))
    probe = probe.reshape(len(probe), -1) if block.kind == "dense block" else probe
    probes.setdefault(probe.shape[1:], np.zeros([len(blocks), *probe.shape]))[index] = probe
  num_terms = step(name)["n"] + contents(name)[0]["args"].n_exact_terms

  def call(self, branch, y, weights, seed):
    drawn = tf.constant(probes[tuple(y.shape[1:])], y.dtype)
    return self.evaluate(branch, y, weights, drawn[seed[0]], tf.constant(num_terms, tf.int32)[seed[0]])

  monkeypatch.setattr(SeriesEstimator, "__call__", call)
  first = 0
  for part, count, stacked in parts_of(model.distribution.bijector)[1]:
    seed = stacked(part.block.noise_seeds()[0])
    seed.assign(np.reshape([[first + k, 0] for k in range(count)], seed.shape))
    first += count
  assert first == len(blocks)


def slots_of(model, name):
  """From the ids of the weights to the optimizer's variables for them."""
  slots = [variable for variable in model.optimizer.variables if variable.name.endswith(f"_{name}")]
  return {id(variable.value): slot for variable, slot in zip(model.trainable_variables, slots, strict=True)}


def compare(name, rows, variable_of, expected, **tolerances):
  """Compares variables with arrays by the keys of the state dict, as far as these are recorded."""
  count = 0
  for variable, keys, convert in rows:
    for index, key in enumerate(keys):
      if f"grad_clipped/{key}" in step(name) and not key.endswith(ORDERS):
        found, converted = np.asarray(variable_of(variable)), convert(expected(key))
        found = found[index] if found.ndim > converted.ndim else found
        np.testing.assert_allclose(found, converted, **tolerances, err_msg=key)
        count += 1
  assert count == sum(key.startswith("grad_clipped/") and not key.endswith(ORDERS) for key in step(name))


@slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("in_float64", "unoptimized_graphs")
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_the_next_step_is_that_of_the_authors(name, request, monkeypatch):
  if name != "m1":  # The one whose step is a graph, which takes longer.
    request.getfixturevalue("eagerly")
  numbers, model = step(name), load_model(name, ema=False)
  rows = layout(name, model)
  draw_as_reference(name, model, monkeypatch)
  values = values_of(name, "float64")
  monkeypatch.setattr(ImageLikelihood, "to_values", lambda self, images, noise_seed=None: tf.constant(values))
  if name == "m7":
    # The reference takes norms at vectors of length 1 in the orders of the averages, not in those of the weights, and
    # its orders have no gradients. Here such gradients would count in the norm by which all are clipped.
    monkeypatch.setattr(norms, "at_vectors", lambda apply, u, v, domain, codomain: tf.reduce_sum(u * apply(v)))
  means, squares, averages = (slots_of(model, kind) for kind in ("momentum", "velocity", "average"))
  before = {key: mean.numpy() for key, mean in means.items()}
  assert int(model.optimizer.iterations) == numbers["adam_step"]
  for variable, keys, _ in rows:
    if id(variable.value) in means:
      assert np.any(before[id(variable.value)]) != keys[0].endswith(ORDERS)

  labels = reference(name)["labels"] if model.classifier else None
  model.train_on_batch(channels_last(reference(name)["in_uint8"]), labels)

  assert int(model.optimizer.iterations) == numbers["adam_step"] + 1
  norm = float(numbers["grad_norm_before_clip"])
  shortened = (norm + 1e-6) / norm if norm > 1. else 1.  # PyTorch divides by norm + 1e-6.
  gradient_of = lambda variable: (means[id(variable.value)].numpy() - 0.9 * before[id(variable.value)]) / 0.1
  compare(name, rows, gradient_of, lambda key: shortened * numbers[f"grad_clipped/{key}"], rtol=1e-8, atol=1e-10)
  by_key = lambda kind: lambda key: numbers[f"{kind}/{key}"]
  accuracy = 1e-6 * numbers["lr"]  # Keras, and that norm, round a step this much.
  compare(name, rows, lambda variable: variable, by_key("after"), rtol=0., atol=accuracy)
  compare(name, rows, lambda variable: averages[id(variable.value)], by_key("ema_after"), rtol=0., atol=accuracy)


@slow
def test_training_is_resumed():
  model = load_model("m1", ema=False)
  adam, options = model.optimizer, contents("m1")[0]["args"]
  assert type(adam) is keras.optimizers.Adam
  assert (adam.beta_1, adam.beta_2, adam.epsilon, adam.global_clipnorm) == (0.9, 0.99, 1e-8, 1.)
  assert (adam.use_ema, adam.ema_momentum, adam.gradient_accumulation_steps) == (True, 0.93, None)
  np.testing.assert_allclose(adam.learning_rate, options.lr, rtol=1e-7)
  assert int(adam.iterations) == 60
  averages, shadow = slots_of(model, "average"), contents("m1")[0]["ema"].state["shadow_params"]
  rows = [row for row in layout("m1", model) if id(row[0].value) in averages]
  assert len(rows) == len(averages) == len(model.trainable_variables)
  for variable, keys, convert in rows:
    values = [convert(shadow[key]) for key in keys]
    np.testing.assert_array_equal(averages[id(variable.value)], np.reshape(values, variable.shape))
  assert not load_model("m1").compiled


def changed(monkeypatch, name="m1", **entries):
  """Makes the loader find other entries."""
  monkeypatch.setattr(load, "read_torch_file", lambda path: {**contents(name)[0], **entries})


def options(**kwargs):
  return types.SimpleNamespace(**{**vars(contents("m1")[0]["args"]), **kwargs})


def averages(decay=0.93, **values):
  shadow = {**contents("m1")[0]["ema"].state["shadow_params"], **values}
  return types.SimpleNamespace(state={"shadow_params": shadow, "decay": decay})


def optimizer(group=(), **entries):
  """The optimizer of the file, with other entries for some weights; `None` removes the entries."""
  recorded, found = contents("m1")[0]["optimizer_state_dict"], dict(entries)
  numbers = dict(zip(contents("m1")[0]["ema"].state["shadow_params"], recorded["param_groups"][0]["params"]))
  state = {number: {**entry, **(found.get(key) or {})} for key, number in numbers.items()
           if (entry := recorded["state"].get(number)) and found.get(key, {}) is not None}
  return {"state": state, "param_groups": [{**recorded["param_groups"][0], **dict(group)}]}


@slow
def test_several_batches_make_an_update(monkeypatch):
  changed(monkeypatch, args=options(update_freq=5))
  adam = load_model("m1", ema=False).optimizer
  assert adam.gradient_accumulation_steps == 5 and int(adam.iterations) == 60
  np.testing.assert_allclose(adam.ema_momentum**5, 0.93)


def test_optimizers_of_other_versions_of_torch():
  """In old versions numbers of parameters are addresses in memory; in new ones steps are tensors."""
  recorded, found = optimizer(), contents("m1")[0]
  at = lambda number: 140_000_000_000 - 64 * number
  state = {at(number): {**entry, "step": np.array(60., np.float32)} for number, entry in recorded["state"].items()}
  groups = [{**recorded["param_groups"][0], "params": list(map(at, recorded["param_groups"][0]["params"]))}]
  usual, other = (
      training_state(entries, 0.93, found["ema"].state["shadow_params"], found["state_dict"], vars(found["args"]))
      for entries in (recorded, {"state": state, "param_groups": groups}))
  assert usual.num_updates == other.num_updates == 60 and type(other.num_updates) is int
  assert usual.adam == other.adam and len(usual.means) == 111
  for kind in ("means", "squares"):
    for key, moment in getattr(usual, kind).items():
      assert getattr(other, kind)[key] is moment


@pytest.mark.parametrize("change, message", [
    (lambda: optimizer(**{KERNEL: None, BIAS: None}), f"no moments of {KERNEL}, {BIAS}. Received: file.pth"),
    (lambda: optimizer(**{KERNEL: {"exp_avg": np.zeros([3])}}), rf"exp_avg of {KERNEL} must be .* \(16, 16, 1, 1\)"),
    (lambda: optimizer(**{KERNEL: {"exp_avg_sq": None}}), f"exp_avg_sq of {KERNEL} must be an array"),
    (lambda: optimizer(**{BIAS: {"exp_avg": np.full([16], np.inf)}}), f"exp_avg of {BIAS} must be finite"),
    (lambda: optimizer(**{BIAS: {"exp_avg_sq": np.full([16], -1.)}}), f"exp_avg_sq must not be negative: {BIAS}"),
    (lambda: optimizer(**{BIAS: {"step": 59}}), "different numbers of updates: 59, 60"),
    (lambda: optimizer(**{BIAS: {"step": 0.5}}), f"step of {BIAS} must be a number of updates"),
    (lambda: optimizer({"params": list(range(130))}), "130 parameters, 131 have a moving average"),
    (lambda: optimizer({"params": list(range(1, 132))}), "moments of unknown parameters"),
    (lambda: optimizer({"betas": (0.9, 1.), "eps": 0.}), r"Adam.*not with betas=\(0.9, 1.0\), eps=0.0"),
    (lambda: optimizer({"amsgrad": True}), "not with amsgrad=True"),
    (lambda: optimizer({"weight_decay": 5e-4}), "not with weight_decay=0.0005. Received: file.pth"),
    (lambda: {"state": {}, "param_groups": []}, "one group of parameters"),
    (lambda: [1], "one group of parameters"),
])
def test_optimizers_that_do_not_fit(change, message, monkeypatch):
  changed(monkeypatch, optimizer_state_dict=change())
  with pytest.raises(ValueError, match=f"`path` must hold a state of training that fits.*{message}"):
    tfp_glow.load_residual_flow_checkpoint("file.pth", (8, 8, 3), ema=False)


@pytest.mark.parametrize("change, message", [
    (dict(args=options(lr=-1., update_freq=0)), "not with lr=-1.0, update_freq=0. Received: file.pth"),
    (dict(args=options(annealing_iters=1000)), "not with annealing_iters=1000. Received: file.pth"),
    (dict(ema=averages(decay=1.)), "not with decay=1.0"),
    (dict(ema=averages(extra=np.zeros([]))), "do not match the parameters of its state dict and their order"),
    (dict(ema=averages(**{KERNEL: Opaque("torch._utils.other", ())})),
     rf"plain tensors in `shadow_params`.*{KERNEL} \(torch._utils.other\)"),
])
def test_states_of_training_that_do_not_fit(change, message, monkeypatch):
  changed(monkeypatch, **change)
  with pytest.raises(ValueError, match=f"`path` must.*{message}"):
    tfp_glow.load_residual_flow_checkpoint("file.pth", (8, 8, 3), ema=False)


def test_files_without_an_optimizer(monkeypatch):
  without = {key: value for key, value in contents("m1")[0].items() if key != "optimizer_state_dict"}
  monkeypatch.setattr(load, "read_torch_file", lambda path: without)
  with pytest.raises(ValueError, match="'optimizer_state_dict'.*Received: file.pth"):
    tfp_glow.load_residual_flow_checkpoint("file.pth", (8, 8, 3), ema=False)

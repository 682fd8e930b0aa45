"""`FlowModel.summary`: what it shows, and that its numbers add up."""

import functools

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow.training import summary

tfb = tfp.bijectors
tfd = tfp.distributions


def _glow(**kwargs):
  return small_models.distribution((8, 8, 1), num_glow_blocks=2, num_steps_per_block=3, **kwargs)


def _mixture():
  flow = lambda seed: small_models.of_standard_normal(small_models.residual_flow(num_dense_blocks=1, seed=seed))
  return tfd.Mixture(tfd.Categorical(logits=tf.Variable([0., 0.])), [flow(0), flow(1)])


_MAKE = {
    "glow": _glow,
    "reversed channels": lambda: _glow(permutation="reverse", coupling="additive", learn_top=False),
    "residual flow": lambda: small_models.of_standard_normal(
        tfp_glow.ResidualFlowBijector((4, 4, 2), 2, 2, 8, 2, 8)),
    "vector flow": lambda: small_models.of_standard_normal(tfp_glow.VectorFlowBijector((3,), 2, 4)),
    "chain": lambda: tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.Variable(tf.zeros(64))),
        tfb.Chain([tfb.Shift(tf.Variable(tf.zeros([8, 8, 1]))), tfb.Tanh(), _glow().bijector])),
    "inverse": lambda: tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(0., 1.), [2]), tfb.Invert(small_models.residual_flow())),
    "no flow": small_models.gaussian,
    "mixture": _mixture,
}


@functools.cache
def _made(name):
  return _MAKE[name]()


def _rows(distribution, with_weights=False):
  return summary.rows_of(distribution, with_weights=with_weights)


def _size(variables):
  return sum(int(np.prod(variable.shape)) for variable in variables)


def _below(rows, index):
  """The rows of the parts of a bijector."""
  depth, below = rows[index].depth, []
  for row in rows[index + 1:]:
    if row.depth <= depth:
      break
    below += [row] if row.depth == depth + 1 else []
  return below


@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("name", _MAKE)
def test_numbers_add_up(name, with_weights):
  distribution = _made(name)
  rows = _rows(distribution, with_weights)
  assert sum(row.num_parameters for row in rows if not row.depth) == _size(distribution.variables)
  for index, row in enumerate(rows):
    below = sum(part.num_parameters for part in _below(rows, index))
    own = row.num_parameters - below
    if row.kind in ("GlowBijector", "ResidualFlowBijector", "VectorFlowBijector"):
      assert own == 1  # Whether it was initialised.
    elif row.kind == "InvertibleResidualBlock":  # Some of its own variables are in no network.
      assert own >= 0
    else:
      assert own == 0 or not below, row


def test_a_variable_in_two_places_is_counted_once():
  shift = tf.Variable(tf.zeros(4))
  rows = _rows(tfd.TransformedDistribution(
      tfd.Sample(tfd.Normal(0., 1.), [4]), tfb.Chain([tfb.Shift(shift), tfb.Tanh(), tfb.Shift(shift)])))
  assert [row.num_parameters for row in rows] == [4, 4, 0, 0, 0]


def test_levels_steps_and_shapes_of_a_glow():
  rows = {row.name: row for row in _rows(_glow())}
  assert {name: tuple(row.shape) for name, row in rows.items() if row.depth == 1} == {
      "block0: 3 steps": (4, 4, 4), "split0": (4, 4, 4), "block1: 3 steps": (2, 2, 8), "top": (2, 2, 8)}
  assert rows["3 x actnorm"].num_parameters == 3 * 2 * 8  # The last block's, of 8 channels.
  assert rows["glow"].shape == [64] and rows["3 x affine_coupling"].kind == "AffineCoupling"


def test_shapes_follow_the_parts_of_a_residual_flow():
  shapes = [(row.name, tuple(row.shape)) for row in _rows(_made("residual flow")) if row.depth == 1]
  assert shapes == [("logit", (4, 4, 2)), ("actnorm", (4, 4, 2)), ("residual_step", (4, 4, 2)),
                    ("scale0: 1 step", (4, 4, 2)), ("squeeze", (2, 2, 8)), ("scale1: 2 steps", (2, 2, 8)),
                    ("flatten", (32,)), ("dense: 2 steps", (32,))]


def test_lower_precision_of_networks_is_shown(capsys):
  policy = keras.config.dtype_policy()
  keras.config.set_dtype_policy("mixed_bfloat16")
  try:
    model = tfp_glow.FlowModel(_glow())
  finally:
    keras.config.set_dtype_policy(policy)
  model.summary()
  assert capsys.readouterr().out.splitlines()[-1] == (
      "Networks train in bfloat16: `fit` reports their bits per dimension, `evaluate` those of float32")
  tfp_glow.FlowModel(_made("glow")).summary()
  assert "train in" not in capsys.readouterr().out


def test_what_has_an_order_is_shown_from_images_to_latents():
  assert [row.kind for row in _rows(_MAKE["chain"]()) if row.depth <= 1][:4] == [
      "Chain", "Shift", "Tanh", "GlowBijector"]


def test_a_weight_has_a_row_if_asked():
  kernel, _ = (row for row in _rows(_glow(), with_weights=True) if row.name == "3 x second/kernel")
  assert kernel.kind == "weight" and kernel.num_parameters == 3 * 8 * 8 and kernel.is_trainable


def _lines(model, **kwargs):
  lines = []
  model.summary(print_fn=lines.append, **kwargs)
  return lines


def test_totals_are_those_of_keras():
  model = tfp_glow.FlowModel(_glow(num_classes=3), weight_y=0.1)
  lines = _lines(model)
  trainable = _size(model.trainable_weights)
  assert lines[-3:] == [f"Total params: {model.count_params():,}", f"Trainable params: {trainable:,}",
                        f"Non-trainable params: {_size(model.non_trainable_weights):,}"]
  assert _number(lines, "glow (GlowBijector)") + _number(lines, "classifier (") + 1 == model.count_params()


def _number(lines, start):
  line, = (line for line in lines if line.startswith(start))
  return int(line.split()[-1].replace(",", ""))


def test_parameters_of_the_optimizer_are_added():
  model = small_models.compiled(tfp_glow.FlowModel(small_models.gaussian()), keras.optimizers.SGD(1e-2, momentum=0.9))
  model.optimizer.build(model.trainable_variables)
  assert _lines(model)[-4:] == ["Total params: 131", "Trainable params: 64", "Non-trainable params: 1",
                                "Optimizer params: 66"]


def test_the_table(capsys):
  model = tfp_glow.FlowModel(small_models.gaussian(), name="mine")
  model.summary(show_trainable=True)
  assert capsys.readouterr().out.splitlines() == [
      'Model: "mine"',
      "====================================================================",
      "Part (type)                      Output shape     Param #  Trainable",
      "--------------------------------------------------------------------",
      "chain_of_shift_of_scale (Chain)  (None, 4, 4, 2)       64  yes",
      "  shift (Shift)                  (None, 4, 4, 2)       32  yes",
      "  scale (Scale)                  (None, 4, 4, 2)       32  yes",
      "SampleNormal (Sample)            (None, 4, 4, 2)        0  -",
      "adapted (Variable)                                      1  no",
      "====================================================================",
      "Total params: 65", "Trainable params: 64", "Non-trainable params: 1"]


@pytest.mark.slow
def test_a_width_is_kept():
  lines = _lines(tfp_glow.FlowModel(_glow()), line_length=60)
  assert max(map(len, lines)) == 60
  assert any("..." in line for line in lines)

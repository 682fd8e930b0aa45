"""`load_original_checkpoint`: the checkpoints of the references, and others of the same format."""

import pathlib
from typing import NamedTuple

import distributed_runs
import keras
import numpy as np
import original_checkpoints
import original_numpy
import pytest
import reference_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow
from tfp_glow.checkpoints.openai_glow.layout import assign_original_variables

tfd = tfp.distributions
REFERENCE = pathlib.Path(__file__).parent / "reference"
SHAPE = (16, 16, 3)


@pytest.fixture(scope="module", params=["a", "b", "d"])
def loaded(request):
  """A reference, the model of its checkpoint, and the labels as keyword arguments."""
  reference = reference_models.load(request.param)
  num_bits = 5 if request.param == "b" else 8
  model = tfp_glow.load_original_checkpoint(REFERENCE / f"{request.param}.ckpt", SHAPE, num_bits)
  return reference, model, reference_models.labels_of(reference, model.distribution.bijector)


def test_objective_of_reference(loaded):
  reference, model, labels = loaded
  log_prob = model.distribution.log_prob(reference["xz"], bijector_kwargs=labels)
  np.testing.assert_allclose(log_prob + reference["objective_const"], reference["objective"], rtol=1e-6)
  np.testing.assert_allclose(-model.num_bits * np.log(2.) * reference_models.NUM_DIMS, reference["objective_const"],
                             rtol=1e-6)


def test_latents_of_reference(loaded):
  reference, model, labels = loaded
  glow = model.distribution.bijector
  for level, part in enumerate(glow.split_latent(glow.inverse(reference["xz"], **labels))):
    np.testing.assert_allclose(part, reference[f"eps/{level}"], atol=1e-5)


@pytest.mark.slow
def test_decoded_images_of_reference(loaded):
  reference, model, labels = loaded
  glow = model.distribution.bijector
  z = glow.join_latent([reference[f"given_eps/{level}"] for level in range(3)]).numpy()
  np.testing.assert_allclose(glow.forward(z, **labels), reference["decoded"], atol=1e-5)
  expected = reference["decoded_uint8"]
  bins = (reference["decoded"].astype(np.float64) + 0.5) * 2**model.num_bits
  is_near_border = np.abs(bins - np.round(bins)) < 1e-5 * 2**model.num_bits
  assert np.mean(is_near_border) < 0.01
  np.testing.assert_array_equal(np.where(is_near_border, expected, model.decode(z, **labels)), expected)


@pytest.mark.slow
def test_classifier_of_reference():
  reference = reference_models.load("d")
  model = tfp_glow.load_original_checkpoint(REFERENCE / "d.ckpt", SHAPE)
  logits = model.classifier(tf.reduce_mean(reference["z_top"], axis=[1, 2]))
  np.testing.assert_allclose(logits, reference["y_logits"], atol=1e-5)
  model.compile(run_eagerly=True)
  results = model.evaluate(reference["x_uint8"], reference["y"], verbose=0, return_dict=True)
  # With noise of its own.
  np.testing.assert_allclose(results["bits_y"], np.mean(reference["bits_y"]), rtol=1e-2)
  np.testing.assert_allclose(results["loss"], results["bits_per_dim"] + 0.01 * results["bits_y"], rtol=1e-6)


@pytest.mark.parametrize("name", ["a", "b", "d"])
def test_moving_averages_of_reference(name):
  values = original_checkpoints.read(REFERENCE / f"{name}.ckpt" / "model_best_loss.ckpt")
  suffix = original_checkpoints.SHADOW
  shadows = {key.removesuffix(suffix): value for key, value in values.items() if key.endswith(suffix)}
  assert shadows.keys() == {key for key in values if key.startswith("model/") and not key.endswith(suffix)}
  averaged = tfp_glow.load_original_checkpoint(REFERENCE / f"{name}.ckpt", SHAPE, ema=True)
  reference = reference_models.load(name)
  labels = reference["y"] if averaged.distribution.bijector.num_classes else None
  expected, _, _ = original_numpy.encode(shadows, reference["xz"], labels)
  glow = averaged.distribution.bijector
  actual = averaged.distribution.log_prob(reference["xz"], bijector_kwargs=reference_models.labels_of(reference, glow))
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["a", "b", "d"])
def test_numpy_agrees_with_reference(name):
  reference = reference_models.load(name)
  variables = {key.removeprefix("var/"): value for key, value in reference.items() if key.startswith("var/")}
  log_density, latents, top = original_numpy.encode(variables, reference["xz"], reference["y"])
  np.testing.assert_allclose(log_density + reference["objective_const"], reference["objective"], rtol=1e-6)
  for level, part in enumerate(latents):
    np.testing.assert_allclose(part, reference[f"eps/{level}"], atol=1e-5)
  np.testing.assert_allclose(top, reference["z_top"], atol=1e-5)


_ARCHITECTURES = {
    "additive, shuffle, one level": ((6, 4, 3), {"coupling": "additive", "permutation": "shuffle"}),
    "affine, four levels": ((16, 32, 1), {"num_channels": 1, "num_levels": 4, "depth": 1, "width": 4,
                                          "learn_top": True}),
    "additive, reverse, classes": ((8, 4, 2), {"num_channels": 2, "num_levels": 2, "depth": 3, "num_classes": 3,
                                               "coupling": "additive", "permutation": "reverse"}),
    "affine, shuffle, classifier": ((4, 8, 3), {"num_levels": 2, "width": 12, "permutation": "shuffle",
                                                "learn_top": True, "num_classes": 5, "has_classifier": True}),
    "affine, reverse, width of additive outputs": ((4, 4, 1), {"num_channels": 1, "depth": 12, "width": 2,
                                                               "permutation": "reverse"}),
    "additive, conv1x1, one class": ((8, 8, 3), {"num_levels": 3, "coupling": "additive", "num_classes": 1}),
}


class _Case(NamedTuple):
  """A checkpoint, its contents, its architecture, its model, and a batch."""

  prefix: str
  variables: dict
  architecture: dict
  model: tfp_glow.FlowModel
  values: np.ndarray
  labels: np.ndarray | None


@pytest.fixture(scope="module", params=_ARCHITECTURES)
def case(request, tmp_path_factory):
  image_shape, architecture = _ARCHITECTURES[request.param]
  variables = original_checkpoints.with_training_state(original_checkpoints.random_variables(**architecture))
  prefix = original_checkpoints.write(tmp_path_factory.mktemp("logs") / "model.ckpt", variables)
  values = np.random.default_rng(1).uniform(-0.5, 0.5, [3, *image_shape]).astype(np.float32)
  labels = None if "num_classes" not in architecture else np.arange(3) % architecture["num_classes"]
  return _Case(prefix, variables, architecture, tfp_glow.load_original_checkpoint(prefix, image_shape), values, labels)


def _check_likelihood_and_latents(model, variables, values, labels):
  glow, condition = model.distribution.bijector, {} if labels is None else {"labels": labels}
  log_density, latents, top = original_numpy.encode(variables, values, labels)
  actual = model.distribution.log_prob(values, bijector_kwargs=condition)
  np.testing.assert_allclose(actual, log_density, rtol=2e-6)
  for actual, part in zip(glow.split_latent(glow.inverse(values, **condition)), latents, strict=True):
    np.testing.assert_allclose(actual, part, rtol=1e-5, atol=1e-5)
  decoded = glow.forward(glow.join_latent(latents).numpy(), **condition)
  np.testing.assert_allclose(decoded, values, atol=1e-5)
  if "model/classifier/W" in variables:
    logits = model.classifier(tf.constant(np.mean(top, axis=(1, 2)), tf.float32))
    np.testing.assert_allclose(logits, original_numpy.classify(variables, top), rtol=1e-5, atol=1e-5)


def test_likelihood_and_latents(case):
  _check_likelihood_and_latents(case.model, case.variables, case.values, case.labels)


def test_likelihood_and_latents_of_moving_averages(case):
  variables = {name: case.variables.get(name + original_checkpoints.SHADOW, value)
               for name, value in case.variables.items()}
  model = tfp_glow.load_original_checkpoint(case.prefix, case.values.shape[1:], ema=True)
  _check_likelihood_and_latents(model, variables, case.values, case.labels)


def test_architecture_and_weights_are_those_of_a_bijector_made_by_hand(case):
  glow = case.model.distribution.bijector
  by_hand = tfp_glow.GlowBijector(case.values.shape[1:], num_classes=case.architecture.get("num_classes"), **{
      name: case.architecture.get(original_name, default) for name, original_name, default in (
          ("num_glow_blocks", "num_levels", 1), ("num_steps_per_block", "depth", 2), ("num_hidden", "width", 5),
          ("coupling", "coupling", "affine"), ("permutation", "permutation", "conv1x1"),
          ("learn_top", "learn_top", False))})
  assert ({name: value for name, value in glow.parameters.items() if name != "seed"} ==
          {name: value for name, value in by_hand.parameters.items() if name != "seed"})
  assign_original_variables(by_hand, case.variables)
  for actual, expected in zip(glow.variables, by_hand.variables, strict=True):
    np.testing.assert_array_equal(actual.numpy(), expected.numpy(), err_msg=actual.name)


SMALL = (4, 4, 1)
_SMALL_ARGUMENTS = {"num_channels": 1, "num_levels": 2, "width": 3, "learn_top": True}


def _small(**arguments):
  return original_checkpoints.random_variables(**{**_SMALL_ARGUMENTS, **arguments})


def _load(tmp_path, variables, image_shape=SMALL, **kwargs):
  return tfp_glow.load_original_checkpoint(
      original_checkpoints.write(tmp_path / "model.ckpt", variables), image_shape, **kwargs)


def _images():
  return np.random.default_rng(0).integers(0, 256, [4, *SMALL], np.uint8)


# Which checkpoint.


def _first_shift(path):
  glow = tfp_glow.load_original_checkpoint(path, SMALL).distribution.bijector
  return glow.blocks[0].stacked(glow.blocks[0].template.actnorm.shift).numpy()[0]


def _write_several(folder):
  several = {name: _small(seed=seed) for seed, name in enumerate(("one.ckpt", "two.ckpt"))}
  for name, variables in several.items():
    original_checkpoints.write(folder / name, variables)
  return {name: variables["model/0/0/actnorm_center/b"].ravel() for name, variables in several.items()}


def test_folder_with_one_checkpoint(tmp_path):
  variables = _small()
  original_checkpoints.write(tmp_path / "model.ckpt", variables)
  (tmp_path / "train.txt").write_text("what else a run writes")
  for path in (tmp_path, str(tmp_path) + "/", tmp_path / "model.ckpt"):
    np.testing.assert_array_equal(_first_shift(path), variables["model/0/0/actnorm_center/b"].ravel())


def test_folder_whose_state_names_the_latest(tmp_path):
  shifts = _write_several(tmp_path)
  for name, shift in shifts.items():
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
    np.testing.assert_array_equal(_first_shift(tmp_path), shift)


def test_state_of_another_machine_does_not_matter(tmp_path):
  variables = _small()
  original_checkpoints.write(tmp_path / "model.ckpt", variables)
  (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/nowhere/model.ckpt"\n')
  np.testing.assert_array_equal(_first_shift(tmp_path), variables["model/0/0/actnorm_center/b"].ravel())


def test_folder_with_several_checkpoints_lists_them(tmp_path):
  shifts = _write_several(tmp_path)
  with pytest.raises(ValueError, match=r"`path` .*several.*Received: .*one\.ckpt\.index, two\.ckpt\.index"):
    tfp_glow.load_original_checkpoint(tmp_path, SMALL)
  np.testing.assert_array_equal(_first_shift(tmp_path / "two.ckpt"), shifts["two.ckpt"])


def test_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  variables = _small()
  (tmp_path / "logs").mkdir()
  original_checkpoints.write(tmp_path / "logs" / "model.ckpt", variables)
  for path in ("~/logs", pathlib.Path("~/logs/model.ckpt")):
    np.testing.assert_array_equal(_first_shift(path), variables["model/0/0/actnorm_center/b"].ravel())


def test_no_checkpoint(tmp_path):
  with pytest.raises(FileNotFoundError, match="`path` .*Received: .*absent.ckpt"):
    tfp_glow.load_original_checkpoint(tmp_path / "absent.ckpt", SMALL)
  with pytest.raises(FileNotFoundError, match="`path` .*Received: .*without any file"):
    tfp_glow.load_original_checkpoint(tmp_path, SMALL)
  with pytest.raises(TypeError, match="`path` .*Received: 3"):
    tfp_glow.load_original_checkpoint(3, SMALL)


# What is in it.


def _without(variables, *scopes):
  return {name: value for name, value in variables.items() if not name.startswith(scopes)}


@pytest.mark.parametrize("scopes, listed", [
    (["model/0/1/f1/l_2/W"], r"model/0/1/f1/l_2/W \[1, 1, 3, 3\]"),
    (["model/1/0/actnorm_scale/logs"], r"model/1/0/actnorm_scale/logs \[1, 1, 1, 8\]"),
    (["model/1/1/"], r"model/1/1/actnorm_center/b \[1, 1, 1, 8\].*model/1/1/invconv/W \[8, 8\].*f1/l_last/logs"),
    (["model/1/0/", "model/1/1/"], r"model/1/0/f1/l_1/W \[3, 3, 5, 3\].*model/1/1/f1/l_1/W \[3, 3, 5, 3\]"),
    (["model/0/0/", "model/1/0/"], r"model/0/0/actnorm_center/b \[1, 1, 1, 4\].*model/1/0/f1/l_1/W \[3, 3, 5, 3\]"),
    (["model/pool0/"], r"model/pool0/conv/W \[3, 3, 3, 4\], model/pool0/conv/b.*model/pool0/conv/logs \[1, 4\]"),
    (["model/prior/p/W"], r"model/prior/p/W \[3, 3, 17, 16\]"),
    (["model/0/0/invconv/W"], r"model/0/0/invconv/W \[4, 4\]"),
])
def test_missing_variables_are_listed(tmp_path, scopes, listed):
  with pytest.raises(ValueError, match=rf"`path` .*missing: [^;]*{listed}[^;]*\. Received: .*model\.ckpt") as info:
    _load(tmp_path, _without(_small(), *scopes))
  assert "unexpected" not in str(info.value)


def test_missing_classes_are_listed(tmp_path):
  variables = _small(num_classes=3, has_classifier=True)
  with pytest.raises(ValueError, match=r"missing: model/prior/y_emb/W \[3, 16\]\. Received"):
    _load(tmp_path, _without(variables, "model/prior/y_emb/W"))
  with pytest.raises(ValueError, match=r"missing: model/prior/y_emb/W \[\?, 16\]\. Received"):
    _load(tmp_path, _without(variables, "model/prior/y_emb/W", "model/classifier"))
  with pytest.raises(ValueError, match=r"missing: model/classifier/b \[1, 3\]\. Received"):
    _load(tmp_path, _without(variables, "model/classifier/b"))


def test_long_lists_are_cut(tmp_path):
  with pytest.raises(ValueError, match=r"model/0/0/actnorm_center/b .* and 46 more\. Received: ") as info:
    _load(tmp_path, _without(_small(depth=9), *(f"model/0/{k}/" for k in range(8))))
  assert str(info.value).count("model/0/") == 50


@pytest.mark.parametrize("name, shape", [("model/0/0/f1/l_3/W", (3, 3)), ("model/0/0/fb/W", (3,)), ("model/extra", ()),
                                         ("model/00/0/actnorm_center/b", (1, 1, 1, 4))])
@pytest.mark.parametrize("ema", [False, True])
def test_unexpected_variables_are_listed(tmp_path, name, shape, ema):
  variables = original_checkpoints.with_training_state(_small())
  listed = rf"unexpected: {name} \[{', '.join(map(str, shape))}\]"
  with pytest.raises(ValueError, match=rf"`path` .*{listed}\. Received: ") as info:
    _load(tmp_path, {**variables, name: np.zeros(shape, np.float32)}, ema=ema)
  assert "missing" not in str(info.value)


def test_decomposed_convolutions_are_unexpected(tmp_path):
  variables = _small()
  variables["model/0/0/invconv/L"] = variables.pop("model/0/0/invconv/W")
  with pytest.raises(ValueError, match=r"missing: model/0/0/invconv/W .*; unexpected: model/0/0/invconv/L \[4, 4\]\."):
    _load(tmp_path, variables)
  for k in (0, 1):
    for level, size in ((0, 4), (1, 8)):
      variables.pop(f"model/{level}/{k}/invconv/W", None)
      variables[f"model/{level}/{k}/invconv/L"] = np.eye(size, dtype=np.float32)
  with pytest.raises(ValueError, match=r"missing: model/0/0/invconv/W .*; unexpected: model/0/0/invconv/L "):
    _load(tmp_path, variables)


@pytest.mark.parametrize("name, shape, expected", [
    ("model/0/1/f1/l_1/W", (3, 3, 2, 3), (3, 3, 3, 3)), ("model/1/0/actnorm_center/b", (1, 1, 1, 6), (1, 1, 1, 8)),
    ("model/1/1/f1/l_last/logs", (1, 4), (1, 8)), ("model/0/0/f1/l_2/W", (1, 1, 3, 9), (1, 1, 3, 3)),
    ("model/0/0/actnorm_scale/logs", (), (1, 1, 1, 4))])
def test_other_shapes_are_listed(tmp_path, name, shape, expected):
  text = lambda shape: rf"\[{', '.join(map(str, shape))}\]"
  with pytest.raises(ValueError, match=rf"another shape: {name} {text(shape)} instead of {text(expected)}\. Received"):
    _load(tmp_path, {**_small(), name: np.zeros(shape, np.float32)})


def test_foreign_checkpoints(tmp_path):
  match = "`path` must be a checkpoint of the original Glow code.*Received: .*, which holds "
  with pytest.raises(ValueError, match=f"{match}conv/kernel, step$"):
    _load(tmp_path, {"conv/kernel": np.zeros([3, 3]), "step": np.int64(1)})
  network = keras.Sequential([keras.layers.Input([2]), keras.layers.Dense(3)])
  prefix = tf.train.Checkpoint(model=network).write(str(tmp_path / "keras"))
  with pytest.raises(ValueError, match=f"{match}.*model/"):
    tfp_glow.load_original_checkpoint(prefix, SMALL)


@pytest.mark.parametrize("part, keep", [("index", 0), ("index", 100), ("index", 0.5), ("data-00000-of-00001", 0),
                                        ("data-00000-of-00001", 0.5), ("data-00000-of-00001", None)])
def test_damaged_files(tmp_path, part, keep):
  prefix = original_checkpoints.write(tmp_path / "model.ckpt", _small())
  path = pathlib.Path(f"{prefix}.{part}")
  if keep is None:
    path.unlink()
  else:
    content = path.read_bytes()
    path.write_bytes(content[:keep if isinstance(keep, int) else int(keep * len(content))])
  with pytest.raises(ValueError, match=r"`path` must be a whole checkpoint.*Received: .*model\.ckpt") as info:
    tfp_glow.load_original_checkpoint(prefix, SMALL)
  assert info.value.__cause__ is not None


def test_flipped_bits_are_noticed(tmp_path):
  prefix = original_checkpoints.write(tmp_path / "model.ckpt", _small())
  path = pathlib.Path(f"{prefix}.data-00000-of-00001")
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"`path` must be a whole checkpoint.*Received: .*model\.ckpt"):
    tfp_glow.load_original_checkpoint(prefix, SMALL)


@pytest.mark.parametrize("name, value, match", [
    ("model/0/1/invconv/W", np.ones([4, 4], np.float32), "model/0/1/invconv/W.*invertible"),
    ("model/1/0/f1/l_2/W", np.full([1, 1, 3, 3], np.nan, np.float32), "finite.*model/1/0/f1/l_2/W"),
    ("model/prior/p/b", np.full([1, 1, 1, 16], np.inf, np.float32), "finite.*model/prior/p/b"),
])
def test_useless_weights(tmp_path, name, value, match):
  with pytest.raises(ValueError, match=rf"`path` .*{match}.*Received: .*model\.ckpt"):
    _load(tmp_path, {**_small(), name: value})


def test_indices_must_be_a_permutation(tmp_path):
  indices = {"model/1/0/shuffle/indices": np.array([0, 1, 2, 3, 4, 5, 6, 6], np.int32)}
  with pytest.raises(ValueError, match=r"`path` .*model/1/0/shuffle/indices.*permutation.*Received: .*model\.ckpt"):
    _load(tmp_path, {**_small(permutation="shuffle"), **indices})


# Moving averages.


def test_moving_averages_where_there_are_none(tmp_path):
  with pytest.raises(ValueError, match=r"`ema` must be False.*Received: ema=True, .*model\.ckpt"):
    _load(tmp_path, _small(), ema=True)


def test_nothing_but_moving_averages(tmp_path):
  """As the original's `save_ema` writes it."""
  variables = _small(permutation="shuffle")
  shadows = {name if "/shuffle/" in name else name + original_checkpoints.SHADOW: value
             for name, value in variables.items()}
  with pytest.raises(ValueError, match=r"missing: model/0/0/actnorm_center/b \[1, 1, 1, 4\].* `ema=True`\. Received: "):
    _load(tmp_path, shadows)
  glow = _load(tmp_path, shadows, ema=True).distribution.bijector
  shift, indices = (glow.blocks[1].stacked(variable).numpy() for variable in (
      glow.blocks[1].template.actnorm.shift, glow.blocks[1].template.permutation.indices))
  for k in range(2):
    np.testing.assert_array_equal(shift[k], variables[f"model/1/{k}/actnorm_center/b"].ravel())
    np.testing.assert_array_equal(indices[k], variables[f"model/1/{k}/shuffle/indices"])


def test_missing_moving_averages_are_listed(tmp_path):
  variables = original_checkpoints.with_training_state(_small())
  name = f"model/0/1/f1/l_1/W{original_checkpoints.SHADOW}"
  with pytest.raises(ValueError, match=rf"missing: {name} \[3, 3, 3, 3\]\. Received: "):
    _load(tmp_path, _without(variables, name), ema=True)
  _load(tmp_path, _without(variables, name))


# The other arguments.


@pytest.mark.parametrize("image_shape, match", [
    ((4, 4, 3), r"`image_shape` must have 1 channels.*Received: \(4, 4, 3\)"),
    ((6, 4, 1), r"`image_shape` must have .*divisible by 4.*Received: \(6, 4, 1\)"),
    ((4, 2, 1), r"`image_shape` must have .*divisible by 4.*Received: \(4, 2, 1\)"),
    ((4, 4), r"`image_shape` must be \(height, width, channels\).*Received: \(4, 4\)"),
    ((4, 4, 1.), r"`image_shape` must be \(height, width, channels\).*Received: \(4, 4, 1\.0\)"),
    (4, r"`image_shape` must be \(height, width, channels\).*Received: 4"),
])
def test_image_shape(tmp_path, image_shape, match):
  with pytest.raises(ValueError, match=match):
    _load(tmp_path, _small(), image_shape)


@pytest.mark.slow
def test_num_bits(tmp_path):
  variables, images = _small(), _images()
  expected, _, _ = original_numpy.encode(variables, (images // 32 + 0.5) / 8. - 0.5)
  actual = _load(tmp_path, variables, num_bits=3).log_prob(images)
  np.testing.assert_allclose(actual, expected - 3 * np.log(2.) * 16, rtol=1e-6)
  with pytest.raises(ValueError, match="`num_bits` .*Received: 17"):
    _load(tmp_path, variables, num_bits=17)


# The model.


@pytest.mark.slow
def test_fit_starts_from_the_weights(tmp_path):
  model = _load(tmp_path, _small())
  before = [v.numpy() for v in model.distribution.variables]
  model.compile(keras.optimizers.SGD(0.), run_eagerly=True)
  model.fit(_images(), epochs=1, verbose=0)
  for variable, value in zip(model.distribution.variables, before):
    np.testing.assert_array_equal(variable.numpy(), value)


def test_weights_are_saved_and_come_back(tmp_path):
  model = _load(tmp_path, _small())
  model.save_weights(tmp_path / "model.weights.h5")
  other = _load(tmp_path, _small(seed=1))
  other.load_weights(tmp_path / "model.weights.h5")
  for a, b in zip(model.weights, other.weights, strict=True):
    np.testing.assert_array_equal(a.numpy(), b.numpy())
  assert not other._needs_adapt()


@pytest.mark.slow
def test_within_a_strategy(tmp_path):
  prefix = original_checkpoints.write(tmp_path / "model.ckpt", _small(num_levels=1, depth=1))
  images = _images()

  def results(strategy):
    with strategy.scope():
      model = tfp_glow.load_original_checkpoint(prefix, SMALL)
      model.compile(keras.optimizers.SGD(1e-2), run_eagerly=strategy.num_replicas_in_sync == 1)
    history = model.fit(images, epochs=1, verbose=0).history
    return [history["bits_per_dim"], *(v.numpy() for v in model.distribution.trainable_variables)]

  one, two = (results(strategy) for strategy in (
      tf.distribute.get_strategy(), distributed_runs.mirrored(2)))
  for a, b in zip(one, two, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_arguments_are_checked_before_anything_is_read(tmp_path):
  for kwargs, match in (({"num_bits": 17}, "`num_bits` must be an `int` in 1 .. 16. Received: 17"),
                        ({"ema": "no"}, "`ema` must be a `bool`. Received: 'no'")):
    with pytest.raises(ValueError, match=match):
      tfp_glow.load_original_checkpoint(tmp_path / "not_there", SHAPE, **kwargs)


@pytest.mark.slow
def test_the_name_of_the_index_is_accepted():
  model = tfp_glow.load_original_checkpoint(REFERENCE / "a.ckpt.index", SHAPE)
  assert model.distribution.bijector.initialized

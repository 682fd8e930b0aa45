"""Tests of the short scripts in `examples`: whole runs of tiny models. The longer ones have tests of their own."""

import importlib.util
import pathlib
import re
import sys

import example_runs
import image_files
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_glow

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
TINY = ["--num-blocks=1", "--num-steps=1", "--num-hidden=4"]
UNIFORM = 4.  # Bits per dimension of the digits under a model that has learned nothing.

slow = pytest.mark.slow


def load(name):
  """The script as a module."""
  spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def run(script, monkeypatch, *options):
  """Calls the script's `main`; returns what it returns."""
  monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *TINY, *map(str, options)])
  return script.main()


def record(script, monkeypatch, name):
  """Makes a function of the script append what it returns to the list that is returned here."""
  function, returned = getattr(script, name), []
  monkeypatch.setattr(script, name, lambda *args: returned.append(function(*args)) or returned[-1])
  return returned


@pytest.mark.parametrize("name", ["bare_gradient_tape", "custom_network", "own_photos", "out_of_distribution", "vae"])
def test_help(name, monkeypatch, capsys):
  script = load(name)
  monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
  with pytest.raises(SystemExit) as ending:
    script.parse_args()
  assert ending.value.code == 0 and script.__doc__.splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--seed=-1", "--batch-size=0", "--num-steps=x", "--learning-rate=nan"])
@pytest.mark.parametrize("name", ["bare_gradient_tape", "custom_network", "own_photos", "out_of_distribution", "vae"])
def test_bad_options(name, option, monkeypatch, capsys):
  script = load(name)
  monkeypatch.setattr(sys, "argv", [f"{name}.py", option])
  with pytest.raises(SystemExit) as ending:
    script.parse_args()
  key, value = option.split("=")
  error = capsys.readouterr().err
  assert ending.value.code == 2 and f"{key}: must be " in error and error.endswith(f"Received: '{value}'\n")


@slow
def test_bare_gradient_tape(monkeypatch):
  script = load("bare_gradient_tape")
  flows = record(script, monkeypatch, "train")
  steps, values_of = [], script.values_of
  monkeypatch.setattr(script, "values_of", lambda images, step: steps.append(step) or values_of(images, step))
  bits_per_dim = run(script, monkeypatch, "--epochs=3", "--learning-rate=1e-2")
  assert [step for step in steps if isinstance(step, int)] == [-2, -1]  # Training has steps 0, 1, ...
  assert bits_per_dim < UNIFORM
  model = tfp_glow.FlowModel(flows[0], num_bits=4)
  model.compile()
  test_images = tfp_glow.data.load_images("digits", "test", batch_size=64)
  assert model.evaluate(test_images, verbose=0)[0] == pytest.approx(bits_per_dim, abs=0.02)  # With other noise.


@slow
@pytest.mark.parametrize("network", ["resnet", "attention"])
def test_custom_network(network, monkeypatch, request):
  if network == "resnet":  # The other class in graphs.
    request.getfixturevalue("eagerly")
  script = load("custom_network")
  models = record(script, monkeypatch, "make_model")
  options = ["--epochs=3", "--batch-size=512", "--learning-rate=5e-2", f"--network={network}"]
  assert run(script, monkeypatch, *options) < UNIFORM
  step = models[0].distribution.bijector.blocks[0].template
  assert isinstance(step.coupling.network, script.NETWORKS[network])
  images = next(iter(tfp_glow.data.load_images("digits", "test", batch_size=8)))
  np.testing.assert_array_equal(models[0].decode(models[0].encode(images)), np.asarray(images) // 16 * 16)


@pytest.mark.parametrize("network", ["resnet", "attention"])
def test_custom_networks_are_made_again_by_keras(network):
  layer = load("custom_network").NETWORKS[network](3, 8, name="a")
  copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
  inputs = tf.random.stateless_normal([2, 4, 4, 2], [0, 0])
  layer(inputs), copy(inputs)
  copy.set_weights([np.full(w.shape, 0.1) for w in copy.get_weights()])
  layer.set_weights(copy.get_weights())
  np.testing.assert_array_equal(layer(inputs), copy(inputs))
  assert np.ptp(layer(inputs)) > 0. and layer(inputs).shape == (2, 4, 4, 3)


@slow
def test_own_photos(monkeypatch, tmp_path, eagerly):
  script = load("own_photos")
  glow = tfp_glow.GlowBijector
  monkeypatch.setattr(tfp_glow, "GlowBijector", lambda *args, **kwargs: (  # It can be built, but training takes long.
      glow(*args, **kwargs) and example_runs.flow(*args, **kwargs)))
  folder = image_files.fill(tmp_path / "photos", 60, size=10)
  options = [folder, "--image-size=4", "--batch-size=32", "--output", tmp_path / "output"]
  run(script, monkeypatch, *options, "--epochs=1")
  assert np.isfinite(run(script, monkeypatch, *options, "--epochs=2"))
  assert {path.name for path in (tmp_path / "output").iterdir()} == {
      "pictures", "training_state", "model.weights.h5", "saved_model"}
  assert {path.name for path in (tmp_path / "output" / "pictures").iterdir()} == {
      *(f"{name}_{epoch:04}.png" for name in ("samples", "interpolations") for epoch in range(3)),
      "bits_per_dim.png", "bits_per_dim.csv"}


def test_own_photos_must_be_more_than_a_few(monkeypatch, tmp_path):
  for split, count in (("train", 4), ("validation", 2), ("test", 1)):
    image_files.fill(tmp_path / split, count, start=10 * count)
  with pytest.raises(ValueError, match=rf"`folder` must hold some dozens of photos.*Received: {tmp_path}, with 1 for"):
    run(load("own_photos"), monkeypatch, tmp_path, "--image-size=4")


def test_photos_of_scikit_learn(tmp_path):
  folder = load("own_photos").write_crops(tmp_path, 64)
  images = list(folder.iterdir())
  assert len(images) == 2 * (427 // 64) * (640 // 64)
  assert tf.io.decode_image(images[0].read_bytes()).shape == (64, 64, 3)


@slow
def test_out_of_distribution(monkeypatch, capsys):
  monkeypatch.setattr(tfp_glow, "GlowBijector", example_runs.flow)
  script = load("out_of_distribution")
  options = ["--data=digits", "--num-training-steps=60", "--learning-rate=1e-2", "--num-images=50"]
  table = run(script, monkeypatch, *options)
  assert table.keys() == {"noise", "upside down", "darker", "black"}
  assert all(len(row) == 3 and 0. <= auroc <= 1. for row in table.values() for auroc in row)
  assert table["noise"][0] > 0.95
  assert table["darker"][0] < 0.2  # The known weakness.
  assert f"noise {table['noise'][0]:19.3f}" in capsys.readouterr().out


@slow
def test_vae(monkeypatch, capsys, eagerly):
  script = load("vae")
  monkeypatch.setattr(script, "NUM_ESTIMATES", 2)
  priors = record(script, monkeypatch, "make_prior")
  before, make_prior = [], script.make_prior
  monkeypatch.setattr(script, "make_prior", lambda args: before.append(
      [v.numpy() for v in make_prior(args).distribution.trainable_variables]) or priors[-1])
  bounds = run(script, monkeypatch, "--epochs=2", "--batch-size=256", "--learning-rate=1e-2")
  assert bounds.keys() == {"standard normal", "glow"} and all(bound < UNIFORM for bound in bounds.values())
  assert all(np.any(v.numpy() != old) for v, old in zip(
      priors[0].distribution.trainable_variables, before[0], strict=True))
  assert f"glow: {bounds['glow']:.3f} bits per dim" in capsys.readouterr().out


def test_levels_that_the_latents_of_the_vae_do_not_have(monkeypatch, capsys):
  script = load("vae")
  monkeypatch.setattr(sys, "argv", ["vae.py", "--num-blocks=2"])
  assert script.make_prior(script.parse_args()).distribution.event_shape == script.LATENT_SHAPE
  monkeypatch.setattr(sys, "argv", ["vae.py", "--num-blocks=3"])
  with pytest.raises(SystemExit) as ending:
    script.parse_args()
  assert ending.value.code == 2
  assert re.search(r"--num-blocks must be .* 4 and 4, are divisible by 2 \*\* num_blocks. Received: 3",
                   capsys.readouterr().err)


def test_the_bound_of_the_vae_is_one():
  """If the decoder ignores its latents, the bound is the log-probability minus the divergence from the prior."""
  script = load("vae")
  model = script.VAE()
  images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], dtype=np.uint8)
  for variable in model.trainable_variables:
    variable.assign(tf.zeros_like(variable))
  model(np.repeat(images, 300, axis=0))
  deviation = np.log(2.) + 1e-3
  # The probabilities of the levels' bins under the logistic distribution.
  edges = (np.arange(17) - 1. - 8.) / (16. * deviation)
  cdf = 1. / (1. + np.exp(-edges))
  cdf[0], cdf[-1] = 0., 1.
  log_prob = np.log(np.diff(cdf))[images // 16].sum((1, 2, 3)).mean()
  divergence = 32 * (0.5 * deviation**2 - 0.5 - np.log(deviation))
  np.testing.assert_allclose(model.losses[0], (divergence - log_prob) / (64 * np.log(2.)), rtol=3e-3)


def test_odd_images_of_clothes(monkeypatch):
  script = load("out_of_distribution")
  monkeypatch.setattr(sys, "argv", ["out_of_distribution.py", "--num-images=5"])
  images = image_files.pixels(5, 32, 32, 1)
  kinds = script.odd_images(images, script.parse_args())
  assert kinds.keys() == {"noise", "upside down", "darker", "black", "digits"}
  for kind in kinds.values():
    assert kind.shape == images.shape and kind.dtype == np.uint8 and (kind != images).any()
  assert kinds["digits"].max() > 200 and kinds["digits"][:, :6].max() == kinds["black"].max() == 0
  np.testing.assert_array_equal(kinds["upside down"][:, 0], images[:, -1])
  np.testing.assert_array_equal(kinds["darker"], images // 2)

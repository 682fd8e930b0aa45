"""Mistakes of users: each gives an error that names the argument, or the documented behaviour, and loses nothing."""

import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
IMAGES = small_models.images(24)
LABELS = np.arange(24) % 3
_FLOAT = (IMAGES / 256.).astype(np.float32)
_WITH_NAN = np.where(np.arange(24 * 32).reshape(IMAGES.shape) == 5, np.nan, _FLOAT).astype(np.float32)


def _dataset(*parts):
  return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(8)


class _Frame:
  """Like a data frame: it has a shape, but columns of different dtypes."""
  shape = _FLOAT.shape

  def __len__(self):
    return self.shape[0]


def _glow(**kwargs):
  return small_models.distribution(**{"num_steps_per_block": 1, **kwargs})


@pytest.fixture(scope="module")
def models():
  make = lambda num_bits=8, **kwargs: small_models.compiled(tfp_glow.FlowModel(
      _glow(**kwargs), num_bits), keras.optimizers.Adam(1e-3), run_eagerly=True)
  return {"uint8": make(), "continuous": make(None), "conditional": make(num_classes=3)}


_SHAPE = r"`images` must have shape \[None, 4, 4, 2\]"
_UINT8, _FLOATING = "`images` must be uint8", "`images` must be floating"
_CASES = [
    ("uint8", IMAGES[..., 0], None, ValueError, rf"{_SHAPE}. Received: "),  # rank
    ("uint8", IMAGES[0], None, ValueError, rf"{_SHAPE}. Received: "),
    ("uint8", IMAGES[..., :1], None, ValueError, rf"{_SHAPE}. Received: "),  # channels
    ("uint8", IMAGES[:, :3], None, ValueError, rf"{_SHAPE}. Received: "),  # size
    ("uint8", _FLOAT, None, TypeError, rf"{_UINT8}.*Received: float32"),
    ("uint8", IMAGES.astype(np.int64), None, TypeError, rf"{_UINT8}.*Received: int64"),
    ("continuous", IMAGES, None, TypeError, rf"{_FLOATING}.*Received: uint8"),
    ("conditional", IMAGES, None, ValueError, "`labels` must be given: the model has 3 classes. Received: None"),
    ("conditional", IMAGES, LABELS.astype(np.float32), TypeError, "`labels` must be integers. Received: float32"),
    ("conditional", IMAGES, LABELS.astype(str), TypeError, "`labels` must be integers. Received: string"),
    ("conditional", IMAGES, np.eye(3, dtype=int)[LABELS], ValueError, r"`labels` must be one integer.*Received: shape"),
]


@pytest.mark.parametrize("call", ["fit", "fit a dataset", "evaluate", "validation_data", "log_prob"])
@pytest.mark.parametrize("name, images, labels, error, match", _CASES)
def test_images_and_labels(models, call, name, images, labels, error, match):
  model = models[name]
  before = [v.numpy() for v in model.weights]
  pair = (images,) if labels is None else (images, labels)
  good = {"uint8": (IMAGES,), "continuous": (_FLOAT,), "conditional": (IMAGES, LABELS)}[name]
  calls = {
      "fit": lambda: model.fit(*pair, verbose=0),
      "fit a dataset": lambda: model.fit(_dataset(*pair), verbose=0),
      "evaluate": lambda: model.evaluate(_dataset(*pair), verbose=0),
      "validation_data": lambda: model.fit(*good, validation_data=pair, verbose=0),  # Before an epoch is trained.
      "log_prob": lambda: model.log_prob(*pair),
  }
  with pytest.raises(error, match=match):
    calls[call]()
  for a, b in zip(before, model.weights):
    np.testing.assert_array_equal(a, b.numpy())


# -1 is an image of unknown class (`test_class_posterior.py`), and 2**32 + 1 is not 1.
@pytest.mark.parametrize("labels", [LABELS - 2, LABELS + 1, LABELS + 2**32])
def test_labels_out_of_range(models, labels):
  model = models["conditional"]
  for call in (lambda: model.fit(IMAGES, labels, verbose=0), lambda: model.encode(IMAGES, labels),
               lambda: model.sample(24, labels=labels)):
    with pytest.raises(ValueError, match=r"`labels` must be 24 integers in 0 \.\. 2"):
      call()
  with pytest.raises(ValueError, match=r"`labels` must lie in 0 \.\. 2"):
    model.fit(_dataset(IMAGES, labels), verbose=0)


@pytest.mark.slow
def test_labels_out_of_range_with_xla():
  """XLA leaves assertions out."""
  distribution = _glow(num_classes=3)
  log_prob = tf.function(lambda labels: distribution.log_prob(
      tf.constant(_FLOAT), bijector_kwargs={"labels": labels}), jit_compile=True, autograph=False)
  found = log_prob(tf.constant(LABELS + 1, tf.int32))
  np.testing.assert_array_equal(np.isnan(found), LABELS == 2)


@pytest.mark.slow
def test_labels_out_of_range_in_a_graph():
  model = small_models.compiled(tfp_glow.FlowModel(_glow(num_classes=3)))
  with pytest.raises(tf.errors.InvalidArgumentError, match=r"`labels` must lie in 0 \.\. 2"):
    model.fit(_dataset(IMAGES, LABELS + 1), verbose=0)


@pytest.mark.slow
def test_values_beyond_num_bits_lose_their_lowest_bits():
  """Images are always 0 .. 255, whatever `num_bits`."""
  model = tfp_glow.FlowModel(_glow(), num_bits=5)
  np.testing.assert_array_equal(model.encode(IMAGES), model.encode(IMAGES // 8 * 8))
  np.testing.assert_array_equal(model.decode(model.encode(IMAGES)), IMAGES // 8 * 8)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "4", True])
@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_batch_sizes(models, call, batch_size):
  with pytest.raises(ValueError, match="`batch_size` must be a positive `int`, or None. Received: "):
    getattr(models["uint8"], call)(IMAGES, batch_size=batch_size, verbose=0)


def test_nothing_to_adapt_to(models):
  with pytest.raises(ValueError, match="`data` must hold at least one image"):
    models["uint8"].adapt(_dataset(IMAGES).take(0))


def test_no_images_to_encode(models):
  with pytest.raises(TypeError, match="`images` must be an array or tensor. Received: None"):
    models["uint8"].encode(None)


@pytest.mark.parametrize("call, match", [
    (lambda m: m.log_prob(_dataset(_FLOAT)), "`images` must be an array or tensor. Received: _BatchDataset"),
    (lambda m: m.log_prob({"image": _FLOAT}), "`images` must be an array or tensor. Received: dict"),
    (lambda m: m.encode(_FLOAT.astype(object)), "`images` must be an array or tensor. Received: ndarray of object"),
    (lambda m: m.adapt(iter([_FLOAT])), "`images` must be an array or tensor. Received: list_iterator"),
    (lambda m: m.decode(None), "`z` must be an array, or a tensor of float32. Received: None"),
    (lambda m: m.decode([[0.], [0., 1.]]), "`z` must be an array, or a tensor of float32. Received: list"),
    (lambda m: m.decode(tf.zeros([1, 32], tf.float64)), "`z` must be an array.*Received: EagerTensor of float64"),
    (lambda m: m.fit(tf.Variable(_FLOAT)), "`x` must be an array of images.*Received: ResourceVariable"),
    (lambda m: m.fit(_Frame()), "`x` must be an array of images.*Received: _Frame"),
])
def test_neither_an_array_nor_a_tensor(models, call, match):
  with pytest.raises(TypeError, match=match):
    call(models["continuous"])


@pytest.mark.parametrize("call, argument", [
    (lambda m: m.encode(_WITH_NAN), "images"), (lambda m: m.log_prob(_WITH_NAN), "images"),
    (lambda m: m.decode(np.full([1, 32], np.inf)), "z")])
def test_not_finite(models, call, argument):
  with pytest.raises(ValueError, match=rf"`{argument}` must be finite. Received: shape .* \d+ of \d+ NaN"):
    call(models["continuous"])


@pytest.mark.parametrize("call", [
    lambda m: m.evaluate(_WITH_NAN, verbose=0), lambda m: m.predict(_WITH_NAN, verbose=0),
    lambda m: m.test_on_batch(_WITH_NAN), lambda m: m.fit(_FLOAT, validation_data=_WITH_NAN, verbose=0),
    lambda m: m.evaluate(np.where(np.isnan(_WITH_NAN), -np.inf, _FLOAT), verbose=0)])
def test_arrays_to_evaluate_are_finite(models, call):
  with pytest.raises(ValueError, match="`images` must be finite. Received: shape .* 1 of 768 NaN or infinite"):
    call(models["continuous"])


class _Endless(keras.utils.PyDataset):
  num_batches = None

  def __getitem__(self, index):
    return (IMAGES[:8],)


@pytest.mark.parametrize("endless", [_dataset(IMAGES).repeat(), _Endless()], ids=["tf.data", "PyDataset"])
@pytest.mark.parametrize("call, steps", [
    (lambda m, x, **steps: m.fit(x, **steps), "steps_per_epoch"),
    (lambda m, x, **steps: m.fit(IMAGES, validation_data=x, **steps), "validation_steps"),
    (lambda m, x, **steps: m.evaluate(x, **steps), "steps"), (lambda m, x, **steps: m.predict(x, **steps), "steps")])
def test_data_without_an_end(models, call, steps, endless):
  with pytest.raises(ValueError, match=f"`{steps}` must be given for data that repeat forever. Received: {steps}=None"):
    call(models["uint8"], endless, verbose=0)
  call(models["uint8"], endless, verbose=0, **{steps: 1})


@pytest.mark.parametrize("images, labels, match", [
    (IMAGES[:0], LABELS[:0], "`x` must hold at least one image"), (IMAGES[..., :1], LABELS, "`images` must have shape"),
    (IMAGES, LABELS[:5], "`labels` must be 24 integers"), (IMAGES, None, "`labels` must be given")])
def test_one_batch_is_checked_as_in_evaluate(models, images, labels, match):
  for call in (models["conditional"].test_on_batch, models["conditional"].train_on_batch):
    with pytest.raises(ValueError, match=match):
      call(images, labels)


@pytest.mark.slow
def test_samples_before_adapt_are_those_of_a_flow_that_has_seen_nothing():
  model, same = (tfp_glow.FlowModel(_glow()) for _ in range(2))
  same.adapt(IMAGES)
  z = np.random.default_rng(0).normal(size=[4, 32]).astype(np.float32)
  glow = _glow().bijector
  assert not model.distribution.bijector.initialized
  np.testing.assert_array_equal(model.decode(z), tfp_glow.dequantize.quantize(glow.forward(z), 8))
  assert (model.sample(4, seed=0) != same.sample(4, seed=0)).any()


@pytest.mark.parametrize("call", [lambda m: m.fit(IMAGES), lambda m: m.evaluate(IMAGES)])
def test_compile_is_missing(call):
  with pytest.raises(ValueError, match="compile"):
    call(tfp_glow.FlowModel(small_models.gaussian()))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """A file of weights."""
  model = tfp_glow.FlowModel(_glow(seed=5))
  model.adapt(IMAGES)
  model.save_weights(path := tmp_path_factory.mktemp("weights") / "model.weights.h5")
  return path


@pytest.mark.parametrize("options", [{"num_hidden": 16}, {"num_steps_per_block": 3}, {"num_glow_blocks": 2},
                                     {"coupling": "additive"}, {"permutation": "reverse"}])
def test_weights_of_another_configuration(path, options):
  model = tfp_glow.FlowModel(_glow(**options))
  before = [v.numpy() for v in model.weights]
  with pytest.raises(ValueError, match=rf"(?s)`filepath`.*same levels, steps, width.*Received: {path}$"):
    model.load_weights(path)
  for a, b in zip(before, model.weights):
    np.testing.assert_array_equal(a, b.numpy())


@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_weights_that_cannot_be_read(tmp_path, content):
  path = tmp_path / "model.weights.h5"
  model = tfp_glow.FlowModel(small_models.gaussian())
  if content is None:  # Truncated.
    model.save_weights(path)
    content = path.read_bytes()[:-1000]
  path.write_bytes(content)
  before = [v.numpy() for v in model.weights]
  with pytest.raises(OSError):
    model.load_weights(path)
  for a, b in zip(before, model.weights):
    np.testing.assert_array_equal(a, b.numpy())


@pytest.mark.parametrize("options, match", [
    ({"output_shape": (5, 4, 1)}, "`output_shape`.*divisible by 2 .*Received: "),
    ({"output_shape": (6, 6, 1), "num_glow_blocks": 2},
     r"divisible by 2 \*\* `num_glow_blocks` = 4.*Received: \(6, 6, 1\)"),
    ({"output_shape": (4, 4)}, r"`output_shape` must be \(height, width, channels\).*Received: \(4, 4\)"),
    ({"output_shape": (4, 4, 0)}, r"`output_shape`.*Received: \(4, 4, 0\)"),
])
def test_sizes_of_a_glow(options, match):
  with pytest.raises(ValueError, match=match):
    tfp_glow.GlowBijector(**{"num_glow_blocks": 1, "num_steps_per_block": 1, "num_hidden": 4, **options})


@pytest.mark.parametrize("network_fn", [3, keras.layers.Conv2D(2, 3)], ids=["number", "layer"])
@pytest.mark.parametrize("make", [
    lambda network_fn: tfp_glow.GlowBijector((4, 4, 1), 1, 1, 4, network_fn=network_fn),
    lambda network_fn: tfp_glow.VectorFlowBijector(3, 1, network_fn=network_fn),
], ids=["glow", "vector flow"])
def test_a_network_fn_is_a_function(make, network_fn):
  with pytest.raises(TypeError, match="`network_fn` must be a function.*Received: "):
    make(network_fn)


@pytest.mark.parametrize("arguments, error, match", [
    ({"label": [0, 1]}, TypeError, "`glow` must be given arguments that it.*takes: labels, training. Received: label$"),
    ({"labels": True}, TypeError, "`labels` must be integers. Received: True"),
])
@pytest.mark.parametrize("within", [lambda glow: glow, lambda glow: tfp_glow.Chain([tfp.bijectors.Shift(0.5), glow])])
def test_arguments_of_a_conditional_flow(within, arguments, error, match):
  flow = within(_glow(num_classes=3).bijector)
  with pytest.raises(error, match=match.replace("`glow`", f"`{flow.name}`")):
    flow.inverse(_FLOAT[:2], **arguments)


def test_jit_compile_is_a_choice():
  model = tfp_glow.FlowModel(small_models.gaussian())
  for value, uses_xla in ((True, True), (np.True_, True), (1, True), (False, False), ("auto", False)):
    model.compile("sgd", jit_compile=value)
    assert model.uses_xla == uses_xla
  with pytest.raises(ValueError, match="`jit_compile` must be True, False or 'auto'. Received: 'yes'"):
    model.compile("sgd", jit_compile="yes")

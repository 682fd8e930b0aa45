"""One bijector used twice, parts of other ranks, and other bijectors before and behind ours."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import contraction, perturb

import tfp_glow
from tfp_glow.bijectors import recall

tfb, tfd = tfp.bijectors, tfp.distributions


def _actnorm(event_ndims=3):
  actnorm = tfp_glow.ActNorm(2, event_ndims)
  perturb(actnorm, scale=0.3)
  return actnorm


@pytest.mark.parametrize("in_graph", [False, True])
def test_twice_is_not_once(in_graph):
  actnorm, x = _actnorm(), tf.ones([1, 2, 2, 2])

  def twice(x, again):
    y, z = again(actnorm.forward(x)), again(actnorm.inverse(x))
    return (actnorm.forward(y), actnorm.forward_log_det_jacobian(y), actnorm.inverse(z),
            actnorm.inverse_log_det_jacobian(z))

  run = tf.function(twice, autograph=False) if in_graph else twice
  for actual, expected in zip(run(x, lambda y: y), twice(x, tf.identity)):
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_parts_of_tfps_bijectors_follow_updates():
  """Parts of `tfb.Blockwise`, which counts as one bijector of TFP."""
  block = tfp_glow.InvertibleResidualBlock(contraction(2), "russian_roulette", event_ndims=1, seed=0)
  block.inverse(np.zeros([1, 2], np.float32))
  chain = tfp_glow.Chain([tfb.Blockwise([block, tfb.Identity()], [2, 1])])
  before = block.noise_seeds()[0].numpy()
  chain.after_update()
  assert block.noise_seeds()[0].numpy()[1] == before[1] + 1
  assert [id(v) for v in chain.noise_seeds()] == [id(v) for v in block.noise_seeds()]
  chain.trainable = False
  assert not block.trainable


def test_one_bijector_at_two_places():
  actnorm, x = _actnorm(), tf.ones([1, 2, 2, 2])
  base = tfd.Sample(tfd.Normal(0., 1.), [2, 2, 2])
  nested = tfd.TransformedDistribution(tfd.TransformedDistribution(base, actnorm), actnorm)
  log_probs = [distribution.log_prob(x) for distribution in (nested, *(
      tfd.TransformedDistribution(base, chain([actnorm, actnorm])) for chain in (tfb.Chain, tfp_glow.Chain)))]
  np.testing.assert_allclose(log_probs, log_probs[-1:] * 3, rtol=1e-6)


def test_loops_hold_their_last_passes_only():
  actnorm, y = _actnorm(), tf.ones([1, 2, 2, 2])
  count = lambda: gc.collect() and sum(isinstance(o, recall.Pass) for o in gc.get_objects())
  before = count()
  for _ in range(20):
    y = actnorm.inverse(actnorm.forward(actnorm.forward(y)))
  assert count() - before < 6


def test_parts_that_act_on_vectors():
  scales = np.arange(1., 7., dtype=np.float32).reshape(3, 2)
  distribution = tfd.TransformedDistribution(
      tfd.Sample(tfd.Normal(0., 1.), [3, 2]), tfb.Chain([_actnorm(1), tfb.Scale(scales)]))
  model = tfp_glow.FlowModel(distribution, num_bits=None)
  x = np.random.default_rng(0).standard_normal([5, 3, 2]).astype(np.float32)
  np.testing.assert_allclose(model.log_prob(x), distribution.log_prob(x), rtol=1e-5)
  np.testing.assert_allclose(model.decode(model.encode(x)), x, rtol=1e-5, atol=1e-6)
  model.adapt(x)
  assert model.sample(4, seed=0).shape == (4, 3, 2)


def test_labels_of_events_that_are_parts_of_one():
  glow = tfp_glow.GlowBijector((2, 2, 1), 1, 1, 4, num_classes=3, seed=0)
  perturb(glow)
  chain = tfp_glow.Chain([tfb.Reshape([8], [2, 2, 2, 1]), glow])
  x, labels = tf.random.stateless_normal([2, 8], [0, 1]), [0, 2]
  _, log_det = chain.inverse_and_log_det(x, labels=labels)
  parts = [glow.inverse_and_log_det(tf.reshape(x[i], [2, 2, 2, 1]), labels=[label] * 2)[1]
           for i, label in enumerate(labels)]
  np.testing.assert_allclose(log_det, tf.reduce_sum(parts, -1), rtol=1e-5)
  chain.initialize(x)


@pytest.mark.slow
def test_a_base_with_a_batch_of_parameters_is_trained():
  components = tfd.MultivariateNormalDiag(loc=tf.Variable(np.eye(3, 16, dtype=np.float32)))
  base = tfd.MixtureSameFamily(tfd.Categorical(logits=[0., 0., 0.]), components)
  model = tfp_glow.FlowModel(tfd.TransformedDistribution(base, tfp_glow.GlowBijector((4, 4, 1), 1, 1, 4, seed=0)))
  model.compile("sgd")
  images = np.random.default_rng(0).integers(0, 256, [5, 4, 4, 1]).astype(np.uint8)
  assert np.isfinite(model.train_on_batch(images)).all()


class _Scale(tfp_glow.OnePassBijector):
  """A user's bijector that scales by a `state` it holds, and does not declare it."""

  def __init__(self, state, scale_of):
    super().__init__(forward_event_shape=[2], inverse_event_shape=[2])
    self.state = state
    self._scale_of = scale_of

  def _forward_and_log_det(self, x):
    scale = tf.convert_to_tensor(self._scale_of(self.state))
    return x * scale, 2. * tf.math.log(scale)

  def _inverse_and_log_det(self, y):
    scale = tf.convert_to_tensor(self._scale_of(self.state))
    return y / scale, -2. * tf.math.log(scale)


class _KnownScale(_Scale):
  """Declares its state, and that it depends on nothing else."""

  def __init__(self):
    super().__init__(None, lambda state: state.value)
    self.state = self._add_variable("scale", tf.constant(2.))

  def _depends_on_variables_only(self):
    return True


def _layer():
  layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
  layer.build([None, 1])
  layer.kernel.assign([[2.]])
  return layer


# What a bijector may hold, how its scale is read from that, and how the scale becomes 4.
_UNKNOWN = {
    "tf_variable": (lambda: tf.Variable(2.), lambda state: state, lambda b: b.state.assign(4.)),
    "keras_variable": (lambda: keras.Variable(2.), lambda state: state.value, lambda b: b.state.assign(4.)),
    "keras_variable_in_list": (lambda: [keras.Variable(2.)], lambda state: state[0].value,
                               lambda b: b.state[0].assign(4.)),
    "keras_layer": (_layer, lambda state: state(tf.ones([1, 1]))[0, 0], lambda b: b.state.kernel.assign([[4.]])),
    "array": (lambda: np.array([2.], np.float32), lambda state: state[0], lambda b: b.state.fill(4.)),
    "number": (lambda: 2., lambda state: state, lambda b: setattr(b, "state", 4.))}
_COMPOSITIONS = {
    "alone": lambda b: b, "tfb_chain": lambda b: tfb.Chain([tfb.Shift(0.), b]),
    "ours": lambda b: tfp_glow.Scan(lambda k: tfp_glow.Chain([tfp_glow.Invert(b)]), 1, [2])}


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("there, asked", [
    ("inverse", "inverse"), ("inverse", "forward"), ("inverse", "forward_log_det_jacobian"), ("forward", "forward"),
    ("forward", "inverse_log_det_jacobian")])
@pytest.mark.parametrize("kind, composition", [
    *((kind, "alone") for kind in _UNKNOWN), ("keras_variable", "tfb_chain"), ("keras_variable", "ours")])
def test_state_that_is_not_declared(kind, composition, there, asked, in_graph):
  make_state, scale_of, change = _UNKNOWN[kind]
  user = _Scale(make_state(), scale_of)
  bijector = _COMPOSITIONS[composition](user)

  def values(y):
    returned = getattr(bijector, there)(y)
    change(user)
    given = y if asked == there else returned
    return getattr(bijector, asked)(given), given, returned

  actual, given, _ = (tf.function(values, autograph=False) if in_graph else values)(tf.ones([1, 2]))
  np.testing.assert_allclose(actual, getattr(bijector, asked)(given.numpy()), rtol=1e-6)


def test_users_may_declare_all_state():
  bijector, y = _KnownScale(), tf.ones([1, 2])
  held = bijector.inverse(y)
  np.testing.assert_allclose(bijector.forward(held), y)
  assert bijector.can_be_recalled and not _Scale(2., lambda state: state).can_be_recalled
  bijector.state.assign(4.)
  np.testing.assert_allclose(bijector.forward(held), 4. * held)


def test_densities_that_are_sums():
  distribution = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(tf.Variable(0.), 1.), [2]), tfb.AbsoluteValue())
  x = np.ones([3, 2], np.float32)
  model = tfp_glow.FlowModel(distribution, num_bits=None)
  np.testing.assert_allclose(model.log_prob(x), distribution.log_prob(x), rtol=1e-6)


@pytest.mark.parametrize("make, error, match", [
    (lambda: tfp_glow.Chain([tfb.Split(2)]), ValueError, "`bijectors` must each go from one tensor.*Received: "),
    (lambda: tfp_glow.Invert(tfb.Split(2)), ValueError, "`bijector` must go from one tensor.*Received: "),
    (lambda: tfp_glow.Chain([]), ValueError, "`bijectors` must hold at least one.*Received: "),
    (lambda: tfp_glow.Chain([_actnorm()]).inverse(tf.ones([1, 2, 2, 2]), scale={"a": 1}), TypeError,
     "must be given arguments that it, or a part of it, takes.*Received: scale"),
    (lambda: tfp_glow.FlowModel(tfd.JointDistributionSequential([tfd.Normal(0., 1.)])), TypeError,
     "`distribution` must be over one tensor.*Received: ")])
def test_errors(make, error, match):
  with pytest.raises(error, match=match):
    make()


@pytest.mark.slow
@pytest.mark.parametrize("make, wanted", [
    (lambda: tfp_glow.GlowBijector((4, 4, 1), 2, 5, 4, coupling="additive", name="inner"),
     "<GlowBijector 'inner': output_shape=(4, 4, 1), num_glow_blocks=2, num_steps_per_block=5, num_hidden=4, "
     "coupling='additive'; (4, 4, 1) to (16,), "),
    (lambda: tfp_glow.ResidualFlowBijector((2, 2, 1), 2, 1, 4, num_dense_blocks=0),
     "<ResidualFlowBijector 'residual_flow': output_shape=(2, 2, 1), num_scales=2, num_blocks_per_scale=1, "
     "num_hidden=4, num_dense_blocks=0; (2, 2, 1) to (4,), "),
    (lambda: tfp_glow.VectorFlowBijector(3, 2, 4),
     "<VectorFlowBijector 'vector_flow': output_shape=3, num_steps=2, num_hidden=4; (3,) to (3,), ")])
def test_repr_of_a_whole_flow_shows_its_size(make, wanted):
  flow = make()
  count = sum(int(np.prod(variable.shape)) for variable in flow.trainable_variables)
  assert repr(flow) == f"{wanted}{count:,} parameters, float32>"


def test_repr_names_the_parts():
  glow = tfp_glow.GlowBijector((2, 2, 2), 1, 1, 4, name="inner")
  chain = tfp_glow.Chain([tfb.Shift(0.5, name="centre"), tfp_glow.Invert(glow)])
  assert all(part in repr(chain) for part in ("<Chain 'chain' of [", "centre", "<Invert 'invert_inner' of", repr(glow)))
  assert str(chain) == repr(chain)


class _Scaled(tfp_glow.OnePassBijector):
  """A user's bijector that names its arguments only in its functions."""

  def __init__(self):
    super().__init__(forward_event_shape=[2], inverse_event_shape=[2])

  def _forward_and_log_det(self, x, scale=None, training=False):
    del training
    return x / tf.cast(scale, x.dtype)[:, tf.newaxis], -2. * tf.math.log(tf.cast(scale, x.dtype))

  def _inverse_and_log_det(self, y, **kwargs):
    factor = 3. if kwargs.get("training") else 1.
    return factor * y * tf.cast(kwargs["scale"], y.dtype)[:, tf.newaxis], tf.zeros([])


def test_arguments_that_only_the_functions_name():
  bijector, x = _Scaled(), np.ones([3, 2], np.float32)
  scale = np.array([1., 2., 4.], np.float32)
  np.testing.assert_allclose(bijector.forward(x, scale=scale), x / scale[:, np.newaxis])
  np.testing.assert_allclose(bijector.inverse(x, scale=scale), x * scale[:, np.newaxis])
  np.testing.assert_allclose(bijector.inverse(x, scale=scale, training=True), 3. * x * scale[:, np.newaxis])
  with pytest.raises(TypeError, match="takes: scale, training. Received: shift$"):
    bijector.forward(x, shift=scale)

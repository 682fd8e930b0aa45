"""No value and no recalled pass is ever out of date or another's, and nothing is kept for ever."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import CASE
from counted_networks import Count, CountedNetwork
from flows_of_two_weights import MODES, Flow, assert_equal, both_modes, distribution_of

import tfp_glow

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
tfb, tfd = tfp.bijectors, tfp.distributions


@pytest.mark.slow
@both_modes
def test_values_after_an_update_are_new(flow, mode):
  """For the same tensors, while all old values are still kept; in a `tf.function` all is in one graph."""
  y, x = tf.constant(flow.data), tf.constant(flow.latents)

  def old_and_new(y, x):
    old = flow.values(y, x)
    flow.assign(flow.new)
    return old, flow.values(y, x)

  old, new = MODES[mode](old_and_new)(y, x)
  assert_equal(old, flow.expected["old"])
  assert_equal(new, flow.expected["new"])
  assert not np.allclose(old["log_prob"], new["log_prob"])


@pytest.mark.slow
@both_modes
def test_way_back_after_an_update_is_new(flow, mode):
  """From what a pass returned: neither its input nor its log-det is valid any more."""
  bijector = flow.bijector

  def there_and_back(y, x):
    returned, log_det = bijector.inverse(y), bijector.forward_log_det_jacobian(bijector.inverse(y))
    other, other_log_det = bijector.forward(x), bijector.inverse_log_det_jacobian(bijector.forward(x))
    flow.assign(flow.new)
    return {"inverse": returned, "inverse_log_det": -log_det, "forward": other, "forward_log_det": -other_log_det}, {
        "forward": bijector.forward(returned), "forward_log_det": bijector.forward_log_det_jacobian(returned),
        "inverse": bijector.inverse(other), "inverse_log_det": bijector.inverse_log_det_jacobian(other)}

  old, new = MODES[mode](there_and_back)(tf.constant(flow.data), tf.constant(flow.latents))
  assert_equal(old, {key: flow.expected["old"][key] for key in old})
  flow.data, data = old["forward"].numpy(), flow.data
  flow.latents, latents = old["inverse"].numpy(), flow.latents
  try:
    expected = flow.values_from_arrays()
  finally:
    flow.data, flow.latents = data, latents
  assert_equal(new, {key: expected[key] for key in new})


@pytest.mark.slow
def test_log_prob_of_a_sample_after_an_update_is_new(flow):
  y = flow.distribution.sample(3, seed=(0, 1))
  flow.assign(flow.new)
  np.testing.assert_allclose(flow.distribution.log_prob(y), flow.distribution.log_prob(y.numpy()))


def test_values_within_one_tape_are_new(flow):
  y = tf.constant(flow.data)
  with tf.GradientTape():
    old = flow.distribution.log_prob(y)
    flow.assign(flow.new)
    new = flow.distribution.log_prob(y)
  np.testing.assert_allclose(old, flow.expected["old"]["log_prob"])
  np.testing.assert_allclose(new, flow.expected["new"]["log_prob"])


def test_update_by_another_function_or_in_a_branch_is_seen():
  flow = Flow(CASE["actnorm_vector"])
  assign_new, assign_old = tf.function(lambda: flow.assign(flow.new)), tf.function(lambda: flow.assign(flow.old))

  @tf.function
  def values(y, again):
    results = [flow.distribution.log_prob(y)]
    assign_new()
    results.append(flow.distribution.log_prob(y))
    if again:
      flow.assign(flow.old)
    results.append(flow.distribution.log_prob(y))
    assign_old()
    return results + [flow.distribution.log_prob(y)]

  old, new = flow.expected["old"]["log_prob"], flow.expected["new"]["log_prob"]
  np.testing.assert_allclose(values(flow.data, tf.constant(True)), [old, new, old, old])
  np.testing.assert_allclose(values(flow.data, tf.constant(False)), [old, new, new, old])


def test_update_between_eager_code_and_a_function_is_seen():
  flow = Flow(CASE["actnorm_vector"])
  y = tf.constant(flow.data)
  log_prob = tf.function(lambda: flow.distribution.log_prob(y))  # Inside, `y` is the same tensor.
  results = [flow.distribution.log_prob(y), log_prob()]
  flow.assign(flow.new)
  results += [flow.distribution.log_prob(y), log_prob()]
  expected = [flow.expected[key]["log_prob"] for key in ("old", "old", "new", "new")]
  np.testing.assert_allclose(results, expected)


# Which pass is meant: the arguments and the bijector.


@pytest.fixture(scope="module")
def conditional():
  return CASE["glow_classes_fixed_top"].make()


@both_modes
@pytest.mark.parametrize("make_labels", [np.array, tf.constant, list], ids=["array", "tensor", "list"])
def test_other_labels_give_other_values(conditional, make_labels, mode):
  y = tf.ones([2, 2, 2, 1])
  values = MODES[mode](lambda y: [conditional.inverse(y, labels=make_labels(label)) for label in ([0, 1], [1, 2])])(y)
  expected = [conditional.inverse(y.numpy(), labels=np.array(label)) for label in ([0, 1], [1, 2])]
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  assert not np.allclose(*expected)


@pytest.mark.parametrize("labels", [np.array([0, 1]), [0, 1], tf.Variable([0, 1])], ids=["array", "list", "variable"])
def test_labels_may_be_changed_in_place(conditional, labels):
  y = tf.ones([2, 2, 2, 1])
  before = conditional.inverse(y, labels=labels)
  if isinstance(labels, tf.Variable):
    labels.assign([1, 2])
  else:
    labels[:] = [1, 2]
  after = conditional.inverse(y, labels=labels)
  np.testing.assert_allclose(after, conditional.inverse(y.numpy(), labels=np.array([1, 2])), rtol=1e-5)
  assert not np.allclose(before, after)


@pytest.mark.parametrize("labels", [np.array([0, 1]), [0, 1], tf.constant([0, 1])], ids=["array", "list", "tensor"])
def test_labels_do_not_cost_a_second_evaluation(labels):
  count = Count()
  glow = tfp_glow.GlowBijector((2, 2, 1), 1, 1, network_fn=lambda n: CountedNetwork(n, count), num_classes=3)
  distribution = distribution_of(glow, [4], "float32")
  count.runs = 0
  distribution.log_prob(tf.ones([2, 2, 2, 1]), bijector_kwargs={"labels": labels})
  assert count.runs == 1


def test_bijectors_made_alike_are_not_taken_for_each_other():
  """TFP's equality compares the arguments of constructors, and its cache serves equal bijectors alike."""
  first, second = tfp_glow.ActNorm(3, 1), tfp_glow.ActNorm(3, 1)
  second.shift.assign([1., 2., 3.])
  assert first != second and len({first, second}) == 2
  y = tf.ones([2, 3])
  held = tfb.Chain([first]).inverse(y)
  np.testing.assert_allclose(tfb.Chain([second]).inverse(y), [[2., 3., 4.]] * 2)
  np.testing.assert_allclose(held, y)


def test_two_bijectors_may_share_a_tensor():
  first, second = CASE["actnorm_vector"].make(), tfp_glow.ActNorm(3, 1)
  y = tf.ones([2, 3])
  held = first.inverse(y), second.inverse(y)
  np.testing.assert_allclose(first.inverse(y), first.inverse(y.numpy()))
  np.testing.assert_allclose(first.forward(held[1]), first.forward(y.numpy()))


# TFP's cache.


def test_a_chain_made_anew_is_not_served_from_the_old_one():
  """They are equal for TFP, because they are made of the same bijector."""
  actnorm = tfp_glow.ActNorm(3, 1)
  y = tf.ones([2, 3])
  held = tfb.Chain([actnorm]).inverse(y)
  actnorm.shift.assign([1., 2., 3.])
  np.testing.assert_allclose(tfb.Chain([actnorm]).inverse(y), [[2., 3., 4.]] * 2)
  np.testing.assert_allclose(held, y)


def test_compositions_without_ours_are_cached_as_ever():
  chain = tfb.Chain([tfb.Exp(), tfb.Scale(2.)])
  x = tf.ones([2])
  y = chain.forward(x)
  assert chain.inverse(y) is x and chain.forward(x) is y


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_cache_is_empty_again_when_its_tensors_are_gone():
  storage = tfb.Bijector._cache.storage
  chain = tfb.Chain([tfb.Scale(2.), tfp_glow.ActNorm(3, 1), tfb.Exp()])
  gc.collect()
  before = len(storage)
  y = tf.ones([2, 3])
  x = chain.inverse(y)
  chain.inverse_log_det_jacobian(y)
  assert len(storage) > before, "the parts that are TFP's are cached"
  del x, y
  assert len(storage) == before


# Memory.


@pytest.fixture
def no_garbage_collector():
  gc.collect()
  gc.disable()
  yield
  gc.enable()


@pytest.mark.parametrize("name", ["glow_step", "glow_classes", "chain", "invert_step"])
def test_no_tensor_outlives_its_last_reference(no_garbage_collector, name):
  """Even without the garbage collector: cycles would hold megabytes until it runs."""
  case = CASE[name]
  bijector = case.make()
  distribution = distribution_of(bijector, case.shape(inverse=False), "float32")
  labels = case.labels([3])
  y = tf.constant(case.draw([3], True))
  x, log_det = bijector.inverse(y, **labels), bijector.inverse_log_det_jacobian(y, **labels)
  log_prob = distribution.log_prob(y, bijector_kwargs=labels)
  round_trip = bijector.forward(x, **labels)
  np.testing.assert_allclose(round_trip, y, rtol=1e-5, atol=1e-6)
  passes = [weakref.ref(done) for done in getattr(x, "_tfp_glow_returned_by", ())]
  assert passes or not isinstance(bijector, tfp_glow.OnePassBijector), "the last part is TFP's"
  outputs = [weakref.ref(tensor) for tensor in (x, log_det, log_prob)]
  input_ = weakref.ref(y)
  del x, log_det, log_prob, round_trip
  assert [ref() for ref in outputs + passes] == [None] * len(outputs + passes)
  del y
  assert input_() is None


@pytest.mark.slow
def test_gradients_leave_no_tensor_behind(no_garbage_collector):
  bijector = CASE["glow_step"].make()
  y = tf.constant(CASE["glow_step"].draw([3], True))
  with tf.GradientTape() as tape:
    x = bijector.inverse(y)
    log_det = bijector.inverse_log_det_jacobian(y)
  tape.gradient([x, log_det], bijector.trainable_variables)
  outputs = [weakref.ref(tensor) for tensor in (x, log_det)]
  del x, log_det, tape
  assert [ref() for ref in outputs] == [None, None]

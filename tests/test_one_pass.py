"""Value and log-det from one evaluation, and from none that is out of date."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from bijector_cases import CASE, Case, dense, perturb
from tensorflow.python.eager import record

import tfp_glow

tfb, tfd = tfp.bijectors, tfp.distributions

SHAPE = [2, 2, 4]


def distribution_of(bijector, latent_shape, dtype="float64"):
  return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(np.array(0., dtype), 1.), latent_shape), bijector)


# One evaluation.


class Count:
  """Of calls, at trace time or eagerly, and of what was executed, also by graphs."""
  calls = 0
  runs = 0


class CountedNetwork(keras.layers.Layer):
  """One convolution."""

  def __init__(self, num_output_channels, count):
    super().__init__()
    self.num_output_channels = num_output_channels
    self.count = count

  def build(self, input_shape):
    self.kernel = self.add_weight(shape=[1, 1, input_shape[-1], self.num_output_channels], name="kernel",
                                  initializer=keras.initializers.RandomNormal(stddev=0.1, seed=0))

  def call(self, inputs):
    self.count.calls += 1
    tf.numpy_function(self._bump, [], [])
    return tf.nn.conv2d(inputs, self.kernel, strides=1, padding="SAME")

  def _bump(self):
    self.count.runs += 1


def _coupling(count, kind=tfp_glow.AffineCoupling):
  coupling = kind(CountedNetwork(4 if kind is tfp_glow.AffineCoupling else 2, count))
  coupling.build(SHAPE)
  return coupling


def _step(count):
  return tfp_glow.GlowStep(tfp_glow.ActNorm(4), tfp_glow.InvertibleConv1x1(4, seed=0), _coupling(count))


def _nested_chain(count, chain=tfp_glow.Chain, invert=tfp_glow.Invert):
  return chain([
      tfb.Scale(2.), _coupling(count), tfp_glow.ActNorm(4), invert(_coupling(count, tfp_glow.AdditiveCoupling)),
      chain([invert(chain([_step(count), tfp_glow.ChannelPermutation([1, 0, 3, 2])])), tfb.Shift(1.)])])


def _glow(count):
  return tfp_glow.GlowBijector((4, 4, 1), 2, 3, network_fn=lambda n: CountedNetwork(n, count), seed=0)


# Constructor, event shape of latents, networks run by a pass, networks in its graph.
COUNTED = {
    "coupling": (_coupling, SHAPE, 1, 1),
    "scan": (lambda count: tfp_glow.Scan(lambda k: _step(count), 3, SHAPE), SHAPE, 3, 1),
    "nested_chain": (_nested_chain, SHAPE, 3, 3),
    "mixed_chain": (lambda count: tfp_glow.Chain([tfb.Chain([_coupling(count), tfb.Scale(2.)]), tfb.Invert(
        _coupling(count))]), SHAPE, 2, 2),
    "glow": (_glow, [16], 6, 2),
}


@pytest.fixture(scope="module", params=COUNTED)
def counted(request):
  construct, shape, num_runs, num_calls = COUNTED[request.param]
  count = Count()
  distribution = distribution_of(construct(count), shape, "float32")
  return count, distribution, num_runs, num_calls


def value_and_gradients(distribution, x):
  with tf.GradientTape() as tape:
    tape.watch(x)
    log_prob = distribution.log_prob(x)
  return tape.gradient(log_prob, [x, *distribution.trainable_variables])


OPERATIONS = {
    "log_prob": lambda distribution, x: distribution.log_prob(x),
    "sample": lambda distribution, x: distribution.sample(3, seed=(0, 1)),
    "sample_and_log_prob": lambda distribution, x: distribution.experimental_sample_and_log_prob(3, seed=(0, 1)),
    "gradients": value_and_gradients,
}


def number_of(function, op_type):
  """Operations of a type in the graph of a concrete function and in all functions that it calls, loops included."""
  graph = function.graph.as_graph_def()
  functions = {f.signature.name: f.node_def for f in graph.library.function}

  def count(nodes):
    # The library also holds functions that were replaced and that nothing calls.
    called = [attr.func.name for node in nodes for attr in node.attr.values() if attr.func.name in functions]
    return sum(node.op == op_type for node in nodes) + sum(count(functions[name]) for name in called)

  return count(graph.node)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_networks_run_once_eagerly(counted, operation):
  count, distribution, num_runs, _ = counted
  x = tf.random.normal([3, *distribution.event_shape])
  count.calls = count.runs = 0
  OPERATIONS[operation](distribution, x)
  assert (count.calls, count.runs) == (num_runs, num_runs)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_networks_run_once_in_a_function(counted, operation):
  count, distribution, num_runs, num_calls = counted
  x = tf.random.normal([3, *distribution.event_shape])
  count.calls = count.runs = 0
  function = tf.function(lambda x: OPERATIONS[operation](distribution, x)).get_concrete_function(x)
  assert (count.calls, count.runs) == (num_calls, 0)
  function(x)
  function(x)
  assert (count.calls, count.runs) == (num_calls, 2 * num_runs)
  splits = sum(isinstance(part, tfp_glow.FactorOut) for part in distribution.bijector.submodules)
  assert number_of(function, "Conv2D") == num_calls + splits


@pytest.mark.parametrize("operation, most", [("log_prob", 2), ("sample", 1), ("sample_and_log_prob", 3),
                                             ("gradients", 4)])
@pytest.mark.parametrize("mode", ["eager", "function"])
def test_networks_of_compositions_of_tfp_run_twice_for_a_log_prob_at_most(operation, most, mode):
  """And once more for what else TFP asks."""
  count = Count()
  distribution = distribution_of(_nested_chain(count, tfb.Chain, tfb.Invert), SHAPE, "float32")
  function = lambda x: OPERATIONS[operation](distribution, x)
  if mode == "function":
    function = tf.function(function)
    function(tf.random.normal([3, *SHAPE]))
  count.runs = 0
  function(tf.random.normal([3, *SHAPE]))
  assert 3 <= count.runs <= 3 * most


def test_networks_run_once_for_a_sample_and_its_log_prob(counted):
  """In two calls and without a tape: `log_prob` remembers what `sample` computed."""
  count, distribution, num_runs, _ = counted
  count.runs = 0
  x = distribution.sample(3, seed=(0, 1))
  log_prob = distribution.log_prob(x)
  assert count.runs == num_runs
  np.testing.assert_allclose(log_prob, distribution.log_prob(x.numpy()), rtol=1e-4)


def test_default_networks_are_in_the_graph_once():
  distribution = distribution_of(tfp_glow.GlowBijector((2, 2, 1), 1, 5, 4), [4], "float32")
  function = tf.function(distribution.log_prob).get_concrete_function(tf.zeros([3, 2, 2, 1]))
  # Those of size 3 of the coupling network; that of size 1 is a matrix product.
  assert number_of(function, "Conv2D") == 2


# Never out of date.

def _nested_chain_of_vectors(dtype):
  coupling = lambda: tfp_glow.AdditiveCoupling(dense(2, dtype), 1, dtype)
  return tfb.Chain([coupling(), tfb.Chain([tfb.Invert(coupling()), tfp_glow.InvertibleConv1x1(3, 0, None, 1, dtype)]),
                    tfb.Invert(tfb.Chain([tfp_glow.ActNorm(3, 1, dtype), tfb.Shift(np.array(0.5, dtype))]))])


# Small ones: a graph with nested tapes takes its time.
FLOWS = {
    "scan": CASE["scan_vector"],
    "invert": Case("invert", lambda dtype: tfb.Invert(CASE["affine_coupling_vector"].construct(dtype)), [5]),
    "chain": Case("nested_chain", _nested_chain_of_vectors, [3]),
    "glow": CASE["glow_fixed_top"],
}
MODES = {"eager": lambda function: function, "function": tf.function}

both_modes = pytest.mark.parametrize("mode", MODES)


def flows(names, slow=()):
  """Some of them only with `-m slow`."""
  return [pytest.param(FLOWS[name], id=name) for name in names] + [
      pytest.param(FLOWS[name], id=name, marks=pytest.mark.slow) for name in slow]


class Flow:
  """A bijector and its distribution, whose every value is known for two sets of weights."""

  def __init__(self, case):
    self.bijector = case.make("float64")
    self.distribution = distribution_of(self.bijector, case.shape(inverse=False))
    self.variables = self.distribution.trainable_variables
    self.data, self.latents = case.draw([3], True, "float64"), case.draw([3], False, "float64")
    self.old = [v.numpy() for v in self.variables]
    perturb(self.bijector, seed=1)
    self.new = [v.numpy() for v in self.variables]
    self.expected = {"new": self.values_from_arrays()}
    self.assign(self.old)
    self.expected["old"] = self.values_from_arrays()

  def assign(self, values):
    for variable, value in zip(self.variables, values):
      variable.assign(value)

  def values(self, y, x):
    """Everything that a bijector answers about data `y` and latents `x`."""
    return {
        "log_prob": self.distribution.log_prob(y), "inverse": self.bijector.inverse(y),
        "inverse_log_det": self.bijector.inverse_log_det_jacobian(y), "forward": self.bijector.forward(x),
        "forward_log_det": self.bijector.forward_log_det_jacobian(x)}

  def values_from_arrays(self):
    """The same, but each of a tensor of its own, of which nothing can be remembered."""
    y, x = self.data, self.latents
    return {
        "log_prob": self.distribution.log_prob(y), "inverse": self.bijector.inverse(y),
        "inverse_log_det": self.bijector.inverse_log_det_jacobian(tf.constant(y)), "forward": self.bijector.forward(x),
        "forward_log_det": self.bijector.forward_log_det_jacobian(tf.constant(x))}


@pytest.fixture(scope="module", params=flows(["scan", "chain"], slow=["glow", "invert"]))
def shared_flow(request):
  return Flow(request.param)


@pytest.fixture
def flow(shared_flow):
  yield shared_flow
  shared_flow.assign(shared_flow.old)


def assert_equal(actual, expected):
  for key, value in expected.items():
    np.testing.assert_allclose(actual[key], value, rtol=1e-10, atol=1e-12, err_msg=key)


@both_modes
def test_values_after_an_update_are_new(flow, mode):
  """Of the same tensors, all old values still at hand; in a `tf.function` all of it is in one graph."""
  y, x = tf.constant(flow.data), tf.constant(flow.latents)

  def old_and_new(y, x):
    old = flow.values(y, x)
    flow.assign(flow.new)
    return old, flow.values(y, x)

  old, new = MODES[mode](old_and_new)(y, x)
  assert_equal(old, flow.expected["old"])
  assert_equal(new, flow.expected["new"])
  assert not np.allclose(old["log_prob"], new["log_prob"])


@both_modes
def test_way_back_after_an_update_is_new(flow, mode):
  """From what a pass returned: neither its input nor its log-det hold any more."""
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
  log_prob = tf.function(lambda: flow.distribution.log_prob(y))  # `y` is the same tensor inside.
  results = [flow.distribution.log_prob(y), log_prob()]
  flow.assign(flow.new)
  results += [flow.distribution.log_prob(y), log_prob()]
  expected = [flow.expected[key]["log_prob"] for key in ("old", "old", "new", "new")]
  np.testing.assert_allclose(results, expected)


# Gradients.


def gradients(flow, y, sources, **options):
  """Of `log_prob`, by a tape of its own."""
  with tf.GradientTape(**options) as tape:
    tape.watch(sources)
    log_prob = flow.distribution.log_prob(y)
  return tape.gradient(log_prob, sources)


@pytest.fixture(scope="module")
def right_gradients(shared_flow):
  y = tf.constant(shared_flow.data)
  return [tf.convert_to_tensor(g) for g in gradients(shared_flow, y, [y, *shared_flow.variables])]


def assert_all_close(actual, expected):
  for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
    assert a is not None, f"gradient {index} is None"
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def after_a_pass(flow, y, variables):
  log_prob = flow.distribution.log_prob(y), flow.bijector.inverse(y)
  result = gradients(flow, y, variables)
  del log_prob
  return result


def after_another_tape(flow, y, variables):
  with tf.GradientTape() as tape:
    tape.watch(y)
    log_prob = flow.distribution.log_prob(y), flow.bijector.inverse(y)
  result = gradients(flow, y, variables)
  del log_prob
  return result


def in_an_outer_tape(flow, y, variables):
  with tf.GradientTape() as outer:
    log_prob = flow.distribution.log_prob(y)
    inner = gradients(flow, y, variables)
  return [*inner, *outer.gradient(log_prob, variables)]


def outside_of_an_inner_tape(flow, y, variables):
  with tf.GradientTape() as outer:
    inner = gradients(flow, y, variables)
    log_prob = flow.distribution.log_prob(y)
  return [*inner, *outer.gradient(log_prob, variables)]


def by_a_persistent_tape(flow, y, variables):
  held = flow.bijector.inverse(y)
  with tf.GradientTape(persistent=True) as tape:
    first, second = flow.distribution.log_prob(y), flow.distribution.log_prob(y)
  del held
  return [*tape.gradient(first, variables), *tape.gradient(second, variables)]


def twice_in_one_tape(flow, y, variables):
  with tf.GradientTape() as tape:
    total = 0.5 * flow.distribution.log_prob(y) + 0.5 * flow.distribution.log_prob(y)
  return tape.gradient(total, variables)


ORDERS = [after_a_pass, after_another_tape, in_an_outer_tape, outside_of_an_inner_tape, by_a_persistent_tape,
          twice_in_one_tape]


def _flows_modes_and_orders():
  """In loops, graphs of nested tapes take long to build; what is remembered in them has nothing to do with loops."""
  for name, *mark in (("chain",), ("scan", pytest.mark.slow), ("invert", pytest.mark.slow)):
    for mode in MODES:
      for order in ORDERS:
        if mode == "eager" or name == "chain" or order in (in_an_outer_tape, by_a_persistent_tape):
          yield pytest.param(FLOWS[name], mode, order, id=f"{name}-{mode}-{order.__name__}", marks=mark)


@pytest.mark.parametrize("shared_flow, mode, order", list(_flows_modes_and_orders()), indirect=["shared_flow"])
def test_all_gradients_are_there(flow, right_gradients, order, mode):
  y = tf.constant(flow.data)
  result = MODES[mode](lambda y: order(flow, y, flow.variables))(y)
  expected = right_gradients[1:]
  assert_all_close(result, expected * (len(result) // len(expected)))


@both_modes
def test_all_gradients_of_glow_are_there(mode):
  """As above: `log_prob(x)` outside and then inside of a tape, where those of `tfb.Glow` are all `None`."""
  flow = Flow(FLOWS["glow"])
  y = tf.constant(flow.data)
  expected = gradients(flow, y, flow.variables)
  assert len(expected) >= 15
  assert_all_close(MODES[mode](lambda y: after_a_pass(flow, y, flow.variables))(y), expected)


def of_one_variable(flow, y, sources):
  held = flow.distribution.log_prob(y), flow.bijector.inverse(y)
  result = [gradients(flow, y, [source], watch_accessed_variables=False)[0] for source in (sources[1], sources[-1])]
  del held
  return result


def of_the_input(flow, y, sources):
  del sources
  held = flow.distribution.log_prob(y), flow.bijector.inverse(y)
  result = gradients(flow, y, [y], watch_accessed_variables=False)
  del held
  return result


def watched_one_after_the_other(flow, y, sources):
  """By one tape, which watches more the second time."""
  first, second = sources[1], sources[-1]
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(first)
    held = flow.distribution.log_prob(y), flow.bijector.inverse(y)
    tape.watch([second, y])
    log_prob = flow.distribution.log_prob(y)
  del held
  return tape.gradient(log_prob, [y, first, second])


@pytest.mark.parametrize("shared_flow", flows(["chain"], slow=["scan", "invert"]), indirect=True)
@both_modes
def test_a_tape_may_watch_just_one_source(flow, right_gradients, mode):
  y = tf.constant(flow.data)
  sources = [y, *flow.variables]
  run = MODES[mode]
  assert_all_close(run(lambda y: of_one_variable(flow, y, sources))(y), [right_gradients[1], right_gradients[-1]])
  assert_all_close(run(lambda y: of_the_input(flow, y, sources))(y), right_gradients[:1])
  assert_all_close(run(lambda y: watched_one_after_the_other(flow, y, sources))(y),
                   [right_gradients[0], right_gradients[1], right_gradients[-1]])


def test_no_gradient_flows_where_none_was_recorded():
  actnorm = CASE["actnorm_vector"].make()
  y = tf.ones([2, 3])
  with tf.GradientTape() as tape:
    held = actnorm.inverse(y)
    with tape.stop_recording():
      paused = actnorm.inverse(y)
    with record.stop_recording():
      stopped = actnorm.inverse(y)
    del held
  assert tape.gradient([paused, stopped], actnorm.trainable_variables) == (None, None)


@both_modes
@pytest.mark.parametrize("name", ["scan", "chain"])
def test_gradients_of_the_log_prob_of_a_sample(name, mode):
  """With respect to the weights, through both ways, and to the sample: drawn in the same tape, or before."""
  flow = Flow(FLOWS[name])
  x = tf.constant(flow.latents)

  def inside(x, again=lambda y: y):
    with tf.GradientTape() as tape:
      y = flow.bijector.forward(x)
      y = again(y)
      loss = flow.distribution.log_prob(y) + tf.reduce_sum(tf.sin(y), -1)
    return tape.gradient(loss, [y, *flow.variables])

  def outside(x, again=lambda y: y):
    y = again(flow.bijector.forward(x))
    return gradients(flow, y, [y, *flow.variables])

  for function in (inside, outside):
    # `identity`: the same values, but nothing is remembered of them.
    assert_all_close(MODES[mode](function)(x), function(x, again=tf.identity))


def test_forward_mode():
  flow = Flow(FLOWS["scan"])
  y, direction = tf.constant(flow.data), tf.ones_like(flow.data)
  held = flow.distribution.log_prob(y), flow.bijector.inverse(y)
  with tf.autodiff.ForwardAccumulator(y, direction) as accumulator:
    log_prob = flow.distribution.log_prob(y)
  del held
  expected = tf.reduce_sum(gradients(flow, y, [y])[0] * direction, axis=-1)
  np.testing.assert_allclose(accumulator.jvp(log_prob), expected)


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
  """TFP's equality compares the arguments of constructors; its cache serves equal bijectors alike."""
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
  """Equal for TFP, as they are made of the same bijector."""
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
  """Without the garbage collector: there are no cycles, which would hold megabytes until it runs."""
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

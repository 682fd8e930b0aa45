"""Value and log-det from one evaluation."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from counted_networks import Count, CountedNetwork
from flows_of_two_weights import distribution_of

import tfp_glow

tfb, tfd = tfp.bijectors, tfp.distributions

SHAPE = [2, 2, 4]


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
  return tfp_glow.GlowBijector((4, 4, 1), 2, 2, network_fn=lambda n: CountedNetwork(n, count), seed=0)


# Constructor, event shape of latents, networks that a pass runs, networks in its graph.
COUNTED = {
    "coupling": (_coupling, SHAPE, 1, 1),
    "scan": (lambda count: tfp_glow.Scan(lambda k: _step(count), 3, SHAPE), SHAPE, 3, 1),
    "nested_chain": (_nested_chain, SHAPE, 3, 3),
    "mixed_chain": (lambda count: tfp_glow.Chain([tfb.Chain([_coupling(count), tfb.Scale(2.)]), tfb.Invert(
        _coupling(count))]), SHAPE, 2, 2),
    "glow": (_glow, [16], 4, 2),
}


@pytest.fixture(scope="module", params=["coupling", "glow", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("scan", "nested_chain", "mixed_chain"))])
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
    # The library also holds functions that were replaced and are never called.
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


def test_networks_are_compiled_once_by_xla(counted, monkeypatch):
  _, distribution, _, num_calls = counted
  x = tf.random.normal([3, *distribution.event_shape])
  log_prob = lambda x: distribution.log_prob(x)
  monkeypatch.setattr(tf, "numpy_function", lambda *args: None)  # XLA cannot call back, but its program can be read.
  program = tf.function(log_prob, jit_compile=True).experimental_get_compiler_ir(x)(stage="hlo")
  splits = sum(isinstance(part, tfp_glow.FactorOut) for part in distribution.bijector.submodules)
  assert program.count(" convolution(") == num_calls + splits


@pytest.mark.parametrize("operation, most", [("log_prob", 2), ("sample", 1), ("sample_and_log_prob", 3),
                                             ("gradients", 4)])
@pytest.mark.parametrize("mode", ["eager", pytest.param("function", marks=pytest.mark.slow)])
def test_networks_of_compositions_of_tfp_run_twice_for_a_log_prob_at_most(operation, most, mode):
  """And once more for other questions of TFP."""
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


@pytest.mark.slow
def test_default_networks_are_in_the_graph_once():
  distribution = distribution_of(tfp_glow.GlowBijector((2, 2, 1), 1, 5, 4), [4], "float32")
  function = tf.function(distribution.log_prob).get_concrete_function(tf.zeros([3, 2, 2, 1]))
  # Those of size 3 of the coupling network; that of size 1 is a matrix product.
  assert number_of(function, "Conv2D") == 2

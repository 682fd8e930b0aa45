"""The residual flows that `residual.py` compares, as functions that run one call. Both have the same architecture.

Images are not squeezed, and there is one scale: actnorm, and then blocks and actnorms in turn. Both draw weights from
the same distribution, bound each layer by 0.98, update its norm by five power iterations after each training step, and
estimate log-dets with Gaussian probes and the same number of terms: two in training, otherwise 20, and a geometric
number of further ones. Samples are exact to the last digits of float32; normflows' default has errors of 0.003.
"""

import systems

_COEFFICIENT = 0.98
_NUM_POWER_ITERATIONS = 5
_TOLERANCE = 1e-6  # As in the package, relative to `1 + |x|`; normflows compares squares.


def _tfp_glow(architecture):
  import tensorflow as tf
  import tensorflow_probability as tfp

  import tfp_glow
  from tfp_glow import lipschitz

  def make_distribution(seed):
    flow = tfp_glow.ResidualFlowBijector(
        architecture.image_shape, num_scales=1, num_blocks_per_scale=architecture.num_steps,
        num_hidden=architecture.num_hidden, num_dense_blocks=0, logit_alpha=None, coefficient=_COEFFICIENT,
        roulette="geometric", seed=seed)
    for part in flow.parts:
      step = part.template if isinstance(part, tfp_glow.Scan) else part
      for layer in lipschitz.constrained_layers(step.block.network) if step.is_stochastic else []:
        layer.tolerance, layer.max_iterations = 0., _NUM_POWER_ITERATIONS
    base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [architecture.num_dims])
    return tfp.distributions.TransformedDistribution(base, flow)

  def make_step(distribution, optimizer, variables):

    @tf.function(autograph=False)
    def step(x):
      with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(distribution.log_prob(x, bijector_kwargs={"training": True}))
      optimizer.apply_gradients(zip(tape.gradient(loss, distribution.trainable_variables), variables))
      distribution.bijector.after_update()
      return loss

    return step

  return systems.tensorflow_system(
      make_distribution, lambda distribution, x: distribution.bijector.initialize(x),
      lambda variables: systems.keras_adam(architecture, variables), make_step, architecture)


def _normflows(architecture):
  """normflows with the gradient `"memory_efficient"`, `"neumann"` alone, or `"plain"`."""
  import normflows as nf
  height, width, channels = architecture.image_shape
  hidden = architecture.num_hidden

  def make_block(is_first):
    network = nf.nets.LipschitzCNN([channels, hidden, hidden, channels], [3, 1, 3], lipschitz_const=_COEFFICIENT,
                                   max_lipschitz_iter=_NUM_POWER_ITERATIONS, init_zeros=False)
    block = nf.flows.Residual(network.net[is_first:], n_dist="geometric", n_exact_terms=2)
    block.iresblock.neumann_grad = architecture.gradient in ("memory_efficient", "neumann")
    block.iresblock.grad_in_forward = architecture.gradient == "memory_efficient"
    return block

  def make_model():
    flows = [nf.flows.ActNorm([channels, 1, 1])]
    for k in range(architecture.num_steps):
      flows += [make_block(k == 0), nf.flows.ActNorm([channels, 1, 1])]
    # In normflows' order, from latents to data.
    base = nf.distributions.DiagGaussian((channels, height, width), trainable=False)
    return nf.NormalizingFlow(base, flows[::-1])

  def sample(model, count):
    """`model.sample` without the log-dets, which are not needed, and as exact as the other system's."""
    z, _ = model.q0(count)
    for flow in model.flows:
      is_block = isinstance(flow, nf.flows.Residual)
      z = flow.iresblock._inverse_fixed_point(z, _TOLERANCE**2, _TOLERANCE**2) if is_block else flow(z)[0]
    return z

  return systems.torch_system(make_model, lambda model, x: model.log_prob(x), sample, architecture,
                              lambda model: nf.utils.update_lipschitz(model, _NUM_POWER_ITERATIONS))


# As in `systems.py`.
MAKERS = {"tfp_glow.residual": _tfp_glow, "normflows.residual": _normflows}

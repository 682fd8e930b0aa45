"""Glow for vectors: the bijector for tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import numerics
from tfp_glow._core.validation import check_counts, check_seed, checked_dtype, is_int
from tfp_glow.bijectors import context_features, contexts
from tfp_glow.bijectors.coupling import AffineCoupling
from tfp_glow.bijectors.scan import Scan
from tfp_glow.bijectors.standardization import Standardization
from tfp_glow.bijectors.step_maker import step_maker
from tfp_glow.bijectors.whitening import Whitening
from tfp_glow.bijectors.whole_sequence import WholeSequence
from tfp_glow.networks import building
from tfp_glow.networks.dense import DenseCouplingNetwork


class VectorFlowBijector(WholeSequence):
  """Glow for vectors, such as rows of a table, from a latent vector of the same size.

  ```none
  inverse: standardise each column, and make columns uncorrelated; then K steps of flow: actnorm, an invertible linear
           map (the 1x1 convolution of Glow), and an affine coupling with a small dense network.
  ```

  The latent is standard normal if the model is right. `initialize`, which `FlowModel.adapt(table)` calls, measures
  means, deviations and correlations of columns. Training does not change them, and so starts from the Gaussian of the
  data. (See `Standardization` and `Whitening`.) The log-det includes them, so densities are those of the columns in
  their own units.

  #### Example

  ```python
  import numpy as np
  import tensorflow_probability as tfp
  import tfp_glow

  table = np.random.default_rng(0).normal([5., 1e4, 0.], [1e-2, 1e3, 1.], [100, 3]).astype(np.float32)
  flow = tfp_glow.VectorFlowBijector(3, num_steps=4, num_hidden=32)
  flow.initialize(table)
  base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [3])
  rows = tfp.distributions.TransformedDistribution(base, flow)
  rows.log_prob(table)      # [100], in nats
  ```

  References:
    Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018).
  """

  def __init__(self, output_shape: int | Sequence[int], num_steps: int = 8, num_hidden: int = 64,
               network_fn: Callable[[int], keras.Layer] | None = None, gradient: str = "autodiff",
               seed: int | None = None, dtype: tf.DType | str | None = None, validate_args: bool = False,
               name: str = "vector_flow",
               context_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
               context_network: keras.Layer | None = None):
    """Creates the bijector.

    Args:
      output_shape: `D` or `(D,)`, the size of a vector, at least 2, because couplings change one half by the other.
      num_steps: Python `int`, steps of flow.
      num_hidden: Python `int`, width of the two hidden layers of the default network. The network computes in the
        precision of Keras' global dtype policy, as in `GlowBijector`.
      network_fn: Callable, from `num_output_channels` to a Keras layer from `[N, D // 2]` to
        `[N, num_output_channels]`, used instead of `networks.DenseCouplingNetwork`. It is called for every step. Start
        its last layer at zero. With a context the layer is called with `[inputs, context]`; `context` holds features
        `[N, F]`.
      gradient: `"autodiff"` is faster. `"reversible"` needs memory only for the activations of one step, whatever
        `num_steps`. See `Scan`.
      seed: Python `int`: the same seed gives the same initial values, except in networks of your own `network_fn`.
        `None`: new values each time (the same after `keras.utils.set_random_seed`).
      dtype: Floating dtype of parameters, vectors and latents. Default: Keras' `floatx`.
      validate_args: Python `bool`: a non-finite input is an error, at a cost.
      name: Python `str`.
      context_shape: Shape of one context, `(F,)` of a vector or `(h, w, c)` of an image, or a dict from names to such
        shapes. All couplings depend on `context`, which must be passed as `bijector_kwargs={"context": context}`,
        `[..., *context_shape]` or a dict of such tensors. Images are flattened. Scale your context to about -1 .. 1: it
        is not standardised. `None`: no context.
      context_network: Keras layer, from a batch of contexts (or a dict of them) to vectors or images, or a dict of
        them. Its outputs replace the context. It is evaluated once per pass, and trained with the rest. `None`: the
        context is used unchanged.

    Raises:
      TypeError: if `context_network` is not a Keras layer, or `network_fn` not a function.
      ValueError: if another argument is not as above.
    """
    parameters = dict(locals())
    num_dims = _checked_num_dims(output_shape)
    check_counts(num_steps=num_steps, num_hidden=num_hidden)
    check_seed(seed)
    dtype = checked_dtype(dtype or keras.config.floatx())
    shapes, features = _context_features(context_shape, context_network, dtype)
    policy = building.policy_of(dtype)
    make_network = lambda num_outputs, num_groups, seed: DenseCouplingNetwork(
        num_outputs, num_hidden, seed, dtype=policy, name="network")
    make_step, redraw = step_maker(
        num_dims, AffineCoupling, "conv1x1", network_fn, make_network, numerics.generator(seed), dtype,
        None if features is None else [features.num_flat], event_ndims=1)
    parts = [Standardization(num_dims, dtype=dtype), Whitening(num_dims, dtype),
             Scan(make_step, num_steps, [num_dims], gradient, redraw, dtype, name="steps")]
    super().__init__(parts, forward_event_shape=[num_dims], inverse_event_shape=[num_dims], dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    if features is not None:
      self._take_context(shapes, features)

  def _context_of_parts(self, features, parts):
    return features.flat(parts)

  def _latent_shapes(self):
    return [self.event_shape_of(inverse=False)]


def _context_features(context_shape, context_network, dtype):
  """Checked shapes of the context, and its `ContextFeatures`; two `None`s if there is no context."""
  shapes = contexts.checked_context_shape(context_shape)
  if shapes is None:
    context_features.check_no_network(context_network)
    return None, None
  return shapes, context_features.ContextFeatures(shapes, context_network, [], dtype)


def _checked_num_dims(output_shape):
  sizes = tuple(output_shape) if np.iterable(output_shape) else (output_shape,)
  if len(sizes) != 1 or not is_int(sizes[0], least=2):
    raise ValueError("`output_shape` must be D or (D,), an `int` of at least 2: couplings change one half of a vector "
                     "by the other (`ResidualFlowBijector(1, num_scales=0)` is a flow for single numbers). "
                     f"Received: {output_shape!r}")
  return int(sizes[0])

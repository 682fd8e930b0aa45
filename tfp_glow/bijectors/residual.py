"""The invertible residual block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfp_glow._core import _compat, numerics
from tfp_glow._core.validation import check_choice, check_counts, check_fractions, check_seed
from tfp_glow.bijectors import contexts
from tfp_glow.bijectors import log_det as log_dets
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.fixed_point import solve
from tfp_glow.networks import building, elsewhere, lipschitz
from tfp_glow.networks.glow import ZeroConv2D, ZeroDense

_LOG_DETS = ("russian_roulette", "power_series", "exact")
_MOST_FOR_EXACT = 256  # Numbers in an event. The graph of an exact log-det grows with them, memory with their square.


class InvertibleResidualBlock(OnePassBijector):
  """Adds the output of a contracting network to the data.

  ```none
  inverse(y) = y + network(y)
  inverse log-det = log |det(I + J)|, J the Jacobian of the network
  ```

  `forward` has no closed form. It iterates `y <- x - network(y)` (`fixed_point.solve`) until the change is no more than
  rounding errors. If it does not converge, that is an error, or NaN where XLA compiles it. A log-det is NaN where its
  computation shows that the network does not contract: an estimate rules out norms of all orders from 1 to
  infinity, an exact log-det all norms. The computation does not always show it. Second derivatives of `forward` and
  of estimated log-dets are not available: they are NaN.

  With a context, a learned map of it is added to the outputs of the network's first linear map. It changes the
  function, but not its Lipschitz constant. Networks other than a `keras.Sequential` of layers of `tfp_glow.lipschitz`
  are called with `[inputs, context]` instead, and must contract in the inputs for every context.

  `log_det="exact"` computes the log-det from the Jacobian, for events of few numbers. Other values give a random
  estimate (see `log_det.SeriesEstimator`). It is a function of the inputs, the weights and the seed, and stays the same
  until `after_update`, which draws new noise, as training needs. All events of a batch have the same number of terms;
  each has its own probe. `training=True` (in `bijector_kwargs` of a distribution) makes the estimate coarser.

  Memory of a training step does not grow with the network's depth times the number of blocks. A block keeps its inputs
  and one tensor of their shape, and evaluates its network once more for the gradients.

  #### Example

  ```python
  import keras
  import tensorflow as tf
  from tfp_glow import InvertibleResidualBlock
  from tfp_glow.lipschitz import LipschitzDense, LipSwish

  network = keras.Sequential([LipschitzDense(16), LipSwish(), LipschitzDense(2)])
  block = InvertibleResidualBlock(network, log_det="exact", event_ndims=1)
  x, log_det = block.inverse_and_log_det(tf.random.normal([5, 2]))  # [5, 2], [5]
  ```

  References:
    Behrmann et al., "Invertible Residual Networks" (2019).
    Chen et al., "Residual Flows for Invertible Generative Modeling" (2019).
  """

  def __init__(self, network: keras.Layer, log_det: str = "russian_roulette", num_terms: int = 2,
               num_eval_terms: int = 20, roulette: str = "poisson", probe: str = "gaussian",
               tolerance: float | None = None, max_iterations: int = 1000, event_ndims: int = 3,
               seed: int | None = None, dtype: tf.DType | str | None = None, validate_args: bool = False,
               name: str = "residual_block",
               context_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None):
    """Creates the block.

    Args:
      network: Keras layer or model, from `[N, H, W, C]` (with `event_ndims` 1, `[N, C]`) to the same shape, with a
        Lipschitz constant below 1. Layers of `tfp_glow.lipschitz` ensure this, also in training. A `keras.Sequential`
        of them is best: its kernels are then normalised once for all evaluations.
      log_det: `"russian_roulette"`: an unbiased estimate. `"power_series"`: an estimate from the first few terms only.
        `"exact"`: for events of up to 256 numbers.
      num_terms: Python `int`, number of terms of the estimate with `training=True`, before those that the roulette
        adds.
      num_eval_terms: Python `int`, the same without `training=True`.
      roulette: Distribution of the number of terms that `"russian_roulette"` adds: `"poisson"`, with mean 2, or
        `"geometric"`, halved with each term, from 1.
      probe: `"gaussian"` or `"rademacher"`: distribution of the random vectors that estimate traces.
      tolerance: Python `float`, for `forward`, relative to the largest number of an event; `None`: 1e-6 in float32,
        1e-12 in float64.
      max_iterations: Python `int`, for `forward`.
      event_ndims: 3 for images `[H, W, C]`, 1 for vectors `[C]`.
      seed: Python `int` of the estimate. `None`: a new one each time (the same after `keras.utils.set_random_seed`).
      dtype: See `OnePassBijector`.
      validate_args: See `OnePassBijector`.
      name: Python `str`.
      context_shape: Shape of one `context`, which calls then take: `[H, W, F]` for images of this height and width,
        `[F]` for vectors. For networks that are called with the context: any shape, or a dict. `None`: no context.

    Raises:
      TypeError: if `network` is not a Keras layer.
      ValueError: if an argument is not as above; on first use or `build`, if the network does not fit the data or
        holds state that a call changes.
    """
    parameters = dict(locals())
    check_choice("log_det", log_det, _LOG_DETS)
    check_choice("roulette", roulette, log_dets.ROULETTES)
    check_choice("probe", probe, log_dets.PROBES)
    check_choice("event_ndims", event_ndims, (1, 3))
    check_counts(num_terms=num_terms, num_eval_terms=num_eval_terms, max_iterations=max_iterations)
    check_seed(seed)
    if tolerance is not None:
      check_fractions(tolerance=tolerance)
    super().__init__(forward_event_shape=[None] * event_ndims, inverse_event_shape=[None] * event_ndims, dtype=dtype,
                     validate_args=validate_args, parameters=parameters, name=name)
    self.network = network
    self._event_shape = None
    self._kind = log_det
    self._description = {
        "exact": "exact", "power_series": f"power series of {num_eval_terms} terms, {probe} probes, fixed noise",
        "russian_roulette": f"Russian roulette: {num_eval_terms} terms and a {roulette} number of further ones, "
                            f"{probe} probes, fixed noise"}[log_det]
    self._tolerance = tolerance or (1e-6 if self.dtype == tf.float32 else 1e-12)
    self._max_iterations = max_iterations
    self._own_context_shapes = _compat.untracked(self, contexts.checked_context_shape(context_shape))
    building.is_built(network)  # Raises if it is not a layer.
    self.context_map = self._make_context_map()
    if self.is_stochastic:
      roulette = roulette if log_det == "russian_roulette" else None
      self._estimators = _compat.untracked(self, {training: log_dets.SeriesEstimator(count, roulette, probe)
                                              for training, count in ((True, num_terms), (False, num_eval_terms))})
      seed = int(numerics.generator(seed).integers(2**31))
      self._noise_seed = self._add_variable("noise_seed", tf.constant([seed, 0]), trainable=False,
                                            aggregation="only_first_replica")
    # Last, so that the order of variables is that of a network built later: a loaded model builds its network first.
    if building.is_built(network):
      self._adopt(network.variables)

  @property
  def is_stochastic(self) -> bool:
    return self._kind != "exact"

  @property
  def has_costly_log_det(self) -> bool:
    return True

  def _make_context_map(self):
    """The learned map from a context to what is added to the outputs of the network's first linear map; 0 at first."""
    shape, first = self._own_context_shapes, lipschitz.first_linear_map(self.network)
    if shape is None or first is None:
      return None
    event_ndims = self._event_shapes[True].rank
    if not isinstance(shape, tf.TensorShape) or shape.rank != event_ndims:
      expected = "[H, W, F]" if event_ndims == 3 else "[F]"
      raise ValueError(f"`context_shape` must be {expected}. Received: {contexts.as_public(shape)}")
    make = ZeroConv2D if event_ndims == 3 else ZeroDense
    context_map = make(first.num_outputs, dtype=self.dtype.name, name="context_map")
    context_map.build((None, *shape))
    self._adopt(context_map.variables)
    return context_map

  @property
  def argument_names(self) -> frozenset[str]:
    return frozenset({"training"}) | ({"context"} if self._own_context_shapes is not None else set())

  @property
  def context_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    return contexts.as_public(self._own_context_shapes)

  def _depends_on_variables_only(self):
    return super()._depends_on_variables_only() and not elsewhere.is_read_by(self.network)

  @property
  def log_det_estimator(self) -> str | None:
    return self._description

  def redraw(self, seed: int) -> list[tuple[keras.Variable, np.ndarray]]:
    """Initial values of another block like this with another seed.

    Only what differs is listed. All of it is random, even the power iteration's vectors, which `after_update` corrects.

    Args:
      seed: Python `int`.

    Returns:
      List of `(variable of this one, array)`.
    """
    rng = numerics.generator(seed)
    drawn = [pair for layer in lipschitz.constrained_layers(self.network)
             for pair in layer.redraw(int(rng.integers(2**30)))]
    return drawn + ([(self._noise_seed, np.array([rng.integers(2**30), 0]))] if self.is_stochastic else [])

  def build(self, event_shape: Sequence[int] | tf.TensorShape) -> None:
    """Builds the network if needed, and checks it.

    The first call builds it, too. Call this only if you need the variables earlier.

    Args:
      event_shape: Static shape of one event, `[H, W, C]` or `[C]`.

    Raises:
      ValueError: if the network's output does not have that shape and the block's dtype; the shape is unknown,
        different from before or too large for an exact log-det; or the network holds state that a call changes.
    """
    event_shape = tf.TensorShape(event_shape)
    if event_shape == self._event_shape:
      return
    if not event_shape.is_fully_defined() or self._event_shape is not None:
      raise ValueError(f"Events of `{self.name}` must have a shape that is known when the graph is built and never "
                       "changes: the Lipschitz constant of its network depends on it. "
                       f"Received: {event_shape}, previously {self._event_shape}")
    if not self.is_stochastic and event_shape.num_elements() > _MOST_FOR_EXACT:
      raise ValueError(f"`log_det` must not be 'exact' for events of more than {_MOST_FOR_EXACT} numbers. "
                       f"Received: {event_shape}")
    if self.context_map is not None and self._own_context_shapes[:-1] != event_shape[:-1]:
      raise ValueError(f"Events of `{self.name}` must have the height and width of its contexts, "
                       f"{self._own_context_shapes}. Received: {event_shape}")
    was_built = building.is_built(self.network)
    dtype = building.build(self.network, event_shape, event_shape[-1], self.dtype,
                           self._own_context_shapes if self._sees_context else None)
    lower = [layer.compute_dtype for layer in building.lower_layers_of(self.network, self.dtype)
             if not isinstance(layer, (keras.Model, keras.layers.InputLayer))]
    if dtype != self.dtype or lower:
      raise ValueError(f"`network` must compute in the dtype of the block, {self.dtype.name}: with larger rounding "
                       f"errors `forward` would not converge. Received: {(lower or [dtype.name])[0]}")
    if not was_built:
      self._adopt(self.network.variables)
    self._event_shape = event_shape

  def _inverse_and_log_det(self, y, training=False, needs_log_det=True, context=None):
    weights, weights_of_log_det = self._prepared(y, context)
    if not needs_log_det:
      return y + self._branch(y, weights), tf.zeros(tf.shape(y)[:1], y.dtype)
    return self._residual(y, weights_of_log_det, training)

  def _forward_and_log_det(self, x, training=False, needs_log_det=True, context=None):
    weights, weights_of_log_det = self._prepared(x, context)
    y = solve(self._branch, x, weights, self._tolerance, self._max_iterations, self.name)
    if not needs_log_det:
      return y, tf.zeros(tf.shape(x)[:1], x.dtype)
    return y, -self._residual(y, weights_of_log_det, training)[1]

  def _initialize(self, y, context=None):
    self._measure_norms(y)
    return self._inverse_and_log_det(y, needs_log_det=False, context=context)[0]

  def _initialize_back(self, x, context=None):
    self._measure_norms(x)
    return self._forward_and_log_det(x, needs_log_det=False, context=context)[0]

  def _measure_norms(self, values):
    self.build(values.shape[1:])
    for layer in lipschitz.constrained_layers(self.network):
      layer.update_spectral_norm()

  def _prepared(self, y, context):
    """The weights for events like `y`, and those for the log-det, which may see several copies of each event."""
    self.build(y.shape[1:])
    context = contexts.of_size(context, y.shape)
    weights, count = self._weights(context), log_dets.num_copies(y.shape[1:].num_elements())
    if context is None or self.is_stochastic or count == 1:
      return weights, weights
    return weights, self._weights(tf.nest.map_structure(lambda t: tf.repeat(t, count, axis=0), context))

  @property
  def _sees_context(self):
    """Whether the network is called with `[inputs, context]`."""
    return self._own_context_shapes is not None and self.context_map is None

  def _weights(self, context):
    """The arguments of `_branch` without the inputs."""
    if self._sees_context:
      return lipschitz.fold(self.network), context
    return lipschitz.fold(self.network, None if context is None else self.context_map(context))

  def _branch(self, y, weights):
    if not self._sees_context:
      return lipschitz.run(self.network, y, weights)
    weights, context = weights
    return lipschitz.run(self.network, [y, context], weights)

  def _residual(self, y, weights, training):
    if not self.is_stochastic:
      return log_dets.exact(self._branch, y, weights)
    seed = tf.convert_to_tensor(self._noise_seed.value)
    return self._estimators[training](self._branch, y, weights, seed)

  def noise_seeds(self) -> list[keras.Variable]:
    return [self._noise_seed] if self.is_stochastic else []

  def _variables_of_update(self):
    vectors = [vector for layer in lipschitz.constrained_layers(self.network) for vector in layer.vectors]
    return vectors + self.noise_seeds()

  def _update(self):
    vectors = [value for layer in lipschitz.constrained_layers(self.network) for value in layer.next_vectors()]
    return vectors + ([tf.convert_to_tensor(self._noise_seed.value) + [0, 1]] if self.is_stochastic else [])

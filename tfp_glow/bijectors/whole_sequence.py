"""Whole flows of parts one after the other."""

from __future__ import annotations

from tfp_glow.bijectors.composition import Sequence
from tfp_glow.bijectors.whole_flow import WholeFlow


class WholeSequence(WholeFlow, Sequence):
  """A whole flow of parts one after the other. `_context_of_parts` of a subclass returns the parts' context."""

  def _forward_and_log_det(self, x, context=None, **kwargs):
    return super()._forward_and_log_det(x, **self._condition(context), **kwargs)

  def _inverse_and_log_det(self, y, context=None, **kwargs):
    return super()._inverse_and_log_det(y, **self._condition(context), **kwargs)

  def _initialize(self, y, context=None):
    return super()._initialize(y, **self._condition(context))

  def _initialize_back(self, x, context=None):
    return super()._initialize_back(x, **self._condition(context))

  def _walk(self, y, context=None, **kwargs):
    yield from super()._walk(y, **self._condition(context), **kwargs)

  def _condition(self, context):
    """Keyword arguments of the parts."""
    if context is None:
      return {}
    features = self._context_features
    return {"context": self._context_of_parts(features, features.parts(context))}

  def _context_of_parts(self, features, parts):
    """The `context` argument of the flow's parts.

    Args:
      features: `ContextFeatures`.
      parts: The result of `features.parts`.
    """
    raise NotImplementedError

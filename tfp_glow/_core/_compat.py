"""All that is private of TensorFlow, Keras and TFP: an entry each, with what happens where it is missing."""

import tensorflow_probability as tfp


def forget_compositions_of(bijector):
  """Takes compositions that a bijector is part of, such as a `tfb.Chain`, out of TFP's cache.

  TFP answers `chain.inverse(y)` from its cache as long as somebody has an earlier answer: from before an update of the
  weights, or from outside of a gradient tape. A composition asks its parts for their dtypes before it looks there.

  It touches `tfb.Bijector._cache`. Where that is missing, TFP must keep its answers elsewhere.

  Raises:
    NotImplementedError: if it is missing.
  """
  try:
    storage = tfp.bijectors.Bijector._cache.storage
  except AttributeError as error:
    raise NotImplementedError(
        "`tensorflow_probability` must be a version whose bijectors have a `_cache`, or compositions might answer with "
        f"old weights. Received: {tfp.__version__}") from error
  for key in list(storage):
    owner = key.subkey[0]
    if owner is not bijector and key in storage and any(part is bijector for part in owner.submodules):
      key.cancel()
      del storage[key]

"""Helpers that know nothing of flows: numerics, checks of arguments, gradients, files."""

import keras

if keras.config.backend() != "tensorflow":
  raise ImportError("`KERAS_BACKEND` must be \"tensorflow\" when Keras is imported, as it is if it is not set. "
                    f"Received: {keras.config.backend()!r}")

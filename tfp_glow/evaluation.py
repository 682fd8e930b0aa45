"""Bits per dimension, more exact than those of `FlowModel.evaluate`."""

from tfp_glow.training.evaluation import BitsPerDim, bits_per_dim

__all__ = ["BitsPerDim", "bits_per_dim"]

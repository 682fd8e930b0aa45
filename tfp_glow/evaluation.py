"""Bits per dimension, more exactly than `FlowModel.evaluate` reports them."""

from tfp_glow.training.evaluation import BitsPerDim, bits_per_dim

__all__ = ["BitsPerDim", "bits_per_dim"]

"""SavedModels: distributions that only need TensorFlow to serve."""

from tfp_glow.storage.savedmodel import export_distribution

__all__ = ["export_distribution"]

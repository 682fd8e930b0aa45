"""SavedModels: distributions that need nothing but TensorFlow to serve."""

from tfp_glow.storage.savedmodel import export_distribution

__all__ = ["export_distribution"]

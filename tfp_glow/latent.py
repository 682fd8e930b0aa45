"""Paths through the latent space."""

from tfp_glow.data.latent import attribute_direction, interpolate

__all__ = ["attribute_direction", "interpolate"]

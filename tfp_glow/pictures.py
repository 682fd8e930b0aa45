"""Pictures of many images."""

from tfp_glow.data.pictures import tile

__all__ = ["tile"]

"""Pictures of many images."""

from tfp_glow.data.pictures import GAP, TILE_SIZE, tile

__all__ = ["GAP", "TILE_SIZE", "tile"]

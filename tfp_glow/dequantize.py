"""Between uint8 or uint16 images and continuous values; bits per dimension."""

from tfp_glow.likelihood.dequantize import bits_per_dim, dequantize, discrete_log_prob, image_noise, quantize

__all__ = ["bits_per_dim", "dequantize", "discrete_log_prob", "image_noise", "quantize"]

"""Checkpoints of the original TensorFlow 1 code, https://github.com/openai/glow."""

from tfp_glow.checkpoints.openai_glow.load import load_original_checkpoint

__all__ = ["load_original_checkpoint"]

"""Keras layers of bounded Lipschitz constant: the networks of invertible residual blocks."""

from tfp_glow.networks.lip_swish import LipSwish, lip_swish
from tfp_glow.networks.lipschitz import LipschitzConv2D, LipschitzDense, constrained_layers
from tfp_glow.networks.norms import LearnedOrder

__all__ = ["LearnedOrder", "LipSwish", "LipschitzConv2D", "LipschitzDense", "constrained_layers", "lip_swish"]

"""Keras layers of bounded Lipschitz constant: the networks of invertible residual blocks."""

from tfp_glow.networks.lipschitz import (
    LearnedOrder,
    LipschitzConv2D,
    LipschitzDense,
    LipSwish,
    constrained_layers,
    lip_swish,
)

__all__ = ["LearnedOrder", "LipSwish", "LipschitzConv2D", "LipschitzDense", "constrained_layers", "lip_swish"]

"""Glow as a TensorFlow Probability bijector, and its training with Keras 3.

`forward` is the generative direction, latent to data; the paper's formulas are `inverse`.
"""

from tfp_glow import callbacks, data, dequantize, evaluation, export, latent, lipschitz, networks, pictures
from tfp_glow.bijectors.actnorm import ActNorm
from tfp_glow.bijectors.base import OnePassBijector
from tfp_glow.bijectors.composition import Chain, Invert
from tfp_glow.bijectors.conv1x1 import InvertibleConv1x1
from tfp_glow.bijectors.coupling import AdditiveCoupling, AffineCoupling
from tfp_glow.bijectors.factor_out import FactorOut, TopPrior
from tfp_glow.bijectors.glow import GlowBijector
from tfp_glow.bijectors.glow_step import GlowStep
from tfp_glow.bijectors.logit import Logit
from tfp_glow.bijectors.normalization import Normalization
from tfp_glow.bijectors.permutation import ChannelPermutation
from tfp_glow.bijectors.residual import InvertibleResidualBlock
from tfp_glow.bijectors.residual_flow import ResidualFlowBijector, ResidualStep
from tfp_glow.bijectors.scan import Scan
from tfp_glow.bijectors.squeeze import Squeeze
from tfp_glow.bijectors.standardization import Standardization
from tfp_glow.bijectors.vector_flow import VectorFlowBijector
from tfp_glow.bijectors.whitening import Whitening
from tfp_glow.checkpoints.openai_glow import load_original_checkpoint
from tfp_glow.checkpoints.residual_flows import load_residual_flow_checkpoint
from tfp_glow.networks.classifier import ScaleClassifier
from tfp_glow.training.model import FlowModel
from tfp_glow.version import __version__

__all__ = [
    "ActNorm", "AdditiveCoupling", "AffineCoupling", "Chain", "ChannelPermutation", "FactorOut", "FlowModel",
    "GlowBijector", "GlowStep", "Invert", "InvertibleConv1x1", "InvertibleResidualBlock", "Logit", "Normalization",
    "OnePassBijector", "ResidualFlowBijector", "ResidualStep", "ScaleClassifier", "Scan", "Squeeze", "Standardization",
    "TopPrior", "VectorFlowBijector", "Whitening", "callbacks", "data", "dequantize", "evaluation", "export", "latent",
    "lipschitz", "load_original_checkpoint", "load_residual_flow_checkpoint", "networks", "pictures", "__version__",
]

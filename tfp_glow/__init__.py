"""Glow and Residual Flows as TensorFlow Probability bijectors."""

from tfp_glow import networks
from tfp_glow.bijectors.actnorm import ActNorm
from tfp_glow.bijectors.conv1x1 import InvertibleConv1x1
from tfp_glow.bijectors.coupling import AdditiveCoupling, AffineCoupling
from tfp_glow.bijectors.factor_out import FactorOut
from tfp_glow.bijectors.one_pass import OnePassBijector
from tfp_glow.bijectors.permutation import ChannelPermutation
from tfp_glow.bijectors.scan import Scan
from tfp_glow.bijectors.squeeze import Squeeze
from tfp_glow.glow import GlowBijector, GlowStep
from tfp_glow.model import FlowModel

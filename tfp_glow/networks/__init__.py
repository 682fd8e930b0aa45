"""Networks of couplings: Keras layers. Those of bounded Lipschitz constant are `tfp_glow.lipschitz`."""

from tfp_glow.networks.dense import DenseCouplingNetwork
from tfp_glow.networks.glow import ActNormConv2D, CouplingNetwork, ZeroConv2D, ZeroDense

__all__ = ["ActNormConv2D", "CouplingNetwork", "DenseCouplingNetwork", "ZeroConv2D", "ZeroDense"]

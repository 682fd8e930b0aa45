"""Checkpoints of the authors' code of Residual Flows, https://github.com/rtqichen/residual-flows."""

from tfp_glow.checkpoints.residual_flows.load import load_residual_flow_checkpoint

__all__ = ["load_residual_flow_checkpoint"]

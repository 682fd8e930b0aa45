"""Keras callbacks: the end and the state of a training run, and pictures of a model during training."""

from tfp_glow.training.callbacks.bits_per_dim_curve import BitsPerDimCurve
from tfp_glow.training.callbacks.latent_interpolation import LatentInterpolation
from tfp_glow.training.callbacks.sample_grid import SampleGrid
from tfp_glow.training.callbacks.stop_on_interrupt import StopOnInterrupt
from tfp_glow.training.callbacks.stop_on_preemption import StopOnPreemption
from tfp_glow.training.callbacks.time_limit import TimeLimit
from tfp_glow.training.callbacks.training_state import TrainingState

__all__ = ["BitsPerDimCurve", "LatentInterpolation", "SampleGrid", "StopOnInterrupt", "StopOnPreemption", "TimeLimit",
           "TrainingState"]

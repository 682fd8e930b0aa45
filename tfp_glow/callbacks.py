"""Keras callbacks for training flows."""

from tfp_glow.training.callbacks import (
    BitsPerDimCurve,
    LatentInterpolation,
    SampleGrid,
    StopOnInterrupt,
    StopOnPreemption,
    TimeLimit,
    TrainingState,
)

__all__ = ["BitsPerDimCurve", "LatentInterpolation", "SampleGrid", "StopOnInterrupt", "StopOnPreemption", "TimeLimit",
           "TrainingState"]

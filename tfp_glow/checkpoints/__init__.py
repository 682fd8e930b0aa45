"""Checkpoints written by other code."""

"""Checkpoints that other codes wrote."""

"""Helpers that know nothing of flows: numerics, checks of arguments, gradients, files."""

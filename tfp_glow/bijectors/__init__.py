"""Bijectors: the contract, compositions, layers, whole flows."""

"""What knows nothing of flows: numbers, checks, gradients, files."""

"""Images in, log-probabilities and latents out."""

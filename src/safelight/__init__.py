"""Safelight: text-to-image serving with latent diffusion transformers."""

"""Diffusion for audio in JAX."""

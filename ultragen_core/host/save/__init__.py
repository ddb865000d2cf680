"""Saves a latent as a video."""

"""Exact tiled decode and encode with a loaded VAE."""

"""Exact tiled decode and encode with a VAE that ComfyUI has loaded."""

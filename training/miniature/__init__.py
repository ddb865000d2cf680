"""A miniature of the whole pipeline: painted landscape videos to train small models on, and to judge them by."""

from pathlib import Path

# What the recipe made. A run whose folder holds vae.safetensors goes on from there.
WEIGHTS = Path(__file__).resolve().parent / "weights"

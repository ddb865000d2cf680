"""A miniature of the whole pipeline: painted landscape videos, small models trained on them, and their evaluation."""

from pathlib import Path

# Made by the recipe in make.py. A run whose folder has vae.safetensors continues from there.
WEIGHTS = Path(__file__).resolve().parent / "weights"

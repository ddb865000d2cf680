"""A miniature of the whole pipeline: painted landscape videos to train small models on, and to judge them by."""

from pathlib import Path

# What the recipe made: copied into the folder of a run, a part is done.
WEIGHTS = Path(__file__).resolve().parent / "weights"

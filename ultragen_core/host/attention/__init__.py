"""Patches a loaded Wan model with an attention rule."""

"""Saves sampling runs on disk until their prompts have succeeded."""

"""Measures videos with models that ComfyUI loads."""

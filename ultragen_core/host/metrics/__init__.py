"""Measures ComfyUI's videos and images."""

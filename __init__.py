"""UltraGen for ComfyUI: native 1080P, 2K and 4K video with Wan models."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]

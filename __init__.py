"""UltraGen for ComfyUI: native 1080P, 2K and 4K video with Wan models."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"  # scripts and help pages for the browser

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

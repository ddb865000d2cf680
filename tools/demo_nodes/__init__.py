"""Stand-ins for models that are too large for the demo: UMT5-XXL, Wan 2.2's VAE. Linked into the demo's folder only."""


async def comfy_entrypoint():
    from .nodes import DemoExtension  # late: tools/ uses scenes and text without ComfyUI

    return DemoExtension()

"""Stand-ins for models that are too large for the demo: UMT5-XXL, Wan 2.2's VAE; a quicker convolution on CPUs. Linked
into the demo's folder only.
"""


async def comfy_entrypoint():
    # Late: tools/ uses scenes and text without ComfyUI.
    from . import convolution
    from .nodes import DemoExtension

    convolution.install()
    return DemoExtension()

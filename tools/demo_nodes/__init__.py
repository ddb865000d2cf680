"""Stand-ins for models that are too large for the demo (UMT5-XXL, Wan 2.2's VAE, SeedVR2), and a faster convolution on
CPUs.

Linked into the custom_nodes of the demo and the tests only.
"""

import sys
from pathlib import Path

# ComfyUI imports this folder alone, and the stand-in for the text encoder needs the captions of `training.miniature`.
# Last on the path, so that it hides nothing of ComfyUI's.
sys.path.append(str(Path(__file__).resolve().parents[2]))


async def comfy_entrypoint():
    from . import convolution
    from .nodes import DemoExtension

    convolution.install()
    return DemoExtension()

"""Stand-ins for models that are too large for the demo: UMT5-XXL, Wan 2.2's VAE; a quicker convolution on CPUs. Linked
into the demo's folder only.
"""

import sys
from pathlib import Path

# The stand-in for the text encoder knows the words that the miniature was trained on.
sys.path.append(str(Path(__file__).resolve().parents[2]))


async def comfy_entrypoint():
    from . import convolution
    from .nodes import DemoExtension

    convolution.install()
    return DemoExtension()

"""UltraGen's attention and exact VAE decode without ComfyUI; `host` alone knows ComfyUI. Example: docs/library.md."""

from .attention.config import GlobalConfig, LocalConfig
from .attention.engine import Engine
from .attention.extras import ExtrasShape
from .attention.gate import GateLine
from .attention.module import T3Attention, UltraGenAttention, UltraGenFeedForward, WanProjections
from .grid import TokenGrid
from .rules.ultragen import block_spec
from .sampling import flow_sigmas
from .version import VERSION

__all__ = [
    "VERSION",
    "Engine",
    "ExtrasShape",
    "GateLine",
    "GlobalConfig",
    "LocalConfig",
    "T3Attention",
    "TokenGrid",
    "UltraGenAttention",
    "UltraGenFeedForward",
    "WanProjections",
    "block_spec",
    "flow_sigmas",
]

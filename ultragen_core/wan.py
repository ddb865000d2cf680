"""Sizes of a Wan model, for arithmetic without the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .sizes import SPATIAL_RATIO

PATCH = 1, 2, 2  # latent pixels (t, h, w) that become one token, in every Wan model
HEAD_DIM = 128
# Tensors whose sizes identify a model's, with their number of axes.
IDENTIFYING_TENSORS = {"head.modulation": 3, "head.head.weight": 2, "blocks.0.ffn.0.weight": 2}


@dataclass(frozen=True)
class WanShape:
    """Sizes of a Wan model.

    out_channels: of the latent. vace_blocks: number of blocks that feed others. other_attention: by block, the class of
    a self-attention that is not Wan's plain one.
    """

    blocks: int
    channels: int
    heads: int
    ffn_channels: int
    out_channels: int = 16
    vace_blocks: int = 0
    other_attention: Mapping[int, str] = field(default_factory=dict, hash=False)

    @classmethod
    def of_keys(cls, state: Mapping[str, Tensor]) -> WanShape:
        """From a checkpoint in Wan's own key names. Raises ValueError, with the reason, for other files."""
        lacking = [key for key, axes in IDENTIFYING_TENSORS.items() if key not in state or state[key].ndim != axes]
        if lacking:
            raise ValueError(f"a Wan model has {lacking[0]}, with {IDENTIFYING_TENSORS[lacking[0]]} axes")
        channels = state["head.modulation"].shape[-1]
        numbers = [re.match(r"(vace_)?blocks\.(\d+)\.", key) for key in state]
        counts = [len({match[2] for match in numbers if match and bool(match[1]) == vace}) for vace in (False, True)]
        out_channels = state["head.head.weight"].shape[0] // (PATCH[1] * PATCH[2])
        if channels % HEAD_DIM or not channels or out_channels not in SPATIAL_RATIO or counts[1] > counts[0]:
            raise ValueError(
                f"a Wan model has channels in multiples of {HEAD_DIM}, 16 or 48 of the latent, and no more VACE blocks"
                f" than blocks, found {channels}, {out_channels}, {counts[1]} and {counts[0]}"
            )
        return cls(
            blocks=counts[0],
            channels=channels,
            heads=channels // HEAD_DIM,
            ffn_channels=state["blocks.0.ffn.0.weight"].shape[0],
            out_channels=out_channels,
            vace_blocks=counts[1],
        )

    @property
    def uses_wan22_vae(self) -> bool:
        """Whether the model works on latents of Wan 2.2's VAE: 48 channels, 16x."""
        return self.out_channels == 48

    @property
    def token_pixels(self) -> int:
        """Pixels per token, per axis."""
        return PATCH[1] * SPATIAL_RATIO[self.out_channels]

    @property
    def fed_by_vace(self) -> frozenset[int]:
        """Blocks that a VACE block feeds."""
        return frozenset(range(0, self.blocks, self.blocks // self.vace_blocks)) if self.vace_blocks else frozenset()

    @property
    def base_tokens(self) -> int:
        """Tokens per frame at the base model's training resolution: 1280x704 for the 5B, 832x480 for all others."""
        return 22 * 40 if self.uses_wan22_vae else 30 * 52


WAN_1_3B = WanShape(blocks=30, channels=1536, heads=12, ffn_channels=8960)
WAN_5B = WanShape(blocks=30, channels=3072, heads=24, ffn_channels=14336, out_channels=48)

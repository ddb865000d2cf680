"""Memory that one evaluation takes, and how many tokens may be computed at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..grid import TokenGrid
from ..wan import PATCH, WanShape

# Most maps of all tokens that a block holds at once, however few tokens it computes at a time. Dense attention: the
# block's input, the normed input (which becomes the output), keys, values. UltraGen: windows and their output instead.
HELD_MAPS = 4
# VACE also holds its own stream, its addition to the video's, and the embedding.
HELD_MAPS_VACE = 3
# Float32 latents held at once: the sampler's, and for each prompt its input, result and count.
LATENT_COPIES = 10
# ComfyUI is asked to leave free what this many pieces need; every further piece transfers offloaded weights once more.
PLANNED_PIECES = 8
MAX_PIECES = 64
# Usable fraction of the free memory, and the bytes that kernels and their workspaces take when they first run.
USABLE = 0.95
KERNEL_WORKSPACE = 400 * 2**20


@dataclass(frozen=True)
class ActivationMemory:
    """Peak memory of one evaluation, in bytes.

    tokens: number of tokens of all items of the batch. held: needed however few tokens are computed at a time.
    transient: needed in addition when all tokens are computed at once. latents: held by the sampler.
    """

    tokens: int
    held: int
    transient: int
    latents: int

    @classmethod
    def of(cls, shape: WanShape, grid: TokenGrid, batch: int, itemsize: int, kernel_maps: int = 0) -> ActivationMemory:
        """grid: of one item of the batch. itemsize: bytes per activation. kernel_maps: maps of all tokens that the
        attention kernel holds besides `HELD_MAPS`.
        """
        tokens = batch * grid.tokens
        rotations = grid.tokens * shape.channels // shape.heads // 2 * 16  # ComfyUI's, 2x2 float32 matrices
        # The feed-forward part has its hidden map twice, before and after the activation, or next to its delta.
        transient = tokens * itemsize * (2 * shape.ffn_channels + 2 * shape.channels)
        latents = LATENT_COPIES * tokens * 4 * math.prod(PATCH) * shape.out_channels
        maps = HELD_MAPS + (HELD_MAPS_VACE if shape.vace_blocks else 0) + kernel_maps
        return cls(tokens, maps * tokens * shape.channels * itemsize + rotations, transient, latents)

    def needed(self, pieces: int) -> int:
        """With the tokens computed in this many pieces."""
        return self.held + self.latents + KERNEL_WORKSPACE + self.transient // pieces

    def planned(self, bounded: bool) -> int:
        """What ComfyUI is asked to leave free. bounded: the tokens may be computed in pieces."""
        return self.needed(PLANNED_PIECES if bounded else 1)

    def budget(self, free: int) -> MemoryBudget:
        """The pieces that fit into `free` bytes."""
        left = USABLE * (free - KERNEL_WORKSPACE) - self.held
        pieces = MAX_PIECES if left <= 0 else min(math.ceil(self.transient / left), MAX_PIECES)
        return MemoryBudget(self.tokens, pieces)


@dataclass
class MemoryBudget:
    """How many of an evaluation's tokens are computed at a time."""

    tokens: int
    pieces: int
    bounded: bool = True

    @property
    def tokens_at_a_time(self) -> int | None:
        """None is all."""
        return None if self.pieces == 1 else -(-self.tokens // self.pieces)

    def shrink(self) -> bool:
        """Compute fewer tokens at a time, after memory ran out: in PLANNED_PIECES at least, then in twice as many
        pieces each time. Returns False where that is no longer possible.
        """
        if not self.bounded or self.pieces >= MAX_PIECES:
            return False
        self.pieces = min(max(2 * self.pieces, PLANNED_PIECES), MAX_PIECES)
        return True

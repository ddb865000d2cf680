"""How much memory the tokens of one evaluation take, and how many of them may be worked on at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..grid import TokenGrid
from ..wan import PATCH, WanShape

# Maps of all tokens that a block holds at the worst, however few it works on at a time. Dense attention: the block's
# input, the normed one (which becomes the output), keys, values. UltraGen: windows and their output in place of those.
HELD_MAPS = 4
# VACE holds more: its own stream, what it adds to the video's, and the embedding.
HELD_MAPS_VACE = 3
# Float32 latents at a time: of the sampler, and for each prompt its input, result and count.
LATENTS = 10
# ComfyUI is asked to leave room for so many pieces of the rest; with weights that are not loaded, each piece costs one
# more transfer of them.
PLANNED_PIECES = 8
MOST_PIECES = 64
# Part of the free memory that can be used, and what kernels and their workspaces take of it when they are first run.
USABLE = 0.95
KERNELS = 400 * 2**20


@dataclass(frozen=True)
class Activations:
    """Memory that the tokens of one evaluation take, in bytes.

    tokens: of all items of the batch together. held: at any rate. passing: besides, with all tokens worked on at once.
    latents: what a sampler holds around it.
    """

    tokens: int
    held: int
    passing: int
    latents: int

    @classmethod
    def of(cls, shape: WanShape, grid: TokenGrid, batch: int, itemsize: int) -> Activations:
        """itemsize: bytes of an activation."""
        tokens = batch * grid.tokens
        rotations = grid.tokens * shape.channels // shape.heads // 2 * 16  # core's, 2x2 float32 matrices
        # The feed-forward part has its hidden map twice, before and after the activation.
        passing = tokens * itemsize * (2 * shape.ffn_channels + 2 * shape.channels)
        latents = LATENTS * tokens * 4 * math.prod(PATCH) * shape.out_channels
        maps = HELD_MAPS + (HELD_MAPS_VACE if shape.vace_blocks else 0)
        return cls(tokens, maps * tokens * shape.channels * itemsize + rotations, passing, latents)

    def needed(self, pieces: int) -> int:
        """With the tokens worked on in so many pieces."""
        return self.held + self.latents + KERNELS + self.passing // pieces

    def planned(self, bounded: bool) -> int:
        """What ComfyUI is asked to leave free."""
        return self.needed(PLANNED_PIECES if bounded else 1)

    def room(self, free: int) -> Room:
        """What fits into `free` bytes."""
        left = USABLE * (free - KERNELS) - self.held
        pieces = MOST_PIECES if left <= 0 else min(math.ceil(self.passing / left), MOST_PIECES)
        return Room(self.tokens, pieces)


@dataclass
class Room:
    """How many of an evaluation's tokens are worked on at a time."""

    tokens: int
    pieces: int
    bounded: bool = True

    @property
    def tokens_at_a_time(self) -> int | None:
        """None where all are."""
        return None if self.pieces == 1 else -(-self.tokens // self.pieces)

    def shrink(self) -> bool:
        """Work on half as many, after memory ran out; False where that would not help any more."""
        if not self.bounded or self.pieces >= MOST_PIECES:
            return False
        self.pieces = min(max(2 * self.pieces, PLANNED_PIECES), MOST_PIECES)
        return True

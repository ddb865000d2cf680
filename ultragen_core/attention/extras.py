"""The weights that UltraGen adds to a Wan block for every token to pass through, and how training starts them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class LowRankDelta(nn.Module):
    """Domain-aware LoRA: (..., c) -> (..., c), B(A(x)), both factors with bias, no scaling."""

    def __init__(self, channels: int, rank: int, operations=nn, **factory):
        super().__init__()
        self.lora_A = operations.Linear(channels, rank, **factory)
        self.lora_B = operations.Linear(rank, channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(x))


@dataclass(frozen=True)
class ExtrasShape:
    """Sizes of a checkpoint's added weights. Rank 0: no low-rank deltas. Refined: with 3x3x3 convolutions."""

    channels: int
    rank: int = 0
    global_ratio: int = 4
    hierarchical_ratio: int = 2
    refined: bool = False


class CoarseBranch(nn.Module):
    """The weights of the global or the hierarchical branch: compression, low-rank deltas of q, k and v, refinement."""

    def __init__(self, shape: ExtrasShape, ratio: int, operations=nn, **factory):
        super().__init__()
        c = shape.channels
        self.ratio = ratio
        self.compress = operations.Conv2d(c, c, ratio, stride=ratio, groups=c, **factory)
        self.refine = operations.Conv3d(c, c, 3, padding=1, groups=c, **factory) if shape.refined else None
        for name in ("q", "k", "v"):
            setattr(self, name, LowRankDelta(c, shape.rank, operations, **factory) if shape.rank else None)


class BlockExtras(nn.Module):
    """The added weights that one block's layer reads for every token."""

    def __init__(self, shape: ExtrasShape, operations=nn, **factory):
        super().__init__()
        self.global_branch = CoarseBranch(shape, shape.global_ratio, operations, **factory)
        self.hierarchical_branch = CoarseBranch(shape, shape.hierarchical_ratio, operations, **factory)


def initial_block(shape: ExtrasShape) -> dict[str, Tensor]:
    """The state of a `BlockExtras` before training, as in the paper: averaging convolutions, zero deltas."""
    c, r = shape.channels, shape.rank
    state = {}
    for branch, ratio in (("global_branch", shape.global_ratio), ("hierarchical_branch", shape.hierarchical_ratio)):
        state[f"{branch}.compress.weight"] = torch.full((c, 1, ratio, ratio), ratio**-2)
        state[f"{branch}.compress.bias"] = torch.zeros(c)
        if shape.refined:
            state[f"{branch}.refine.weight"] = torch.full((c, 1, 3, 3, 3), 1 / 27)
            state[f"{branch}.refine.bias"] = torch.zeros(c)
        for name in ("q", "k", "v") if r else ():
            state[f"{branch}.{name}.lora_A.weight"] = torch.randn(r, c) * c**-0.5
            state[f"{branch}.{name}.lora_A.bias"] = torch.zeros(r)
            state[f"{branch}.{name}.lora_B.weight"] = torch.zeros(c, r)
            state[f"{branch}.{name}.lora_B.bias"] = torch.zeros(c)
    return state

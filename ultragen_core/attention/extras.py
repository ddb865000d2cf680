"""Extras: the weights that UltraGen adds to a Wan block, and their values before training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .gate import BlockGates


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
    """Sizes of a checkpoint's extras. rank: of the low-rank deltas, 0 without. refined: with 3x3x3 convolutions."""

    channels: int
    rank: int = 0
    global_ratio: int = 4
    hierarchical_ratio: int = 2
    refined: bool = False


class CoarseBranch(nn.Module):
    """Extras of the global or the hierarchical branch: compression, low-rank deltas of q, k and v, refinement."""

    def __init__(self, shape: ExtrasShape, ratio: int, operations=nn, **factory):
        super().__init__()
        c = shape.channels
        self.ratio = ratio
        self.compress = operations.Conv2d(c, c, ratio, stride=ratio, groups=c, **factory)
        self.refine = operations.Conv3d(c, c, 3, padding=1, groups=c, **factory) if shape.refined else None
        for name in ("q", "k", "v"):
            setattr(self, name, LowRankDelta(c, shape.rank, operations, **factory) if shape.rank else None)


class BlockExtras(nn.Module):
    """The extras of one block that all tokens pass through; its gates are `BlockGates`."""

    def __init__(self, shape: ExtrasShape, operations=nn, **factory):
        super().__init__()
        self.global_branch = CoarseBranch(shape, shape.global_ratio, operations, **factory)
        self.hierarchical_branch = CoarseBranch(shape, shape.hierarchical_ratio, operations, **factory)


def initial_block(shape: ExtrasShape) -> dict[str, Tensor]:
    """State of a `BlockExtras` before training, as in the paper: averaging convolutions, zero deltas."""
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


def initial_gates(channels: int, local_share: float = 0.5) -> dict[str, Tensor]:
    """State of a `BlockGates` before training: a constant share of the local side, one half in the paper.

    Raises ValueError unless the share is above 0 and below 1.
    """
    if not 0 < local_share < 1:
        raise ValueError(f"The local share must be above 0 and below 1, got {local_share}.")
    gates = BlockGates(channels)
    for gate in gates.children():
        for layer in (gate.embedding_in, gate.embedding_out):
            nn.init.normal_(layer.weight, std=0.02)  # like Wan's own time embedding
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(gate.projection.weight)
        nn.init.constant_(gate.projection.bias, math.log(local_share / (1 - local_share)))
    return gates.state_dict()


@dataclass(frozen=True)
class ExtrasSummary:
    """What a rule needs to know of extras: sizes, the blocks that have them, and their gates.

    gates: by block; None stands for a gate whose weights are not loaded. Extras without gates count as untrained.
    """

    shape: ExtrasShape
    blocks: frozenset[int]
    gates: Mapping[int, BlockGates | None]

    @property
    def trained(self) -> bool:
        return bool(self.gates)

"""Extras: the weights that UltraGen adds to a Wan block, and their values before training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .gate import BlockGates


class LowRankDelta(nn.Module):
    """Domain-aware LoRA of a linear layer: (..., inputs) -> (..., outputs), B(A(x)), factors with bias, no scaling."""

    def __init__(self, inputs: int, outputs: int, rank: int, operations=nn, **factory):
        super().__init__()
        self.lora_A = operations.Linear(inputs, rank, **factory)
        self.lora_B = operations.Linear(rank, outputs, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(x))


def with_delta(y: Tensor, delta: LowRankDelta | None, x: Tensor, strength: float, overwrite: bool = False) -> Tensor:
    """The output y of a linear layer of x with its delta: y + strength * delta(x), or y itself without a delta.

    overwrite: y may be overwritten with the result, where no backward pass needs it.
    """
    if delta is None or strength == 0:
        return y
    if overwrite and not torch.is_grad_enabled():
        return y.add_(delta(x), alpha=strength)
    return torch.add(y, delta(x), alpha=strength)


@dataclass(frozen=True)
class ExtrasShape:
    """Sizes of a checkpoint's extras.

    rank: of the low-rank deltas, 0 without. refined: with 3x3x3 convolutions. ffn_channels: hidden channels of the
    feed-forward part, whose linear layers have deltas too; 0 without those.
    """

    channels: int
    rank: int = 0
    global_ratio: int = 4
    hierarchical_ratio: int = 2
    refined: bool = False
    ffn_channels: int = 0

    @property
    def deltas(self) -> dict[str, dict[str, tuple[int, int]]]:
        """All linear layers that have a delta: by part of `BlockExtras` and name, (inputs, outputs)."""
        c, hidden = self.channels, self.ffn_channels
        parts = {branch: dict.fromkeys("qkv", (c, c)) for branch in ("global_branch", "hierarchical_branch")}
        if hidden:
            parts["ffn"] = {"0": (c, hidden), "2": (hidden, c)}
        return parts if self.rank else {}


def add_deltas(module: nn.Module, part: str, shape: ExtrasShape, operations=nn, **factory) -> None:
    """Give `module` a `LowRankDelta` under the name of every linear layer of this part that has one."""
    for name, (inputs, outputs) in shape.deltas.get(part, {}).items():
        module.add_module(name, LowRankDelta(inputs, outputs, shape.rank, operations, **factory))


class CoarseBranch(nn.Module):
    """Extras of the global or the hierarchical branch: compression, low-rank deltas of q, k and v, refinement."""

    def __init__(self, part: str, shape: ExtrasShape, ratio: int, operations=nn, **factory):
        super().__init__()
        c = shape.channels
        self.ratio = ratio
        self.compress = operations.Conv2d(c, c, ratio, stride=ratio, groups=c, **factory)
        self.refine = operations.Conv3d(c, c, 3, padding=1, groups=c, **factory) if shape.refined else None
        add_deltas(self, part, shape, operations, **factory)


class FeedForwardExtras(nn.Module):
    """Extras of a block's feed-forward part: low-rank deltas of its linear layers, under the layers' names 0 and 2."""

    def __init__(self, shape: ExtrasShape, operations=nn, **factory):
        super().__init__()
        add_deltas(self, "ffn", shape, operations, **factory)


class BlockExtras(nn.Module):
    """The extras of one block that all tokens pass through; its gates are `BlockGates`. ffn: None without deltas."""

    def __init__(self, shape: ExtrasShape, operations=nn, **factory):
        super().__init__()
        self.global_branch = CoarseBranch("global_branch", shape, shape.global_ratio, operations, **factory)
        self.hierarchical_branch = CoarseBranch(
            "hierarchical_branch", shape, shape.hierarchical_ratio, operations, **factory
        )
        self.ffn = FeedForwardExtras(shape, operations, **factory) if "ffn" in shape.deltas else None


def initial_deltas(shape: ExtrasShape, part: str) -> dict[str, Tensor]:
    """State of this part's deltas before training: they add nothing, because B is zero, as in the paper."""
    state, r = {}, shape.rank
    for name, (inputs, outputs) in shape.deltas.get(part, {}).items():
        state[f"{name}.lora_A.weight"] = torch.randn(r, inputs) * inputs**-0.5
        state[f"{name}.lora_A.bias"] = torch.zeros(r)
        state[f"{name}.lora_B.weight"] = torch.zeros(outputs, r)
        state[f"{name}.lora_B.bias"] = torch.zeros(outputs)
    return state


def initial_block(shape: ExtrasShape) -> dict[str, Tensor]:
    """State of a `BlockExtras` before training, as in the paper: averaging convolutions, zero deltas."""
    c, state = shape.channels, {}
    for branch, ratio in (("global_branch", shape.global_ratio), ("hierarchical_branch", shape.hierarchical_ratio)):
        state[f"{branch}.compress.weight"] = torch.full((c, 1, ratio, ratio), ratio**-2)
        state[f"{branch}.compress.bias"] = torch.zeros(c)
        if shape.refined:
            state[f"{branch}.refine.weight"] = torch.full((c, 1, 3, 3, 3), 1 / 27)
            state[f"{branch}.refine.bias"] = torch.zeros(c)
    for part in shape.deltas:
        state |= {f"{part}.{key}": tensor for key, tensor in initial_deltas(shape, part).items()}
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

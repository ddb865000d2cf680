"""UltraGen's extras before training."""

from __future__ import annotations

from dataclasses import replace

import torch

from ultragen_core.attention.extras import ExtrasShape, initial_block, initial_deltas, initial_gates
from ultragen_core.weights.published import Extras

from .recipe import Recipe


def initial_extras(recipe: Recipe, channels: int, blocks: int) -> Extras:
    """Where training starts: average pooling, deltas of zero, gates open by `recipe.gate`, for the paper half."""
    shape = ExtrasShape(channels, recipe.rank, refined=True)
    hierarchical = recipe.hierarchical_blocks(blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        extras = {index: initial_block(shape) for index in hierarchical}
        gates = {index: initial_gates(channels, recipe.gate) for index in hierarchical}
    return Extras(shape, extras, gates)


def with_ffn_deltas(extras: Extras, ffn_channels: int, seed: int) -> Extras:
    """The extras with deltas of zero on the feed-forward part."""
    shape = replace(extras.shape, ffn_channels=ffn_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # not the numbers that the other deltas began with
        new = {index: initial_deltas(shape, "ffn") for index in extras.blocks}
    blocks = {i: state | {f"ffn.{key}": x for key, x in new[i].items()} for i, state in extras.blocks.items()}
    return replace(extras, shape=shape, blocks=blocks)

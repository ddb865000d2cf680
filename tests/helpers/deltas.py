"""Deltas on the feed-forward part, random, and the weights of a model that has them merged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from helpers.support import seeded
from ultragen_core.attention.extras import ExtrasShape, initial_block, initial_deltas, initial_gates
from ultragen_core.weights.published import Extras

LAYERS = ("ffn.0", "ffn.2")
_DELTA = re.compile(r"blocks\.\d+\.ffn\.[02]_lora\..+")


def random_deltas(shape: ExtrasShape, seed: int) -> dict[str, Tensor]:
    """State of a `FeedForwardExtras` as after training."""
    sizes = {key: value.shape for key, value in initial_deltas(shape, "ffn").items()}
    scales = {key: size[-1] ** -0.5 if key.endswith("A.weight") else 0.1 for key, size in sizes.items()}
    return {key: scales[key] * seeded(*sizes[key], seed=seed + n) for n, key in enumerate(sizes)}


def with_deltas(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An UltraGen checkpoint with deltas on the feed-forward part of all blocks that have extras."""
    blocks = sorted({int(key.split(".")[1]) for key in state if "q_lora_1" in key})
    rank, channels = state[f"blocks.{blocks[0]}.self_attn.q_lora_1.lora_A.weight"].shape
    hidden = len(state["blocks.0.ffn.0.weight"])
    shape, state = ExtrasShape(channels, rank, ffn_channels=hidden), dict(state)
    dtype = state[f"blocks.{blocks[0]}.self_attn.q_lora_1.lora_A.weight"].dtype
    for index in blocks:
        for key, value in random_deltas(shape, 10 * index).items():
            layer, rest = key.split(".", 1)
            state[f"blocks.{index}.ffn.{layer}_lora.{rest}"] = value.to(dtype)
    return state


def merged(state: Mapping[str, Tensor], strength: float = 1.0) -> dict[str, Tensor]:
    """The same checkpoint with the deltas of the feed-forward part inside the weights of its layers."""
    out = {key: value for key, value in state.items() if not _DELTA.fullmatch(key)}
    for key in out:
        if match := re.fullmatch(r"(blocks\.\d+\.ffn\.[02])\.(weight|bias)", key):
            a, b = ({p: state.get(f"{match[1]}_lora.lora_{f}.{p}") for p in ("weight", "bias")} for f in "AB")
            if a["weight"] is not None:
                change = b["weight"].float() @ a[match[2]].float() + (b["bias"] if match[2] == "bias" else 0)
                out[key] = out[key].float() + strength * change
    return out


def random_extras(shape: ExtrasShape, blocks: range) -> Extras:
    """Extras of these blocks as after training, the same with deltas on the feed-forward part as without those."""

    def block(index: int) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            state = initial_block(replace(shape, ffn_channels=0))
        return state | {f"ffn.{key}": value for key, value in random_deltas(shape, 10 * index).items()}

    return Extras(shape, {i: block(i) for i in blocks}, {i: initial_gates(shape.channels) for i in blocks})

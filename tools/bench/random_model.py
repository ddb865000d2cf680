"""Checkpoints of real size with random weights, in the published format."""

from __future__ import annotations

from pathlib import Path

from ultragen_core.wan import WAN_1_3B, WAN_5B, WanShape

MODELS = {"1.3b": WAN_1_3B, "5b": WAN_5B}


def write_checkpoint(path: Path, shape: WanShape, extras: bool, device: str = "cuda") -> None:
    """Write a whole Wan model, with UltraGen's extras in every block or without. device: draws the numbers."""
    from safetensors.torch import save_file

    from ultragen_core.host.speed.random_weights import random_base, random_extras
    from ultragen_core.weights.published import published_items

    state = random_base(shape, device)
    if extras:
        made = random_extras(shape.channels, list(range(shape.blocks)))
        state |= {key: value.clone() for key, value in published_items(made)}
    save_file(state, path)

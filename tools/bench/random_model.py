"""Checkpoints of real size with random weights, in the published format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ultragen_core.wan import WAN_1_3B, WAN_5B, WanShape

MODELS = {"1.3b": WAN_1_3B, "5b": WAN_5B}


@contextmanager
def random_checkpoint(shape: WanShape, device: torch.device, extras: bool = True) -> Iterator[Path]:
    """A file with a whole Wan model, with UltraGen's extras in every block or without. device: draws the numbers.

    Inside, models with fewer blocks than published load.
    """
    from safetensors.torch import save_file

    from ultragen_core.host.speed.random_weights import random_base, random_extras
    from ultragen_core.weights.published import published_items

    state = random_base(shape, device)
    if extras:
        made = random_extras(shape.channels, list(range(shape.blocks)))
        state |= {key: value.clone() for key, value in published_items(made)}
    with tempfile.TemporaryDirectory() as folder, _any_depth():
        path = Path(folder) / "random.safetensors"
        save_file(state, path)
        del state
        yield path


@contextmanager
def _any_depth() -> Iterator[None]:
    from ultragen_core.weights.complete import DEPTHS

    depths = dict(DEPTHS)
    DEPTHS.clear()
    try:
        yield
    finally:
        DEPTHS.update(depths)

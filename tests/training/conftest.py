"""A base model, a cache and runs at toy size."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

SHAPE = 16, 2, 8, 10  # of a latent
TEXT = 512, 4096


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A file with a plain Wan model of 4 blocks whose head is not zero, so that every weight gets a gradient."""
    from helpers.support import seeded

    from training.model import random_base

    state = random_base(channels=128, blocks=4, ffn_channels=64, seed=0)
    state["head.head.weight"] = 0.05 * seeded(*state["head.head.weight"].shape)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Five clips of noise, with captions of three random words."""
    from helpers.support import seeded

    from training.cache import Cache

    folder = tmp_path_factory.mktemp("cache")
    cache = Cache(folder)
    cache.write_empty(torch.zeros(TEXT))
    for index in range(5):
        text = torch.zeros(TEXT)
        text[:3] = seeded(3, TEXT[1], seed=index)
        cache.write(f"clip{index}", seeded(*SHAPE, seed=index), text, f"caption {index}")
    return Cache(folder)


@pytest.fixture
def recipe():
    """`recipe(...)`: blocks 1 and 2 hierarchical, rank 4, rates that show within a few steps."""
    from training.recipe import Recipe

    def make(**changes) -> Recipe:
        return Recipe(**{"rank": 4, "dense_blocks": "0,3", "batch": 4, "steps": 3, "learning_rate": 2e-3} | changes)

    return make


@pytest.fixture
def training(base, cache, recipe):
    """`training(folder, micro_batch=, vae=, keeping={...}, **recipe)`: a run that has not begun."""
    from training.loop import Keeping, Training
    from training.model import build
    from ultragen_core.weights.files import read_state_dict

    def make(folder, micro_batch=4, vae=None, keeping=None, **changes) -> Training:
        chosen = recipe(**changes)
        model = build(read_state_dict(base), base.name, chosen)
        return Training(chosen, Keeping(folder, **(keeping or {})), model, cache, micro_batch, vae)

    return make

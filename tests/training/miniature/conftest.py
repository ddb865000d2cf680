"""The miniature at toy size, made once."""

from __future__ import annotations

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def toy():
    from training.miniature.decoder_training import DecoderRecipe
    from training.miniature.make import Miniature
    from training.miniature.vae_training import VAERecipe
    from training.recipe import Recipe
    from ultragen_core.sizes import VideoSize

    low, high = VideoSize(32, 32, 17), VideoSize(144, 48, 17)  # 9 columns of tokens
    steps = {"steps": 2, "batch": 2, "learning_rate": 1e-3}
    return Miniature(
        measured=2, vae=VAERecipe(width=4, sizes=(low,), clips=2, side=16, batch=2, steps=3, linear_steps=1, warmup=1),
        channels=128, blocks=2, ffn_channels=64, low=low, low_clips=3, dense=Recipe(rule="dense", **steps),
        decoder=DecoderRecipe(clips=2, at_once=1, sampling_steps=3, last_steps=2, side=4, margin=1, batch=2, steps=2),
        high=high, high_clips=3, ultragen=Recipe(rank=4, dense_blocks="0", gate=0.9, **steps), clips_per_file=2,
        t3=Recipe(rule="t3", **steps), i2v=Recipe(rule="dense", **steps), i2v_clips=2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def made(toy, tmp_path_factory):
    from training.miniature.make import Making

    making = Making(toy, tmp_path_factory.mktemp("miniature"), CPU, 60)
    assert making.run()
    return making

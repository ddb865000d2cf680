"""Each test here names one thing that the pack takes for granted about ComfyUI, so that a failure says what changed.

They run on every version, in seconds.
"""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def wan(tiny_path):
    """A toy Wan model in ComfyUI, without the pack's patch."""
    import torch

    from ultragen_core.host.attention.load import load_model

    return load_model(tiny_path, "dense", {"dtype": torch.float32})


@pytest.fixture
def evaluate(wan):
    """`evaluate(options)`: one evaluation of that model, with these transformer_options."""
    from helpers.comfy_run import velocity
    from helpers.support import seeded

    text_channels = wan.model.diffusion_model.text_embedding[0].in_features

    def run(options: dict | None = None):
        model = wan.clone()
        model.model_options.setdefault("transformer_options", {}).update(options or {})
        return velocity(model, seeded(1, 16, 2, 5, 8), seeded(1, 3, text_channels, seed=1), 0.5)

    return run

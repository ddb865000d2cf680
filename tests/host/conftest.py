"""What the tests of saving share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def vae():
    from save_run import narrow_vae

    return narrow_vae()


@pytest.fixture
def inference():
    """As ComfyUI's executor runs nodes."""
    import torch

    with torch.inference_mode():
        yield

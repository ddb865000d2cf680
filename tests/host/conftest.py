"""What the tests of the host share."""

from __future__ import annotations

from functools import partial

import pytest


@pytest.fixture(scope="module")
def vae():
    from helpers.save_run import narrow_vae

    return narrow_vae()


@pytest.fixture
def inference():
    """As ComfyUI's executor runs nodes."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture
def bounded(monkeypatch):
    """`budgets = bounded()`: from then on every run computes a third of the tokens at a time, and adds to budgets."""
    from ultragen_core.plan.memory import ActivationMemory, MemoryBudget

    def switch() -> list[MemoryBudget]:
        budgets = []

        def third(self, free):
            budgets.append(MemoryBudget(self.tokens, 3))
            return budgets[-1]

        monkeypatch.setattr(ActivationMemory, "budget", third)
        return budgets

    return switch


@pytest.fixture
def fused_blocks(monkeypatch):
    """Blocks run fused, with the plain form of their functions."""
    from ultragen_core.host.attention import block
    from ultragen_core.ops import dispatch

    monkeypatch.setattr(dispatch, "triton_for", lambda x, modules: modules == dispatch.BLOCK_KERNEL_MODULES)
    monkeypatch.setattr(block, "fused_block", partial(block.fused_block, triton=False))

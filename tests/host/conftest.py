"""What the tests of the host share."""

from __future__ import annotations

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
    """`rooms = bounded()`: from then on every run works on a third of the tokens at a time, and adds to rooms."""
    from ultragen_core.plan.memory import Activations, Room

    def switch() -> list[Room]:
        rooms = []
        monkeypatch.setattr(Activations, "room", lambda self, free: rooms.append(Room(self.tokens, 3)) or rooms[-1])
        return rooms

    return switch

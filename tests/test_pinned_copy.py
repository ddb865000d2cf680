"""Copies without pinned memory: the same result."""

from __future__ import annotations

import logging

import torch

from ultragen_core.pinned_copy import PinnedCopyQueue


class OnGPU(torch.Tensor):
    is_cuda = True


def test_without_pinned_memory_copies_are_plain(monkeypatch, caplog):
    asked, empty = [], torch.empty

    def refused(*size, pin_memory=False, **more):
        if pin_memory:
            asked.append(size)
            raise RuntimeError("CUDA error: out of memory\nmore")
        return empty(*size, **more)

    monkeypatch.setattr(torch, "empty", refused)
    copies, target = PinnedCopyQueue(), torch.zeros(4, 3)
    sources = torch.rand(4, 3)
    with caplog.at_level(logging.WARNING):
        for row in range(4):
            copies.copy(sources[row].as_subclass(OnGPU), target[row])
        copies.finish()
    assert torch.equal(target, sources)
    assert len(asked) == 1 and [record.levelname for record in caplog.records] == ["WARNING"]
    PinnedCopyQueue().copy(sources[1].as_subclass(OnGPU), target[3].as_subclass(OnGPU))
    assert torch.equal(target[3], sources[1]) and len(asked) == 1, "copies within the GPU take no detour"
    PinnedCopyQueue(pinned=False).copy(sources[0].as_subclass(OnGPU), target[3])
    assert torch.equal(target[3], sources[0]) and len(asked) == 1

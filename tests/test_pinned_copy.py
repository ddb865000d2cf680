"""Copies from GPUs with pinned memory and without it: the same result."""

from __future__ import annotations

import logging

import torch

from ultragen_core.pinned_copy import DEPTH, PinnedCopyQueue


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
    copies, target = PinnedCopyQueue(True), torch.zeros(4, 3)
    sources = torch.rand(4, 3)
    with caplog.at_level(logging.WARNING):
        for row in range(4):
            copies.copy(sources[row].as_subclass(OnGPU), target[row])
        copies.finish()
    assert torch.equal(target, sources)
    assert len(asked) == 1 and [record.levelname for record in caplog.records] == ["WARNING"]
    PinnedCopyQueue(True).copy(sources[1].as_subclass(OnGPU), target[3].as_subclass(OnGPU))
    assert torch.equal(target[3], sources[1]) and len(asked) == 1, "copies within the GPU take no detour"
    PinnedCopyQueue(False).copy(sources[0].as_subclass(OnGPU), target[3])
    assert torch.equal(target[3], sources[0]) and len(asked) == 1


def test_each_copy_waits_for_its_own_device(monkeypatch):
    """A stand-in for two GPUs: memory that is pinned by name, and streams that tell what is waited for."""
    recorded, waited, empty = [], [], torch.empty

    class Stream:
        def __init__(self, device):
            self.device = device

        def record_event(self):
            recorded.append(self.device)
            return self

        def synchronize(self):
            waited.append(self.device)

    class OnSecond(OnGPU):
        device = torch.device("cuda:1")

    class OnFirst(OnGPU):
        device = torch.device("cuda:0")

    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **more: empty(*size, **more))
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    sources, target = torch.rand(6, 3), torch.zeros(6, 3)
    copies = PinnedCopyQueue(True)
    for row in range(6):
        copies.copy(sources[row].as_subclass((OnFirst, OnSecond)[row // 2 % 2]), target[row])
    assert [str(device) for device in recorded] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:0", "cuda:0"]
    assert waited == recorded[:-DEPTH] and torch.equal(target[:-DEPTH], sources[:-DEPTH])
    copies.finish()
    assert waited == recorded and torch.equal(target, sources)

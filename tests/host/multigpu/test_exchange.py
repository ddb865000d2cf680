"""The exchange of GPUs that have access to each other's memory, on the CPU, where nothing waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.support import seeded
from torch.utils._python_dispatch import TorchDispatchMode

from ultragen_core.attention.split.member import MapMoves, everything, rectangle_moves
from ultragen_core.attention.split.rectangles import rectangles
from ultragen_core.grid import TokenGrid
from ultragen_core.host.multigpu import copies
from ultragen_core.host.multigpu.exchange import Exchange
from ultragen_core.ops import dispatch

GRID, C = TokenGrid(2, 3, 6), 8


class Nothing:
    """In place of a stream and of an event."""

    def __init__(self, *_):
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class OwnMemory(TorchDispatchMode):
    """PyTorch joins tensors of one GPU alone: fails where one of them is in a buffer that another member has packed."""

    def __init__(self, exchange: Exchange, index: int):
        super().__init__()
        self.exchange, self.index = exchange, index

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.cat.default:
            theirs = {
                buffer.untyped_storage().data_ptr()
                for (what, index, *_), buffer in list(self.exchange._buffers.items())
                if what == "packed" and index != self.index
            }
            assert not theirs & {part.untyped_storage().data_ptr() for part in args[0]}, "tensors of several GPUs"
        return function(*args, **kwargs or {})


@pytest.fixture
def exchanged(interpreted_kernels, monkeypatch):
    """`exchanged(count, gradients)`: the exchange in which each of so many members got all tokens, three times."""
    kernels, one_at_a_time = dispatch.kernels("gather_kernels"), threading.Lock()  # Triton's interpreter has no threads
    gather = kernels.gather

    def interpreted(parts, order):
        with one_at_a_time:
            return gather(parts, order)

    monkeypatch.setattr(kernels, "gather", interpreted)
    for name in ("Stream", "Event", "default_stream"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    devices = [torch.device("cuda", index) for index in range(10)]
    pairs = frozenset((source, target) for source in devices for target in devices if source != target)
    monkeypatch.setattr(copies, "links", lambda _: copies.Links(pairs, frozenset()))

    def run(count: int, gradients: bool) -> Exchange:
        held = rectangles(GRID, count)
        moves = rectangle_moves(MapMoves(GRID, held, everything(GRID, count)))
        exchange, x = Exchange(devices[:count], 5.0), seeded(1, *GRID, C)

        def member(index: int) -> None:
            (top, bottom), (left, right) = held[index].rows, held[index].columns
            own = x[:, :, top:bottom, left:right].reshape(1, -1, C)
            with torch.set_grad_enabled(gradients), OwnMemory(exchange, index):
                for _ in range(3):
                    assert torch.equal(exchange.move(index, own, moves), x.reshape(1, -1, C))

        with dispatch.use_triton(True), ThreadPoolExecutor(count) as threads:
            list(threads.map(member, range(count)))
        return exchange

    return run


def received(exchange: Exchange) -> int:
    """How many copies of other members' buffers the members keep."""
    return sum(what == "received" for what, *_ in exchange._buffers)


def test_the_kernel_reads_the_others_buffers_where_they_are(exchanged):
    assert received(exchanged(2, gradients=False)) == 0


@pytest.mark.parametrize(("count", "gradients"), [(2, True), (9, False)])
def test_where_no_kernel_reads_them_they_are_copied(exchanged, count, gradients):
    """With gradients, which a sampler may turn on, and for more members than the kernel takes."""
    assert received(exchanged(count, gradients)) == count * (count - 1)

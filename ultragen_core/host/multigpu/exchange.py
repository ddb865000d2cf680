"""Exchange of tokens between the threads of a group of GPUs: everybody packs what others want, all meet, everybody
fetches what it wants.

Buffers live for the run, and are packed again only after every reader's copy of two exchanges ago: the host runs ahead
of the GPUs, and memory that it frees could be overwritten while another GPU reads it.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import comfy.model_management
import torch
from torch import Tensor

from ...attention.split.moves import Moves
from .copies import Copies, copies_for
from .devices import SECONDS_WITHOUT_ANSWER

SLOTS = 2  # buffers that take turns: one is read while the other is packed
SECONDS_BETWEEN_CHECKS = 0.5  # for an interrupt, while waiting


class Aborted(RuntimeError):
    """Another member of the group has failed; its error tells why."""


class Packed(NamedTuple):
    """What a member holds ready: a buffer for each other member, and the event after which they are complete."""

    buffers: dict[int, Tensor]
    ready: object


class Port:
    """A member's access to the exchange: port(x (b, held, c), moves) -> (b, wanted, c).

    block: the number of the block that the member computes, for messages.
    """

    def __init__(self, exchange: Exchange, index: int):
        self.exchange, self.index, self.block = exchange, index, -1

    def __call__(self, x: Tensor, moves: Moves) -> Tensor:
        return self.exchange.move(self.index, x, moves)


class Exchange:
    """The exchange of one group. seconds: how long a member waits for the others.

    Raises what stopped the first member in that member's thread, and Aborted in those of the others.
    """

    def __init__(self, devices: list[torch.device], seconds: float = SECONDS_WITHOUT_ANSWER):
        self.devices, self._seconds = devices, seconds
        self.ports = [Port(self, index) for index in range(len(devices))]
        self._copies: Copies = copies_for(devices)
        self._meeting = threading.Condition()
        self._buffers: dict[tuple[int, int, int], Tensor] = {}
        self.bytes_into = [0] * len(devices)
        self.restart()

    def restart(self) -> None:
        """Forget an evaluation that has ended, or that was aborted. No member may be inside."""
        self._copies.synchronize()
        self._error: BaseException | None = None
        self._turn = [0] * len(self.devices)
        self._packed: dict[int, dict[int, Packed]] = {}
        self._reads: dict[tuple[int, int], list] = {}

    def abort(self, error: BaseException) -> None:
        """Stop all members at their next exchange, or where they wait."""
        with self._meeting:
            self._error = self._error or error
            self._meeting.notify_all()

    def move(self, index: int, x: Tensor, moves: Moves) -> Tensor:
        """What member `index` wants of everybody's x (b, held tokens, c) -> (b, wanted tokens, c)."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        turn = self._turn[index]
        self._turn[index] += 1
        wide = _as_int64(x)
        everyone = self._meet(index, turn, self._pack(index, turn, wide, moves))
        out = wide.new_empty(x.shape[0], moves.wanted[index], wide.shape[2])
        count = len(self.devices)
        for source in ((index + step) % count for step in range(count)):
            if not moves.count(source, index):
                continue
            if source == index:
                part = wide.index_select(1, moves.sent(index, index, x.device))
            else:
                buffers, ready = everyone[source]
                part, read = self._copies.fetch(source, index, turn % SLOTS, buffers[index], ready)
                self._reads.setdefault((source, turn), []).append(read)
                self.bytes_into[index] += part.nbytes
            out.index_copy_(1, moves.put(source, index, x.device), part)
        return out.view(x.dtype)

    def _pack(self, index: int, turn: int, wide: Tensor, moves: Moves) -> Packed:
        for read in self._reads.pop((index, turn - SLOTS), ()):
            self._copies.wait_for_read(index, read)
        buffers = {}
        for number, (first, targets) in enumerate(moves.packs(index)):
            numbers = moves.sent(index, first, wide.device)
            buffer = self._buffer((index, turn % SLOTS, number), (wide.shape[0], len(numbers), wide.shape[2]), wide)
            torch.index_select(wide, 1, numbers, out=buffer)
            buffers |= dict.fromkeys(targets, buffer)
        return Packed(buffers, self._copies.ready(index))

    def _buffer(self, key: tuple[int, int, int], shape: tuple[int, int, int], like: Tensor) -> Tensor:
        size = shape[0] * shape[1] * shape[2]
        if key not in self._buffers or len(self._buffers[key]) < size or self._buffers[key].dtype != like.dtype:
            self._buffers[key] = like.new_empty(size)
        return self._buffers[key][:size].view(shape)

    def _meet(self, index: int, turn: int, packed: Packed) -> dict[int, Packed]:
        """Lay down what is packed, and wait for all others'."""
        give_up = time.monotonic() + self._seconds
        with self._meeting:
            everyone = self._packed.setdefault(turn, {})
            everyone[index] = packed
            self._packed.pop(turn - SLOTS, None)
            self._meeting.notify_all()
            while len(everyone) < len(self.devices):
                if self._error is not None:
                    raise Aborted("Another GPU has stopped.") from self._error
                comfy.model_management.throw_exception_if_processing_interrupted()
                if time.monotonic() > give_up:
                    raise self._late(everyone)
                self._meeting.wait(SECONDS_BETWEEN_CHECKS)
            if self._error is not None:
                raise Aborted("Another GPU has stopped.") from self._error
        return everyone

    def _late(self, everyone: dict[int, Packed]) -> RuntimeError:
        late = [
            f"{device} (block {port.block})"
            for number, (device, port) in enumerate(zip(self.devices, self.ports, strict=True))
            if number not in everyone
        ]
        names = ", ".join(late)
        return RuntimeError(
            f"No answer from {names} for {self._seconds:.0f} s while GPUs compute one video. Restart ComfyUI."
        )


def _as_int64(x: Tensor) -> Tensor:
    """x (b, s, c), viewed as int64 where the tokens' bytes divide: PyTorch moves it faster than 16-bit values."""
    x = x.contiguous()
    return x if x.shape[-1] * x.element_size() % 8 else x.view(torch.int64)

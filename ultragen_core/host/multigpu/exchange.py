"""Exchange of tokens between the threads of a group of GPUs: everybody packs what others want, all meet, everybody
gathers what it wants.

All threads share the interpreter, so an exchange makes few calls: one selection packs for all others, and one kernel
reads from all of them, where GPUs have access to each other's memory. Buffers live for the run, and are packed again
only after all have read what was packed two exchanges ago: the host runs ahead of the GPUs, and memory that it frees
could be overwritten while another GPU reads it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import comfy.model_management
import torch
from torch import Tensor

from ...attention.split.moves import Moves
from ...ops.dispatch import GATHER_KERNEL_MODULES, triton_for
from ...ops.gather import MOST_PARTS, gather
from .copies import SLOTS, Copies, copies_for
from .devices import SECONDS_WITHOUT_ANSWER

SECONDS_BETWEEN_CHECKS = 0.5  # for an interrupt, while waiting


class Aborted(RuntimeError):
    """Another member of the group has failed; its error tells why."""


class Port:
    """A member's access to the exchange: port(x (b, held, c), moves) -> (b, wanted, c).

    block: the number of the block that the member computes, for messages.
    """

    def __init__(self, exchange: Exchange, index: int):
        self.exchange, self.index, self.block = exchange, index, -1

    def __call__(self, x: Tensor, moves: Moves) -> Tensor:
        return self.exchange.move(self.index, x, moves)

    def evaluation(self) -> AbstractContextManager[None]:
        """Around the member's evaluation, in its thread."""
        return self.exchange.copies.streams_of(self.index)


class MeasuredPort(Port):
    """A port that measures how long its member's exchanges take, waiting for others included."""

    def __init__(self, exchange: Exchange, index: int):
        super().__init__(exchange, index)
        self._spans: list[tuple] = []
        self._whole: tuple | None = None

    def __call__(self, x: Tensor, moves: Moves) -> Tensor:
        start = self._moment()
        result = super().__call__(x, moves)
        self._spans.append((start, self._moment()))
        return result

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        with super().evaluation():
            start = self._moment()
            yield
            self._whole = start, self._moment()

    def share(self) -> float:
        """The exchanges' share of the evaluation's time, from 0 to 1, after `Copies.synchronize`."""
        seconds = self.exchange.copies.seconds
        return sum(seconds(*span) for span in self._spans) / seconds(*self._whole)

    def _moment(self):
        return self.exchange.copies.moment(self.index)


class Exchange:
    """The exchange of one group. seconds: how long a member waits for the others.

    Raises what stopped the first member in that member's thread, and Aborted in those of the others.
    """

    def __init__(self, devices: list[torch.device], seconds: float = SECONDS_WITHOUT_ANSWER):
        self.devices, self._seconds = devices, seconds
        self.new_ports(Port)
        self.copies: Copies = copies_for(devices)
        self.bytes_into = [0] * len(devices)
        self._meeting = threading.Condition()
        self._buffers: dict[tuple, Tensor] = {}
        # What each member has packed, by its turn.
        self._packed: list[list[Tensor | None]] = [[None] * len(devices) for _ in range(SLOTS)]
        self.restart()

    def new_ports(self, port: type[Port]) -> list[Port]:
        """Ports for one evaluation."""
        self.ports = [port(self, index) for index in range(len(self.devices))]
        return self.ports

    def restart(self) -> None:
        """Forget an evaluation that has ended, or that was aborted. No member may be inside."""
        self.copies.synchronize()
        self._error: BaseException | None = None
        self._turn, self._arrived = [0] * len(self.devices), 0

    def abort(self, error: BaseException) -> None:
        """Stop all members at their next exchange, or where they wait."""
        with self._meeting:
            self._error = self._error or error
            self._meeting.notify_all()

    def move(self, index: int, x: Tensor, moves: Moves) -> Tensor:
        """What member `index` wants of everybody's x (b, held tokens, c) -> (b, wanted tokens, c)."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        batch, turn = x.shape[0], self._turn[index]
        slot, own = turn % SLOTS, moves.part(index, x.device)
        self._turn[index] = turn + 1
        if turn >= SLOTS:
            self.copies.wait_for_readers(index, slot)
        tokens = _tokens(x)
        packed = self._buffer(("packed", index, slot), own.sent_count, tokens)
        if own.sent_count:
            torch.index_select(tokens, 0, own.sent, out=packed)
        self._packed[slot][index] = packed
        self.copies.packed(index, slot)
        self._meet(turn)
        # PyTorch's own operations read the memory of one GPU alone.
        triton = len(own.segments) < MOST_PARTS and triton_for(tokens, GATHER_KERNEL_MODULES)
        parts = [tokens]
        for source, first, length in own.segments:
            part = self._packed[slot][source][first : first + length]
            received = partial(self._buffer, ("received", index, source), length, tokens)
            parts.append(self.copies.fetch(source, index, slot, part, received, in_place=triton))
            self.bytes_into[index] += part.nbytes
        out = gather(parts, own.order, triton)
        self.copies.gathered(index, slot)
        if batch == 1:
            return out.view(x.dtype)[None]
        return out.view(x.dtype).unflatten(1, (batch, -1)).transpose(0, 1).contiguous()

    def _buffer(self, key: tuple, rows: int, like: Tensor) -> Tensor:
        width = like.shape[1]
        held = self._buffers.get(key)
        if held is None or held.numel() < rows * width or held.dtype != like.dtype:
            held = self._buffers[key] = like.new_empty(rows * width)
        return held[: rows * width].view(rows, width)

    def _meet(self, turn: int) -> None:
        """Wait until all members have packed what others want in this turn."""
        everybody = len(self.devices) * (turn + 1)
        with self._meeting:
            self._arrived += 1
            if self._arrived == everybody:
                self._meeting.notify_all()
            elif self._error is None:
                self._wait(everybody)
            if self._error is not None:
                raise Aborted("Another GPU has stopped.") from self._error

    def _wait(self, everybody: int) -> None:
        give_up = time.monotonic() + self._seconds
        while self._arrived < everybody and self._error is None:
            if not self._meeting.wait(SECONDS_BETWEEN_CHECKS):
                comfy.model_management.throw_exception_if_processing_interrupted()
                if time.monotonic() > give_up:
                    raise self._late()

    def _late(self) -> RuntimeError:
        turn = max(self._turn)
        late = ", ".join(
            f"{device} (block {port.block})"
            for device, port, reached in zip(self.devices, self.ports, self._turn, strict=True)
            if reached < turn
        )
        return RuntimeError(
            f"No answer from {late} for {self._seconds:.0f} s while GPUs compute one video. Restart ComfyUI."
        )


def _tokens(x: Tensor) -> Tensor:
    """x (b, s, c) as rows (s, b * c), viewed as int64 where a row's bytes divide: PyTorch moves it faster than 16-bit
    values.
    """
    rows = x[0] if x.shape[0] == 1 else x.transpose(0, 1).flatten(1)
    rows = rows.contiguous()
    return rows if rows.shape[1] * rows.element_size() % 8 else rows.view(torch.int64)

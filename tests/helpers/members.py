"""Members of a group as threads on the CPU, whose tensors are tagged: an operation outside of the exchange that mixes
those of two members fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ultragen_core.attention.split.member import Member
from ultragen_core.attention.split.moves import Moves
from ultragen_core.grid import TokenGrid


class Tags(TorchDispatchMode):
    """Tags every floating-point result with its member, and fails where an operand is another member's."""

    def __init__(self, member: int):
        super().__init__()
        self.member = member

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        owners = {getattr(each, "owner", self.member) for each in tree_iter((args, kwargs)) if torch.is_tensor(each)}
        assert owners <= {self.member}, f"{function} of member {self.member} reads tensors of {owners}"
        result = function(*args, **kwargs or {})
        for each in tree_iter(result):
            if torch.is_tensor(each) and each.is_floating_point():
                each.owner = self.member
        return result


class Meetings:
    """The exchange of threads: everybody lays down what it holds, and everybody takes what it wants."""

    def __init__(self, count: int):
        self.count, self.barrier = count, threading.Barrier(count, timeout=60)
        self.held: list[Tensor | None] = [None] * count

    def exchange(self, index: int) -> Callable[[Tensor, Moves], Tensor]:
        def move(x: Tensor, moves: Moves) -> Tensor:
            with torch.utils._python_dispatch._disable_current_modes():
                assert x.shape[1] == moves.held[index]
                self.held[index] = x.detach().clone()
                self.barrier.wait()
                own = moves.part(index, x.device)
                got = [self.held[index]]
                for source, first, length in own.segments:
                    sent = moves.part(source, x.device).sent
                    got.append(self.held[source][:, sent[first : first + length]])
                self.barrier.wait()
            return torch.cat(got, 1)[:, own.order]

        return move


def together(grid: TokenGrid, count: int, work: Callable[[Member], Tensor], tags: bool = True) -> list[Tensor]:
    """work(member) of every member, in threads of their own -> the results by member. Raises the first error."""
    meetings, results, errors = Meetings(count), [None] * count, []

    def run(index: int) -> None:
        member = Member(index, count, grid, meetings.exchange(index))
        try:
            with torch.no_grad():
                if tags:
                    with Tags(index):
                        results[index] = work(member)
                else:
                    results[index] = work(member)
        except BaseException as error:
            errors.append(error)
            meetings.barrier.abort()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return results


def own_tokens(x: Tensor, member: Member) -> Tensor:
    """A member's tokens of the whole video: (b, s, c) -> (b, held, c), not tagged."""
    rows, columns = member.rectangle.slices
    return x.unflatten(1, member.grid)[:, :, rows, columns].flatten(1, 3).clone()


def joined(parts: list[Tensor], grid: TokenGrid) -> Tensor:
    """The inverse of `own_tokens`, of all members' tokens."""
    from ultragen_core.attention.split.member import held_numbers

    out = parts[0].new_empty(parts[0].shape[0], grid.tokens, parts[0].shape[2])
    for part, numbers in zip(parts, held_numbers(grid, len(parts)), strict=True):
        out[:, numbers] = part
    return out

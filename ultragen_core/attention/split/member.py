"""A member of a group that computes one video together, and dense attention of its rectangle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...grid import TokenGrid
from ..engine import Engine
from ..layer import Projections, dense_attention_
from .moves import Moves
from .rectangles import Rectangle, rectangles, token_numbers

Exchange = Callable[[Tensor, Moves], Tensor]
"""exchange(x (b, held tokens, c), moves) -> (b, wanted tokens, c). All members call it with the same moves at the same
point of their work."""


@dataclass(frozen=True)
class Member:
    """One of `count` members. grid: of the whole video, of which it holds rectangle number `index`."""

    index: int
    count: int
    grid: TokenGrid
    exchange: Exchange

    @property
    def rectangle(self) -> Rectangle:
        return rectangles(self.grid, self.count)[self.index]

    def moved(self, x: Tensor, moves: Moves) -> Tensor:
        """The tokens that the moves bring to this member: (b, held, c) -> (b, wanted, c)."""
        return x if moves.nothing else self.exchange(x, moves)

    def check(self, x: Tensor) -> None:
        """Raise ValueError where x (b, s, c) does not hold the tokens of the member's rectangle."""
        expected = self.rectangle.grid(self.grid.t).tokens
        if x.shape[1] != expected:
            raise ValueError(f"Member {self.index} holds {expected} tokens, got {x.shape[1]}.")


@lru_cache(maxsize=16)
def held_numbers(grid: TokenGrid, members: int) -> tuple[Tensor, ...]:
    """The numbers of the tokens that each member holds."""
    return tuple(token_numbers(rectangle, grid) for rectangle in rectangles(grid, members))


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def gather_moves(grid: TokenGrid, members: int) -> Moves:
    """Every member gets all tokens."""
    return Moves(held_numbers(grid, members), [torch.arange(grid.tokens)] * members, grid.tokens)


def split_dense_attention_(attn: Projections, x: Tensor, table: Tensor, member: Member, engine: Engine) -> Tensor:
    """Full attention of a member's tokens: x (b, s, c) -> (b, s, c). Overwrites x.

    table: rotations of the whole grid, float32 (tokens, head_dim / 2, 2).
    The tokens are gathered, and every member computes all keys and values: this moves no more than heads would for two
    to four members, works for any number of heads, and leaves the results where they belong.
    """
    member.check(x)
    everything = member.moved(x, gather_moves(member.grid, member.count))
    numbers = _numbers_on(member.grid, member.count, member.index, x.device)
    return dense_attention_(attn, x, table.index_select(0, numbers), engine, (everything, table))


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _numbers_on(grid: TokenGrid, members: int, index: int, device: torch.device) -> Tensor:
    return held_numbers(grid, members)[index].to(device)

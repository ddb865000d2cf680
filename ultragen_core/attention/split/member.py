"""A member of a group that computes one video together, and dense attention of its rectangle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...built_once import built_once
from ...grid import TokenGrid
from ...rectangle import Rectangle
from ..engine import Engine
from ..layer import Projections, dense_attention_
from .moves import Moves
from .rectangles import received, rectangles, token_numbers

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
        expected = self.grid.part(self.rectangle).tokens
        if x.shape[1] != expected:
            raise ValueError(f"Member {self.index} holds {expected} tokens, got {x.shape[1]}.")


@built_once(maxsize=16)
@torch.inference_mode(False)
def held_numbers(grid: TokenGrid, members: int) -> tuple[Tensor, ...]:
    """The numbers of the tokens that each member holds."""
    return tuple(token_numbers(rectangle, grid) for rectangle in rectangles(grid, members))


class MapMoves(NamedTuple):
    """A map of tokens or of compressed cells, with the rectangle that each member holds and the one that it wants."""

    grid: TokenGrid
    held: tuple[Rectangle, ...]
    wanted: tuple[Rectangle, ...]


@built_once(maxsize=64)
@torch.inference_mode(False)
def rectangle_moves(*maps: MapMoves) -> Moves:
    """The moves that bring each member its rectangles of all maps, which follow one another in its sequence."""
    held, wanted, tokens = [], [], 0
    for grid, *sides in maps:
        for numbers, rectangles_of_map in zip((held, wanted), sides, strict=True):
            numbers.append([tokens + token_numbers(rectangle, grid) for rectangle in rectangles_of_map])
        tokens += grid.tokens
    return Moves(*([torch.cat(parts) for parts in zip(*side, strict=True)] for side in (held, wanted)), tokens)


@lru_cache(maxsize=16)
def everything(grid: TokenGrid, members: int) -> tuple[Rectangle, ...]:
    """What dense attention reads: every member gets all tokens."""
    return (Rectangle.whole(grid[1:]),) * members


@lru_cache(maxsize=16)
def dense_received(grid: TokenGrid, members: int) -> tuple[int, ...]:
    """How many tokens each member gets from others in a layer of dense attention."""
    return tuple(received(grid.t, rectangles(grid, members), everything(grid, members)))


def split_dense_attention_(attn: Projections, x: Tensor, table: Tensor, member: Member, engine: Engine) -> Tensor:
    """Full attention of a member's tokens: x (b, s, c) -> (b, s, c). Overwrites x.

    table: rotations of the whole grid, float32 (tokens, head_dim / 2, 2).
    The tokens are gathered, and every member computes all keys and values: this moves no more than heads would for two
    to four members, works for any number of heads, and leaves the results where they belong.
    """
    member.check(x)
    grid, count = member.grid, member.count
    sequence = member.moved(x, rectangle_moves(MapMoves(grid, rectangles(grid, count), everything(grid, count))))
    numbers = _numbers_on(grid, count, member.index, x.device)
    return dense_attention_(attn, x, table.index_select(0, numbers), engine, (sequence, table))


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _numbers_on(grid: TokenGrid, members: int, index: int, device: torch.device) -> Tensor:
    return held_numbers(grid, members)[index].to(device)

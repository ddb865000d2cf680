"""How many tokens the members of T3-Video's attention exchange, by arithmetic: a plan of any size must be cheap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from math import prod

from ...grid import TokenGrid
from ...rectangle import Rectangle, Span
from ..t3 import Windows, cuts_coincide, window_grid
from .rectangles import equal_spans, received, rectangles
from .t3 import close_windows


@lru_cache(maxsize=64)
def t3_received(grid: TokenGrid, members: int, windows: Windows) -> tuple[int, ...]:
    """How many tokens each member gets from others in a layer."""
    own, close, counts = rectangles(grid, members), close_windows(grid, members, windows), []
    if close is not None:
        counts.append(received(grid.t, own, close.wanted))
    for strided in [False] * (close is None) + [True] * (not cuts_coincide(grid, windows)):
        counts.append([_shared_out(grid, windows, strided, members, member) for member in range(members)])
    return tuple(map(sum, zip(*counts, strict=True)))


def _shared_out(grid: TokenGrid, windows: Windows, strided: bool, members: int, member: int) -> int:
    """Tokens into a member where windows are shared out, and their results into it on the way back."""
    held = _Held(grid, windows, strided, rectangles(grid, members)[member])
    size, (whole, rest) = window_grid(grid, windows).tokens, divmod(prod(windows), members)
    first, shared = size * whole * member, size * whole * members
    own = held.between(first, first + size * whole)
    run = equal_spans(size, members)[member]
    runs = sum(held.between(start + run.start, start + run.stop) for start in range(shared, grid.tokens, size))
    needed = size * (whole + rest) - own - held.between(shared, grid.tokens)
    return needed + held.between(0, grid.tokens) - own - runs


@dataclass(frozen=True)
class _Axis:
    """Windows of an axis: each takes neighbouring positions, or every `count`-th. span: what the member holds."""

    length: int
    count: int
    strided: bool
    span: Span

    @property
    def size(self) -> int:
        return self.length // self.count

    def held(self, window: int, positions: int) -> int:
        """How many of the first `positions` of a window the member holds."""
        first, step = (window, self.count) if self.strided else (window * self.size, 1)
        before, within = (min(max(-((first - edge) // step), 0), positions) for edge in self.span)
        return within - before

    @cached_property
    def before(self) -> list[int]:
        """How many positions of all windows before each the member holds; at last of all windows."""
        return list(accumulate((self.held(each, self.size) for each in range(self.count)), initial=0))


class _Held:
    """A member's tokens in the sequence of all windows, one after the other, each in (t, h, w) order."""

    def __init__(self, grid: TokenGrid, windows: Windows, strided: bool, rectangle: Rectangle):
        self._rows = _Axis(grid.h, windows[1], strided, rectangle.rows)
        self._columns = _Axis(grid.w, windows[2], strided, rectangle.columns)
        self._extent = window_grid(grid, windows)

    def between(self, start: int, stop: int) -> int:
        return self._first(stop) - self._first(start)

    def _first(self, tokens: int) -> int:
        """How many of the first `tokens` of the sequence the member holds."""
        rows, columns, (t, h, w) = self._rows, self._columns, self._extent
        window, rest = divmod(tokens, t * h * w)
        rounds, window = divmod(window, rows.count * columns.count)
        row, column = divmod(window, columns.count)
        in_rows, in_columns = rows.held(row, h), columns.held(column, w)
        before = (rounds * rows.before[-1] + rows.before[row]) * columns.before[-1] + in_rows * columns.before[column]
        frames, rest = divmod(rest, h * w)
        y, x = divmod(rest, w)
        last_row = rows.held(row, y + 1) - rows.held(row, y)
        inside = frames * in_rows * in_columns + rows.held(row, y) * in_columns + last_row * columns.held(column, x)
        return t * before + inside

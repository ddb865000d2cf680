"""The rule of an unpatched model: every block keeps full attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ..attention.extras import BlockExtras
from ..attention.gate import NO_GATES, Gates
from ..attention.split.member import Member
from ..grid import TokenGrid
from .groups import BlockGroup


class DenseRule:
    name = "dense"
    extras = None
    gate_sources = NO_GATES
    blocks: list[int] = []
    dense: dict[int, str] = {}

    def attentions(
        self,
        extras: Mapping[int, BlockExtras],
        gates: Mapping[int, Gates],
        grid: TokenGrid,
        member: Member | None = None,
    ) -> dict[int, Callable[..., Tensor]]:
        return {}

    def feed_forwards(self, extras: Mapping[int, BlockExtras]) -> dict[int, Callable[[nn.Module, Tensor], Tensor]]:
        return {}

    def received(self, grid: TokenGrid, members: int) -> dict[int, tuple[int, ...]]:
        return {}

    def groups(self, grid: TokenGrid) -> list[BlockGroup]:
        return []

    def describe(self, grid: TokenGrid, block_count: int) -> list[str]:
        return [f"full attention in all {block_count} blocks"]

    def advice(self, grid: TokenGrid) -> list[str]:
        return []

"""What every attention rule can say and do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor, nn

from ..attention.extras import BlockExtras, ExtrasSummary
from ..attention.gate import Gates, GateSources
from ..attention.split.member import Member
from ..grid import TokenGrid
from .groups import BlockGroup


class Rule(Protocol):
    """Which blocks of a model replace full attention, and with what.

    A rule holds no module of the base model, and of the extras only the gates: the caller hands over the extras of the
    clone and the GPU that run.

    extras: summary of the extras that it runs with, None if it has none. blocks: those that it takes. dense: for every
    other block the reason why it keeps full attention. gate_sources: of its blocks' gates.
    """

    name: str
    extras: ExtrasSummary | None
    gate_sources: GateSources
    blocks: list[int]
    dense: dict[int, str]

    def attentions(
        self,
        extras: Mapping[int, BlockExtras],
        gates: Mapping[int, Gates],
        grid: TokenGrid,
        member: Member | None = None,
    ) -> dict[int, Callable[..., Tensor]]:
        """For each of its blocks attention(module, x, engine=). gates: from `gate_sources`, at the evaluation's
        timesteps. member: the one of several whose part of the video x is; None: x is all of it. Raises ValueError
        where the rule cannot run on this grid.
        """

    def feed_forwards(self, extras: Mapping[int, BlockExtras]) -> dict[int, Callable[[nn.Module, Tensor], Tensor]]:
        """For each of its blocks whose feed-forward part has deltas feed_forward(module, x)."""

    def received(self, grid: TokenGrid, members: int) -> dict[int, tuple[int, ...]]:
        """For each of its blocks how many tokens, or compressed cells, each of `members` gets from others. Raises
        ValueError where the rule cannot run on this grid.
        """

    def groups(self, grid: TokenGrid) -> list[BlockGroup]:
        """What its blocks do on this grid. Raises ValueError where the rule cannot run on it."""

    def describe(self, grid: TokenGrid, block_count: int) -> list[str]:
        """Parts of the log line of a run. block_count: of the model. Raises ValueError like `groups`."""

    def advice(self, grid: TokenGrid) -> list[str]:
        """Why the result may disappoint, with sizes that do better; one sentence each."""

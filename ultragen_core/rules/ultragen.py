"""The attention rules as a patched model carries them: what each block runs, on any grid, at any step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from ..attention.config import (
    TRAINED_WINDOWS,
    BlockSpec,
    GlobalConfig,
    LocalConfig,
    block_spec,
    format_blocks,
    outer_blocks,
    windows_near,
)
from ..attention.gate import UNTRAINED_GATE, GateTable
from ..attention.layer import ultragen_attention
from ..attention.t3 import PUBLISHED_1_3B, PUBLISHED_5B, Published, coincide, t3_attention
from ..grid import TokenGrid
from ..host.attention.extras import LoadedExtras
from ..wan import WanShape
from .advice import t3_advice, ultragen_advice
from .groups import Kind, t3_kind, ultragen_kind

KEY = "ultragen"
WITHOUT_WEIGHTS = "Without trained weights UltraGen's attention is experimental: its quality is unmeasured."


class Rule(Protocol):
    """What takes the place of full attention. A rule holds no module of the base model: every clone and every GPU
    brings its own through the call.

    extras: the added weights that it runs with. known: those that came with the model, for another rule after this one.
    """

    name: str
    extras: LoadedExtras | None
    known: LoadedExtras | None
    blocks: list[int]
    dense: dict[int, str]

    def attentions(self, base, t: Tensor, grid: TokenGrid) -> dict[int, Callable[..., Tensor]]:
        """For each block that it takes, attention(module, x, engine=). t (b,) = 1000 * sigma. Raises ValueError."""

    def kinds(self, grid: TokenGrid) -> list[Kind]:
        """What its blocks do on this grid. Raises ValueError where the grid is none for this rule."""

    def describe(self, grid: TokenGrid, blocks: int) -> list[str]:
        """What runs where on this grid, for the log. Raises ValueError like `kinds`."""

    def advice(self, grid: TokenGrid) -> list[str]:
        """Why the result may disappoint, and sizes that are better; one sentence each."""


@dataclass(frozen=True)
class UltraGenRule:
    """UltraGen's three branches in `blocks` of a model; `dense` says why the others keep full attention."""

    extras: LoadedExtras
    blocks: list[int]
    dense: dict[int, str]
    gates: GateTable
    local: LocalConfig
    global_: GlobalConfig
    shape: WanShape
    name = "ultragen"

    @property
    def known(self) -> LoadedExtras:
        return self.extras

    def spec(self, index: int, grid: TokenGrid) -> BlockSpec:
        trained = self.extras.trained
        near = windows_near(self.shape.base_tokens, grid, self.extras.shape.hierarchical_ratio)
        return block_spec(index, self.local, self.global_, trained, TRAINED_WINDOWS if trained else near)

    def attentions(self, base, t: Tensor, grid: TokenGrid) -> dict[int, Callable[..., Tensor]]:
        if not self.blocks:
            return {}
        extras = base.current_patcher.get_additional_models_with_key(KEY)[0].model.blocks
        gates = self.gates(t)
        return {
            index: partial(
                ultragen_attention,
                grid=grid,
                spec=self.spec(index, grid),
                extras=extras[str(index)],
                gates=gates[index],
            )
            for index in self.blocks
        }

    def kinds(self, grid: TokenGrid) -> list[Kind]:
        kinds = []
        for parity, name in enumerate(("even blocks", "odd blocks")):
            if blocks := [index for index in self.blocks if index % 2 == parity]:
                kinds.append(ultragen_kind(name, blocks, grid, self.spec(parity, grid), self.extras.shape))
        return kinds

    def describe(self, grid: TokenGrid, blocks: int) -> list[str]:
        parts = [f"rule ultragen in {len(self.blocks)} of {blocks} blocks ({format_blocks(self.blocks)})"]
        parts += [f"{kind.name} {' + '.join(map(str, kind.branches))}" for kind in self.kinds(grid)]
        return [*parts, *dense_blocks(self)]

    def advice(self, grid: TokenGrid) -> list[str]:
        specs = [self.spec(parity, grid) for parity in {index % 2 for index in self.blocks}]
        sizes = ultragen_advice(grid, specs, self.extras.shape, self.shape.token_pixels)
        return sizes if self.extras.trained else [WITHOUT_WEIGHTS, *sizes]


def dense_blocks(rule: Rule) -> list[str]:
    """The blocks that stay dense, by reason."""
    return [
        f"dense {format_blocks(i for i, other in rule.dense.items() if other == reason)} ({reason})"
        for reason in dict.fromkeys(rule.dense.values())
    ]


@dataclass(frozen=True)
class T3Rule:
    """T3-Video's rule in `blocks`; `dense` says why the others keep full attention."""

    published: Published
    channels: int
    blocks: list[int]
    dense: dict[int, str]
    known: LoadedExtras | None = None
    name = "t3"
    extras = None

    def attentions(self, base, t: Tensor, grid: TokenGrid) -> dict[int, Callable[..., Tensor]]:
        table = self.published.table(grid)
        return {index: partial(t3_attention, grid=grid, windows=table[index % len(table)]) for index in self.blocks}

    def kinds(self, grid: TokenGrid) -> list[Kind]:
        kinds = []
        for turn, windows in enumerate(table := self.published.table(grid)):
            if blocks := [index for index in self.blocks if index % len(table) == turn]:
                kinds.append(t3_kind(f"blocks {len(table)}n+{turn}", blocks, grid, windows, self.channels))
        return kinds

    def describe(self, grid: TokenGrid, blocks: int) -> list[str]:
        parts = [f"rule t3 in {len(self.blocks)} of {blocks} blocks ({format_blocks(self.blocks)})"]
        windows = self.published.table(grid)
        names = ["x".join(map(str, n)) + (" once" if coincide(grid, n) else "") for n in windows]
        parts.append(f"windows (t x h x w) {', '.join(names)} in turn")
        return [*parts, *dense_blocks(self)]

    def advice(self, grid: TokenGrid) -> list[str]:
        return t3_advice(grid, self.published)


def ultragen_rule(shape: WanShape, local: LocalConfig, global_: GlobalConfig, extras: LoadedExtras) -> UltraGenRule:
    """UltraGen's rule for a model of this shape; `extras` say by having no gates that they are none."""
    chosen = global_.dense_blocks
    without = {index: "no extra weights" for index in range(shape.blocks) if index not in extras.blocks}
    if chosen is None and not extras.trained:
        without |= dict.fromkeys(sorted(outer_blocks(shape.blocks)), "outer tenth")
    blocks, dense = _choose_blocks(shape, chosen or frozenset(), without)
    gates = _gate_table(local, global_, extras, blocks)
    return UltraGenRule(extras, blocks, dense, gates, local, global_, shape)


def t3_rule(shape: WanShape, global_: GlobalConfig, known: LoadedExtras | None = None) -> T3Rule:
    """T3-Video's rule for a model of this shape; `known` are UltraGen's weights that came with it."""
    published = PUBLISHED_5B if shape.of_wan22_vae else PUBLISHED_1_3B
    chosen = _choose_blocks(shape, global_.dense_blocks or frozenset(), {})
    return T3Rule(published, shape.channels, *chosen, known)


def _choose_blocks(
    shape: WanShape, chosen: frozenset[int], without: dict[int, str]
) -> tuple[list[int], dict[int, str]]:
    """The blocks that a rule takes, and the reason for every one that stays dense."""
    by_choice = {index: "by choice" for index in sorted(chosen) if index < shape.blocks}
    others = {index: f"its attention is {name}" for index, name in shape.other_attention.items()}
    dense = by_choice | others | without
    return [index for index in range(shape.blocks) if index not in dense], dense


def _gate_table(local: LocalConfig, global_: GlobalConfig, extras: LoadedExtras, blocks: list[int]) -> GateTable:
    def source(index: int):
        trained = extras.gates.get(index)
        hierarchical = trained.hierarchical_gate if trained else UNTRAINED_GATE
        return local.gate or hierarchical, global_.gate or (trained.global_gate if trained else UNTRAINED_GATE)

    return GateTable(extras.shape.channels, {index: source(index) for index in blocks})

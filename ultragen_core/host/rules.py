"""The attention rules as a patched model carries them: what each block runs, on any grid, at any step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from ..advice import t3_advice, ultragen_advice
from ..attention.config import BlockSpec, BranchSpec, format_blocks
from ..attention.gate import GateTable
from ..attention.grid import TokenGrid
from ..attention.layer import branch_layout, ultragen_attention
from ..attention.t3 import Published, coincide, t3_attention
from .extras import LoadedExtras

KEY = "ultragen"


class Rule(Protocol):
    """What takes the place of full attention. A rule holds no module of the base model: every clone and every GPU
    brings its own through the call.
    """

    name: str
    extras: LoadedExtras | None

    def attentions(self, base, t: Tensor, grid: TokenGrid) -> dict[int, Callable[..., Tensor]]:
        """For each block that it takes, attention(module, x, engine=). t (b,) = 1000 * sigma. Raises ValueError."""

    def describe(self, grid: TokenGrid, blocks: int) -> list[str]:
        """What runs where on this grid, for the log. Raises ValueError where the grid is none for this rule."""

    def advice(self, grid: TokenGrid) -> list[str]:
        """What is bad about this size, with better ones; one sentence each."""


@dataclass(frozen=True)
class UltraGenRule:
    """UltraGen's three branches; `dense` says why the other blocks keep full attention.

    pixels: of one token, per axis.
    """

    extras: LoadedExtras
    specs: dict[int, BlockSpec]
    dense: dict[int, str]
    gates: GateTable
    pixels: int
    name = "ultragen"

    def attentions(self, base, t: Tensor, grid: TokenGrid) -> dict[int, Callable[..., Tensor]]:
        if not self.specs:
            return {}
        extras = base.current_patcher.get_additional_models_with_key(KEY)[0].model.blocks
        gates = self.gates(t)
        return {
            index: partial(ultragen_attention, grid=grid, spec=spec, extras=extras[str(index)], gates=gates[index])
            for index, spec in self.specs.items()
        }

    def describe(self, grid: TokenGrid, blocks: int) -> list[str]:
        parts = [f"rule ultragen in {len(self.specs)} of {blocks} blocks ({format_blocks(self.specs)})"]
        for parity, name in enumerate(("even", "odd")):
            spec = next((spec for index, spec in self.specs.items() if index % 2 == parity), None)
            if spec is not None:
                parts.append(f"{name} blocks {' + '.join(self._branches(grid, spec))}")
        parts += _dense(self.dense)
        return parts if self.extras.trained else [*parts, "without trained weights (experimental)"]

    def advice(self, grid: TokenGrid) -> list[str]:
        return ultragen_advice(grid, self.specs.values(), self.extras.shape, self.pixels)

    def _branches(self, grid: TokenGrid, spec: BlockSpec) -> list[str]:
        branches = [f"local {_windows(grid, spec.local)}"]
        if spec.hierarchical:
            branches.append(f"hierarchical {_windows(grid, spec.hierarchical, self.extras.shape.hierarchical_ratio)}")
        return branches + (["global"] if spec.global_ else [])


def _dense(reasons: dict[int, str]) -> list[str]:
    return [
        f"dense {format_blocks(i for i, other in reasons.items() if other == reason)} ({reason})"
        for reason in dict.fromkeys(reasons.values())
    ]


def _windows(grid: TokenGrid, spec: BranchSpec, ratio: int = 1) -> str:
    """Windows per axis as they come out: a short axis has fewer, shifted windows are one more."""
    _, regions = branch_layout(grid, spec, ratio)
    rows = {region.rows.start: region.windows[1] for region in regions}
    columns = {region.columns.start: region.windows[2] for region in regions}
    return f"{sum(rows.values())}x{sum(columns.values())}" + (" shifted" if spec.shifted else "")


@dataclass(frozen=True)
class T3Rule:
    """T3-Video's rule in `blocks`; `dense` says why the others keep full attention."""

    published: Published
    blocks: list[int]
    dense: dict[int, str]
    name = "t3"
    extras = None

    def attentions(self, base, t: Tensor, grid: TokenGrid) -> dict[int, Callable[..., Tensor]]:
        return {
            index: partial(t3_attention, grid=grid, windows=self.published.windows_of(index, grid))
            for index in self.blocks
        }

    def describe(self, grid: TokenGrid, blocks: int) -> list[str]:
        parts = [f"rule t3 in {len(self.blocks)} of {blocks} blocks ({format_blocks(self.blocks)})"]
        windows = self.published.table(grid)
        names = ["x".join(map(str, n)) + (" once" if coincide(grid, n) else "") for n in windows]
        return [*parts, f"windows (t x h x w) {', '.join(names)} in turn", *_dense(self.dense)]

    def advice(self, grid: TokenGrid) -> list[str]:
        return t3_advice(grid, self.published)

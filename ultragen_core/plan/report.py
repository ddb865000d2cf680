"""The plan of a run, in numbers and in sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..grid import TokenGrid
from ..rules.groups import Branch, Kind
from ..sizes import VideoSize
from .flops import Operations

DECODE_TILES = 64, 512  # pixels a side
GIB = 2**30


class GatePoint(NamedTuple):
    """Mean gates of all blocks at a noise level: share of the local branch, share of the windows against global."""

    sigma: float
    local: float
    windows: float


@dataclass(frozen=True)
class Plan:
    """A run of one video; sizes of memory in bytes.

    operations, dense_operations: of one evaluation of the model, as planned and with full attention everywhere.
    gates: over the run; empty where no gate acts or its weights are not loaded. weights: of the model. activations:
    least and all tokens at once. decode: on the device in tiles of 64 and of 512 pixels. frames: on the host, as 8 bit
    and as an IMAGE.
    """

    size: VideoSize
    grid: TokenGrid
    rule: str
    dense: tuple[str, ...]
    kinds: tuple[Kind, ...]
    operations: Operations
    dense_operations: Operations
    gates: tuple[GatePoint, ...]
    weights: int
    activations: tuple[int, int]
    decode: tuple[int, int]
    frames: tuple[int, int]
    warnings: tuple[str, ...]

    def text(self) -> list[str]:
        """Sentences for people, most important first."""
        low, high = (gib(size) for size in self.activations)
        small, usual = (gib(size) for size in self.decode)
        eight, image = (gib(size) for size in self.frames)
        said = [f"{self.size}: {self.grid} = {self.grid.tokens:,} tokens; {', '.join((self.rule, *self.dense))}"]
        for kind in self.kinds:
            said.append(f"{len(kind.blocks)} {kind.name}: {' + '.join(map(windows_text, kind.branches))}")
        said.append(f"one evaluation: {self.operations.total / 1e15:.3g} PFLOP, {self.against_dense()}")
        loaded = f"weights {gib(self.weights)} and " if self.weights else ""
        said.append(f"device memory to sample one video: {loaded}activations {low} at least, {high} all at once")
        said.append(
            f"to decode exactly: {small} in tiles of {DECODE_TILES[0]} pixels, {usual} in tiles of {DECODE_TILES[1]}"
        )
        said.append(f"host memory for the frames: {eight} with UltraGen Save Video, {image} as an IMAGE")
        return [*said, *(f"Careful: {warning}" for warning in self.warnings)]

    def against_dense(self) -> str:
        ratio = self.dense_operations.total / self.operations.total
        return "all of it dense" if ratio == 1 else f"{ratio:.1f} times fewer than dense attention"


def gib(size: int) -> str:
    return f"{size / GIB:.2g} GiB" if size < 10 * GIB else f"{size / GIB:.0f} GiB"


def windows_text(branch: Branch) -> str:
    fewest, most = branch.tokens
    tokens = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return f"{branch} of {tokens} tokens" + (f" ({branch.note})" if branch.note else "")

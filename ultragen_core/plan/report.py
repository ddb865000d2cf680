"""The plan of a run, as numbers and as sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..grid import TokenGrid
from ..rules.groups import BlockGroup, Branch
from ..sizes import VideoSize
from .flops import FLOPs
from .speed import Estimate
from .split import Shares

DECODE_TILES = 64, 512  # side in pixels
GIB = 2**30
USUALLY_FREE = 7 / 8  # of a GPU's memory, as docs/benchmarks.md emulates cards of 12 GB and more


class GatePoint(NamedTuple):
    """Gates at a noise level, mean of all blocks: share of the local against the hierarchical branch, and of both
    (the windows) against the global branch.
    """

    sigma: float
    local: float
    windows: float


@dataclass(frozen=True)
class Plan:
    """A run of one video; memory in bytes.

    flops, dense_flops: of one evaluation, as planned and with full attention everywhere. gates: over the run; empty
    where no gate acts or its weights are not loaded. weights: size of the model. activations: with as few tokens at a
    time as possible, and with all. decode: memory with tiles of 64 and of 512 pixels. decodes_on_gpu: whether it is the
    GPU's or the host's. estimate: of times; None where this card was not measured. shares: how several GPUs share the
    prompts; empty for one GPU. gpu: its memory; None where it is unknown.
    """

    size: VideoSize
    grid: TokenGrid
    rule: str
    dense: tuple[str, ...]
    groups: tuple[BlockGroup, ...]
    flops: FLOPs
    dense_flops: FLOPs
    gates: tuple[GatePoint, ...]
    weights: int
    activations: tuple[int, int]
    decode: tuple[int, int]
    warnings: tuple[str, ...]
    estimate: Estimate | None = None
    shares: tuple[Shares, ...] = ()
    gpu: int | None = None
    decodes_on_gpu: bool = True

    @property
    def frames(self) -> tuple[int, int]:
        """Host memory for the frames, in 8 bits and as an IMAGE of float32."""
        values = 3 * math.prod(self.size)
        return values, 4 * values

    def text(self) -> list[str]:
        """Sentences, most important first."""
        low, high = (gib(size) for size in self.activations)
        small, usual = (gib(size) for size in self.decode)
        eight, image = (gib(size) for size in self.frames)
        lines = [f"{self.size}: {self.grid} = {self.grid.tokens:,} tokens; {', '.join((self.rule, *self.dense))}"]
        for group in self.groups:
            deltas = f"; deltas of rank {group.ffn_rank} on the feed-forward part" if group.ffn_rank else ""
            lines.append(f"{group.counted}: {' + '.join(map(windows_text, group.branches))}{deltas}")
        against = self.against_dense()
        against += f" {'as' if against == 'the same' else 'than'} with dense attention"
        lines.append(f"one evaluation: {self.flops_text(self.flops.total)}, {against}")
        lines += [f"{shares.heading}: {exchange_text(shares, self.grid)}" for shares in self.shares]
        if self.estimate:
            lines.append(f"{self.time_name}: {self.estimate}")
        loaded = f"weights {gib(self.weights)} and " if self.weights else ""
        lines.append(f"device memory to sample one video: {loaded}activations of {low} (least) to {high} (fastest)")
        lines.append(
            f"{'device' if self.decodes_on_gpu else 'host'} memory to decode exactly: {small} with tiles of"
            f" {DECODE_TILES[0]} pixels, {usual} with tiles of {DECODE_TILES[1]}"
        )
        lines += self.fits
        lines.append(f"host memory for the frames: {eight} with UltraGen Save Video, {image} as an IMAGE")
        return [*lines, *(f"Warning: {warning}" for warning in (*self.misfits, *self.warnings))]

    @property
    def fits(self) -> list[str]:
        """That the run fits this GPU; empty if it does not, or if nothing is known."""
        if not self._judged or self.misfits:
            return []
        least = max(self.activations[0], self.decode[0] if self.decodes_on_gpu else 0)
        return [f"fits this GPU: needs at least {least / GIB:.1f} of its {self.gpu / GIB:.1f} GiB"]

    @property
    def misfits(self) -> list[str]:
        """What does not fit this GPU, and what to do."""
        if not self._judged:
            return []
        free = USUALLY_FREE * self.gpu
        card = f"{self.gpu / GIB:.1f} GiB usually only {free / GIB:.1f} are free"
        needs = [("Sampling", self.activations[0], "fewer frames or a smaller size")]
        needs += [("The decode", self.decode[0], "a smaller size")] if self.decodes_on_gpu else []
        return [
            f"{what} needs at least {least / GIB:.1f} GiB, but of this GPU's {card}. Choose {instead}."
            for what, least, instead in needs
            if least > free
        ]

    @property
    def _judged(self) -> bool:
        """Nothing is said of ComfyUI's own code, nor of GPUs that share a prompt, each of which needs less."""
        return self.gpu is not None and bool(self.groups) and not self.shares

    def flops_text(self, *counts: float) -> str:
        """One count, or two with "of" between them, in one unit that suits the model."""
        size, unit = (1e15, "PFLOPs") if self.dense_flops.total >= 1e13 else (1e12, "TFLOPs")
        return " of ".join(f"{count / size:.3g}" for count in counts) + f" {unit}"

    @property
    def time_name(self) -> str:
        """Cards are measured one at a time."""
        return "time on one GPU" if self.shares else "time"

    def against_dense(self) -> str:
        """The FLOPs compared with those of full attention: "6.3x fewer", "2% fewer", "4% more", "the same"."""
        part = self.flops.total / self.dense_flops.total
        if part == 1:
            return "the same"
        if part < 0.9:
            return f"{1 / part:.1f}x fewer"
        return f"{abs(part - 1):.0%} {'more' if part > 1 else 'fewer'}"


def gib(size: int) -> str:
    return f"{size / GIB:.2g} GiB" if size < 10 * GIB else f"{size / GIB:.0f} GiB"


def exchange_text(shares: Shares, grid: TokenGrid) -> str:
    if len(shares.rectangles) == 1:
        return "nothing is exchanged"
    largest = grid.part(max(shares.rectangles, key=lambda each: each.area))
    most, every = gib(max(shares.received)), gib(sum(shares.received))
    return f"rectangles of {largest} tokens; an evaluation moves {every} between GPUs, at most {most} into one"


def windows_text(branch: Branch) -> str:
    fewest, most = min(branch.windows), max(branch.windows)
    tokens = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return f"{branch} of {tokens} tokens" + (f" ({branch.note})" if branch.note else "")

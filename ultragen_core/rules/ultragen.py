"""UltraGen's rule (arXiv 2510.18775): three branches, whose windows alternate between even and odd blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from ..attention.config import DEFAULT_GLOBAL, DEFAULT_LOCAL, GlobalConfig, LocalConfig
from ..attention.extras import BlockExtras, ExtrasSummary
from ..attention.feed_forward import feed_forward
from ..attention.gate import UNTRAINED_GLOBAL, UNTRAINED_HIERARCHICAL, Gates, GateSources
from ..attention.layer import ultragen_attention
from ..attention.spec import BlockSpec, BranchSpec
from ..attention.split.member import Member
from ..attention.split.ultragen import split_ultragen_attention, ultragen_received
from ..grid import TokenGrid
from ..wan import WanShape
from .advice import ultragen_advice
from .blocks import choose_blocks, describe_dense, format_blocks, outer_blocks
from .groups import BlockGroup, enabled_branches, ultragen_group

UNTRAINED_WARNING = (
    "Without trained weights UltraGen's attention is experimental: its quality was measured on a small model only, see"
    " docs/ablation.md."
)

WHOLE_FRAME_WARNING = (
    "One window covers the whole frame at this size. That costs more than full attention, and changes the video. Remove"
    " UltraGen Apply, or sample larger frames."
)


class WindowCounts(NamedTuple):
    """Windows per axis in (even, odd) blocks."""

    local: tuple[int, int]
    hierarchical: tuple[int, int]


TRAINED_WINDOWS = WindowCounts((4, 5), (2, 3))
LARGEST_SIDE = 1.1  # of a local window without trained weights, in sides of the base model's training frames


def untrained_windows(base_tokens: int, grid: TokenGrid, hierarchical_ratio: int) -> WindowCounts:
    """Counts for models without trained weights, whose training frames had `base_tokens`.

    Local windows are no larger than these frames, up to LARGEST_SIDE per axis; hierarchical windows are about as large.
    Smaller local windows had better scores (docs/ablation.md). Odd blocks have one window more per axis, like the
    published ones, where there is a border to move.
    """
    frames_per_axis = math.sqrt(grid.h * grid.w / base_tokens)

    def counts(even: int) -> tuple[int, int]:
        return even, even + 1 if even > 1 else 1

    local, hierarchical = math.ceil(frames_per_axis / LARGEST_SIDE), round(frames_per_axis / hierarchical_ratio)
    return WindowCounts(counts(max(local, 1)), counts(max(hierarchical, 1)))


def block_spec(
    block_index: int,
    local: LocalConfig = DEFAULT_LOCAL,
    global_: GlobalConfig = DEFAULT_GLOBAL,
    trained: bool = True,
    windows: WindowCounts = TRAINED_WINDOWS,
) -> BlockSpec:
    """What a block computes.

    trained: with trained weights. They expect features that are resized until they divide, and keys of the global
    branch from the query projection, a slip of the published code that its weights have learnt.
    windows: counts where `local` sets none.
    """
    odd = block_index % 2
    alternate = odd if local.cross_window == "paper" else 0
    common = {
        "shifted": local.cross_window == "swin" and bool(odd),
        "resize": trained if local.uneven == "auto" else local.uneven == "resize",
        "antialias": local.antialias,
    }
    hierarchical = local.hierarchical_windows or windows.hierarchical
    has_global = global_.enabled
    if has_global is None:
        has_global = trained or global_.compress_ratio is not None or not _sees_whole_frame(local, hierarchical)
    return BlockSpec(
        local=BranchSpec((local.windows or windows.local)[alternate], **common),
        hierarchical=(
            BranchSpec(hierarchical[alternate], lora_strength=local.hierarchical_lora_strength, **common)
            if local.hierarchical
            else None
        ),
        global_=(BranchSpec(key_from_query=trained, lora_strength=global_.lora_strength) if has_global else None),
    )


def _sees_whole_frame(local: LocalConfig, hierarchical: tuple[int, int]) -> bool:
    """Whether the hierarchical branch has one window in every block. hierarchical: counts in even and odd blocks."""
    if not local.hierarchical or local.cross_window == "swin":  # which cuts even a single window, in odd blocks
        return False
    return max(hierarchical if local.cross_window == "paper" else hierarchical[:1]) == 1


@dataclass(frozen=True)
class UltraGenRule:
    """UltraGen's branches in `blocks`; `dense` gives the reason for every block that keeps full attention."""

    model: WanShape
    extras: ExtrasSummary
    blocks: list[int]
    dense: dict[int, str]
    gate_sources: GateSources
    local: LocalConfig
    global_: GlobalConfig
    name = "ultragen"

    def spec(self, index: int, grid: TokenGrid) -> BlockSpec:
        """What block `index` computes on this grid."""
        windows = (
            TRAINED_WINDOWS
            if self.extras.trained
            else untrained_windows(self.model.base_tokens, grid, self.extras.shape.hierarchical_ratio)
        )
        return block_spec(index, self.local, self.global_, self.extras.trained, windows)

    def attentions(
        self,
        extras: Mapping[int, BlockExtras],
        gates: Mapping[int, Gates],
        grid: TokenGrid,
        member: Member | None = None,
    ) -> dict[int, Callable[..., Tensor]]:
        specs = [self.spec(parity, grid) for parity in (0, 1)]
        layer = (
            partial(ultragen_attention, grid=grid)
            if member is None
            else partial(split_ultragen_attention, member=member)
        )
        return {
            index: partial(layer, spec=specs[index % 2], extras=extras[index], gates=gates[index])
            for index in self.blocks
        }

    def feed_forwards(self, extras: Mapping[int, BlockExtras]) -> dict[int, Callable[[nn.Module, Tensor], Tensor]]:
        if not self.ffn_rank:
            return {}
        strength = self.global_.ffn_lora_strength
        return {i: partial(feed_forward, extras=extras[i].ffn, strength=strength) for i in self.blocks}

    @property
    def ffn_rank(self) -> int:
        """Rank of the deltas that act on the feed-forward part, 0 without."""
        shape = self.extras.shape
        return shape.rank if "ffn" in shape.deltas and self.global_.ffn_lora_strength else 0

    def received(self, grid: TokenGrid, members: int) -> dict[int, tuple[int, ...]]:
        shape, counts = self.extras.shape, []
        for spec in (self.spec(parity, grid) for parity in (0, 1)):
            (local, _), *coarse = enabled_branches(spec, shape).values()
            counts.append(ultragen_received(grid, members, local, tuple(coarse), shape.refined))
        return {index: counts[index % 2] for index in self.blocks}

    def groups(self, grid: TokenGrid) -> list[BlockGroup]:
        groups = []
        for parity, name in enumerate(("even blocks", "odd blocks")):
            if blocks := [index for index in self.blocks if index % 2 == parity]:
                group = ultragen_group(name, blocks, grid, self.spec(parity, grid), self.extras.shape)
                groups.append(group._replace(ffn_rank=self.ffn_rank))
        return groups

    def describe(self, grid: TokenGrid, block_count: int) -> list[str]:
        parts = [f"rule ultragen in {len(self.blocks)} of {block_count} blocks ({format_blocks(self.blocks)})"]
        parts += [f"{group.name} {' + '.join(map(str, group.branches))}" for group in self.groups(grid)]
        parts += ["deltas on the feed-forward part of these blocks"] if self.ffn_rank else []
        return [*parts, *describe_dense(self.dense)]

    def advice(self, grid: TokenGrid) -> list[str]:
        specs = [self.spec(parity, grid) for parity in {index % 2 for index in self.blocks}]
        sizes = ultragen_advice(grid, specs, self.extras.shape, self.model.token_pixels)
        if self.extras.trained:
            return sizes
        whole_frame = specs and all(spec.local.num_windows == 1 for spec in specs)
        return [UNTRAINED_WARNING, *([WHOLE_FRAME_WARNING] if whole_frame else []), *sizes]


def ultragen_rule(model: WanShape, local: LocalConfig, global_: GlobalConfig, extras: ExtrasSummary) -> UltraGenRule:
    """UltraGen's rule for a model with these extras."""
    unsuited = {index: "no extras" for index in range(model.blocks) if index not in extras.blocks}
    if global_.dense_blocks is None and not extras.trained:
        unsuited |= dict.fromkeys(sorted(outer_blocks(model.blocks)), "outer tenth")
    blocks, dense = choose_blocks(model, global_.dense_blocks, unsuited)
    sources = _gate_sources(local, global_, extras, blocks)
    return UltraGenRule(model, extras, blocks, dense, sources, local, global_)


def _gate_sources(local: LocalConfig, global_: GlobalConfig, extras: ExtrasSummary, blocks: list[int]) -> GateSources:
    def source(index: int):
        trained = extras.gates.get(index)
        hierarchical = trained.hierarchical_gate if trained else UNTRAINED_HIERARCHICAL
        return local.gate or hierarchical, global_.gate or (trained.global_gate if trained else UNTRAINED_GLOBAL)

    return GateSources(extras.shape.channels, {index: source(index) for index in blocks})

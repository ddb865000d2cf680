"""Settings of UltraGen's attention: what a user chooses, and what one block makes of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple, get_args

from ..grid import TokenGrid
from .gate import GateLine, check_gate

CrossWindow = Literal["paper", "off", "swin"]
Cut = Literal["auto", "resize", "balanced"]


@dataclass(frozen=True)
class LocalConfig:
    """The fine side of a layer: windows at full resolution and the hierarchical branch (section 4.2 of the paper).

    windows, hierarchical_windows: counts per axis in (even, odd) blocks; None is as trained, or without weights what
        makes windows about as large as the frames that the base model knows.
    cross_window: "paper" alternates the two counts so that borders move; "off" keeps the even count; "swin" keeps it
        and shifts by half a window.
    cut: how an axis that does not divide is cut; "resize" resizes the features as the published weights expect,
        "balanced" allows windows of unequal size; "auto" is resize for trained weights and balanced without.
    antialias: whether features shrink with antialiasing; off in the environment of the published weights.
    gate: local against hierarchical; None is the trained gate.
    """

    windows: tuple[int, int] | None = None
    cross_window: CrossWindow = "paper"
    cut: Cut = "auto"
    antialias: bool = False
    hierarchical: bool = True
    hierarchical_windows: tuple[int, int] | None = None
    gate: GateLine | None = None

    def __post_init__(self):
        for name in ("windows", "hierarchical_windows"):
            counts = getattr(self, name)
            if counts is not None and not (len(counts) == 2 and all(map(_counts, counts))):
                raise ValueError(
                    f"{name} must be two whole numbers of at least 1, got {counts}. 1 is one window over the frame."
                )
        for name, kind in (("cross_window", CrossWindow), ("cut", Cut)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}.")
        check_gate(self.gate)


@dataclass(frozen=True)
class GlobalConfig:
    """The coarse side of a layer: compressed attention over the whole frame (section 4.1 of the paper), and which
    blocks stay dense.

    compress_ratio: tokens per axis that become one; trained weights fix it, None is theirs (4 without weights).
    lora_strength: factor on the domain-aware low-rank deltas of both coarse branches; 0 is the paper's ablation without
        them.
    gate: local and hierarchical together against global; None is the trained gate.
    dense_blocks: blocks that keep full attention; None is every block without extra weights, or, untrained, the outer
        tenth at either end.
    """

    enabled: bool = True
    compress_ratio: int | None = None
    lora_strength: float = 1.0
    gate: GateLine | None = None
    dense_blocks: frozenset[int] | None = None

    def __post_init__(self):
        if self.compress_ratio is not None and not _counts(self.compress_ratio):
            raise ValueError(f"compress_ratio must be a whole number of at least 1, got {self.compress_ratio}.")
        if not 0 <= self.lora_strength < math.inf:
            raise ValueError(f"lora_strength must be a number of at least 0, got {self.lora_strength}.")
        check_gate(self.gate)


def _counts(value: object) -> bool:
    return isinstance(value, int) and value >= 1


MOST_BLOCKS = 1000


def parse_blocks(text: str) -> frozenset[int] | None:
    """Block numbers from text: "0-2, 27-29" -> {0, 1, 2, 27, 28, 29}; "auto" -> None. Raises ValueError."""
    if text.strip().lower() == "auto":
        return None
    blocks: set[int] = set()
    for part in re.split(r"[\s,]+", text.strip()):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if part and match is None:
            raise ValueError(
                f"Blocks must be numbers and ranges such as 0-2, 27-29, or auto, got {part!r} in {text!r}."
            )
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < MOST_BLOCKS:
                raise ValueError(f"A range of blocks goes from lower to higher, below {MOST_BLOCKS}, got {part}.")
            blocks |= set(range(first, last + 1))
    return frozenset(blocks)


def format_blocks(blocks: Iterable[int]) -> str:
    """{0, 1, 2, 27} -> "0-2, 27", which `parse_blocks` reads; no block -> "none"."""
    runs = groupby(enumerate(sorted(blocks)), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(run) for _, run in runs)]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends) or "none"


class WindowCounts(NamedTuple):
    """Windows per axis in (even, odd) blocks."""

    local: tuple[int, int]
    hierarchical: tuple[int, int]


TRAINED_WINDOWS = WindowCounts((4, 5), (2, 3))


def outer_blocks(count: int) -> frozenset[int]:
    """The outer tenth of so many blocks at either end, which stays dense where nothing else is chosen: the published
    weights keep 3 of 30.
    """
    outer = count // 10
    return frozenset(index for index in range(count) if not outer <= index < count - outer)


def windows_near(base_tokens: int, grid: TokenGrid, hierarchical_ratio: int) -> WindowCounts:
    """Windows of about `base_tokens` a frame, so that neither branch sees more than the base model was trained on.

    Odd blocks have one window more per axis, as the published ones do, where there is a border to move.
    """

    def counts(ratio: int) -> tuple[int, int]:
        even = max(round(math.sqrt(grid.h * grid.w / base_tokens) / ratio), 1)
        return even, even + 1 if even > 1 else 1

    return WindowCounts(counts(1), counts(hierarchical_ratio))


@dataclass(frozen=True)
class BranchSpec:
    """One branch in one block: `num_windows` per axis over the branch's map, and how that map is made divisible."""

    num_windows: int = 1
    shifted: bool = False
    resize: bool = True
    antialias: bool = False
    key_from_query: bool = False
    lora_strength: float = 1.0


@dataclass(frozen=True)
class BlockSpec:
    """The branches of one block; None is switched off."""

    local: BranchSpec
    hierarchical: BranchSpec | None
    global_: BranchSpec | None


def block_spec(
    block_index: int,
    local: LocalConfig,
    global_: GlobalConfig,
    trained: bool,
    windows: WindowCounts = TRAINED_WINDOWS,
) -> BlockSpec:
    """What block `block_index` computes; `windows` where `local` leaves them open.

    `trained` tells published weights from none: they were trained with features resized to divide and with the keys of
    the global branch projected by the query weights, a slip of the published code that its weights have learnt.
    """
    odd = block_index % 2
    alternate = odd if local.cross_window == "paper" else 0
    common = {
        "shifted": local.cross_window == "swin" and bool(odd),
        "resize": trained if local.cut == "auto" else local.cut == "resize",
        "antialias": local.antialias,
    }
    strength = global_.lora_strength
    return BlockSpec(
        local=BranchSpec((local.windows or windows.local)[alternate], **common),
        hierarchical=(
            BranchSpec(
                (local.hierarchical_windows or windows.hierarchical)[alternate], lora_strength=strength, **common
            )
            if local.hierarchical
            else None
        ),
        global_=(
            BranchSpec(antialias=local.antialias, key_from_query=trained, lora_strength=strength)
            if global_.enabled
            else None
        ),
    )

"""Settings of UltraGen's attention that a user chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .gate import GateLine, check_gate

CrossWindow = Literal["paper", "off", "swin"]
Uneven = Literal["auto", "resize", "balanced"]


@dataclass(frozen=True)
class LocalConfig:
    """The fine side of a layer: windows at full resolution and the hierarchical branch (section 4.2 of the paper).

    windows, hierarchical_windows: counts per axis in (even, odd) blocks. None: as trained; without trained weights,
        local windows no larger than the frames that the base model was trained on, and hierarchical ones about as
        large, which up to 1080P is the whole frame.
    cross_window: "paper" alternates the two counts so that borders move; "off" keeps the even count; "swin" keeps it
        and shifts by half a window.
    uneven: how a frame that does not divide into windows is handled. "resize" resizes the features, as the published
        weights expect; "balanced" allows windows of unequal size; "auto" is resize with trained weights, balanced
        without.
    antialias: resize with antialiasing; off in the environment of the published weights.
    hierarchical: whether the hierarchical branch runs.
    hierarchical_lora_strength: factor on its domain-aware low-rank deltas; 0 is the paper's ablation without them.
    gate: share of the local against the hierarchical branch. None is the trained gate; without trained weights, a
        line from 0.2 at pure noise to 1.

    Raises ValueError for values out of range.
    """

    windows: tuple[int, int] | None = None
    cross_window: CrossWindow = "paper"
    uneven: Uneven = "auto"
    antialias: bool = False
    hierarchical: bool = True
    hierarchical_windows: tuple[int, int] | None = None
    hierarchical_lora_strength: float = 1.0
    gate: GateLine | None = None

    def __post_init__(self):
        for name in ("windows", "hierarchical_windows"):
            counts = getattr(self, name)
            if counts is not None and not (len(counts) == 2 and all(map(_is_count, counts))):
                raise ValueError(
                    f"{name} must be two whole numbers of at least 1, got {counts}. 1 is one window over the frame."
                )
        for name, choices in (("cross_window", CrossWindow), ("uneven", Uneven)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}.")
        _check_switches(self, "antialias", "hierarchical")
        _check_strength(self, "hierarchical_lora_strength")
        check_gate(self.gate)


@dataclass(frozen=True)
class GlobalConfig:
    """The coarse side of a layer: compressed attention over the whole frame (section 4.1 of the paper), and what holds
    for whole blocks: deltas on their feed-forward part, and which of them stay dense.

    enabled: whether the global branch runs. None: with trained weights it does; without, it does where compress_ratio
        is set or the hierarchical branch does not see the whole frame.
    compress_ratio: tokens per axis that become one. None is as trained, which is the only choice with trained weights,
        and 4 without.
    lora_strength: factor on its domain-aware low-rank deltas; 0 is the paper's ablation without them.
    gate: share of local and hierarchical branch together against the global branch. None is the trained gate; without
        trained weights, a line from 0.5 at pure noise to 1.
    ffn_lora_strength: factor on the low-rank deltas of the feed-forward part, where the extras have them.
    dense_blocks: indices of blocks that keep full attention. None: every block without extras; without trained weights
        the outer tenth at either end.

    Raises ValueError for values out of range.
    """

    enabled: bool | None = None
    compress_ratio: int | None = None
    lora_strength: float = 1.0
    gate: GateLine | None = None
    ffn_lora_strength: float = 1.0
    dense_blocks: frozenset[int] | None = None

    def __post_init__(self):
        if self.compress_ratio is not None and not _is_count(self.compress_ratio):
            raise ValueError(f"compress_ratio must be a whole number of at least 1, got {self.compress_ratio}.")
        if self.dense_blocks is not None and not all(_is_count(index, least=0) for index in self.dense_blocks):
            raise ValueError(f"dense_blocks must be block indices from 0, got {sorted(self.dense_blocks)}.")
        if self.enabled is not None:
            _check_switches(self, "enabled")
        _check_strength(self, "lora_strength")
        _check_strength(self, "ffn_lora_strength")
        check_gate(self.gate)


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_switches(config: object, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be true or false, got {getattr(config, name)!r}.")


def _check_strength(config: object, name: str) -> None:
    value = getattr(config, name)
    if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
        raise ValueError(f"{name} must be a number of at least 0, got {value}.")


DEFAULT_LOCAL, DEFAULT_GLOBAL = LocalConfig(), GlobalConfig()

"""The variants that the ablation compares, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .scoring import Scoring

FULL = "full"
# Variants to train, as changes of the recipe of the miniature's own layers.
TRAINED: dict[str, dict] = {
    FULL: {},
    "dense, tuned": {"rule": "dense"},
    "without global": {"without": ("global",)},
    "without hierarchical": {"without": ("hierarchical",)},
    "without cross-window": {"cross_window": "off"},
    "without deltas": {"without": ("delta",)},
    "ffn deltas": {"ffn_deltas": True},
    "Swin": {"cross_window": "swin"},
    "t3": {"rule": "t3"},
}
DENSE, FINISHED, UNTRAINED = "dense, as trained low", "full, to the end", "UltraGen without weights"
T3_FINISHED = "t3, to the end"  # the miniature's part t3, which is made on demand
VARIANTS = (DENSE, FINISHED, UNTRAINED, *TRAINED)
ON_DEMAND = (T3_FINISHED,)
TIMED = 0.1  # share of the steps from which the time of a step is taken


@dataclass(frozen=True)
class Study(Scoring):
    """variants: of `VARIANTS`, in their order.
    dense_blocks, shift, learning_rate: of training, instead of the miniature's own; one dense block shows more.
    steps: of the comparison at equal steps; the comparison at equal time uses the full layer's time for them.
    """

    variants: tuple[str, ...] = VARIANTS
    dense_blocks: str = "0"
    shift: float = 3.0
    steps: int = 600
    learning_rate: float = 5e-4


class Scored(NamedTuple):
    """A model after `steps` of training, and the comparisons it belongs to."""

    variant: str
    seed: int
    steps: int
    equal_steps: bool
    equal_time: bool

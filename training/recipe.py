"""What decides the weights that a run ends with, beside the base model and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from tools.console import Trouble
from ultragen_core.attention.config import (
    BlockSpec,
    CrossWindow,
    GlobalConfig,
    LocalConfig,
    block_spec,
    outer_blocks,
    parse_blocks,
)

Trained = Literal["full", "extras", "lora"]
Switch = Literal["hierarchical", "global", "delta"]


def option(default: object, text: str) -> Any:
    """A field that `python3 -m training` offers under its name, with this text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """The defaults are the paper's: every weight learns, at 1e-4, with low-rank deltas of rank 64."""

    trains: Trained = option("full", "every weight, UltraGen's added ones alone, or a LoRA on the base's linear layers")
    rule: Literal["ultragen", "dense"] = option("ultragen", "dense: Wan's own attention, for a base of your own")
    rank: int = option(64, "of the low-rank deltas, where the base has no extras yet, and of a LoRA")
    dense_blocks: str = option("auto", "blocks without extras, as 0-2,27-29; auto: the outer tenth at either end")
    gate: float = option(0.5, "the local branch's share where training of new extras starts")
    cross_window: CrossWindow = option("paper", "how the borders of windows move from block to block (ablation)")
    without: tuple[Switch, ...] = option((), "branches and deltas that are switched off (ablation)")
    steps: int = option(1000, "in the whole run")
    batch: int = option(8, "clips a step, on all processes and in all micro-batches together")
    shift: float = option(5.0, "of the noise levels, as in sampling")
    caption_dropout: float = option(0.1, "share of clips that are seen with an empty caption, for CFG")
    learning_rate: float = option(1e-4, "highest")
    warmup: int = option(0, "steps in which the learning rate rises")
    decay: Literal["constant", "cosine"] = option("constant", "how the learning rate goes on from there")
    weight_decay: float = option(0.01, "of AdamW")
    ema: float = option(0.999, "decay of the averaged weights, which are what is published; it grows towards this")
    clip: float = option(1.0, "largest norm of the gradient")
    seed: int = option(0, "of everything that is drawn")

    def __post_init__(self):
        if self.trains == "extras" and self.rule == "dense":
            raise Trouble("Extras belong to the rule ultragen, got --trains extras with --rule dense. Change either.")
        for name, least in (("rank", 1), ("steps", 1), ("batch", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise Trouble(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not 0 < self.gate < 1:
            raise Trouble(f"gate must be between 0 and 1, got {self.gate}.")
        try:
            parse_blocks(self.dense_blocks)
        except ValueError as error:
            raise Trouble(str(error)) from None

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.decay == "constant":
            return self.learning_rate
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def hierarchical_blocks(self, blocks: int) -> list[int]:
        """The blocks that get extras, of a base model with none."""
        chosen = parse_blocks(self.dense_blocks)
        dense = outer_blocks(blocks) if chosen is None else chosen
        return [index for index in range(blocks) if index not in dense]

    def spec(self, block_index: int) -> BlockSpec:
        """What a block computes; `trained`, because the quirks of the published weights are part of their format."""
        local = LocalConfig(cross_window=self.cross_window, hierarchical="hierarchical" not in self.without)
        strength = 0.0 if "delta" in self.without else 1.0
        global_ = GlobalConfig(enabled="global" not in self.without, lora_strength=strength)
        return block_spec(block_index, local, global_, trained=True)

"""The settings that, with base model and data, decide a run's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from tools.console import Trouble
from ultragen_core.attention.config import CrossWindow, GlobalConfig, LocalConfig
from ultragen_core.attention.spec import BlockSpec
from ultragen_core.rules.blocks import outer_blocks, parse_blocks
from ultragen_core.rules.ultragen import block_spec

Trained = Literal["full", "extras", "lora"]
Switch = Literal["hierarchical", "global", "delta"]


def option(default: object, text: str) -> Any:
    """Declare a field that `python3 -m training` offers as an option with this help text."""
    return field(default=default, metadata={"help": text})


def at_least(settings: object, **least: float) -> None:
    """Raise Trouble if one of these fields is smaller than its least value, or no number."""
    for name, value in least.items():
        if not getattr(settings, name) >= value:
            raise Trouble(f"{name} must be at least {value}, got {getattr(settings, name)}.")


@dataclass(frozen=True)
class Recipe:
    """The defaults are the paper's: all weights learn, at 1e-4, with low-rank deltas of rank 64."""

    trains: Trained = option("full", "all weights, the extras alone, or a LoRA on the base's linear layers")
    rule: Literal["ultragen", "t3", "dense"] = option(
        "ultragen", "t3: T3-Video's windows, which need no extras; dense: Wan's full attention, to train a base"
    )
    rank: int = option(64, "rank of the low-rank deltas of new extras, and of a LoRA")
    ffn_deltas: bool = option(
        False, "low-rank deltas on the feed-forward part too, as in the paper; the published weights have none there"
    )
    dense_blocks: str = option(
        "auto", "blocks with full attention, such as 0-2,27-29; auto: a tenth at either end, with the rule t3 none"
    )
    gate: float = option(0.5, "initial share of the local branch in new extras")
    cross_window: CrossWindow = option("paper", "how window borders move from block to block (ablation)")
    without: tuple[Switch, ...] = option((), "branches and deltas to switch off (ablation)")
    steps: int = option(1000, "steps of the whole run")
    batch: int = option(8, "clips per step, over all processes and micro-batches")
    shift: float = option(5.0, "flow shift of the noise levels, as in sampling")
    caption_dropout: float = option(0.1, "share of clips that get the empty caption, for CFG")
    learning_rate: float = option(1e-4, "highest learning rate")
    warmup: int = option(0, "steps over which the learning rate rises")
    decay: Literal["constant", "cosine"] = option("constant", "course of the learning rate after the warm-up")
    weight_decay: float = option(0.01, "AdamW's weight decay")
    ema: float = option(0.999, "final decay of the averaged weights, which are the ones published")
    clip: float = option(1.0, "largest gradient norm")
    seed: int = option(0, "seed of all random numbers")

    def __post_init__(self):
        for given, chosen in (("--trains extras", self.trains == "extras"), ("--ffn-deltas", self.ffn_deltas)):
            if chosen and self.rule != "ultragen":
                raise Trouble(
                    f"Only the rule ultragen has extras, got {given} with --rule {self.rule}. Change one of them."
                )
        at_least(self, rank=1, steps=1, batch=1, warmup=0, weight_decay=0)
        for name in ("learning_rate", "shift", "clip"):  # with 0, nothing would be learnt
            if not getattr(self, name) > 0:
                raise Trouble(f"{name} must be greater than 0, got {getattr(self, name)}.")
        for name in ("caption_dropout", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise Trouble(f"{name} must be from 0 to 1, got {getattr(self, name)}.")
        if not 0 < self.gate < 1:
            raise Trouble(f"gate must be between 0 and 1, got {self.gate}.")
        try:
            parse_blocks(self.dense_blocks)
        except ValueError as error:
            raise Trouble(str(error)) from None

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.decay == "constant":
            return self.learning_rate
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def hierarchical_blocks(self, blocks: int) -> list[int]:
        """Return the blocks that get extras if the base model has none."""
        chosen = parse_blocks(self.dense_blocks)
        dense = outer_blocks(blocks) if chosen is None else chosen
        return [index for index in range(blocks) if index not in dense]

    @property
    def delta_strength(self) -> float:
        return 0.0 if "delta" in self.without else 1.0

    def spec(self, block_index: int) -> BlockSpec:
        """Return what a block computes, with the quirks of the published weights, which belong to their format."""
        strength = self.delta_strength
        local = LocalConfig(
            cross_window=self.cross_window,
            hierarchical="hierarchical" not in self.without,
            hierarchical_lora_strength=strength,
        )
        global_ = GlobalConfig(enabled="global" not in self.without, lora_strength=strength)
        return block_spec(block_index, local, global_, trained=True)

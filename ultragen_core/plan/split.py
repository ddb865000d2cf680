"""How several GPUs compute the evaluations of one video, by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal, NamedTuple

from ..attention.split.member import dense_received
from ..attention.split.rectangles import fitting, rectangles
from ..grid import TokenGrid
from ..rectangle import Rectangle
from ..rules.rule import Rule
from ..wan import WanShape

By = Literal["auto", "prompts", "video"]
"""prompts: each GPU computes whole prompts. video: all GPUs share every prompt. auto: prompts first, then GPUs that are
left share a prompt."""


class GPUs(NamedTuple):
    """How many GPUs sample a video, and how they split it. warnings: where they may not do as they are told."""

    count: int = 1
    by: By = "auto"
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shares:
    """A prompt on several GPUs.

    prompts: how many the run has, 0: any number. rectangles: of the token grid, one for each GPU that shares a prompt.
    received: bytes that each of these gets from the others in one evaluation of one prompt.
    """

    prompts: int
    rectangles: tuple[Rectangle, ...]
    received: tuple[int, ...]

    @property
    def heading(self) -> str:
        count, when = len(self.rectangles), ("", "1 prompt (CFG 1): ", "2 prompts (CFG): ")[self.prompts]
        return when + (f"{count} GPUs share a prompt" if count > 1 else "each GPU computes whole prompts")


def shares_of(rule: Rule | None, grid: TokenGrid, model: WanShape, gpus: GPUs, itemsize: int) -> tuple[Shares, ...]:
    """How several GPUs share the prompts of a run; `auto` depends on how many there are. Empty for a single GPU.

    rule: None is dense attention everywhere. itemsize: bytes per activation. Raises ValueError where the rule cannot
    run on this grid.
    """
    if gpus.count < 2:
        return ()
    sizes = {prompts: fitting(grid, sharing(gpus.count, prompts, gpus.by)) for prompts in (1, 2)}
    if sizes[1] == sizes[2]:
        sizes = {0: sizes[1]}
    return tuple(_shares(rule, grid, model, prompts, size, itemsize) for prompts, size in sizes.items())


def sharing(gpus: int, prompts: int, by: By) -> int:
    """How many of the GPUs share a prompt, where its frames are large enough."""
    if by == "prompts":
        return 1
    return gpus // gcd(gpus, prompts) if by == "auto" else gpus


def _shares(rule: Rule | None, grid: TokenGrid, model: WanShape, prompts: int, size: int, itemsize: int) -> Shares:
    by_block = rule.received(grid, size) if rule else {}
    dense = dense_received(grid, size)
    tokens = [by_block.get(index, dense) for index in (*range(model.blocks), *model.fed_by_vace)]
    received = tuple(sum(each) * model.channels * itemsize for each in zip(*tokens, strict=True))
    return Shares(prompts, rectangles(grid, size), received)

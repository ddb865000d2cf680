"""Estimates seconds from a measurement of the card, by a plan's FLOPs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..sizes import VideoSize
from .flops import FLOPs


class EvaluationTime(NamedTuple):
    """Seconds of one evaluation of the whole model, and its FLOPs."""

    size: VideoSize
    flops: FLOPs
    seconds: float


class DecodeTime(NamedTuple):
    """Seconds of the exact decode of a video with Wan 2.1's VAE, to 8 bits."""

    size: VideoSize
    seconds: float


class Estimate(NamedTuple):
    """Seconds of one evaluation and of a decode, None where unknown. date: of the measurement, YYYY-MM-DD."""

    date: str
    evaluation: float | None
    decode: float | None

    def __str__(self) -> str:
        parts = (("one evaluation", self.evaluation), ("the exact decode", self.decode))
        times = " and ".join(f"{seconds_text(seconds)} for {name}" for name, seconds in parts if seconds is not None)
        return f"about {times}, estimated from the measurement of {self.date}"


@dataclass(frozen=True)
class Speed:
    """What was measured on a card. date: YYYY-MM-DD."""

    date: str
    evaluations: tuple[EvaluationTime, ...]
    decodes: tuple[DecodeTime, ...]

    def estimate(self, flops: FLOPs, size: VideoSize, decoded: bool = True) -> Estimate | None:
        """Estimate a run of `size` with evaluations of `flops`. None if nothing that it needs was measured.

        decoded: by Wan 2.1's VAE on the card, as measured.
        """
        made = Estimate(self.date, self.evaluation(flops), self.decode(size) if decoded else None)
        return None if made.evaluation is None and made.decode is None else made

    def evaluation(self, flops: FLOPs) -> float | None:
        """Estimate seconds of an evaluation. What was measured comes out unchanged.

        Two measured evaluations determine seconds per FLOP of attention, and of matrix products with all that is
        neither. From any other number, or where a rate would be negative, the nearest one is scaled by all FLOPs.
        """
        if not self.evaluations:
            return None
        if rates := _rates(self.evaluations):
            return rates.attention * flops.attention + rates.products * flops.products
        near = min(self.evaluations, key=lambda one: abs(math.log(one.flops.total / flops.total)))
        return near.seconds * flops.total / near.flops.total

    def decode(self, size: VideoSize) -> float | None:
        """Estimate seconds of a decode, by the pixels of the measured size that is nearest."""
        if not self.decodes:
            return None
        pixels = size.width * size.height
        near = min(self.decodes, key=lambda one: abs(math.log(one.size.width * one.size.height / pixels)))
        return near.seconds * math.prod(size) / math.prod(near.size)


def _rates(evaluations: tuple[EvaluationTime, ...]) -> FLOPs | None:
    """Seconds per FLOP of either sort."""
    if len(evaluations) != 2:
        return None
    (a, b), (c, d) = (one.flops for one in evaluations)
    s, t = (one.seconds for one in evaluations)
    determinant = a * d - b * c
    if not determinant:
        return None
    rates = FLOPs((s * d - t * b) / determinant, (a * t - c * s) / determinant)
    return rates if min(rates) >= 0 else None


def seconds_text(seconds: float) -> str:
    """Two significant digits: 0.46 s, 3.5 s, 74 s, 12 min."""
    if seconds >= 600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"

"""The geometry and colours of a painted scene, and its random variations by number.

A picture is 1 high and ASPECT wide, measured from the upper left corner. Colours are sRGB. Random numbers come from the
CPU, so that every device paints the same scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from training.miniature.scenes import Scene

ASPECT, FPS = 16 / 9, 15
HORIZON = 0.62
PAN = 0.08  # speed of the nearest ground, in heights per second
SIDES = {"left": 0.2, "middle": 0.5, "right": 0.8}  # share of the width
LIGHTS = {"dawn": 0.22, "noon": 0.15, "dusk": 0.23, "night": 0.16}  # height, from the top

# Hex colours: sky from top to bottom (3), light, ridges, fog, clouds.
PALETTES = {
    "dawn": "6f86cf e3a9cf ffdcae fff1dc 6a6299 e3cbd4 f7dfe0".split(),
    "noon": "2f7bdc 6fb4f3 cde9fb fffbe6 4a7a9c c9d7e0 f0f4fa".split(),
    "dusk": "35215f b0405f ff9a3c ffd27a 40204a a3606a f07a5c".split(),
    "night": "060a20 0f1a42 26406e f2f4ff 0c1430 364468 4a5a86".split(),
}
GROUNDS = {
    "dawn": {"meadow": "76a04e", "desert": "dda268", "lake": "54779f", "snow": "ebdcee"},
    "noon": {"meadow": "5fae36", "desert": "ecc878", "lake": "1f78a8", "snow": "eef4fc"},
    "dusk": {"meadow": "4c6a2a", "desert": "bf5f2e", "lake": "3a2a66", "snow": "c4a4c4"},
    "night": {"meadow": "1c482c", "desert": "5c452b", "lake": "0a1c48", "snow": "74829f"},
}


@dataclass(frozen=True)
class View:
    """A scene of a given number, seen at a size."""

    shown: Scene
    number: int
    width: int
    height: int
    frames: int
    device: torch.device

    @cached_property
    def x(self) -> Tensor:
        return (torch.arange(self.width, device=self.device) + 0.5) * (ASPECT / self.width)

    @cached_property
    def y(self) -> Tensor:
        return ((torch.arange(self.height, device=self.device) + 0.5) / self.height)[:, None]

    @cached_property
    def seconds(self) -> Tensor:
        """(frames, 1, 1)"""
        return torch.arange(self.frames, device=self.device)[:, None, None] / FPS

    @cached_property
    def seen_y(self) -> Tensor:
        """The height that a pixel shows: a lake mirrors what is above it, with ripples."""
        if self.shown.ground != "lake":
            return self.y
        depth = (self.y - HORIZON).clamp(min=0)
        return torch.where(self.y < HORIZON, self.y, HORIZON - 1.5 * depth + 0.1 * depth * self.ripples)

    @cached_property
    def ripples(self) -> Tensor:
        """Waves in -1..1, longer when nearer: (frames, height, width)."""
        depth = (self.y - HORIZON).clamp(min=0)
        x = self.panned(0.8) - ASPECT / 2
        rows = 22 * torch.log(depth + 0.14)
        bend = torch.sin(5 * x / (depth + 0.35) + 2 * self.seconds + self.chance(6))
        return torch.sin(rows + 1.2 * bend - 3 * self.seconds + self.chance(7))

    def panned(self, nearness: float) -> Tensor:
        """Return x in a layer that moves at `nearness` times the nearest layer's speed: (frames, 1, width)."""
        pace = PAN if self.shown.pan == "eastward" else -PAN
        return self.x + pace * nearness * self.seconds

    def chance(self, purpose: int, *shape: int) -> Tensor:
        return chance(self.number, purpose, *shape).to(self.device)

    def color(self, text: str) -> Tensor:
        """Return a hex colour as (3, 1, 1, 1), slightly varied by the number."""
        plain = torch.tensor([int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)], device=self.device)
        return (plain * (0.975 + 0.05 / (2 * math.pi) * self.chance(0, 3)))[:, None, None, None]

    @cached_property
    def colors(self) -> tuple[Tensor, ...]:
        return tuple(self.color(text) for text in PALETTES[self.shown.time])

    @cached_property
    def ground(self) -> Tensor:
        return self.color(GROUNDS[self.shown.time][self.shown.ground])

    @cached_property
    def light_x(self) -> Tensor:
        return SIDES[self.shown.side] * ASPECT + 0.08 * torch.sin(self.chance(1))

    @cached_property
    def light_distance(self) -> Tensor:
        """Distance from the sun or moon: (height, width), with a lake (frames, height, width)."""
        light_y = LIGHTS[self.shown.time] + 0.03 * torch.sin(self.chance(5))
        return torch.hypot(self.x - self.light_x, self.seen_y - light_y)


def chance(number: int, purpose: int, *shape: int) -> Tensor:
    """Return uniform random values in 0..2 pi, fixed by number and purpose, on the CPU."""
    generator = torch.Generator().manual_seed(number * 64 + purpose)
    return torch.rand(shape, generator=generator) * (2 * math.pi)

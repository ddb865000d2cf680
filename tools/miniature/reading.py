"""Reads a painted landscape back: what its caption says, from the pixels alone, of real and of generated videos.

Everything is measured on a small picture of ROWS x COLUMNS cells that is the mean of the middle frames, so that neither
size nor blur nor noise matters much. The colours named here are means of painted videos: the sky's and the ground's
with their light, haze and reflections, not the palettes of the painter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, COLUMNS = 36, 64
MIDDLE = 9  # frames: clouds stay within a few cells
SKY = slice(0, 12)  # rows above every ridge
RIDGES = slice(16, 24)
GROUND = slice(30, ROWS)
LIGHT = slice(3, 11)  # where the sun or the moon stands
RING = 5  # cells: beyond the rim of the sun or the moon

# Medians of the upper and the lower sky, which the sun does not move: of clear, cloudy and foggy videos.
SKIES = {
    "dawn": ("888fd0 f5cbc0", "aca8d2 f0cbc6", "c1b6d2 e6cbcf"),
    "noon": ("3f88de afd7f5", "83b0e1 bad9f2", "99bcdf c4d8e4"),
    "dusk": ("502b60 e0804f", "894c5f df7b53", "854e67 b06665"),
    "night": ("0b1028 203561", "262e4c 2d3e67", "273252 324167"),
}
GROUNDS = {
    "dawn": {"meadow": "7d9c57", "desert": "d19d6b", "lake": "8390b4", "snow": "ddcfdc"},
    "noon": {"meadow": "65ab46", "desert": "dec27e", "lake": "5094c1", "snow": "dae3e9"},
    "dusk": {"meadow": "53652b", "desert": "b55c30", "lake": "623f66", "snow": "b895ac"},
    "night": {"meadow": "1d4431", "desert": "514031", "lake": "1e2c52", "snow": "667490"},
}
# What tells the weathers apart, half way between painted videos: how uneven a sky with clouds is (0.016 and more,
# others up to 0.009), how much contrast sky and ridges have without fog (0.18 and more, in fog up to 0.145).
CLOUDS = 0.0115
CLEAR = 0.155


def read(frames: Tensor) -> dict[str, str]:
    """{attribute: word} of CHECKED, from a video (frames, height, width, 3) in 0..1."""
    cells = _cells(frames)
    time = _time(cells)
    column = _light_column(cells)
    return {
        "weather": _weather(cells, column),
        "time": time,
        "ground": _nearest(cells[:, GROUND].mean((1, 2)), GROUNDS[time]),
        "side": ("left", "middle", "right")[(column > 0.35 * COLUMNS) + (column > 0.65 * COLUMNS)],
    }


def _cells(frames: Tensor) -> Tensor:
    """(3, ROWS, COLUMNS)"""
    first = max(len(frames) - MIDDLE, 0) // 2
    middle = frames[first : first + MIDDLE].float().movedim(-1, 1)
    return F.adaptive_avg_pool2d(middle, (ROWS, COLUMNS)).mean(0).cpu()


def _color(text: str) -> Tensor:
    """Of one or several colours: (3 * colours,)."""
    return torch.tensor(list(bytes.fromhex(text))) / 255


def _nearest(color: Tensor, named: dict[str, str]) -> str:
    return min(named, key=lambda name: (_color(named[name]) - color).norm().item())


def _time(cells: Tensor) -> str:
    skies = {f"{time} {weather}": colors for time, row in SKIES.items() for weather, colors in enumerate(row)}
    upper, lower = (cells[:, rows].flatten(1).median(1).values for rows in (slice(0, 4), slice(13, 16)))
    return _nearest(torch.cat((upper, lower)), skies).split()[0]


def _around(cells: Tensor, wide: int) -> Tensor:
    """The mean of the cells around each cell, `wide` (odd) each way; fewer at the rim."""
    return F.avg_pool2d(cells[None], wide, 1, wide // 2, count_include_pad=False)[0]


def _light_column(cells: Tensor) -> int:
    """Where the sky is brighter than all around at a distance of RING: clouds are wider than the sun and lose."""
    sky = _around(cells[:, SKY].mean(0, keepdim=True), 3)
    high, wide = sky.shape[1:]
    rim = F.pad(sky[None], (RING,) * 4, mode="replicate")[0]
    far, near = RING, round(RING * 0.7)
    ring = [(y, x) for y in (-near, near) for x in (-near, near)] + [(0, -far), (0, far), (-far, 0), (far, 0)]
    around = [rim[:, RING + y : RING + y + high, RING + x : RING + x + wide] for y, x in ring]
    spots = sky - torch.stack(around).amax(0)
    return int(spots[0, LIGHT].argmax()) % COLUMNS


def _weather(cells: Tensor, column: int) -> str:
    sky = cells[:, SKY] - cells[:, SKY].median(2, keepdim=True).values
    sky = _around(sky, 3)
    uneven = (sky - _around(sky, 9)).norm(dim=0)
    # The glow of the sun is uneven too.
    far = (torch.arange(COLUMNS) - column).abs() > 14
    if uneven[:, far].mean() > CLOUDS:
        return "cloudy"
    steps = cells[:, 1:15] - cells[:, :14]
    contrast = cells[:, RIDGES].std((1, 2)).norm() + 4 * steps.norm(dim=0).mean()
    return "clear" if contrast > CLEAR else "foggy"

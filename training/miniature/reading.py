"""Read the caption's attributes back from the pixels of a landscape video, painted or generated.

All measures are taken on a small picture of ROWS x COLUMNS cells, the mean of the middle frames, so that size, blur and
noise matter little. The colours below are means over painted videos, of sky and ground with their light, haze and
reflections; they are not the painter's palettes. Colours are read on the right, where there is no shade.

    python -m training.miniature.reading VIDEO
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, COLUMNS = 36, 64
MIDDLE = 9  # frames, in which clouds move by a few cells
SKY = slice(0, 12)  # rows above every ridge
RIDGES = slice(16, 24)
GROUND = slice(30, ROWS)
LIGHT = slice(3, 11)  # rows of the sun or the moon
RING = 5  # cells, beyond the rim of the sun or the moon

# Medians of the upper and the lower sky, which the sun does not move: of clear, cloudy and foggy videos.
SKIES = {
    "dawn": ("7e8ccf f3c7bd", "a4a2d0 efc9c3", "bdb4d3 e6cad0"),
    "noon": ("3d85de a8d3f7", "7eabe1 b5d5f1", "95b7df c3d5e4"),
    "dusk": ("472960 dd784c", "79425e dc7551", "824c66 b06564"),
    "night": ("0b1028 20345e", "202946 283b64", "273151 324166"),
}
GROUNDS = {
    "dawn": {"meadow": "7b9c56", "desert": "d09c6a", "lake": "808db4", "snow": "dfcfdd"},
    "noon": {"meadow": "65a945", "desert": "dcbf7e", "lake": "4990c1", "snow": "dce2ea"},
    "dusk": {"meadow": "56662d", "desert": "b65d30", "lake": "623e66", "snow": "b996ae"},
    "night": {"meadow": "1c432f", "desert": "524230", "lake": "1d2b51", "snow": "677591"},
}
# Thresholds half way between painted videos. CLOUDS: unevenness of the sky (cloudy: 0.0155 and more, others up to
# 0.0138). CLEAR: contrast of sky and ridges (most without fog: 0.158 and more, in fog up to 0.155).
CLOUDS = 0.0147
CLEAR = 0.1565


def read(frames: Tensor) -> dict[str, str]:
    """Return {attribute: word} for CHECKED. frames: (frames, height, width, 3), float in 0..1 or uint8."""
    cells = _cells(frames)
    sunlit = cells[..., COLUMNS // 2 :]
    time = _time(sunlit)
    column = _light_column(cells)
    return {
        "weather": _weather(cells, sunlit, column),
        "time": time,
        "ground": _nearest(sunlit[:, GROUND].mean((1, 2)), GROUNDS[time]),
        "side": ("left", "middle", "right")[(column > 0.35 * COLUMNS) + (column > 0.65 * COLUMNS)],
    }


def _cells(frames: Tensor) -> Tensor:
    """Reduce a video to (3, ROWS, COLUMNS) in 0..1."""
    first = max(len(frames) - MIDDLE, 0) // 2
    middle = frames[first : first + MIDDLE].float().movedim(-1, 1)
    cells = F.adaptive_avg_pool2d(middle, (ROWS, COLUMNS)).mean(0).cpu()
    return cells if frames.is_floating_point() else cells / 255


def _color(text: str) -> Tensor:
    """Parse one or several hex colours to (3 * colours,) in 0..1."""
    return torch.tensor(list(bytes.fromhex(text))) / 255


def _nearest(color: Tensor, named: dict[str, str]) -> str:
    return min(named, key=lambda name: (_color(named[name]) - color).norm().item())


def _time(cells: Tensor) -> str:
    skies = {f"{time} {weather}": colors for time, row in SKIES.items() for weather, colors in enumerate(row)}
    upper, lower = (cells[:, rows].flatten(1).median(1).values for rows in (slice(0, 4), slice(13, 16)))
    return _nearest(torch.cat((upper, lower)), skies).split()[0]


def _around(cells: Tensor, wide: int) -> Tensor:
    """Average over wide x wide cells (odd) around each cell, fewer at the rim."""
    return F.avg_pool2d(cells[None], wide, 1, wide // 2, count_include_pad=False)[0]


def _light_column(cells: Tensor) -> int:
    """Find the column of the sun or moon: brighter than everything at a distance of RING, which clouds are not."""
    sky = _around(cells[:, SKY].mean(0, keepdim=True), 3)
    high, wide = sky.shape[1:]
    rim = F.pad(sky[None], (RING,) * 4, mode="replicate")[0]
    far, near = RING, round(RING * 0.7)
    ring = [(y, x) for y in (-near, near) for x in (-near, near)] + [(0, -far), (0, far), (-far, 0), (far, 0)]
    around = [rim[:, RING + y : RING + y + high, RING + x : RING + x + wide] for y, x in ring]
    spots = sky - torch.stack(around).amax(0)
    return int(spots[0, LIGHT].argmax()) % COLUMNS


def _weather(cells: Tensor, sunlit: Tensor, column: int) -> str:
    sky = cells[:, SKY] - cells[:, SKY].median(2, keepdim=True).values
    sky = _around(sky, 3)
    uneven = (sky - _around(sky, 9)).norm(dim=0)
    # The glow of the sun is uneven too.
    far = (torch.arange(COLUMNS) - column).abs() > 11
    if uneven[:, far].mean() > CLOUDS:
        return "cloudy"
    steps = sunlit[:, 1:15] - sunlit[:, :14]
    contrast = sunlit[:, RIDGES].std((1, 2)).norm() + 4 * steps.norm(dim=0).mean()
    return "clear" if contrast > CLEAR else "foggy"


def frames_of(video_file: str | Path) -> Tensor:
    """Decode a video file to (frames, height, width, 3) uint8."""
    import av

    with av.open(str(video_file)) as container:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)])


if __name__ == "__main__":
    print(json.dumps(read(frames_of(sys.argv[1]))))

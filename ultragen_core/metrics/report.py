"""Formats scores as JSON, as text and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

# ComfyUI's node API does not start without Pillow.
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..sizes import frames_text
from .detail import FACTORS
from .scores import CLIP_SCORE, CONSISTENCY, HD_FVD, HD_LPIPS, HD_MSE, Scores


class Label(NamedTuple):
    """How a metric is shown. name: as in the paper. digits: after the decimal point. better: "higher" or "lower"."""

    name: str
    digits: int
    better: str


LABELS = {
    HD_MSE: Label("HD-MSE", 2, "higher"),
    HD_LPIPS: Label("HD-LPIPS", 4, "higher"),
    HD_FVD: Label("HD-FVD", 2, "lower"),
    CLIP_SCORE: Label("CLIP-L score", 4, "higher"),
    CONSISTENCY: Label("Temporal consistency", 4, "higher"),
}

_WIDTH, _ROW, _MARGIN, _PLOT = 960, 96, 24, 520
_INK, _FAINT = (20, 20, 20), (120, 120, 120)
_LINES = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189))  # colours of the curves, in turn
_LISTED = 10  # longer lists show means alone


def numbers(scores: Scores) -> dict:
    """Return all results as JSON-compatible values: means over the videos, and the values of each video."""
    videos = [
        {"frames": video.frames, "width": video.width, "height": video.height}
        | {metric: _number(video.mean(metric)) for metric in video.curves}
        | {
            f"{metric}_by_factor": dict(zip(map(str, FACTORS), map(_number, values), strict=True))
            for metric, values in video.by_factor.items()
        }
        for video in scores.videos
    ]
    means = {metric: _number(value) for metric, value, _ in _found(scores)}
    patches = {} if scores.patches is None else {"hd_fvd_patches": list(scores.patches)}
    return means | patches | {"videos": videos}


def _number(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None


def text(scores: Scores) -> str:
    """Return a table: metric, value, which direction is better, and a remark; then the values of 2 to 10 videos."""
    rows = []
    for metric, value, remark in _found(scores):
        label = LABELS[metric]
        rows.append(f"{label.name:<22}{value:>10.{label.digits}f}  {label.better:<8}{remark}".rstrip())
        if each := _each(scores, metric):
            rows.append(f"  videos 1 to {len(each)}: {', '.join(each)}")
    return "\n".join([_title(scores), f"{'metric':<22}{'value':>10}  better", *rows])


def picture(scores: Scores) -> Tensor:
    """Draw the table as an IMAGE, (1, height, width, 3) in 0..1, with a curve over the frames for each video.

    The values of 2 to 10 videos have the colours of their curves.
    """
    rows = list(_found(scores))
    image = Image.new("RGB", (_WIDTH, _MARGIN * 3 + _ROW * len(rows)), "white")
    draw = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(16), ImageFont.load_default(26)
    draw.text((_MARGIN, _MARGIN / 2), _title(scores), _FAINT, small)
    for index, (metric, value, remark) in enumerate(rows):
        label, top = LABELS[metric], _MARGIN * 2 + _ROW * index
        draw.text((_MARGIN, top), f"{label.name} ({label.better} is better)", _INK, small)
        draw.text((_MARGIN, top + 22), f"{value:.{label.digits}f}", _INK, large)
        draw.text((_MARGIN, top + 56), remark, _FAINT, small)
        _draw_each(draw, _each(scores, metric), top + 76)
        curves = [video.curves[metric] for video in scores.videos if metric in video.curves]
        if curves:
            _plot(draw, curves, (_WIDTH - _MARGIN - _PLOT, top + 6), label.digits, small)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def _draw_each(draw: ImageDraw.ImageDraw, values: list[str], y: int) -> None:
    """Write the values of all videos in a line, in the colours of their curves."""
    font, x = ImageFont.load_default(13), _MARGIN
    for number, value in enumerate(values):
        written = f"{number + 1}: {value}  "
        draw.text((x, y), written, _LINES[number % len(_LINES)], font)
        x += draw.textlength(written, font)


def _plot(draw: ImageDraw.ImageDraw, curves: list[Tensor], corner: tuple[int, int], digits: int, font) -> None:
    """Plot values over frames. Each curve spans the box; minimum and maximum are written to its right."""
    left, top = corner
    height, legend = _ROW - 30, 90
    curves = [curve.nan_to_num(0.0, 0.0, 0.0) for curve in curves]
    lowest, highest = (min(c.min().item() for c in curves), max(c.max().item() for c in curves))
    span = highest - lowest or 1.0
    right = left + _PLOT - legend
    draw.line([(left, top + height), (right, top + height)], (220, 220, 220))
    for number, curve in enumerate(curves):
        xs = np.linspace(left, right, len(curve))
        ys = top + height * (1 - (curve.numpy() - lowest) / span)
        points = list(zip(xs.tolist(), ys.tolist(), strict=True))
        line = points if len(points) > 1 else [(left, points[0][1]), (right, points[0][1])]
        draw.line(line, _LINES[number % len(_LINES)], 2)
    draw.text((right + 8, top - 8), f"{highest:.{digits}f}", _FAINT, font)
    draw.text((right + 8, top + height - 12), f"{lowest:.{digits}f}", _FAINT, font)


def _title(scores: Scores) -> str:
    shapes = {(video.frames, video.width, video.height) for video in scores.videos}
    each = ", ".join(f"{frames_text(frames)} of {width}x{height}" for frames, width, height in sorted(shapes))
    return f"{len(scores.videos)} video{'s' if len(scores.videos) > 1 else ''}: {each}"


def _found(scores: Scores) -> Iterator[tuple[str, float, str]]:
    """Yield (metric, value, remark) of the measured metrics, in the paper's order."""
    for metric, label in LABELS.items():
        value = scores.mean(metric)
        if value is not None:
            yield metric, value, _remark(scores, metric, label.digits)


def _each(scores: Scores, metric: str) -> list[str]:
    """Return the value of each of 2 to 10 videos as text; none for other numbers, and for HD-FVD, which has no such."""
    videos = [video for video in scores.videos if metric in video.curves]
    wanted = 1 < len(videos) <= _LISTED
    return [f"{video.mean(metric):.{LABELS[metric].digits}f}" for video in videos] if wanted else []


def _remark(scores: Scores, metric: str, digits: int) -> str:
    if metric == HD_FVD:
        ours, theirs = scores.patches
        return f"{ours} patches against {theirs}"
    if metric in scores.videos[0].by_factor:
        means = np.mean([video.by_factor[metric] for video in scores.videos], axis=0)
        parts = (f"1/{factor}: {mean:.{digits}f}" for factor, mean in zip(FACTORS, means, strict=True))
        return ", ".join(parts)
    return ""

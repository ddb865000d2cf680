"""Plots of the measured rows in docs/data, as SVG: times over tokens, and times next to their floors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from .measured import CARD, evaluation_row, floor_of_decode, floor_of_evaluation, row, rows

WIDTH, HEIGHT = 760, 480  # pixels
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 40, 50
METHODS = {
    "comfyui": ("ComfyUI 0.30.0, dense", "#d1242f"),
    "cudnn": ("the same, cuDNN's attention", "#bf8700"),
    "published": ("UltraGen's arithmetic as published", "#8250df"),
    "ours": ("this pack, UltraGen (6 of 30 blocks dense, as published)", "#1f6feb"),
    "all": ("this pack, UltraGen in all blocks", "#57606a"),
    "t3": ("this pack, T3-Video's rule", "#1a7f37"),
}
FLOORS = ("cudnn", "ours", "t3")
FIRST_FITTED = 75_600  # tokens of 720P x 81
PACKS = (
    ("1920x1088x81, UltraGen, one evaluation (H200)", "1.3b", "1080P x 81", "ours"),
    ("3840x2176x81, UltraGen, one evaluation (H200)", "1.3b", "4K x 81", "ours"),
    ("3840x2176x81, T3-Video, one evaluation (H200)", "1.3b", "4K x 81", "t3"),
    ("3840x2176x81, T3-Video 5B, one evaluation (H200)", "5b", "4K x 81", "t3"),
)
BAR, GAP = 16, 40  # pixels


def evaluations() -> str:
    """Seconds of one evaluation over tokens, log-log; hollow where extrapolated, floors dashed."""
    found = [one for one in rows("evaluations") if (one["model"], one["card"]) == ("1.3b", CARD)]
    tokens = sorted({int(one["tokens"]): one["size"] for one in found}.items())
    x = _scale([count for count, _ in tokens], LEFT, WIDTH - RIGHT)
    values = [float(one["seconds"]) for one in found]
    y = _scale([0.1, max(values) * 1.3], HEIGHT - BOTTOM, TOP)
    parts = [
        _text(LEFT, 22, "Wan 2.1 1.3B, one evaluation in seconds, H200, bf16, random weights (dashed: floor)", size=13)
    ]
    for exponent in range(-1, 3):
        at = y(10.0**exponent)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#d0d7de"/>')
        parts.append(_text(LEFT - 6, at + 4, f"{10.0**exponent:g}", "end"))
    for count, size in tokens:
        parts.append(_text(x(count), HEIGHT - BOTTOM + 18, size.replace(" x ", "x"), "middle", size=10))
    for number, (method, (name, colour)) in enumerate(METHODS.items()):
        mine = sorted((int(one["tokens"]), one) for one in found if one["method"] == method)
        points = [(count, float(one["seconds"])) for count, one in mine]
        parts.append(_line(((x(a), y(b)) for a, b in points), colour))
        for count, one in mine:
            fill, centre = "white" if one["extrapolated"] == "True" else colour, y(float(one["seconds"]))
            parts.append(f'<circle cx="{x(count):.1f}" cy="{centre:.1f}" r="4" fill="{fill}" stroke="{colour}"/>')
        if method in FLOORS:
            floors = ((x(count), y(floor_of_evaluation("1.3b", one["size"], method))) for count, one in mine)
            parts.append(_line(floors, colour, dashed=True))
        fitted = [point for point in points if point[0] >= FIRST_FITTED]
        label = f"{name}: tokens^{exponent_of(fitted):.2f}" if len(fitted) > 2 else name
        parts.append(_text(LEFT + 14, TOP + 16 * (number + 1), label, colour=colour))
    return _svg(HEIGHT, parts)


def floors() -> str:
    """This pack's times, each as a bar with its floor inside."""
    bars = []
    for name, model, size, method in PACKS:
        found = evaluation_row(model, size, method)
        bars.append((name, float(found["seconds"]), floor_of_evaluation(model, size, method)))
    for video, method in (("3840x2160x81", "512"), ("1920x1088x81", "384")):
        found = row("decodes", card="H100", video=video, method=method)
        bars.append((f"{video}, exact decode (H100)", float(found["seconds"]), floor_of_decode(video)))
    parts = [
        _text(LEFT, 22, "This pack: how much of its time is the floor (FLOPs and bytes over the card's rates)", size=13)
    ]
    full = WIDTH - LEFT - RIGHT
    for number, (name, value, floor) in enumerate(bars):
        top = TOP + GAP * number
        parts.append(_text(LEFT, top + 10, f"{name}: {value:.1f} s, floor {floor:.1f} s ({floor / value:.0%})"))
        parts.append(f'<rect x="{LEFT}" y="{top + 14}" width="{full}" height="{BAR}" fill="#b6d4fe"/>')
        parts.append(
            f'<rect x="{LEFT}" y="{top + 14}" width="{full * floor / value:.1f}" height="{BAR}" fill="#1f6feb"/>'
        )
    return _svg(TOP + GAP * len(bars) + 10, parts)


PLOTS = {"evaluations": evaluations, "floors": floors}


def exponent_of(points: list[tuple[int, float]]) -> float:
    """Slope of the least-squares line through log(seconds) over log(tokens)."""
    xs, ys = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


def _scale(values: Sequence[float], first: float, last: float):
    """A logarithmic scale: the smallest value at `first`, the largest at `last`."""
    low, high = math.log(min(values)), math.log(max(values))
    return lambda value: first + (last - first) * (math.log(value) - low) / (high - low)


def _line(points: Iterable[tuple[float, float]], colour: str, dashed: bool = False) -> str:
    data = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{data}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#24292f", size: int = 11) -> str:
    style = f'text-anchor="{anchor}" fill="{colour}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _svg(height: int, parts: Iterable[str]) -> str:
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])

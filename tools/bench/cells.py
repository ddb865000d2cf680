"""Names of videos, numbers and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

VIDEOS = {
    "480P x 81": "832x480, 81 frames",
    "720P x 81": "1280x720, 81 frames",
    "1080P x 81": "1920x1088, 81 frames",
    "2K x 81": "2560x1440, 81 frames",
    "4K x 29": "3840x2160, 29 frames",
    "4K x 81": "3840x2176, 81 frames",
}


def seconds(value: str | float) -> str:
    """Three digits at most: 3.5, 43.8, 264."""
    return f"{float(value):.1f}" if float(value) < 100 else f"{float(value):.0f}"


def times(baseline: str | float, value: str | float) -> str:
    ratio = float(baseline) / float(value)
    return f"({ratio:.1f}x)" if ratio < 10 else f"({ratio:.0f}x)"


def share(floor: float, value: str | float) -> str:
    """A floor and its share of a measured time."""
    return f"{seconds(floor)} ({floor / float(value):.0%})"


def share_of_ms(floor: float, value: str | float) -> str:
    """A floor in seconds and its share of a time in milliseconds, as milliseconds."""
    return f"{1000 * floor:.0f} ({1000 * floor / float(value):.0%})"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *map(list, body)]
    return "\n".join("|" + "|".join(map(_cell, line)) + "|" for line in lines)


def _cell(text: str) -> str:
    return text if text == "---" else f" {text} " if text else " "

"""Numbers and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def seconds(value: str | float) -> str:
    """Three digits at most: 3.5, 43.8, 264."""
    return f"{float(value):.1f}" if float(value) < 100 else f"{float(value):.0f}"


def times(baseline: str | float, value: str | float) -> str:
    ratio = float(baseline) / float(value)
    return f"({ratio:.1f}x)" if ratio < 10 else f"({ratio:.0f}x)"


def share(floor: float, value: str | float) -> str:
    """A floor and its share of a measured time."""
    return f"{seconds(floor)} ({floor / float(value):.0%})"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *map(list, body)]
    return "\n".join("|" + "|".join(map(_cell, line)) + "|" for line in lines)


def _cell(text: str) -> str:
    return text if text == "---" else f" {text} " if text else " "

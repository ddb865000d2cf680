"""The loss curve of a run, as a table and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ultragen_core.storage.files import finished_file

WIDTH, HEIGHT, LEFT, MARGIN = 720, 320, 60, 30  # pixels
FONT = 'font-family="sans-serif" font-size="12"'
SMOOTHED = 0.95  # share of the old average in the bold line, per step


class Row(NamedTuple):
    """One step, counted from 1. gradient: its norm before clipping. seconds: duration of the step."""

    step: int
    loss: float
    learning_rate: float
    gradient: float
    seconds: float


class Curve:
    """`loss.csv` and `loss.svg` in a folder."""

    def __init__(self, folder: Path):
        self._table, self._picture = folder / "loss.csv", folder / "loss.svg"

    def rows(self) -> list[Row]:
        """Return all rows, without one that a full disk has cut off."""
        if not self._table.is_file():
            return []
        found = []
        with self._table.open(newline="") as file:
            for step, *numbers in filter(None, csv.reader(file)):
                with suppress(ValueError, TypeError):
                    found.append(Row(int(step), *map(float, numbers)))
        return found

    def begin(self, step: int) -> None:
        """Drop the rows after `step`, where the run continues."""
        kept = [row for row in self.rows() if row.step <= step]
        with finished_file(self._table) as part, part.open("w", newline="") as file:
            csv.writer(file).writerows([Row._fields, *kept])

    def add(self, row: Row) -> None:
        with self._table.open("a", newline="") as file:
            csv.writer(file).writerow(row)

    def draw(self) -> None:
        with finished_file(self._picture) as part:
            part.write_text(picture(self.rows()), encoding="utf-8")


def picture(rows: Sequence[Row]) -> str:
    """Draw the loss of every step, pale, and its running average as SVG."""
    first, last, highest = rows[0].step, max(rows[-1].step, rows[0].step + 1), max(row.loss for row in rows)

    def line(values: Sequence[float], style: str) -> str:
        points = (
            f"{LEFT + (WIDTH - LEFT - MARGIN) * (row.step - first) / (last - first):.1f}"
            f" {HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / highest:.1f}"
            for row, value in zip(rows, values, strict=True)
        )
        return f'<path d="M{"L".join(points)}" fill="none" stroke="#1f6feb" {style}/>'

    losses = [row.loss for row in rows]
    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    texts = (
        (LEFT, 20, "start", f"loss, {smoothed(losses)[-1]:.4f} at step {rows[-1].step} (running average)"),
        (LEFT - 6, MARGIN + 4, "end", f"{highest:.3g}"),
        (LEFT - 6, bottom, "end", "0"),
        (LEFT, HEIGHT - 10, "start", f"step {first}"),
        (right, HEIGHT - 10, "end", f"{last}"),
    )
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<path d="M{LEFT} {MARGIN}V{bottom}H{right}" fill="none" stroke="black"/>',
            line(losses, 'opacity="0.3"'),
            line(smoothed(losses), 'stroke-width="2"'),
            *(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in texts),
            "</svg>",
        ]
    )


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential running average at every value."""
    made, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = SMOOTHED * total + value, SMOOTHED * weight + 1
        made.append(total / weight)
    return made

"""Compare models in one picture: labelled strips of frames below each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, LABEL, GAP = 1280, 26, 8  # pixels


def draw_rows(strips: Mapping[str, Path], file: Path) -> None:
    """Draw strips below each other. strips: {name: picture}, all of one size. file: a .jpg or .png."""
    rows = [Image.open(strip).convert("RGB") for strip in strips.values()]
    height = round(rows[0].height * WIDTH / rows[0].width)
    step = LABEL + height + GAP
    sheet = Image.new("RGB", (WIDTH, step * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (name, row) in enumerate(zip(strips, rows, strict=True)):
        pen.text((4, step * index + 4), name, "black", font_size=16)
        sheet.paste(row.resize((WIDTH, height)), (0, step * index + LABEL))
    sheet.save(file, quality=88)

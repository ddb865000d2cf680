"""Drawings for the thumbnails of templates whose models have no trained miniature: painted landscapes that show what
the template does.
"""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from tools.templates.thumbnail import HEIGHT, WIDTH
from training.miniature.painter import picture
from training.miniature.scenes import Scene
from ultragen_core.video.frames import quantise

LINE, MARK = (255, 255, 255, 110), (255, 200, 60)
SHADES = (74, 158, 255), (240, 160, 48), (79, 180, 119), (181, 140, 255)  # of GPUs
PIXEL = 8  # side of the coarse pixels of a small video


def drawing(name: str) -> Image.Image:
    """Return the drawing of a template, WIDTH x HEIGHT pixels."""
    return DRAWINGS[name]()


def t3_wan22() -> Image.Image:
    """Show the rule's strided tokens: one in each of 4 x 8 windows."""
    return strided(landscape("clear dusk lake peaks left", 7), rows=4, columns=8)


def two_pass() -> Image.Image:
    """A small video, enlarged, and beyond the line the same with detail."""
    sharp = landscape("clear dawn lake peaks right", 4)
    coarse = sharp.resize((WIDTH // PIXEL, HEIGHT // PIXEL), Image.Resampling.BOX)
    return halves(coarse.resize(sharp.size, Image.Resampling.NEAREST), sharp, "first pass", "second pass")


def multigpu() -> Image.Image:
    """The strip of every frame that each of four GPUs computes."""
    count = 4
    image = landscape("clear dawn lake peaks left", 3)
    draw, width = ImageDraw.Draw(image, "RGBA"), WIDTH // count
    for index in range(count):
        draw.rectangle((index * width, 0, (index + 1) * width - 1, HEIGHT), (*SHADES[index], 46))
        tag(image, f"GPU {index}", index * width + 12)
    for index in range(1, count):
        draw.line((index * width, 0, index * width, HEIGHT), "white", 2)
    return image


def compare() -> Image.Image:
    """Show one scene in four quarters, which the names of the four ways mark."""
    image = landscape("clear dawn lake peaks left", 23)
    draw = ImageDraw.Draw(image)
    draw.line((WIDTH // 2, 0, WIDTH // 2, HEIGHT), "white", 2)
    draw.line((0, HEIGHT // 2, WIDTH, HEIGHT // 2), "white", 2)
    for index, name in enumerate(("full attention", "SeedVR2", "two passes", "UltraGen")):
        tag(image, name, 12 + index % 2 * WIDTH // 2, 10 + index // 2 * HEIGHT // 2)
    return image


DRAWINGS = {
    "ultragen_t3_4k_wan22_5b": t3_wan22,
    "ultragen_two_pass_1080p": two_pass,
    "ultragen_multigpu_1080p": multigpu,
    "ultragen_compare_1080p": compare,
}


def landscape(words: str, number: int) -> Image.Image:
    """Paint a scene: weather, time, ground, ridges and side."""
    (frame,) = picture(Scene(*words.split(), "eastward"), number, 2 * WIDTH, 2 * HEIGHT, 1)
    large = Image.fromarray(quantise(frame, 8).numpy())
    return large.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def strided(image: Image.Image, rows: int, columns: int) -> Image.Image:
    """Draw windows with the tokens of one strided set, one in each."""
    draw, width, height = ImageDraw.Draw(image, "RGBA"), WIDTH / columns, HEIGHT / rows
    for column in range(1, columns):
        draw.line((column * width, 0, column * width, HEIGHT), LINE, 1)
    for row in range(1, rows):
        draw.line((0, row * height, WIDTH, row * height), LINE, 1)
    for column in range(columns):
        for row in range(rows):
            x, y = (column + 0.62) * width, (row + 0.4) * height
            draw.rectangle((x - 6, y - 6, x + 6, y + 6), (*MARK, 150), MARK, 2)
    return image


def halves(left: Image.Image, right: Image.Image, *names: str) -> Image.Image:
    """Join the left part of one picture and the right part of another along a slanted line."""
    top, bottom = WIDTH // 2 + 40, WIDTH // 2 - 40
    mask = Image.new("L", left.size, 0)
    ImageDraw.Draw(mask).polygon(((0, 0), (top, 0), (bottom, HEIGHT), (0, HEIGHT)), 255)
    whole = Image.composite(left, right, mask)
    ImageDraw.Draw(whole).line((top, 0, bottom, HEIGHT), "white", 2)
    tag(whole, names[0], 12)
    tag(whole, names[1], WIDTH // 2 + 70)
    return whole


def tag(image: Image.Image, text: str, x: int, y: int = 10) -> None:
    """Write a word on a dark ground."""
    draw, font = ImageDraw.Draw(image, "RGBA"), ImageFont.load_default(15)
    left, top, right, bottom = draw.textbbox((x, y), text, font)
    draw.rectangle((left - 6, top - 4, right + 6, bottom + 4), (0, 0, 0, 130))
    draw.text((x, y), text, "white", font)

"""The form of a template's thumbnail: a picture above the title."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

WIDTH, HEIGHT = 512, 288  # of the picture, in pixels
BAND = 64  # height of the title below it
GREY, LIGHT_GREY, DARK_GREY = "#808080", "#c0c0c0", "#202020"


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return WIDTH x HEIGHT pixels of equal parts of the pictures."""
    whole, share = Image.new("RGB", (WIDTH, HEIGHT), DARK_GREY), WIDTH // len(pictures)
    for index, picture in enumerate(pictures):
        whole.paste(ImageOps.fit(picture, (share - (len(pictures) > 1), HEIGHT)), (index * share, 0))
    return whole


def titled(picture: Image.Image, content: dict, label: str) -> Image.Image:
    """Return the picture above the title of a workflow's note and `label`, which says how the picture was made."""
    title = content["nodes"][-1]["widgets_values"][0].splitlines()[0].removeprefix("# ")
    what, _, which = title.partition(": ")
    whole = Image.new("RGB", (WIDTH, HEIGHT + BAND), DARK_GREY)
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    draw.text((12, HEIGHT + 8), what, "white", ImageFont.load_default(22))
    draw.text((12, HEIGHT + 38), which, LIGHT_GREY, ImageFont.load_default(15))
    draw.text((WIDTH - 12, HEIGHT + 42), label, GREY, ImageFont.load_default(11), anchor="ra")
    return whole

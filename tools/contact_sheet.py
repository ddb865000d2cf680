"""Summarise a video file: its format, and a grid of its frames as one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

COLUMNS, MOST_FRAMES, CELL_WIDTH, GAP = 3, 9, 640, 4


@dataclass(frozen=True)
class Video:
    codec: str
    width: int
    height: int
    frames: int
    fps: float


def draw(video_file: Path, sheet_file: Path) -> Video:
    """Draw evenly spaced frames of `video_file`, first and last included, into `sheet_file`."""
    import av
    from PIL import Image

    with av.open(str(video_file)) as container:
        stream = container.streams.video[0]
        pictures = [frame.to_image() for frame in container.decode(stream)]
        facts = Video(stream.codec_context.name, stream.width, stream.height, len(pictures), float(stream.average_rate))
    count = min(len(pictures), MOST_FRAMES)
    chosen = [pictures[round(i * (len(pictures) - 1) / max(count - 1, 1))] for i in range(count)]
    width = min(CELL_WIDTH, facts.width)
    height = round(width * facts.height / facts.width)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, picture in enumerate(chosen):
        sheet.paste(picture.resize((width, height)), (i % columns * (width + GAP), i // columns * (height + GAP)))
    sheet.save(sheet_file)
    return facts

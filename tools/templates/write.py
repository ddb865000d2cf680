"""The `templates` command. It writes workflows/*.json, each with a thumbnail from a small run of the same graph, and
derives from them the blueprint in subgraphs/ and the examples in API format in docs/headless.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools import demo, workflow
from tools.console import say
from tools.server import ROOT, Server
from tools.templates import blueprint
from tools.templates.graphs import TEMPLATES
from tools.templates.layout import Layout
from tools.templates.parts import FILES

FOLDER = ROOT / "workflows"
BLUEPRINT = ROOT / "subgraphs" / f"{blueprint.NAME}.json"
HEADLESS = [ROOT / "docs" / "headless" / f"{name}.json" for name in ("ultragen_t2v_1080p", "ultragen_t3_4k_wan21_1_3b")]
WIDTH, HEIGHT = 512, 288  # thumbnail, in pixels
BAND = 64  # height of the title below it


class Look(NamedTuple):
    """How to run a template for its thumbnail. model: words for the model. size: width, height, frames, steps."""

    model: str
    size: tuple[int, int, int, int]


PAINTED = Look("tiny", (640, 352, 17, 12))  # the trained model, at the size it was trained at
CLOUDS = Look("untrained", (WIDTH, HEIGHT, 5, 6))  # the random model paints clouds of colour
# Templates that need no model but UltraGen's checkpoint, the trained one.
LOOKS = dict.fromkeys(TEMPLATES, CLOUDS) | dict.fromkeys(
    ("ultragen_t2v_1080p", "ultragen_batch_1080p", "ultragen_few_steps_1080p"), PAINTED
)


def run(cache: Path, args: argparse.Namespace) -> int:
    for look in (PAINTED, CLOUDS):
        args.random = look is CLOUDS
        with demo.start(cache, "templates", args) as server:
            object_info = server.get("/object_info")
            for seed, name in enumerate(TEMPLATES):
                if LOOKS[name] is look:
                    make_with_thumbnail(name, look, server, object_info, seed)
    write(BLUEPRINT, blueprint.make(json.loads((FOLDER / f"{blueprint.SOURCE}.json").read_text(encoding="utf-8"))))
    for example in HEADLESS:
        write(example, workflow.to_api(FOLDER / example.name, object_info))
    return 0


def make_with_thumbnail(name: str, look: Look, server: Server, object_info: dict, seed: int) -> None:
    file = FOLDER / f"{name}.json"
    content = make(name, object_info)
    write(file, content)
    videos = small_run(server, file, look, object_info, seed)
    thumbnail(videos, content, f"a small run, {look.model} model").save(file.with_suffix(".jpg"), quality=80)
    say(f"{file.name}, {file.with_suffix('.jpg').stat().st_size // 1024} KiB of thumbnail")


def write(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make(name: str, object_info: dict) -> dict:
    """Return the content of workflows/`name`.json. object_info: from a ComfyUI with the pack."""
    layout = Layout(name, object_info, FILES)
    return layout.workflow(TEMPLATES[name](layout))


def small_run(server: Server, file: Path, look: Look, object_info: dict, seed: int) -> list[Path]:
    graph = workflow.make_small(workflow.to_api(file, object_info), *look.size, seed)
    for node in graph.values():
        if node["class_type"] == "UltraGenPrompts":
            node["inputs"]["index"] = -1  # all prompts of the list
    return demo.saved_videos(server, server.run(workflow.with_stand_ins(graph)))


def thumbnail(videos: Sequence[Path], content: dict, label: str):
    """Draw each video's last frame side by side, above the note's title and `label`. Returns a PIL image."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    title = content["nodes"][-1]["widgets_values"][0].splitlines()[0].removeprefix("# ")
    what, _, which = title.partition(": ")
    picture = Image.new("RGB", (WIDTH, HEIGHT + BAND), "#202020")
    share = WIDTH // len(videos)
    for index, video in enumerate(videos):
        picture.paste(ImageOps.fit(last_frame(video), (share - (len(videos) > 1), HEIGHT)), (index * share, 0))
    draw = ImageDraw.Draw(picture)
    draw.text((12, HEIGHT + 8), what, "white", ImageFont.load_default(22))
    draw.text((12, HEIGHT + 38), which, "#c0c0c0", ImageFont.load_default(15))
    draw.text((WIDTH - 12, HEIGHT + 14), label, "#808080", ImageFont.load_default(12), anchor="ra")
    return picture


def last_frame(video: Path):
    import av

    with av.open(str(video)) as container:
        *_, frame = container.decode(video=0)
        return frame.to_image()

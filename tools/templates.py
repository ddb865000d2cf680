"""The `templates` command: workflows/*.json anew, each with a thumbnail from a small run of that very graph, and what
is made of them: the blueprint in subgraphs/ and the examples in API format in docs/headless."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tools import blueprint, demo, workflow
from tools.console import say
from tools.server import ROOT, Server
from tools.template_graphs import TEMPLATES
from tools.template_layout import Layout
from tools.template_parts import FILES

FOLDER = ROOT / "workflows"
BLUEPRINT = ROOT / "subgraphs" / f"{blueprint.NAME}.json"
HEADLESS = [ROOT / "docs" / "headless" / f"{name}.json" for name in ("ultragen_t2v_1080p", "ultragen_t3_4k_wan21_1_3b")]
WIDTH, HEIGHT = 512, 288  # of a thumbnail
BAND = 64  # rows at its bottom, for its title
# Templates that run on UltraGen's checkpoint alone, which is a trained one; the others' models are untrained.
PAINTED = ("ultragen_t2v_1080p", "ultragen_batch_1080p", "ultragen_few_steps_1080p")
# Width, height, frames and steps: what the trained one knows; enough for clouds of colour.
LARGE, SMALL = (640, 352, 17, 14), (WIDTH, HEIGHT, 5, 6)


def run(cache: Path, args: argparse.Namespace) -> int:
    for args.random in (False, True):
        with demo.start(cache, "templates", args) as server:
            object_info = server.get("/object_info")
            for seed, name in enumerate(TEMPLATES):
                if args.random != (name in PAINTED):
                    make_with_thumbnail(name, server, object_info, seed)
    write(BLUEPRINT, blueprint.make(json.loads((FOLDER / f"{blueprint.SOURCE}.json").read_text(encoding="utf-8"))))
    for example in HEADLESS:
        write(example, workflow.to_api(FOLDER / example.name, object_info))
    return 0


def make_with_thumbnail(name: str, server: Server, object_info: dict, seed: int) -> None:
    file = FOLDER / f"{name}.json"
    content = make(name, object_info)
    write(file, content)
    videos = small_run(server, file, object_info, seed)
    label = f"a small run, {'tiny' if name in PAINTED else 'untrained'} model"
    thumbnail(videos, content, label).save(file.with_suffix(".jpg"), quality=80)
    say(f"{file.name}, {file.with_suffix('.jpg').stat().st_size // 1024} KiB of thumbnail")


def write(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make(name: str, object_info: dict) -> dict:
    """The content of workflows/`name`.json. object_info: of a ComfyUI with the pack."""
    layout = Layout(name, object_info, FILES)
    return layout.workflow(TEMPLATES[name](layout))


def small_run(server: Server, file: Path, object_info: dict, seed: int) -> list[Path]:
    graph = workflow.to_api(file, object_info)
    graph = workflow.make_small(graph, *(LARGE if file.stem in PAINTED else SMALL), seed)
    return demo.saved_videos(server, server.run(workflow.with_stand_ins(graph)))


def thumbnail(videos: Sequence[Path], content: dict, label: str):
    """The last frame of each video side by side, above the title of the graph's note and `label`: a PIL image."""
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

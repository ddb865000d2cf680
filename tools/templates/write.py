"""The `templates` command. It writes workflows/*.json, each with a thumbnail, and derives from them the blueprint in
subgraphs/ and the examples in API format in docs/headless.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tools import demo, workflow
from tools.console import say
from tools.server import ROOT, Server
from tools.templates import blueprint
from tools.templates.drawings import drawing, halves
from tools.templates.graphs import TEMPLATES
from tools.templates.layout import Layout
from tools.templates.parts import FILES, IMAGE, PROMPT_REFINE, VIDEO
from tools.templates.thumbnail import side_by_side, titled

FOLDER = ROOT / "workflows"
BLUEPRINT = ROOT / "subgraphs" / f"{blueprint.NAME}.json"
HEADLESS = [ROOT / "docs" / "headless" / f"{name}.json" for name in ("ultragen_t2v_1080p", "ultragen_t3_4k_wan21_1_3b")]
# Templates whose models are the trained miniature, with a prompt that it understands. The others get a drawing.
SMALL_RUNS = {
    "ultragen_t2v_1080p": "a clear dusk lake, peaks, sun left",
    "ultragen_batch_1080p": "a cloudy lake at dawn\na clear desert at noon, sun left\na snowy night, moon right",
    "ultragen_few_steps_1080p": "a clear noon meadow, hills, sun right",
    "ultragen_refine_1080p": PROMPT_REFINE,
    "ultragen_t3_4k_wan21_1_3b": "a clear dusk lake, peaks, sun right",
    "ultragen_i2v_1080p": "a clear dusk meadow, peaks, sun right",
    "ultragen_decode_only": "",
}


# Templates that start from a file of input/: its name, and what the two halves of the thumbnail are called.
STARTS = {
    "ultragen_refine_1080p": (VIDEO, "your video", "refined"),
    "ultragen_i2v_1080p": (IMAGE, "your image", "its video"),
}


def run(cache: Path, args: argparse.Namespace) -> int:
    args.random = False
    with demo.start(cache, "templates", args) as server:
        object_info = server.get("/object_info")
        for seed, name in enumerate(TEMPLATES):
            make_with_thumbnail(name, server, object_info, seed)
    write(BLUEPRINT, blueprint.make(json.loads((FOLDER / f"{blueprint.SOURCE}.json").read_text(encoding="utf-8"))))
    for example in HEADLESS:
        write(example, workflow.to_api(FOLDER / example.name, object_info))
    return 0


def make_with_thumbnail(name: str, server: Server, object_info: dict, seed: int) -> None:
    file = FOLDER / f"{name}.json"
    content = make(name, object_info)
    write(file, content)
    if name in SMALL_RUNS:
        videos = small_run(server, file, object_info, seed)
        picture, label = side_by_side([last_frame(video) for video in videos]), "a small run, tiny model"
        if name in STARTS:
            file_name, *labels = STARTS[name]
            picture = halves(side_by_side([last_frame(server.base / "input" / file_name)]), picture, *labels)
    else:
        picture, label = drawing(name), "a drawing"
    titled(picture, content, label).save(file.with_suffix(".jpg"), quality=80)
    say(f"{file.name}, {file.with_suffix('.jpg').stat().st_size // 1024} KiB of thumbnail")


def write(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make(name: str, object_info: dict) -> dict:
    """Return the content of workflows/`name`.json. object_info: from a ComfyUI with the pack."""
    layout = Layout(name, object_info, FILES)
    return layout.workflow(TEMPLATES[name](layout))


def small_run(server: Server, file: Path, object_info: dict, seed: int) -> list[Path]:
    graph = workflow.make_small(workflow.to_api(file, object_info), **workflow.SMALL, seed=seed)
    for node in graph.values():
        if node["_meta"]["title"] == "Prompt" and isinstance(node["inputs"]["text"], str):
            node["inputs"]["text"] = SMALL_RUNS[file.stem]
        elif node["class_type"] == "UltraGenPrompts":
            node["inputs"] |= {"index": -1, "text": SMALL_RUNS[file.stem]}  # all prompts of the list
        elif node["class_type"] == "UltraGenLoadLatent":  # the newest, of an earlier template's run
            schema = server.get("/object_info/UltraGenLoadLatent")["UltraGenLoadLatent"]["input"]["required"]
            node["inputs"]["latent"] = schema["latent"][1]["options"][0]
    return demo.saved_videos(server, demo.run_graph(server, workflow.with_stand_ins(graph)))


def last_frame(video: Path):
    import av

    with av.open(str(video)) as container:
        *_, frame = container.decode(video=0)
        return frame.to_image()

"""The `compare` command: ultragen_compare_1080p with the miniature, in a real ComfyUI server, drawn as one picture.

Without the template's b: there is no trained miniature of SeedVR2.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tools import demo, workflow
from tools.console import say
from tools.server import ROOT
from tools.templates.write import last_frame

TEMPLATE = ROOT / "workflows" / "ultragen_compare_1080p.json"
DENSE_FILE = "models/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors"
WAYS = {
    "a_full_attention": "full attention at the full size",
    "c_two_passes": "half the size, then UltraGen",
    "d_ultragen": "UltraGen at the full size",
}
BAND = 36  # pixels, of a label


def run(cache: Path, args: argparse.Namespace) -> int:
    args.random = False
    with demo.start(cache, "compare", args) as server:
        shutil.copyfile(args.dense, server.base / DENSE_FILE)
        graph = workflow.to_api(TEMPLATE, server.get("/object_info"))
        graph = workflow.make_small(graph, args.width, args.height, args.frames, args.steps, args.seed)
        demo.prompt_node(graph)["inputs"]["text"] = args.prompt
        videos = demo.run_graph(server, workflow.with_stand_ins(workflow.ancestors(graph, saves(graph))))
        files = [demo.saved_videos(server, {key: videos[key]})[0] for key in saves(graph)]
        draw([last_frame(file) for file in files], args.out)
        say(f"{args.out}: {', '.join(WAYS.values())}")
    return 0


def saves(graph: dict) -> list[str]:
    """Return the ids of the nodes that save the videos of WAYS, in this order."""
    prefixes = {node["inputs"].get("filename_prefix", ""): key for key, node in graph.items()}
    return [prefixes[f"video/compare/{name}"] for name in WAYS]


def draw(pictures: list[Image.Image], file: Path) -> None:
    """Draw pictures next to each other, with the names of WAYS below."""
    width, height = pictures[0].size
    whole = Image.new("RGB", (len(pictures) * width, height + BAND), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(22)
    for index, (picture, name) in enumerate(zip(pictures, WAYS.values(), strict=True)):
        whole.paste(picture, (index * width, 0))
        pen.text((index * width + 8, height + 6), name, "black", font)
    whole.save(file, quality=85)

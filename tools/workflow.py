"""The shipped workflow as the demo queues it: in API format, small, and with a stand-in for the text encoder."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from tools.server import ROOT

SHIPPED = ROOT / "workflows" / "ultragen_t2v_1080p.json"


def to_api(file: Path, object_info: dict) -> dict:
    """A workflow file as the frontend would queue it: {node id: {class_type, inputs, _meta}}."""
    from comfy_cli.workflow_to_api import convert_ui_to_api

    return convert_ui_to_api(json.loads(file.read_text()), object_info)


def make_small(graph: dict, width: int, height: int, frames: int, steps: int, seed: int) -> dict:
    """The same graph at another size, steps and seed."""
    small = copy.deepcopy(graph)
    for node in small.values():
        changes = {
            "UltraGenEmptyLatent": {"preset": "custom", "width": width, "height": height, "frames": frames},
            "UltraGenModelSampling": {"steps": steps},
            "RandomNoise": {"noise_seed": seed},
        }.get(node["class_type"], {})
        node["inputs"] |= changes
    return small


def without_text_encoder(graph: dict) -> dict:
    """The same graph with the demo's text node in place of CLIPTextEncode and its loader."""
    kept = {key: copy.deepcopy(node) for key, node in graph.items() if node["class_type"] != "CLIPLoader"}
    for node in kept.values():
        if node["class_type"] == "CLIPTextEncode":
            node["class_type"] = "UltraGenDemoText"
            del node["inputs"]["clip"]
    return kept

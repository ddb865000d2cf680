"""Templates as the demo and the tests queue them: in API format, small, with stand-ins for large models."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path

from tools.server import ROOT

KEPT_LATENT = "kept.latent"  # in the input folder, small
LEFT_OUT = ("CLIPLoader", "CLIPVisionLoader", "CLIPVisionEncode")
VAES = {
    "wan2.2_vae.safetensors": "UltraGenDemoVAE22",
    "seedvr2_ema_vae_fp16.safetensors": "UltraGenDemoSeedVR2VAE",
}
# The size at which the tiny model was trained, and steps that are enough for it.
SMALL = {"width": 640, "height": 352, "frames": 17, "steps": 12}
SHIPPED = ROOT / "workflows" / "ultragen_t2v_1080p.json"


def to_api(file: Path, object_info: dict) -> dict:
    """Convert a workflow file to what the frontend would queue: {node id: {class_type, inputs, _meta}}."""
    from comfy_cli.workflow_to_api import convert_ui_to_api

    graph = convert_ui_to_api(json.loads(file.read_text()), object_info)
    for node in graph.values():
        schema = object_info[node["class_type"]]["input"]
        for name, (_, *settings) in (schema.get("required", {}) | schema.get("optional", {})).items():
            # The frontend leaves out sockets without a link; the converter gives them their default.
            if settings and settings[0].get("forceInput") and not isinstance(node["inputs"].get(name), list):
                node["inputs"].pop(name, None)
    return graph


def make_small(graph: dict, width: int, height: int, frames: int, steps: int, seed: int) -> dict:
    """Copy a graph with another size, steps and seed. Links stay."""
    small = copy.deepcopy(graph)
    for node in small.values():
        changes = {
            "UltraGenEmptyLatent": {"preset": "custom", "width": width, "height": height, "frames": frames},
            "WanImageToVideo": {"width": width, "height": height, "length": frames},
            "UltraGenModelSampling": {"steps": steps},
            "RandomNoise": {"noise_seed": seed},
            "PrimitiveInt": {"value": seed},
            "UltraGenPrompts": {"seed": seed},
            "UltraGenLoadLatent": {"latent": KEPT_LATENT},
            "UltraGenSaveVideo": {"crop": "keep"},
            "ImageScale": {"width": width, "height": height},
        }.get(node["class_type"], {})
        node["inputs"] |= {
            name: value for name, value in changes.items() if not isinstance(node["inputs"].get(name), list)
        }
    return small


def for_canvas(prompt: str, width: int, height: int, frames: int, steps: int) -> dict:
    """Return the shipped workflow in the canvas's format, small, with the demo's nodes instead of a text encoder."""
    content = json.loads(SHIPPED.read_text(encoding="utf-8"))
    loader = next(node for node in content["nodes"] if node["type"] == "CLIPLoader")
    content["nodes"].remove(loader)
    content["links"] = [link for link in content["links"] if link[1] != loader["id"]]
    for node in content["nodes"]:
        values = node["widgets_values"]
        match node["type"]:
            case "MarkdownNote":
                values[0] = f"# A tiny model\n\nPress Run. It knows painted landscapes alone, such as *{prompt}*.\n"
            case "CLIPTextEncode":
                node |= {"type": "UltraGenDemoText", "inputs": []}
                if node["title"] == "Prompt":
                    values[0] = prompt
            case "UltraGenEmptyLatent":
                values[:4] = ["custom", width, height, frames]
            case "UltraGenModelSampling":
                values[1] = steps
    return content


def with_stand_ins(graph: dict) -> dict:
    """Copy a graph without the models that are too large for the demo.

    The demo's nodes stand in for the text encoder, and for the loaders of Wan 2.2's VAE and of SeedVR2.
    Image-to-video runs without CLIP vision.
    """
    kept = {key: copy.deepcopy(node) for key, node in graph.items() if node["class_type"] not in LEFT_OUT}
    for node in kept.values():
        if node["class_type"] == "CLIPTextEncode":
            node["class_type"] = "UltraGenDemoText"
            del node["inputs"]["clip"]
        elif node["class_type"] == "WanImageToVideo":
            del node["inputs"]["clip_vision_output"]
        elif node["inputs"].get("vae_name") in VAES:
            node["class_type"] = VAES[node["inputs"]["vae_name"]]
        elif node["inputs"].get("unet_name", "").startswith("seedvr2"):
            node["class_type"] = "UltraGenDemoSeedVR2"
            del node["inputs"]["weight_dtype"]
    return kept


def is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def ancestors(graph: dict, keys: Iterable[str]) -> dict:
    """Return the nodes of these ids and all that they depend on. Links to missing nodes lead nowhere."""
    found, waiting = {}, list(keys)
    while waiting:
        key = waiting.pop()
        if key in graph and key not in found:
            found[key] = graph[key]
            waiting += [value[0] for value in graph[key]["inputs"].values() if is_link(value)]
    return found


def only(graph: dict, class_type: str) -> str:
    """Return the id of the only node of this class."""
    (key,) = (key for key, node in graph.items() if node["class_type"] == class_type)
    return key

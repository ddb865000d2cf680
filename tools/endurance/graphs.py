"""The graphs that endurance runs queue: the templates at toy size."""

from __future__ import annotations

from pathlib import Path

from tools import workflow
from tools.server import ROOT, Server

WIDTH, HEIGHT, FRAMES, STEPS = 96, 64, 5, 4


def templates(server: Server) -> dict[str, dict]:
    """Return {name: graph} of every template."""
    object_info = server.get("/object_info")
    return {file.stem: _small(workflow.to_api(file, object_info)) for file in sorted(ROOT.glob("workflows/*.json"))}


def _small(graph: dict, seed: int = 1) -> dict:
    sizes = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES}
    return workflow.with_stand_ins(workflow.make_small(graph, steps=STEPS, seed=seed, **sizes))


def two_stages(server: Server, prompts: list[str], seed: int, prefix: str) -> dict:
    """Build a graph that makes a lossless video of each prompt.

    Each passes through two samplers: a single-step one with UltraGen Resume, and a multistep one.
    """
    graph = _small(workflow.to_api(workflow.SHIPPED, server.get("/object_info")), seed)
    graph["prompts"] = {"class_type": "UltraGenPrompts", "inputs": {"text": "\n".join(prompts), "file": "none"}}
    guider, first = graph[workflow.only(graph, "CFGGuider")]["inputs"], workflow.only(graph, "SamplerCustomAdvanced")
    graph[guider["positive"][0]]["inputs"]["text"] = ["prompts", 0]
    graph[workflow.only(graph, "UltraGenResume")]["inputs"]["unit"] = "steps"
    save = graph[workflow.only(graph, "UltraGenSaveVideo")]["inputs"]
    graph["second"] = {
        "class_type": "KSampler",
        "inputs": {
            **{name: guider[name] for name in ("model", "positive", "negative")},
            **{"latent_image": [first, 0], "seed": seed, "steps": 2 * STEPS, "cfg": 1.0, "denoise": 0.5},
            **{"sampler_name": "dpmpp_2m", "scheduler": "simple"},
        },
    }
    save |= {"samples": ["second", 0], "codec": "FFV1 lossless RGB", "filename_prefix": prefix}
    return graph


def decode_only(server: Server, prefix: str) -> dict:
    """Build a graph that decodes the kept latent to a video."""
    graph = templates(server)["ultragen_decode_only"]
    graph[workflow.only(graph, "UltraGenSaveVideo")]["inputs"]["filename_prefix"] = prefix
    return graph


def model_files(base: Path) -> list[Path]:
    return sorted(path for path in (base / "models").rglob("*") if path.is_file() and path.stat().st_size)

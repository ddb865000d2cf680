"""The pack's nodes: thin forms over ultragen_core. Each module lists its nodes in NODES."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from comfy_api.latest import ComfyExtension

from . import (
    config,
    extract,
    load_latent,
    metrics,
    model,
    multigpu,
    plan,
    preview,
    prompts,
    resume,
    sampling,
    vae,
    video,
)

MODULES = model, extract, config, sampling, multigpu, prompts, resume, vae, video, load_latent, metrics, plan
NODES = [node for module in MODULES for node in module.NODES]

log = logging.getLogger(__name__)


class UltraGenExtension(ComfyExtension):
    async def get_node_list(self):
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    warn_of_another_copy()
    plan.add_route()
    preview.add_route()
    prompts.add_route()
    return UltraGenExtension()


def warn_of_another_copy() -> None:
    """Log that ComfyUI has loaded the pack from another folder: nodes and canvas may then be of two versions."""
    loaded = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    other = loaded.get(NODES[0].define_schema().node_id)
    if other is not None:
        folders = other.RELATIVE_PYTHON_MODULE.partition(".")[2], Path(__file__).absolute().parent.parent.name
        log.warning(
            "UltraGen: installed twice, in the folders %s and %s of custom_nodes. Remove one and restart ComfyUI.",
            *folders,
        )

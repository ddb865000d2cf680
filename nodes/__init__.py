"""The pack's nodes: thin forms over ultragen_core. Each module lists its nodes in NODES."""

from __future__ import annotations

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


class UltraGenExtension(ComfyExtension):
    async def get_node_list(self):
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    plan.add_route()
    preview.add_route()
    prompts.add_route()
    return UltraGenExtension()

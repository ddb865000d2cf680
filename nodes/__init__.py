"""The pack's nodes: forms over ultragen_core. Each module lists its own in NODES."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension

from . import config, metrics, model, plan, sampling, vae, video

NODES = [*model.NODES, *config.NODES, *sampling.NODES, *vae.NODES, *video.NODES, *metrics.NODES, *plan.NODES]


class UltraGenExtension(ComfyExtension):
    async def get_node_list(self):
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    plan.add_route()
    return UltraGenExtension()

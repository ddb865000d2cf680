"""What a run would do and cost, before it: the node, and the same for the canvas while widgets change."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import folder_paths
from aiohttp import web
from comfy_api.latest import io
from server import PromptServer

from ..ultragen_core.attention.config import GlobalConfig, LocalConfig
from ..ultragen_core.host.plan import plan_of, preview
from ..ultragen_core.plan.picture import picture
from ..ultragen_core.plan.report import Plan
from .base import Node
from .config import UltraGenGlobalConfig, UltraGenLocalConfig
from .model import NONE
from .sampling import UltraGenEmptyLatent


class UltraGenPlan(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenPlan",
            display_name="UltraGen Plan",
            category="UltraGen",
            description=(
                "What a run would do and cost, by arithmetic: windows, operations against dense attention, memory to"
                " sample and to decode, and what speaks against it. Takes no time; run it before hours of sampling."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A Wan model, patched or not, as the sampler would get it."),
                io.Latent.Input("latent", tooltip="The empty latent that would be sampled; its size is what counts."),
            ],
            outputs=[io.String.Output("text", tooltip="The lines of the plan.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, latent) -> io.NodeOutput:
        shown = drawn(plan_of(model, tuple(latent["samples"].shape)))
        return io.NodeOutput("\n".join(shown["text"]), ui={"text": shown["text"], "ultragen_plan": [shown["picture"]]})


def drawn(plan: Plan) -> dict:
    return {"text": plan.text(), "picture": picture(plan)}


def preview_of_graph(asked: Mapping) -> dict:
    """asked: widget values by input name: `node` of the node that the picture is on; `local`, `global` and `latent` of
    the config and empty latent nodes beside it, each None where there is none; `model`, the file that its model comes
    from. Raises ValueError, KeyError or TypeError where they are not as the nodes have them.
    """
    node = asked["node"]
    checkpoint, extras = node.get("checkpoint") or _readable(asked.get("model")), node.get("extras", NONE)
    local, global_, latent = (asked.get(name) for name in ("local", "global", "latent"))
    return drawn(
        preview(
            UltraGenEmptyLatent.wanted(**(latent or {})),
            _path("diffusion_models", checkpoint),
            node["attention_rule"],
            None if extras == NONE else _path("model_patches", extras),
            UltraGenLocalConfig.execute(**local).result[0] if local else LocalConfig(),
            UltraGenGlobalConfig.execute(**global_).result[0] if global_ else GlobalConfig(),
        )
    )


def _readable(name: str | None) -> str | None:
    """The file of another loader. Raises ValueError where only that loader can read it, such as GGUF."""
    if name and Path(name).suffix.lower() not in folder_paths.supported_pt_extensions:
        raise ValueError(f"Only its own loader can read {name}: run UltraGen Plan to see what a run would do.")
    return name


def _path(folder: str, name: str | None) -> Path | None:
    found = folder_paths.get_full_path(folder, name) if name else None
    return Path(found) if found else None


def add_route() -> None:
    """POST /ultragen/plan, for the canvas."""

    @PromptServer.instance.routes.post("/ultragen/plan")
    async def plan_route(request: web.Request) -> web.Response:
        try:
            return web.json_response(await asyncio.to_thread(preview_of_graph, await request.json()))
        except (ValueError, KeyError, TypeError) as error:
            return web.json_response({"error": str(error)}, status=400)


NODES = [UltraGenPlan]

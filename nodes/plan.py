"""UltraGen Plan, and the route that plans a graph for the canvas while its widgets change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..ultragen_core.host.multigpu.patch import gpus_here
from ..ultragen_core.host.plan import ONE_GPU, plan_of
from ..ultragen_core.host.plan_preview import AS_TRAINED, Patch, Source, preview
from ..ultragen_core.plan.picture import picture
from ..ultragen_core.plan.report import Plan
from ..ultragen_core.plan.split import GPUs
from ..ultragen_core.printable import printable
from ..ultragen_core.rules.choice import COMFYUI
from ..ultragen_core.sizes import VideoSize
from .base import Node
from .config import UltraGenGlobalConfig, UltraGenLocalConfig
from .model import NONE, UltraGenApply, UltraGenLoadModel, settings_of
from .multigpu import UltraGenMultiGPU
from .questions import add_question, mapping
from .sampling import CUSTOM, DEFAULT_PRESET, UltraGenEmptyLatent

KNOWN_LATER = "is known only when the graph runs. Run UltraGen Plan to see it."
MAX_SCALE = 100


class UltraGenPlan(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenPlan",
            display_name="UltraGen Plan",
            category="UltraGen",
            description=(
                "Computes what a run would do and cost without running it: windows, FLOPs compared with dense"
                " attention, memory for sampling and decoding, and warnings. Takes a moment; run it before hours of"
                " sampling."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A Wan model, patched or not, as connected to the sampler."),
                io.Latent.Input("latent", tooltip="The empty latent to be sampled. Only its size matters."),
            ],
            outputs=[io.String.Output("text", tooltip="The plan as text.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, latent) -> io.NodeOutput:
        shown = as_ui(plan_of(model, tuple(latent["samples"].shape)))
        return io.NodeOutput("\n".join(shown["text"]), ui={"text": shown["text"], "ultragen_plan": [shown["picture"]]})


def as_ui(plan: Plan) -> dict:
    return {"text": plan.text(), "picture": picture(plan)}


def preview_of_graph(asked: object) -> dict:
    """Plan the graph that the canvas describes. Returns {"text": lines, "picture": SVG}.

    asked: a mapping. Groups of widgets are mappings from input name to value; None means a linked value.
      node: widgets of the node that shows the picture.
      local, global: widgets of the configs linked to it, or None.
      latent: widgets of UltraGen Empty Latent. With `steps`, the nodes that resize it, in turn: each a `scale_by`, or a
        `width` and a `height`. Missing: the preset by default.
      multigpu: widgets of the UltraGen MultiGPU through which the model is sampled, or None.
      model: the file that the model is loaded from.
      before: the pack's nodes between the loader and `node`, loader first, each with its `node`, `local` and `global`.
        If missing, the file is loaded with the rule that it was trained with.

    Raises ValueError for a graph that would fail, or that cannot be planned before it runs.
    """
    asked = mapping("The request", asked)
    steps = [*map(partial(mapping, "before"), _list("before", asked.get("before"))), asked]
    first = mapping("node", steps[0].get("node"))
    if "checkpoint" in first:
        loader = _widgets(UltraGenLoadModel, first, skip={"checkpoint"})
        kernel = loader["attention_kernel"]
        source = _source(first["checkpoint"], loader["attention_rule"], kernel)
        # Configs given with a loader act like an UltraGen Apply after it.
        steps[0] = steps[0] | {"node": {"attention_kernel": kernel}}
        steps = steps if steps[0].get("local") or steps[0].get("global") else steps[1:]
    else:
        source = _source(asked.get("model"), None if "before" in asked else AS_TRAINED)
    several = asked.get("multigpu")
    gpus = ONE_GPU if several is None else _gpus(mapping("multigpu", several))
    return as_ui(preview(_size(asked.get("latent")), source, [_patch(step) for step in steps], gpus))


def _size(latent: object) -> VideoSize:
    """Return the size of an UltraGen Empty Latent after `steps`, each of which scales it or sets width and height."""
    values = mapping("latent", latent or {})
    steps = values.get("steps")
    if values.get("preset", DEFAULT_PRESET) is None:
        raise ValueError(f"The size of the latent {KNOWN_LATER}")
    if values.get("preset", DEFAULT_PRESET) != CUSTOM:  # the preset alone decides
        values = {name: value for name, value in values.items() if name == "preset"}
    size = UltraGenEmptyLatent.wanted(**_widgets(UltraGenEmptyLatent, values))
    for step in map(partial(mapping, "steps"), _list("steps", steps)):
        factor = step.get("scale_by", 1)
        if not isinstance(factor, int | float) or not 0 < factor < MAX_SCALE:
            raise ValueError(f"scale_by must be between 0 and {MAX_SCALE}, got {factor!r}. Change the upscaling node.")
        made = {"width": round(size.width * factor), "height": round(size.height * factor), **step}
        held = _widgets(UltraGenEmptyLatent, {"preset": CUSTOM, "frames": size.frames, **made})
        size = UltraGenEmptyLatent.wanted(**held)
    return size


def _source(name: object, rule: str | None, attention_kernel: str = COMFYUI) -> Source:
    if not isinstance(name, str):
        raise ValueError(f"The model's file {KNOWN_LATER}")
    if rule in (AS_TRAINED, None) and Path(name).suffix.lower() not in folder_paths.supported_pt_extensions:
        raise ValueError(f"Only its own loader can read {printable(name)}. Run UltraGen Plan to see the plan.")
    path = folder_paths.get_full_path("diffusion_models", name)
    return Source(name, Path(path) if path else None, rule, attention_kernel)


def _gpus(values: Mapping) -> GPUs:
    widgets = _widgets(UltraGenMultiGPU, values)
    return gpus_here(widgets["gpus"], widgets["split"])


def _patch(step: Mapping) -> Patch:
    values = _widgets(UltraGenApply, mapping("node", step.get("node")))
    local, global_ = (
        _config(node, step.get(name))
        for node, name in ((UltraGenLocalConfig, "local"), (UltraGenGlobalConfig, "global"))
    )
    extras, _ = values.pop("extras"), values.pop("keep_gb", None)  # keep_gb does not affect the plan
    path = None if extras == NONE else Path(folder_paths.get_full_path_or_raise("model_patches", extras))
    return Patch(settings_of(**values, local_config=local, global_config=global_), path)


def _config(node: type[Node], values: object) -> object:
    if values is None:
        return None
    schema, values = node.define_schema(), mapping(node.__name__, values)
    given = {each.id: values[each.id] for each in schema.inputs if each.id in values}
    _refuse_links(schema.display_name, given)
    return node.execute(**given).result[0]


def _widgets(node: type[Node], values: Mapping, skip: Collection[str] = ()) -> dict:
    """Return a node's validated widgets, with defaults for missing ones. skip: inputs that are checked elsewhere."""
    schema = node.define_schema()
    widgets = [each for each in schema.inputs if hasattr(each, "default") and each.id not in skip]
    given = {each.id: values.get(each.id, each.default) for each in widgets}
    _refuse_links(schema.display_name, given)
    return node.checked(given, queued=True)


def _refuse_links(node: str, values: Mapping) -> None:
    if linked := [name for name, value in values.items() if value is None]:
        raise ValueError(f"{node}: {linked[0]} is linked and {KNOWN_LATER}")


def _list(name: str, value: object) -> list:
    if not isinstance(value, list | None):
        raise ValueError(f"{name} must be a list, got a value of type {type(value).__name__}.")
    return value or []


def add_route() -> None:
    """Add POST /ultragen/plan, for the picture on the canvas."""
    add_question("/ultragen/plan", preview_of_graph)


NODES = [UltraGenPlan]

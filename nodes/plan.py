"""What a run would do and cost, before it: the node, and the same for the canvas while widgets change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..ultragen_core.host.plan import plan_of
from ..ultragen_core.host.plan_preview import TRAINED_FOR, Patch, Source, preview
from ..ultragen_core.plan.picture import picture
from ..ultragen_core.plan.report import Plan
from ..ultragen_core.printable import printable
from ..ultragen_core.sizes import VideoSize
from .base import Node
from .config import UltraGenGlobalConfig, UltraGenLocalConfig
from .model import NONE, UltraGenApply, UltraGenLoadModel, settings_of
from .questions import add_question, mapping
from .sampling import CUSTOM, DEFAULT_PRESET, UltraGenEmptyLatent

IN_THE_RUN = "is known only in the run. Queue UltraGen Plan to see what it would do."
MOST_SCALED = 100


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


def preview_of_graph(asked: object) -> dict:
    """Answer a question of the canvas. Raises ValueError, in a sentence, for what the run itself would refuse and for
    what cannot be known before it.

    asked: widget values by input name; None as a value comes through a link. `node`: of the node that the picture is
    on. `local`, `global`: of the configs that are linked to it, or None. `latent`: of UltraGen Empty Latent. `model`:
    the file that the model comes from. `before`: the pack's nodes between, from the loader on, each with its `node`,
    `local` and `global`; without it, the file is loaded with the rule that it was trained for.
    """
    asked = mapping("The question", asked)
    steps = [*map(partial(mapping, "before"), _list("before", asked.get("before"))), asked]
    first = mapping("node", steps[0].get("node"))
    if "checkpoint" in first:
        loader = _widgets(UltraGenLoadModel, first, known={"checkpoint"})
        source = _source(first["checkpoint"], loader["attention_rule"])
        # Configs beside a loader stand for an UltraGen Apply with its defaults.
        steps[0] = steps[0] | {"node": {}}
        steps = steps if steps[0].get("local") or steps[0].get("global") else steps[1:]
    else:
        source = _source(asked.get("model"), None if "before" in asked else TRAINED_FOR)
    return drawn(preview(_size(asked.get("latent")), source, [_patch(step) for step in steps]))


def _size(latent: object) -> VideoSize:
    """The size of UltraGen Empty Latent with these widgets, after its `steps`: a scale, or another width and height."""
    values = mapping("latent", latent or {})
    steps = values.get("steps")
    if values.get("preset", DEFAULT_PRESET) != CUSTOM:  # which leaves the other widgets out
        values = {name: value for name, value in values.items() if name == "preset"}
    size = UltraGenEmptyLatent.wanted(**_widgets(UltraGenEmptyLatent, values))
    for step in map(partial(mapping, "steps"), _list("steps", steps)):
        factor = step.get("scale_by", 1)
        if not isinstance(factor, int | float) or not 0 < factor < MOST_SCALED:
            raise ValueError(f"Sizes are scaled by up to {MOST_SCALED}, got {factor!r}.")
        made = {"width": round(size.width * factor), "height": round(size.height * factor), **step}
        held = _widgets(UltraGenEmptyLatent, {"preset": CUSTOM, "frames": size.frames, **made})
        size = UltraGenEmptyLatent.wanted(**held)
    return size


def _source(name: object, rule: str | None) -> Source:
    if not isinstance(name, str):
        raise ValueError(f"Which model this is, {IN_THE_RUN}")
    if rule in (TRAINED_FOR, None) and Path(name).suffix.lower() not in folder_paths.supported_pt_extensions:
        raise ValueError(
            f"Only its own loader can read {printable(name)}: run UltraGen Plan to see what a run would do."
        )
    path = folder_paths.get_full_path("diffusion_models", name)
    return Source(name, Path(path) if path else None, rule)


def _patch(step: Mapping) -> Patch:
    values = _widgets(UltraGenApply, mapping("node", step.get("node")))
    local, global_ = (
        _config(kind, step.get(name))
        for kind, name in ((UltraGenLocalConfig, "local"), (UltraGenGlobalConfig, "global"))
    )
    extras, _ = values.pop("extras"), values.pop("keep_gb", None)  # what is kept changes no plan
    path = None if extras == NONE else Path(folder_paths.get_full_path_or_raise("model_patches", extras))
    return Patch(settings_of(**values, local_config=local, global_config=global_), path)


def _config(kind: type[Node], values: object) -> object:
    if values is None:
        return None
    schema, values = kind.define_schema(), mapping(kind.__name__, values)
    given = {each.id: values[each.id] for each in schema.inputs if each.id in values}
    _refuse_links(schema.display_name, given)
    return kind.execute(**given).result[0]


def _widgets(kind: type[Node], values: Mapping, known: Collection[str] = ()) -> dict:
    """The widgets of a node with these values, defaults where one is missing; `known` are checked elsewhere."""
    schema = kind.define_schema()
    widgets = [each for each in schema.inputs if hasattr(each, "default") and each.id not in known]
    given = {each.id: values.get(each.id, each.default) for each in widgets}
    _refuse_links(schema.display_name, given)
    return kind.checked(given, queued=True)


def _refuse_links(node: str, values: Mapping) -> None:
    if linked := [name for name, value in values.items() if value is None]:
        raise ValueError(f"{node}: {linked[0]} comes through a link and {IN_THE_RUN}")


def _list(name: str, value: object) -> list:
    if not isinstance(value, list | None):
        raise ValueError(f"{name} must be a list, got a value of type {type(value).__name__}.")
    return value or []


def add_route() -> None:
    """POST /ultragen/plan, for the canvas."""
    add_question("/ultragen/plan", preview_of_graph)


NODES = [UltraGenPlan]

"""The measured rows in docs/data, each with its floor."""

from __future__ import annotations

import csv
import functools
from dataclasses import replace

from ultragen_core.attention.config import GlobalConfig
from ultragen_core.plan.flops import FLOPs
from ultragen_core.rules.choice import COMFYUI, Settings, choose_rule, untrained_summary
from ultragen_core.rules.rule import Rule
from ultragen_core.wan import WAN_1_3B, WanShape

from .attention import GRIDS
from .floors import DATA, ceilings, decode_floor, evaluation_floor, layer_floor
from .methods import KERNEL, PUBLISHED_DENSE, WEIGHT_DTYPE
from .model import scaled
from .random_model import MODELS

Row = dict[str, str]
CARD = "H200"  # whose evaluations the page shows


def rows(name: str) -> list[Row]:
    """The rows of docs/data/NAME.csv."""
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row(name: str, **wanted: str) -> Row | None:
    """The only row with these values; None if there is none. Raises ValueError where there are several."""
    found = [one for one in rows(name) if wanted.items() <= one.items()]
    if len(found) > 1:
        raise ValueError(f"{name}.csv has {len(found)} rows for {wanted}. Keep one.")
    return found[0] if found else None


def evaluation_row(model: str, size: str, method: str) -> Row | None:
    """The row of CARD in evaluations.csv."""
    return row("evaluations", card=CARD, model=model, size=size, method=method)


def rule_of(method: str, model: WanShape) -> Rule | None:
    """The rule of one of bench's METHODS; None is dense attention."""
    if method in ("comfyui", "cudnn"):
        return None
    if method in ("t3", "t3 fp8"):
        return choose_rule(model, Settings(rule="t3"))
    dense = frozenset() if method == "all" else PUBLISHED_DENSE
    trained = replace(untrained_summary(model, 4), gates={0: None})
    return choose_rule(model, Settings(global_=GlobalConfig(dense_blocks=dense), rule="ultragen"), trained)


@functools.cache
def evaluation_flops(model: str, size: str, method: str) -> FLOPs:
    from ultragen_core.host.plan import flops_of

    grid, shape = scaled(GRIDS[size], model), MODELS[model]
    rule = rule_of(method, shape)
    return flops_of(rule.groups(grid) if rule else (), grid, shape)[0]


def floor_of_evaluation(model: str, size: str, method: str) -> float:
    """Seconds. All attention, and all matrix products, are in the precision of the method."""
    tokens = scaled(GRIDS[size], model).tokens
    rates = ceilings(
        attention="bf16" if KERNEL[method] == COMFYUI else "fp8",
        products="bf16" if WEIGHT_DTYPE[method] == "default" else "fp8",
    )
    return evaluation_floor(evaluation_flops(model, size, method), MODELS[model], tokens, rates)


def floors_of_layers(size: str, method: str) -> tuple[float, float]:
    """Seconds of an even and an odd block's self-attention of Wan 2.1 1.3B."""
    from ultragen_core.plan.flops import dense_layer_flops, layer_flops

    grid, channels = GRIDS[size], WAN_1_3B.channels
    rule = rule_of(method, WAN_1_3B)
    if rule is None:
        return (layer_floor(dense_layer_flops(grid, channels), grid.tokens, channels),) * 2
    groups = sorted(rule.groups(grid), key=lambda group: group.blocks[0] % 2)
    return tuple(layer_floor(layer_flops(group.branches, grid, channels), grid.tokens, channels) for group in groups)


def floor_of_decode(video: str) -> float:
    """Seconds. video: width x height x frames."""
    return decode_floor(*map(int, video.split("x")))

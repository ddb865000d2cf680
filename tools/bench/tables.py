"""The tables of docs/benchmarks.md and README.md, from the rows in docs/data."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from .attention_tables import (
    errors,
    fp8,
    fp8_drift,
    fp8_products,
    fp8_scores,
    fp8_windows,
    int8,
    int8_scores,
    kernels,
    layers,
)
from .cells import VIDEOS, seconds, share, table, times
from .floors import DATA
from .front_page import readme
from .gpu_tables import gpu_videos, gpus
from .measured import (
    Row,
    evaluation_row,
    floor_of_decode,
    floor_of_evaluation,
    row,
    rows,
)

METHODS = {
    "comfyui": "ComfyUI 0.30.0, dense",
    "cudnn": "ComfyUI with cuDNN's attention",
    "published": "UltraGen as published",
    "plain": "this pack, UltraGen, plain PyTorch",
    "ours": "**this pack, UltraGen** (6 of 30 blocks dense, as in the checkpoint)",
    "all": "this pack, UltraGen in all blocks",
    "t3": "**this pack, T3-Video's rule**",
}
RULES = {"ours": "UltraGen", "t3": "T3-Video"}
MAIN = {("1080P x 81", "ours"), ("4K x 81", "ours"), ("4K x 81", "t3")}  # the sizes that the weights are made for
NOT_COMPARED = {"comfyui", "cudnn", "published", "plain"}


def evaluations() -> str:
    sizes = ("1080P x 81", "4K x 81")
    head = ["", *(cell for size in sizes for cell in (VIDEOS[size], "floor"))]
    return table(
        head, ([name, *(c for size in sizes for c in _cells(method, size))] for method, name in METHODS.items())
    )


def _cells(method: str, size: str) -> tuple[str, str]:
    found, baseline = (evaluation_row("1.3b", size, each) for each in (method, "comfyui"))
    if not found:
        return "not measured", seconds(floor_of_evaluation("1.3b", size, method))
    text = f"**{seconds(found['seconds'])}**" if (size, method) in MAIN else seconds(found["seconds"])
    if method not in NOT_COMPARED and (method != "t3" or (size, method) in MAIN):
        text += " " + times(baseline["seconds"], found["seconds"])
    note = " (30 times one block)" if found["extrapolated"] == "True" else ""
    return text + note, share(floor_of_evaluation("1.3b", size, method), found["seconds"])


def h100() -> str:
    """Rows of the H100, of this code first."""
    found = [one for one in rows("evaluations") if one["card"] == "H100"]
    body = []
    for one in sorted(found, key=lambda one: one["note"]):
        method = {**RULES, "all": "UltraGen in all blocks"}[one["method"]] + (
            f" ({one['note']})" if one["note"] else ""
        )
        floor = floor_of_evaluation(one["model"], one["size"], one["method"])
        cells = [f"{float(one['seconds']):.2f}", share(floor, one["seconds"]), one["peak_gib"], one["host_ms"]]
        body.append([f"{VIDEOS[one['size']]}, {method}", *cells])
    return table(["", "seconds", "floor", "peak GiB", "host ms"], body)


def other_sizes() -> str:
    body = []
    for model, size, method, options in (
        ("1.3b", "2K x 81", "ours", '`--sizes "2K x 81"`'),
        ("5b", "4K x 81", "t3", '`--model 5b --layers 5 --sizes "4K x 81"`'),
    ):
        dense, cudnn, found = (evaluation_row(model, size, each) for each in ("comfyui", "cudnn", method))
        note = " (30 times one block)" if model == "1.3b" else ""
        body.append(
            [
                f"{model.upper()}, {VIDEOS[size]}, {RULES[method]}",
                *(seconds(one["seconds"]) + note for one in (dense, cudnn)),
                f"{seconds(found['seconds'])} {times(dense['seconds'], found['seconds'])}",
                share(floor_of_evaluation(model, size, method), found["seconds"]),
                options,
            ]
        )
    return table(["", "ComfyUI", "with cuDNN", "this pack", "floor", "options"], body)


def sampling() -> str:
    """Two evaluations a step."""
    dense, ours = (row("sampling", method=method) for method in ("comfyui", "ours"))
    floors = [2 * floor_of_evaluation("1.3b", one["size"], one["method"]) for one in (dense, ours)]
    return table(
        ["", "seconds per step", "floor"],
        [
            ["ComfyUI 0.30.0", seconds(dense["seconds"]), share(floors[0], dense["seconds"])],
            [
                "this pack, UltraGen",
                f"**{seconds(ours['seconds'])}** {times(dense['seconds'], ours['seconds'])}",
                share(floors[1], ours["seconds"]),
            ],
        ],
    )


def small_cards() -> str:
    names = {
        ("1080P x 81", "ours"): "1920x1088, UltraGen",
        ("2K x 81", "ours"): "2560x1440, UltraGen",
        ("4K x 81", "t3"): "3840x2176, T3-Video's rule",
        ("4K x 81", "ours"): "3840x2176, UltraGen with the checkpoint's dense blocks",
    }
    body = []
    for (size, method), name in names.items():
        plain, dynamic = (
            row("small_cards", model="1.3b", size=size, method=method, dynamic=each) for each in ("False", "True")
        )
        cells = [f"{plain['emulated_gb']} GB", plain["usable_gib"], plain["peak_gib"]]
        body.append([name, *cells, dynamic["peak_gib"] if dynamic else ""])
    return table(["", "card", "usable GiB", "peak GiB", "with dynamic VRAM"], body)


def small_cards_5b() -> str:
    floor = floor_of_evaluation("5b", "4K x 81", "t3")
    return table(
        ["card", "usable GiB", "dynamic VRAM", "seconds per evaluation", "floor", "peak GiB"],
        (
            [
                f"{one['emulated_gb']} GB",
                one["usable_gib"],
                "yes" if one["dynamic"] == "True" else "no",
                seconds(one["seconds"]),
                share(floor, one["seconds"]),
                one["peak_gib"],
            ]
            for one in rows("small_cards")
            if one["model"] == "5b"
        ),
    )


DECODES = {
    "tiled": "ComfyUI tiled, node defaults (not exact)",
    "full": "ComfyUI, whole frame",
    "512": "**exact tiles of 512, to 8 bit**",
    "384": "**exact tiles of 384, to 8 bit**",
}


def _decode(one: Row) -> list[str]:
    method = DECODES[one["method"]]
    value = f"**{seconds(one['seconds'])}**" if method.startswith("**") else seconds(one["seconds"])
    floor = share(floor_of_decode(one["video"]), one["seconds"])
    first = " (first decode)" if one["first"] == "True" else ""
    width, height, frames = one["video"].split("x")
    return [f"{width}x{height}, {frames} frames", method + first, value, floor, one["device_gib"], one["host_gb"]]


def decodes() -> str:
    body = [_decode(one) for one in rows("decodes")]
    for before, after in reversed(list(pairwise(body))):
        after[0] = "" if after[0] == before[0] else after[0]
    return table(["video", "decode", "seconds", "floor", "device GiB", "host GB"], body)


def decodes_gpus() -> str:
    """The floor is that of one card, divided by their number."""
    body = []
    for one in rows("decodes_gpus"):
        width, height, frames = one["video"].split("x")
        floor = share(floor_of_decode(one["video"]) / int(one["gpus"]), one["seconds"])
        cells = [
            f"{width}x{height}, {frames} frames",
            f"{one['gpus']} {one['card']}",
            one["tile"],
            one["seconds"],
            floor,
            one["first_s"],
        ]
        body.append([*cells, one["device_gib"], one["host_gb"]])
    return table(["video", "cards", "tile", "seconds", "floor", "first decode", "GiB a card", "host GB"], body)


def others() -> str:
    body = []
    for one in rows("others"):
        floor = int(one["evaluations"]) * floor_of_evaluation(one["model"], one["size"], one["method"])
        body.append([one["what"], one["card"], one["seconds"], share(floor, one["seconds"])])
    return table(["", "card", "seconds", "floor"], body)


def ceilings() -> str:
    return table(
        ["ceiling", "rate", "card"],
        ([one["what"], f"{one['rate']} {one['unit']}", one["card"]] for one in rows("ceilings")),
    )


def cards() -> str:
    lines = (DATA / "cards.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(f"- {line}" for line in lines) or "No line yet."


TABLES: dict[str, Callable[[], str]] = {
    one.__name__: one
    for one in (
        cards,
        ceilings,
        decodes,
        decodes_gpus,
        errors,
        evaluations,
        fp8,
        fp8_drift,
        fp8_products,
        fp8_scores,
        fp8_windows,
        gpu_videos,
        gpus,
        h100,
        int8,
        int8_scores,
        kernels,
        layers,
        other_sizes,
        others,
        readme,
        sampling,
        small_cards,
        small_cards_5b,
    )
}

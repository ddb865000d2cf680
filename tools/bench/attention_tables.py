"""The page's tables of attention: layers, kernels, int8, errors."""

from __future__ import annotations

from .cells import VIDEOS, share, share_of_ms, table, times
from .measured import Row, floor_of_evaluation, floors_of_layers, row, rows

SIZES = "1080P x 81", "4K x 81"
LAYERS = {
    "comfyui": "ComfyUI 0.30.0, dense",
    "cudnn": "ComfyUI with cuDNN's attention",
    "published": "UltraGen as published",
    "plain": "this pack, plain PyTorch",
    "ours": "this pack, Triton",
}
KERNELS = {"comfyui": "ComfyUI's choice, bf16", "int8": "int8", "fp8": "fp8"}

FP8 = {
    "comfyui": LAYERS["comfyui"],
    "ours": "this pack, UltraGen",
    "fp8": "this pack, UltraGen, fp8 attention",
    "fp8 products": "this pack, UltraGen, fp8 attention and fp8 layers",
    "t3": "this pack, T3-Video's rule",
    "t3 fp8": "this pack, T3-Video's rule, fp8 attention",
}


def layers() -> str:
    body = []
    for size in SIZES:
        body.append([f"*{VIDEOS[size]}*", "", "", "", "", ""])
        for one in (each for each in rows("layers") if each["size"] == size):
            ours, both = one["method"] == "ours", (one["even_ms"], one["odd_ms"])
            shown = [f"**{value}**" if ours else value for value in both]
            if one["method"] == "peaks":
                body.append(["*floor by this run's own peak rates*", shown[0], "", shown[1], "", ""])
                continue
            floors = floors_of_layers(size, one["method"])
            shares = list(map(share_of_ms, floors, both))
            body.append([LAYERS[one["method"]], shown[0], shares[0], shown[1], shares[1], one["peak_gib"]])
    return table(["", "even block", "floor", "odd block", "floor", "peak GiB"], body)


def kernels() -> str:
    return table(
        ["attention kernel", "tokens", "TFLOP/s", "error against float64"],
        ([one["kernel"], f"{int(one['tokens']):,}", one["tflops"], one["error"]] for one in rows("kernels")),
    )


def int8() -> str:
    head = ["", "attention", "ms", "floor", "peak GiB", "error against float32"]
    return table(
        head,
        (
            [one["what"], KERNELS[one["kernel"]], one["ms"], _floor_of_int8(one), one["peak_gib"], one["error"]]
            for one in rows("int8")
        ),
    )


def _floor_of_int8(one: Row) -> str:
    """Of bf16 rows; the rates of int8 were not measured."""
    if one["kernel"] == "int8":
        return ""
    even, odd = floors_of_layers("1080P x 81", "ours")
    floors = {
        "layer, even block": even,
        "layer, odd block": odd,
        "layer, dense": floors_of_layers("1080P x 81", "comfyui")[0],
        "evaluation, UltraGen in all blocks": floor_of_evaluation("1.3b", "1080P x 81", "all"),
    }
    return share_of_ms(floors[one["what"]], one["ms"])


def int8_scores() -> str:
    return table(
        ["", "ComfyUI's choice", "int8"], ([one["score"], one["comfyui"], one["int8"]] for one in rows("int8_scores"))
    )


def fp8() -> str:
    """Dense attention, bf16 and fp8, under headings that name size and card. Ratios are to ComfyUI in the same run."""
    head, body, heading = ["", "seconds", "", "floor", "peak GiB", "host ms"], [], ""
    for one in sorted(rows("fp8"), key=lambda one: (SIZES.index(one["size"]), one["card"])):
        if heading != (heading := f"*{VIDEOS[one['size']]}, {one['card']}*"):
            body.append([heading, *[""] * (len(head) - 1)])
        dense = row("fp8", run=one["run"], size=one["size"], method="comfyui")
        ratio = times(dense["seconds"], one["seconds"]) if dense not in (None, one) else ""
        floor = floor_of_evaluation(one["model"], one["size"], one["method"])
        cells = [f"{float(one['seconds']):.2f}", ratio, share(floor, one["seconds"]), one["peak_gib"], one["host_ms"]]
        body.append([FP8[one["method"]], *cells])
    return table(head, body)


def fp8_windows() -> str:
    head = ["windows", "keys", "cuDNN bf16, ms", "fp8, ms", ""]
    body = []
    for one in rows("fp8_windows"):
        both = one["bf16_ms"], one["fp8_ms"]
        body.append([one["windows"], f"{int(one['keys']):,}", *both, times(*both)])
    return table(head, body)


def fp8_products() -> str:
    head = ["attention", "weights", "ms", "ms before", "peak GiB", "error against float32"]
    columns = "weights", "ms", "ms_before", "peak_gib", "error"
    return table(head, ([KERNELS[one["kernel"]], *(one[column] for column in columns)] for one in rows("fp8_products")))


def fp8_scores() -> str:
    return table(
        ["", "bf16", "fp8 attention", "fp8 layers", "both"],
        ([one[column] for column in ("score", "comfyui", "fp8", "fp8_layers", "both")] for one in rows("fp8_scores")),
    )


def fp8_drift() -> str:
    return table(["", "distance from bf16"], ([one["what"], one["drift"]] for one in rows("fp8_drift")))


def errors() -> str:
    return table(["", "error"], ([one["what"], one["error"]] for one in rows("errors")))

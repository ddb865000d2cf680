"""One evaluation of a whole Wan model, random weights, through ComfyUI's own classes: core, the published arithmetic
and this pack; time, rate and peak memory."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from ultragen_core.grid import TokenGrid
from ultragen_core.ops.dispatch import use_triton

from .attention import GRIDS
from .published import published_attention

GIB = 2**30
# Wan 2.1 1.3B and Wan 2.2 5B.
MODELS = {
    "1.3b": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "channels": 16},
    "5b": {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "channels": 48},
}
LAYERS = 30
TEXT = {"text_dim": 4096, "tokens": 512}
PUBLISHED_DENSE = frozenset({0, 1, 2, 27, 28, 29})
METHODS = ("core", "cudnn", "published", "plain", "ours", "all", "t3")
# Holds all of the card's memory but what a small card leaves to a program, until it is ended.
HOLDER = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - int(float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


class Row(NamedTuple):
    size: str
    tokens: int
    method: str
    seconds: float
    peak_gib: float
    extrapolated: bool


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("model", help=__doc__)
    parser.add_argument("--model", default="1.3b", choices=MODELS)
    parser.add_argument("--sizes", nargs="+", default=["1080P x 81"], choices=GRIDS)
    parser.add_argument(
        "--methods", nargs="+", default=["core", "cudnn", "published", "plain", "ours", "all"], choices=METHODS
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--layers", type=int, default=LAYERS, help="fewer: the rest is extrapolated, what is no block too"
    )
    parser.add_argument("--one-block", nargs="*", default=["2K x 81", "4K x 29", "4K x 81"],
                        help="sizes at which dense models are extrapolated from one block")  # fmt: skip
    parser.add_argument("--usable", type=float, help="GiB that an emulated small card leaves to a program")
    parser.add_argument("--dynamic", action="store_true", help="with ComfyUI's dynamic VRAM, as its main.py sets it up")
    parser.add_argument("--sample", type=int, metavar="STEPS", help="a CFG 5 run of so many steps through the sampler")
    parser.add_argument("--cfg", type=float, default=5.0, help="of that run; 1 evaluates the model once a step")
    parser.add_argument("--decode", action="store_true", help="decode what that run made, in exact tiles")
    parser.add_argument("--csv", type=Path)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    holder = hold_all_but(options.usable) if options.usable else None
    try:
        if options.dynamic:
            dynamic_vram()
        print(torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version())
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            measure(options, Path(folder) / "random.safetensors")
    finally:
        if holder:
            holder.terminate()


def hold_all_but(usable: float) -> subprocess.Popen:
    """A second process that leaves so many GiB of the card."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(usable)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    free, _ = torch.cuda.mem_get_info()
    print(f"emulated card: {free / GIB:.2f} GiB free after this program's own context")
    return holder


def dynamic_vram() -> None:
    """The rest of what ComfyUI's main.py does for it; bench.py has done the first half."""
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy_aimdo.control

    device = comfy.model_management.get_torch_device()
    assert comfy_aimdo.control.init_devices([(device.index, 0)]), "no working comfy-aimdo"
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def write_checkpoint(path: Path, shape: dict, extras: bool) -> None:
    """Random weights in the published format: a whole Wan model, with UltraGen's extras in every block or without."""
    import comfy.ldm.wan.model as wan
    from safetensors.torch import save_file

    from ultragen_core.attention.extras import ExtrasShape, initial_block
    from ultragen_core.attention.gate import BlockGates
    from ultragen_core.weights.published import Extras, published_items

    sizes = {key: value for key, value in shape.items() if key != "channels"}
    with torch.device("meta"):
        model = wan.WanModel(
            in_dim=shape["channels"], out_dim=shape["channels"], text_dim=TEXT["text_dim"], cross_attn_norm=True,
            operations=torch.nn, **sizes,
        )  # fmt: skip
    state = {}
    for key, parameter in model.state_dict().items():
        scale = 0.02 if parameter.ndim > 1 else 0.1
        value = scale * torch.randn(parameter.shape, device="cuda")
        state[key] = (1 + value if "norm" in key and key.endswith("weight") else value).bfloat16().cpu()
    if extras:
        extras_shape = ExtrasShape(shape["dim"], 64, refined=True)
        gates = BlockGates(shape["dim"]).state_dict()
        blocks = range(shape["num_layers"])
        added = Extras(
            extras_shape,
            {i: {k: v + 0.01 * torch.randn_like(v) for k, v in initial_block(extras_shape).items()} for i in blocks},
            {i: gates for i in blocks},
        )
        state |= {key: value.detach().bfloat16().clone() for key, value in published_items(added)}
    save_file(state, path)


def measure(options: argparse.Namespace, path: Path) -> None:
    from ultragen_core.host.attention.load import load_model
    from ultragen_core.weights.complete import DEPTHS

    DEPTHS.clear()  # models of fewer layers than published are meant here
    shape = MODELS[options.model] | {"num_layers": options.layers}
    write_checkpoint(path, shape, extras=options.model == "1.3b")
    model = load_model(path, "auto" if options.model == "1.3b" else "t3", {"dtype": torch.bfloat16})
    print(
        "weights",
        f"{model.model_size() / GIB:.2f} GiB in",
        model.model.get_dtype(),
        "computed in",
        model.model.manual_cast_dtype,
    )
    rows = []
    for size in options.sizes:
        grid = scaled(GRIDS[size], options.model)
        for method in options.methods:
            if options.sample:
                rows.append(sampled(model, size, grid, method, options))
            elif method in ("core", "cudnn") and size in options.one_block:
                rows.append(one_block(model, size, grid, method))
            else:
                rows.append(evaluation(model, size, grid, method, options.repeats))
            if options.layers < LAYERS:
                rows[-1] = rows[-1]._replace(seconds=rows[-1].seconds * LAYERS / options.layers, extrapolated=True)
            row = rows[-1]
            print(f"{row.size:12} {row.method:10} {row.seconds:9.3f} s {row.peak_gib:7.2f} GiB"
                  f"{'  extrapolated' if row.extrapolated else ''}", flush=True)  # fmt: skip
    if options.csv:
        lines = [",".join(Row._fields), *(",".join(map(str, row)) for row in rows)]
        options.csv.write_text("\n".join(lines) + "\n", encoding="utf-8")


def scaled(grid: TokenGrid, model: str) -> TokenGrid:
    """Tokens of the same video: those of the 5B stand for 32x32 pixels."""
    return grid if model == "1.3b" else TokenGrid(grid.t, -(-grid.h // 2), -(-grid.w // 2))


def patched(model, method: str):
    """The model as `method` runs it, and the transformer options it is given."""
    from comfy.patcher_extension import WrappersMP

    from ultragen_core.attention.config import GlobalConfig
    from ultragen_core.host.attention import backend
    from ultragen_core.host.attention.patch import Settings, apply
    from ultragen_core.host.attention.runtime import KEY

    if method in ("core", "cudnn"):
        dense = model.clone()
        for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.APPLY_MODEL):
            dense.remove_wrappers_with_key(kind, KEY)
        dense.set_additional_models(KEY, [])
        return dense, {backend.OVERRIDE: backend.cudnn_attention} if method == "cudnn" else {}
    if method == "t3":
        return apply(model, Settings(rule="t3")), {}
    blocks = GlobalConfig(dense_blocks=frozenset() if method == "all" else PUBLISHED_DENSE)
    everything = apply(model, Settings(global_=blocks))
    if method == "published":
        runtime = everything.get_wrappers(WrappersMP.APPLY_MODEL, KEY)[0].__self__
        runtime.rule, runtime.bounded = PublishedRule(runtime.rule), False
    return everything, {}


class PublishedRule:
    """UltraGen's rule by the published arithmetic."""

    def __init__(self, rule):
        self.rule, self.extras = rule, rule.extras

    def describe(self, grid: TokenGrid, blocks: int) -> list[str]:
        return ["the published arithmetic"]

    def attentions(self, extras, t, grid: TokenGrid) -> dict[int, Callable]:
        def attention(attn, x, engine, index, **ours):
            return published_attention(attn, x, grid, index, ours["extras"], ours["gates"])

        ours = self.rule.attentions(extras, t, grid)
        return {index: partial(attention, index=index, **bound.keywords) for index, bound in ours.items()}


def inputs(model, grid: TokenGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent and text of one video, on the device."""
    channels = model.model.diffusion_model.out_dim
    x = torch.randn(1, channels, grid.t, 2 * grid.h, 2 * grid.w, device="cuda")
    return x, 0.1 * torch.randn(1, TEXT["tokens"], TEXT["text_dim"], device="cuda")


def evaluation(model, size: str, grid: TokenGrid, method: str, repeats: int) -> Row:
    import comfy.model_management as mm

    chosen, options = patched(model, method)
    x, context = inputs(model, grid)
    mm.load_models_gpu([chosen, *chosen.get_nested_additional_models()])
    chosen.pre_run()
    options = {**chosen.model_options.get("transformer_options", {}), "wrappers": chosen.wrappers, **options}
    sigma, seconds = torch.full((1,), 0.9, device="cuda"), []
    with use_triton(False) if method == "plain" else nullcontext():
        for repeat in range(repeats):
            if repeat <= 1:  # the first one compiles and tunes
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            start = time.perf_counter()
            chosen.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    chosen.cleanup()
    return Row(size, grid.tokens, method, min(seconds), torch.cuda.max_memory_allocated() / GIB, False)


def one_block(model, size: str, grid: TokenGrid, method: str) -> Row:
    """A dense model from one block of it, all else left out."""
    import comfy.model_management as mm

    chosen, options = patched(model, method)
    mm.load_models_gpu([chosen])
    dm = model.model.diffusion_model
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    x = torch.randn(1, grid.tokens, dm.dim, device="cuda", dtype=dtype)
    e, context = (
        torch.randn(1, 6, dm.dim, device="cuda", dtype=dtype),
        torch.randn(1, 512, dm.dim, device="cuda", dtype=dtype),
    )
    freqs = dm.rope_encode(grid.t, 2 * grid.h, 2 * grid.w, device=x.device, dtype=dtype)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        dm.blocks[0](x, e=e, freqs=freqs, context=context, context_img_len=None, transformer_options=options)
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) * len(dm.blocks)
    return Row(size, grid.tokens, method, seconds, torch.cuda.max_memory_allocated() / GIB, True)


def sampled(model, size: str, grid: TokenGrid, method: str, options: argparse.Namespace) -> Row:
    """A run through core's sampler, positive and negative prompt random."""
    import comfy.sample
    import comfy.samplers

    from ultragen_core.host.sampling import with_shift
    from ultragen_core.sampling import flow_sigmas

    chosen, _ = patched(model, method)
    chosen = with_shift(chosen, 5.0)
    x, context = inputs(model, grid)
    latent = torch.zeros_like(x).cpu()
    positive, negative = ([[0.1 * torch.randn_like(context).cpu(), {}]] for _ in range(2))
    del x, context
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start, ends = time.perf_counter(), []
    video = comfy.sample.sample_custom(
        chosen, comfy.sample.prepare_noise(latent, 0), options.cfg, comfy.samplers.sampler_object("euler"),
        flow_sigmas(options.sample, 5.0), positive, negative, latent, disable_pbar=True, seed=0,
        callback=lambda *_: torch.cuda.synchronize() or ends.append(time.perf_counter()),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / GIB
    print("seconds a step:", *(f"{b - a:.2f}" for a, b in pairwise([start, *ends])))
    assert torch.isfinite(video).all()
    if options.decode:
        decode(video)
    return Row(size, grid.tokens, f"{method}, {options.sample} steps", seconds, peak, False)


def decode(video: torch.Tensor) -> None:
    from .vae import decode_to_bytes, random_vae

    vae = random_vae(96)
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    frames = decode_to_bytes(vae, video, None)
    seconds, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated() / GIB
    print(
        f"decoded to {tuple(frames.shape)}, values up to {frames.max()}, in {seconds:.1f} s, {peak:.2f} GiB", flush=True
    )

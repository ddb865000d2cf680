"""One evaluation of a whole Wan model, random weights, through ComfyUI's own classes: ComfyUI's core, the published
arithmetic and this pack; time, the host's time to launch it, and peak memory."""

from __future__ import annotations

import argparse
import csv
import datetime
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch

from ultragen_core.grid import TokenGrid
from ultragen_core.plan.flops import TEXT_TOKENS
from ultragen_core.wan import WAN_1_3B

from .attention import GRIDS
from .card import GIB, card_name, dynamic_vram, small_card
from .evaluation import Row, evaluation, latent_of, one_block
from .fp8_products import counted_fp8_products
from .methods import METHODS, WEIGHT_DTYPE, load, prepared, running
from .random_model import MODELS, random_checkpoint

SHIFT = 5.0
LAYERS = WAN_1_3B.blocks  # and the 5B's


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("model", help=__doc__)
    parser.add_argument("--model", default="1.3b", choices=MODELS)
    parser.add_argument("--sizes", nargs="+", default=["1080P x 81"], choices=GRIDS)
    parser.add_argument(
        "--methods", nargs="+", default=["comfyui", "cudnn", "published", "plain", "ours", "all"], choices=METHODS
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--layers",
        type=int,
        default=LAYERS,
        help="blocks of the model; fewer than 30 are extrapolated",
    )
    parser.add_argument("--one-block", nargs="*", default=["2K x 81", "4K x 29", "4K x 81"],
                        help="sizes at which dense models are extrapolated from one block")  # fmt: skip
    parser.add_argument("--usable", type=float, help="emulate a small card with so many GiB for this program")
    parser.add_argument("--dynamic", action="store_true", help="with ComfyUI's dynamic VRAM")
    parser.add_argument("--sample", type=int, metavar="STEPS", help="run so many steps through ComfyUI's sampler")
    parser.add_argument("--cfg", type=float, default=5.0, help="CFG of that run; 1 evaluates the model once per step")
    parser.add_argument("--decode", action="store_true", help="decode the result of that run in exact tiles")
    parser.add_argument("--csv", type=Path)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    with small_card(options.usable):
        if options.dynamic:
            dynamic_vram()
        print(torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version())
        shape, extras = replace(MODELS[options.model], blocks=options.layers), options.model == "1.3b"
        with torch.inference_mode(), random_checkpoint(shape, torch.device("cuda"), extras) as path:
            measure(options, path)


def measure(options: argparse.Namespace, path: Path) -> None:
    @lru_cache(maxsize=1)
    def loaded(weight_dtype: str):
        model = load(path, "auto" if options.model == "1.3b" else "t3", weight_dtype)
        stored = model.model.get_dtype()
        computed = model.model.manual_cast_dtype or stored
        print(f"weights {model.model_size() / GIB:.2f} GiB in {stored}, computed in {computed}")
        return model

    rows = []
    for size in options.sizes:
        grid = scaled(GRIDS[size], options.model)
        for method in options.methods:
            model = loaded(WEIGHT_DTYPE[method])
            with counted_fp8_products() as products:
                if options.sample:
                    rows.append(sampled(model, size, grid, method, options))
                elif method in ("comfyui", "cudnn") and size in options.one_block:
                    rows.append(one_block(model, size, grid, method))
                else:
                    rows.append(evaluation(model, size, grid, method, options.repeats))
            if options.layers < LAYERS:
                rows[-1] = rows[-1].of_layers(LAYERS, options.layers)
            row = rows[-1]
            print(f"{row.size:12} {row.method:12} {row.seconds:9.3f} s {row.peak_gib:7.2f} GiB"
                  f"{'' if row.host_ms is None else f'  host {row.host_ms:4.0f} ms'}"
                  f"{'  extrapolated' if row.extrapolated else ''}{f'  {products}' if products.calls else ''}",
                  flush=True)  # fmt: skip
    if options.csv:
        write_csv(options.csv, options.model, rows)


def write_csv(path: Path, model: str, rows: list[Row]) -> None:
    """Write rows in the columns of docs/data/evaluations.csv."""
    same = {"model": model, "card": card_name(), "recorded": datetime.date.today().isoformat()}
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["model", *Row._fields, "card", "recorded"], lineterminator="\n")
        table.writeheader()
        table.writerows({**same, **row._asdict()} for row in rows)


def scaled(grid: TokenGrid, model: str) -> TokenGrid:
    """Return the token grid of the same video. The 5B's tokens are 32x32 pixels."""
    return grid if model == "1.3b" else TokenGrid(grid.t, -(-grid.h // 2), -(-grid.w // 2))


def sampled(model, size: str, grid: TokenGrid, method: str, options: argparse.Namespace) -> Row:
    """Time a run through ComfyUI's sampler; both prompts are random."""
    from ultragen_core.host.sampling import with_shift
    from ultragen_core.host.speed.evaluation import inputs

    chosen = with_shift(prepared(model, method), SHIFT)
    x, context = inputs(latent_of(model, grid), "cuda")
    latent, prompts = torch.zeros_like(x).cpu(), [0.1 * torch.randn_like(context).cpu() for _ in range(2)]
    del x, context
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start, ends = time.perf_counter(), []
    video = sample(
        chosen, method, latent, prompts, options.sample, options.cfg,
        lambda: torch.cuda.synchronize() or ends.append(time.perf_counter()),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / GIB
    print("seconds a step:", *(f"{b - a:.2f}" for a, b in pairwise([start, *ends])))
    assert torch.isfinite(video).all()
    if options.decode:
        decode(video)
    return Row(size, grid.tokens, f"{method}, {options.sample} steps", seconds, peak, False)


def random_prompts() -> list[torch.Tensor]:
    """Two texts (1, TEXT_TOKENS, TEXT_CHANNELS) for `sample`, the same in every call."""
    from ultragen_core.host.speed.random_weights import TEXT_CHANNELS

    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(1, TEXT_TOKENS, TEXT_CHANNELS, generator=generator) for _ in range(2)]


def sample(
    chosen,
    method: str,
    latent: torch.Tensor,
    prompts: list[torch.Tensor],
    steps: int,
    cfg: float,
    on_step: Callable[[], None],
) -> torch.Tensor:
    """Sample with ComfyUI's euler. chosen: from `prepared`. latent: zeros (1, c, t, h, w). prompts: both texts."""
    import comfy.sample
    import comfy.samplers

    from ultragen_core.sampling import flow_sigmas

    noise, euler = comfy.sample.prepare_noise(latent, 0), comfy.samplers.sampler_object("euler")
    with running(method):
        return comfy.sample.sample_custom(
            chosen, noise, cfg, euler, flow_sigmas(steps, SHIFT),
            *([[prompt, {}]] for prompt in prompts), latent, disable_pbar=True, seed=0, callback=lambda *_: on_step(),
        )  # fmt: skip


def decode(video: torch.Tensor) -> None:
    from ultragen_core.host.speed.decode import decode_to_bytes
    from ultragen_core.host.speed.random_weights import random_vae

    vae = random_vae(96)
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    frames = decode_to_bytes(vae, video, None)
    seconds, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated() / GIB
    print(
        f"decoded to {tuple(frames.shape)}, values up to {frames.max()}, in {seconds:.1f} s, {peak:.2f} GiB", flush=True
    )

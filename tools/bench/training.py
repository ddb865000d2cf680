"""Forward and backward of one self-attention layer in training: Wan's dense one and UltraGen's. Needs no GPU."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ultragen_core.attention.extras import ExtrasShape
from ultragen_core.grid import TokenGrid

HEAD = 128


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("training", help=__doc__)
    parser.add_argument("--grids", nargs="+", default=["21x68x120"], help="tokens: t x h x w")
    parser.add_argument("--channels", type=int, default=1536)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.device == "cpu":
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
    mixed = options.device != "cpu"
    print(f"{options.channels} channels, batch 1, {'bf16 autocast' if mixed else 'float32'}, milliseconds")
    print("| tokens | layer | forward | forward and backward |\n|---|---|---|---|")
    for text in options.grids:
        grid = TokenGrid(*map(int, text.split("x")))
        x = torch.randn(1, grid.tokens, options.channels, device=options.device)
        for name, layer in layers(options, grid).items():
            with torch.autocast(options.device, torch.bfloat16, enabled=mixed):
                forward = median(lambda: layer(x.clone().requires_grad_()), options)
                both = median(lambda: layer(x.clone().requires_grad_()).sum().backward(), options)
            print(f"| {grid} | {name} | {forward:.1f} | {both:.1f} |")


def layers(options: argparse.Namespace, grid: TokenGrid) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return {name: layer(x)}."""
    import comfy.ldm.wan.model as wan
    import comfy.model_management

    from training.model import GRID, OVERRIDE, TIMESTEP, Operations, TrainedAttention, core_attention
    from training.recipe import Recipe

    comfy.model_management.in_training = True
    torch.manual_seed(0)
    channels, heads = options.channels, options.channels // HEAD
    place = {"operations": Operations, "device": options.device, "dtype": torch.float32}
    dense = wan.WanSelfAttention(channels, heads, operation_settings=place)
    model = wan.WanModel(dim=channels, ffn_dim=16, num_heads=heads, num_layers=0, operations=Operations)
    freqs = model.rope_encode(grid.t, 2 * grid.h, 2 * grid.w, device=options.device, dtype=torch.float32)
    shape, layers_of = ExtrasShape(channels, options.rank, refined=True), {"dense": dense}
    for index, name in ((2, "UltraGen, even block"), (3, "UltraGen, odd block")):
        layers_of[name] = TrainedAttention(dense, Recipe().spec(index), shape).to(options.device)
    given = {TIMESTEP: torch.tensor([500.0], device=options.device), GRID: grid, OVERRIDE: core_attention}
    return {
        name: lambda x, layer=layer: layer(x, freqs, transformer_options=given) for name, layer in layers_of.items()
    }


def median(function: Callable[[], object], options: argparse.Namespace) -> float:
    """Return the median in ms: wall time, or on the CPU this process's CPU time, which others do not affect."""
    times = []
    for repeat in range(options.repeats + 1):
        clock = time.process_time if options.device == "cpu" else time.perf_counter
        if options.device == "cuda":
            torch.cuda.synchronize()
        started = clock()
        function()
        if options.device == "cuda":
            torch.cuda.synchronize()
        if repeat:  # the first run builds tables
            times.append(clock() - started)
    return 1000 * statistics.median(times)

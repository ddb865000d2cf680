"""An attention kernel next to ComfyUI's choice: error against float32, time and peak memory of layers (random weights)
and of evaluations (random weights and the miniature), and the miniature's scores."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.extras import ExtrasShape
from ultragen_core.attention.layer import ultragen_attention
from ultragen_core.attention.t3 import t3_attention
from ultragen_core.grid import TokenGrid
from ultragen_core.rules.choice import COMFYUI
from ultragen_core.rules.t3 import PUBLISHED_1_3B
from ultragen_core.rules.ultragen import block_spec
from ultragen_core.wan import WAN_1_3B

from .attention import CHANNELS, GRIDS, RANK, random_layer, wan_freqs
from .card import GIB
from .evaluation import latent_of
from .random_model import random_checkpoint

PARTS = ("layer", "evaluation", "miniature")
MINIATURE = Path(__file__).parents[2] / "training" / "miniature" / "weights" / "ultragen.safetensors"
MINIATURE_GRID = TokenGrid(5, 22, 40)  # 640x352, 17 frames


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("kernels", help=__doc__)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--kernels", nargs="+", default=["int8"], help="values of attention_kernel")
    parser.add_argument("--size", default="1080P x 81", choices=GRIDS)
    parser.add_argument("--rules", nargs="+", default=["ultragen", "dense"], choices=["ultragen", "t3", "dense"])
    parser.add_argument("--layers", type=int, default=WAN_1_3B.blocks, help="blocks of the evaluated model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import comfy.model_management

    device, names = comfy.model_management.get_torch_device(), [COMFYUI, *options.kernels]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(name, torch.__version__, "CUDA", torch.version.cuda, "| error: against float32, in the norm")
    with torch.inference_mode():
        if "layer" in options.parts:
            layers(
                names,
                GRIDS[options.size],
                options.rules,
                options.repeats,
                ExtrasShape(CHANNELS, RANK, refined=True),
                device,
            )
        if "evaluation" in options.parts:
            with random_checkpoint(replace(WAN_1_3B, blocks=options.layers), device) as path:
                evaluations("random 1.3B", path, names, GRIDS[options.size], options.repeats, device)
        if "miniature" in options.parts:
            evaluations("miniature", MINIATURE, names, MINIATURE_GRID, options.repeats, device)
    if "miniature" in options.parts:
        miniature(names, device)


def layers(
    names: list[str], grid: TokenGrid, rules: list[str], repeats: int, shape: ExtrasShape, device: torch.device
) -> None:
    """Print one line for each layer and kernel. "kept": q, k and v live until the attention has ended."""
    from ultragen_core.host.attention.backend import choose_attention
    from ultragen_core.host.attention.kernels import load_kernel

    exact_attn, exact_extras, gates = random_layer(shape, device, torch.float32)
    attn, extras = (copy.deepcopy(module).to(torch.bfloat16) for module in (exact_attn, exact_extras))
    x = torch.randn(1, grid.tokens, shape.channels, device=device)
    for rule in rules:
        for layer, function in _functions(rule, grid, gates):
            reference = function(exact_attn, x, exact_extras, {}).cpu()
            for name in names:
                options = choose_attention(attn, {}, device, load_kernel(name)).options
                for kept in (False, True) if name != COMFYUI and rule != "dense" else (False,):
                    call = partial(function, attn, x.bfloat16(), extras, options, kept=kept)
                    _report(f"{layer}, {name}{', kept' if kept else ''}", call, reference, repeats, device)


def _functions(rule: str, grid: TokenGrid, gates) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Yield name and function(attn, x, extras, transformer_options, kept=False) of a rule's layers."""
    from ultragen_core.host.attention.layers import engine

    def engine_of(attn, options: dict, kept: bool):
        made = engine(attn, options, None)
        return replace(made, attention_=None) if kept else made

    def ultragen(attn, x, extras, options, kept=False, block=0):
        spec = block_spec(block, LocalConfig(), GlobalConfig(), trained=True)
        return ultragen_attention(attn, x, grid, spec, extras, gates, engine_of(attn, options, kept))

    def t3(attn, x, extras, options, kept=False, block=0):
        return t3_attention(attn, x, grid, PUBLISHED_1_3B.windows_of(block, grid), engine_of(attn, options, kept))

    def dense(attn, x, extras, options, kept=False):
        return attn(x, wan_freqs(grid, attn.dim, x), transformer_options=options)

    if rule == "dense":
        yield "dense", dense
    else:
        for block in range(2, 4) if rule == "ultragen" else range(5):
            yield f"{rule}, block {block}", partial(ultragen if rule == "ultragen" else t3, block=block)


def evaluations(title: str, path: Path, names: list[str], grid: TokenGrid, repeats: int, device: torch.device) -> None:
    """Print one line for each kernel: one evaluation of the UltraGen checkpoint at `path`, computed in bfloat16."""
    from ultragen_core.host.attention.load import load_model
    from ultragen_core.host.speed.evaluation import inputs

    def model_of(dtype: torch.dtype, name: str = COMFYUI):
        return load_model(path, "auto", {"dtype": dtype}, name)

    exact = model_of(torch.float32)
    x, context = inputs(latent_of(exact, grid), device)
    with evaluated(exact, x, context) as evaluate:
        reference = evaluate().cpu()
    del exact
    for name in names:
        with evaluated(model_of(torch.bfloat16, name), x, context) as evaluate:
            _report(f"{title}, {name}", evaluate, reference, repeats, device)


@contextmanager
def evaluated(model, x: Tensor, context: Tensor) -> Iterator[Callable[[], Tensor]]:
    """Load a model alone; the function evaluates it once, and returns the velocity."""
    import comfy.model_management as mm

    from ultragen_core.host.speed.evaluation import evaluating

    mm.unload_all_models()
    sigmas = torch.tensor([0.9])
    with evaluating(model, sigmas) as evaluate:
        yield lambda: x - evaluate(x, context, sigmas[0])


def miniature(names: list[str], device: torch.device, **changes) -> None:
    """Print the miniature's scores. changes: of training.miniature.kernel_scores.KernelScoring."""
    from training.miniature.kernel_scores import KernelScoring, scores, table

    scoring = KernelScoring(**changes)
    print(f"miniature, mean and deviation of {len(scoring.seeds)} seeds of {scoring.videos} videos:")
    print(table({name: scores(name, scoring, device) for name in names}), flush=True)


def _report(name: str, call: Callable[[], Tensor], reference: Tensor, repeats: int, device: torch.device) -> None:
    """Print error, median time, and peak memory in addition to what was allocated before."""
    gpu = device.type == "cuda"
    error = (call().float().cpu() - reference.float()).norm() / reference.float().norm()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if gpu:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    peak = f" {(torch.cuda.max_memory_allocated() - before) / GIB:6.2f} GiB" if gpu else ""
    print(f"{name:32} {statistics.median(times):9.1f} ms{peak}  error {error:.1e}", flush=True)

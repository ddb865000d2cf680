"""Attention alone and layers with an attention kernel, random data: error, time and peak memory."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.extras import ExtrasShape
from ultragen_core.attention.layer import ultragen_attention
from ultragen_core.attention.rope import RopeTables
from ultragen_core.attention.t3 import t3_attention
from ultragen_core.grid import TokenGrid
from ultragen_core.rules.choice import COMFYUI
from ultragen_core.rules.t3 import PUBLISHED_1_3B
from ultragen_core.rules.ultragen import block_spec

from .attention import HEAD, random_layer, wan_freqs
from .card import GIB

WINDOWS = ((136, 1260), (102, 1680), (80, 2142), (25, 6936), (21, 8160), (16, 10710), (1, 42840), (1, 171360))
"""Windows and keys of each, at 1920x1088 and 81 frames: T3-Video's, UltraGen's, and the whole frame."""
QUERIES = 64  # of the first window, compared with float64


def attention(
    names: list[str], windows: Sequence[tuple[int, int]], heads: int, repeats: int, device: torch.device
) -> None:
    """Print one line for each number of windows and kernel: self-attention of normally distributed q, k and v."""
    from ultragen_core.host.attention.backend import cudnn_sdpa
    from ultragen_core.host.attention.kernel import split_heads
    from ultragen_core.host.attention.kernels import load_kernel

    whole = cudnn_sdpa if device.type == "cuda" else F.scaled_dot_product_attention
    calls = {name: whole if name == COMFYUI else load_kernel(name).attention for name in names}
    for count, keys in windows:
        q, k, v = (
            split_heads(torch.randn(count, keys, heads * HEAD, device=device, dtype=torch.bfloat16), heads)
            for _ in range(3)
        )
        reference = F.scaled_dot_product_attention(q[:1, :, :QUERIES].double(), k[:1].double(), v[:1].double()).cpu()
        for name, call in calls.items():
            made = partial(call, q, k, v)
            report(f"{count} x {keys}, {name}", made, reference, repeats, device, lambda y: y[:1, :, :QUERIES])


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
                    report(f"{layer}, {name}{', kept' if kept else ''}", call, reference, repeats, device)


def _functions(rule: str, grid: TokenGrid, gates) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Yield name and function(attn, x, extras, transformer_options, kept=False) of a rule's layers.

    Rotations are computed in the first call of each dtype, as once a run: on the CPU they take longer than a layer.
    """
    from ultragen_core.host.attention.layers import engine

    tables, freqs = RopeTables(), {}

    def engine_of(attn, options: dict, kept: bool):
        made = engine(attn, options, None, rope_tables=tables)
        return replace(made, attention_=None) if kept else made

    def ultragen(attn, x, extras, options, kept=False, block=0):
        spec = block_spec(block, LocalConfig(), GlobalConfig(), trained=True)
        return ultragen_attention(attn, x, grid, spec, extras, gates, engine_of(attn, options, kept))

    def t3(attn, x, extras, options, kept=False, block=0):
        return t3_attention(attn, x, grid, PUBLISHED_1_3B.windows_of(block, grid), engine_of(attn, options, kept))

    def dense(attn, x, extras, options, kept=False):
        if x.dtype not in freqs:
            freqs[x.dtype] = wan_freqs(grid, attn.dim, x)
        return attn(x, freqs[x.dtype], transformer_options=options)

    if rule == "dense":
        yield "dense", dense
    else:
        for block in range(2, 4) if rule == "ultragen" else range(5):
            yield f"{rule}, block {block}", partial(ultragen if rule == "ultragen" else t3, block=block)


def report(
    name: str,
    call: Callable[[], Tensor],
    reference: Tensor,
    repeats: int,
    device: torch.device,
    compared: Callable[[Tensor], Tensor] = lambda made: made,
) -> None:
    """Print error, median time, and peak memory in addition to what was allocated before.

    compared: the part of the result that `reference` is of.
    """
    gpu = device.type == "cuda"
    error = (compared(call()).float().cpu() - reference.float()).norm() / reference.float().norm()
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
    print(f"{name:40} {statistics.median(times):9.1f} ms{peak}  error {error:.1e}", flush=True)

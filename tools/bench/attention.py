"""One self-attention layer of Wan 2.1 1.3B, random weights: ComfyUI's, the published arithmetic, and this pack's."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.extras import BlockExtras, ExtrasShape, initial_block
from ultragen_core.attention.gate import Gates
from ultragen_core.attention.layer import ultragen_attention
from ultragen_core.attention.t3 import t3_attention
from ultragen_core.grid import TokenGrid
from ultragen_core.ops.dispatch import use_triton
from ultragen_core.plan.flops import FLOPs, dense_layer_flops, layer_flops
from ultragen_core.rules.groups import t3_group, ultragen_group
from ultragen_core.rules.t3 import PUBLISHED_1_3B
from ultragen_core.rules.ultragen import block_spec

from .published import published_attention

CHANNELS, HEADS, HEAD, RANK = 1536, 12, 128, 64
GRIDS = {
    "480P x 81": TokenGrid(21, 30, 52),
    "720P x 81": TokenGrid(21, 45, 80),
    "1080P x 81": TokenGrid(21, 68, 120),
    "2K x 81": TokenGrid(21, 90, 160),
    "4K x 29": TokenGrid(8, 135, 240),
    "4K x 81": TokenGrid(21, 136, 240),
}


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("attention", help=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["1080P x 81"], choices=GRIDS)
    parser.add_argument("--rules", nargs="+", default=["ultragen"], choices=["dense", "ultragen", "t3"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.set_defaults(run=run)


class Bench:
    """The modules of one layer, and the methods to compare on them."""

    def __init__(self):
        import comfy.ops

        self.device = torch.device("cuda")
        self.shape = ExtrasShape(CHANNELS, RANK, refined=True)
        self.attn, self.extras, self.gates = random_layer(self.shape, self.device, torch.bfloat16)
        self.engine = Engine(cudnn_attention, comfy.ops.cast_bias_weight)
        self.ceilings = Ceilings.measure()

    def dense(self, size: str, x: Tensor) -> None:
        grid, cost = GRIDS[size], dense_layer_flops(GRIDS[size], CHANNELS)
        freqs = wan_freqs(grid, CHANNELS, x)
        self.report(size, "ComfyUI dense, as shipped", lambda: self.attn(x, freqs), 1, cost)
        cudnn = {"optimized_attention_override": lambda f, q, k, v, heads, **kw: cudnn_attention(q, k, v, heads)}
        self.report(size, "ComfyUI dense, cuDNN", lambda: self.attn(x, freqs, transformer_options=cudnn), 1, cost)

    def ultragen(self, size: str, x: Tensor, repeats: int) -> None:
        grid, extras, gates = GRIDS[size], self.extras, self.gates
        for parity, block in (("even", 2), ("odd", 3)):
            spec = block_spec(block, LocalConfig(), GlobalConfig(), trained=True)
            cost = layer_flops(ultragen_group(parity, [block], grid, spec, self.shape).branches, grid, CHANNELS)

            def published():
                return published_attention(self.attn, x, grid, block, extras, gates)

            def ours():
                return ultragen_attention(self.attn, x, grid, spec, extras, gates, self.engine)

            reference = self.report(size, f"published arithmetic, {parity}", published, 3, cost)
            with use_triton(False):
                plain = self.report(size, f"this pack, plain, {parity}", ours, repeats, cost)
            fast = self.report(size, f"this pack, Triton, {parity}", ours, repeats, cost)
            for name, result in (("plain", plain), ("Triton", fast)):
                error = (result.float() - reference.float()).norm() / reference.float().norm()
                print(f"  {name} against the published arithmetic in bf16: {error:.1e}")

    def t3(self, size: str, x: Tensor, repeats: int) -> None:
        grid = GRIDS[size]
        for block in range(5):
            windows = PUBLISHED_1_3B.windows_of(block, grid)

            def ours():
                return t3_attention(self.attn, x, grid, windows, self.engine)

            cost = layer_flops(t3_group("block", [block], grid, windows).branches, grid, CHANNELS)
            self.report(size, f"t3, block {block}, {windows}", ours, repeats, cost)

    def report(self, size: str, name: str, function: Callable, repeats: int, cost: FLOPs) -> Tensor:
        """Print median time, rate, share of the floor, and peak memory on top of what was allocated before."""
        result = function()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, times = torch.cuda.memory_allocated(), []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        ms = statistics.median(times)
        floor, rate = self.ceilings.floor_ms(cost), cost.total / ms / 1e9
        print(
            f"{size:12} {name:34} {ms:9.1f} ms {rate:5.0f} TFLOP/s, floor {floor:8.1f} ms ({floor / ms:4.0%})"
            f" {peak:6.2f} GiB",
            flush=True,
        )
        return result


def random_layer(shape: ExtrasShape, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, BlockExtras, Gates]:
    """Return a self-attention of Wan, extras and gates of one step, with seeded random values."""
    import comfy.ldm.wan.model as wan
    import comfy.ops

    torch.manual_seed(0)
    channels, settings = shape.channels, {"operations": comfy.ops.manual_cast, "device": device, "dtype": dtype}
    attn = wan.WanSelfAttention(channels, channels // HEAD, operation_settings=settings)
    for name, parameter in attn.named_parameters():
        nn.init.ones_(parameter) if "norm" in name else nn.init.normal_(parameter, std=channels**-0.5)
    extras = BlockExtras(shape, comfy.ops.manual_cast, device=device, dtype=dtype)
    start = initial_block(shape).items()
    extras.load_state_dict({key: value + 0.01 * torch.randn_like(value) for key, value in start})
    return attn, extras, Gates(*torch.rand(2, 1, 1, channels, device=device))


@torch.inference_mode()
def run(options: argparse.Namespace) -> None:
    bench = Bench()
    print(torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version(), bench.ceilings)
    for size in options.sizes:
        x = torch.randn(1, GRIDS[size].tokens, CHANNELS, device=bench.device, dtype=torch.bfloat16)
        if "dense" in options.rules:
            bench.dense(size, x)
        if "ultragen" in options.rules:
            bench.ultragen(size, x, options.repeats)
        if "t3" in options.rules:
            bench.t3(size, x, options.repeats)


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


class Ceilings(NamedTuple):
    """The rates in TFLOP/s that bound every layer: cuDNN's attention and a matrix product."""

    attention: float
    products: float

    @classmethod
    def measure(cls) -> Ceilings:
        a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        q = torch.randn(4, 16384, HEADS * 128, device="cuda", dtype=torch.bfloat16)

        def rate(function: Callable, operations: float) -> float:
            for repeat in range(15):
                if repeat == 5:
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    start.record()
                function()
            end.record()
            end.synchronize()
            return operations * 10 / start.elapsed_time(end) / 1e9

        attention = rate(lambda: cudnn_attention(q, q, q, HEADS), 4 * 4 * HEADS * 16384**2 * 128)
        return cls(attention, rate(lambda: a @ a, 2 * 8192**3))

    def floor_ms(self, cost: FLOPs) -> float:
        return (cost.attention / self.attention + cost.products / self.products) / 1e9

    def __str__(self) -> str:
        return f"| ceilings: attention {self.attention:.0f}, matrix products {self.products:.0f} TFLOP/s"


def wan_freqs(grid: TokenGrid, channels: int, x: Tensor) -> Tensor:
    """Return ComfyUI's rotations for tokens x."""
    import comfy.ldm.wan.model as wan

    model = wan.WanModel(dim=channels, ffn_dim=16, num_heads=channels // HEAD, num_layers=0, operations=torch.nn)
    return model.rope_encode(grid.t, 2 * grid.h, 2 * grid.w, device=x.device, dtype=x.dtype)

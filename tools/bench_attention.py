"""One self-attention layer of Wan 2.1 1.3B, random weights: core dense, the published arithmetic, and this pack."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ultragen_core.attention.config import GlobalConfig, LocalConfig, block_spec
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.extras import BlockExtras, ExtrasShape, initial_block
from ultragen_core.attention.gate import Gates
from ultragen_core.attention.grid import TokenGrid, nearest_multiple, window_partition, window_unpartition
from ultragen_core.attention.layer import ultragen_attention
from ultragen_core.attention.rope import rope_table

CHANNELS, HEADS, RANK = 1536, 12, 64
GRIDS = {
    "480P x 81": TokenGrid(21, 30, 52),
    "1080P x 81": TokenGrid(21, 68, 120),
    "2K x 81": TokenGrid(21, 90, 160),
    "4K x 29": TokenGrid(8, 135, 240),
    "4K x 81": TokenGrid(21, 136, 240),
}


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("attention", help=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["1080P x 81"], choices=GRIDS)
    parser.add_argument("--no-dense", action="store_true", help="leave out core's dense layer (seconds at 4K)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.set_defaults(run=run)


@torch.inference_mode()
def run(options: argparse.Namespace) -> None:
    import comfy.ldm.wan.model as wan
    import comfy.ops

    import ultragen_core.attention.engine as engine_module

    device = torch.device("cuda")
    torch.manual_seed(0)
    settings = {"operations": comfy.ops.manual_cast, "device": device, "dtype": torch.bfloat16}
    attn = wan.WanSelfAttention(CHANNELS, HEADS, operation_settings=settings)
    for name, parameter in attn.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=CHANNELS**-0.5)
    shape = ExtrasShape(CHANNELS, RANK, refined=True)
    extras = BlockExtras(shape, comfy.ops.manual_cast, device=device, dtype=torch.bfloat16)
    extras.load_state_dict({key: value + 0.01 * torch.randn_like(value) for key, value in initial_block(shape).items()})
    gates = Gates(*torch.rand(2, 1, 1, CHANNELS, device=device))
    print(torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version(), ceilings())

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)

    engine = Engine(attention, comfy.ops.cast_bias_weight)
    for size in options.sizes:
        grid = GRIDS[size]
        x = torch.randn(1, grid.tokens, CHANNELS, device=device, dtype=torch.bfloat16)
        if not options.no_dense:
            freqs = wan_freqs(wan, grid, device)
            report(size, "core dense, as shipped", lambda: attn(x, freqs), 1)
            with_cudnn = {"optimized_attention_override": lambda f, q, k, v, heads, **kw: attention(q, k, v, heads)}
            report(size, "core dense, cuDNN", lambda: attn(x, freqs, transformer_options=with_cudnn), 1)
        for parity, block in (("even", 2), ("odd", 3)):
            spec = block_spec(block, LocalConfig(), GlobalConfig(), trained=True)

            def ours(spec=spec):
                return ultragen_attention(attn, x, grid, spec, extras, gates, engine)

            reference = report(
                size, f"published arithmetic, {parity}", lambda: published(attn, x, grid, block, extras, gates), 3
            )
            working = engine_module._working_kernels
            engine_module._working_kernels = lambda device: None
            plain = report(size, f"this pack, plain, {parity}", ours, options.repeats)
            engine_module._working_kernels = working
            fast = report(size, f"this pack, Triton, {parity}", ours, options.repeats)
            for name, result in (("plain", plain), ("Triton", fast)):
                error = (result.float() - reference.float()).norm() / reference.float().norm()
                print(f"  {name} against the published arithmetic in bf16: {error:.1e}")


def report(size: str, name: str, function: Callable[[], Tensor], repeats: int) -> Tensor:
    """Print the median time and the peak of memory above what was there before."""
    result = function()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    print(f"{size:12} {name:36} {statistics.median(times):9.1f} ms {peak:7.2f} GiB", flush=True)
    return result


def ceilings() -> str:
    """The two rates that no layer can beat: a matrix product, and cuDNN's attention."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    q = torch.randn(4, HEADS, 16384, 128, device="cuda", dtype=torch.bfloat16)

    def rate(function: Callable, operations: float) -> float:
        for repeat in range(15):
            if repeat == 5:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
            function()
        end.record()
        end.synchronize()
        return operations * 10 / start.elapsed_time(end) / 1e9

    product = rate(lambda: a @ a, 2 * 8192**3)
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        attention = rate(lambda: F.scaled_dot_product_attention(q, q, q), 4 * 4 * HEADS * 16384**2 * 128)
    return f"| matrix product {product:.0f} TFLOP/s, cuDNN attention {attention:.0f} TFLOP/s"


def wan_freqs(wan, grid: TokenGrid, device: torch.device) -> Tensor:
    model = wan.WanModel(dim=CHANNELS, ffn_dim=16, num_heads=HEADS, num_layers=0, operations=torch.nn)
    return model.rope_encode(grid.t, 2 * grid.h, 2 * grid.w, device=device, dtype=torch.bfloat16)


def published(attn, x: Tensor, grid: TokenGrid, block: int, extras: BlockExtras, gates: Gates) -> Tensor:
    """The published layer's arithmetic: channel-first convolutions and resizing, RoPE as float64 complex numbers."""
    odd = block % 2
    frames = x.unflatten(1, grid).permute(0, 1, 4, 2, 3).flatten(0, 1).contiguous()
    local = published_windows(attn, frames, grid, (4, 5)[odd], None, (grid.h, grid.w))
    maps = []
    for coarse, windows in ((extras.hierarchical_branch, (2, 3)[odd]), (extras.global_branch, 1)):
        low = published_windows(attn, coarse.compress(frames), grid, windows, coarse, (grid.h, grid.w))
        high = coarse.refine(low.unflatten(0, (-1, grid.t)).transpose(1, 2).contiguous())
        maps.append(high.permute(0, 2, 3, 4, 1).flatten(1, 3))
    local = local.unflatten(0, (-1, grid.t)).permute(0, 1, 3, 4, 2).flatten(1, 3)
    g_h, g_g = (gate.to(x.dtype) for gate in gates)
    y = g_h * local + (1 - g_h) * maps[0]
    return attn.o(g_g * y + (1 - g_g) * maps[1])


def published_windows(attn, frames: Tensor, grid: TokenGrid, n: int, coarse, size: tuple[int, int]) -> Tensor:
    """(b * t, c, h, w) -> attention in n x n windows -> (b * t, c, *size)."""
    divisible = tuple(nearest_multiple(length, n) for length in frames.shape[2:])
    if divisible != tuple(frames.shape[2:]):
        frames = F.interpolate(frames, size=divisible, mode="bilinear")
    window_grid = TokenGrid(grid.t, divisible[0] // n, divisible[1] // n)
    x = window_partition(frames.unflatten(0, (-1, grid.t)).permute(0, 1, 3, 4, 2), (n, n))
    deltas = [0, 0, 0] if coarse is None else [getattr(coarse, name)(x) for name in "qkv"]
    key = attn.q if coarse is not None and n == 1 else attn.k
    q, k, v = attn.norm_q(attn.q(x) + deltas[0]), attn.norm_k(key(x) + deltas[1]), attn.v(x) + deltas[2]
    rotation = complex_rope(window_grid, x.device)
    q, k = (published_rope(y.unflatten(-1, (HEADS, -1)), rotation) for y in (q, k))
    q, k, v = (y.transpose(1, 2) for y in (q, k, v.unflatten(-1, (HEADS, -1))))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    y = window_unpartition(y, (n, n), window_grid).permute(0, 1, 4, 2, 3).flatten(0, 1)
    return y if tuple(y.shape[2:]) == size else F.interpolate(y, size=size, mode="bilinear")


def complex_rope(grid: TokenGrid, device: torch.device) -> Tensor:
    cos, sin = rope_table(grid, CHANNELS // HEADS, device)
    return torch.complex(cos.double(), sin.double())[:, None]


def published_rope(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)

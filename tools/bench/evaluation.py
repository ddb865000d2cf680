"""One evaluation of a Wan model on the GPU: its time, the host's part of it, and peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from ultragen_core.grid import TokenGrid

from .card import GIB
from .methods import prepared, running

FEW_TOKENS = 4096


class Row(NamedTuple):
    """host_ms: what the host takes to launch an evaluation; None where it was not measured."""

    size: str
    tokens: int
    method: str
    seconds: float
    peak_gib: float
    extrapolated: bool
    host_ms: float | None = None

    def of_layers(self, wanted: int, measured: int) -> Row:
        """Extrapolate from a model of `measured` layers."""
        host = None if self.host_ms is None else self.host_ms * wanted / measured
        return self._replace(seconds=self.seconds * wanted / measured, extrapolated=True, host_ms=host)


def latent_of(model, grid: TokenGrid) -> tuple[int, ...]:
    """Return the shape of the latent with these tokens."""
    return 1, model.model.diffusion_model.out_dim, grid.t, 2 * grid.h, 2 * grid.w


def evaluation(model, name: str, grid: TokenGrid, method: str, repeats: int) -> Row:
    """Time evaluations at a timestep of its own each, as in a run of that many steps. The first one, which compiles and
    tunes, also computes the gates of the run.
    """
    from ultragen_core.host.speed.evaluation import evaluating, inputs

    sigmas, seconds = torch.linspace(1, 0, repeats + 1), []
    with running(method), evaluating(prepared(model, method), sigmas) as evaluate:
        given, few = (inputs(latent_of(model, size), "cuda") for size in (grid, few_tokens(grid)))
        for repeat in range(repeats):
            if repeat <= 1:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            start = time.perf_counter()
            evaluate(*given, sigmas[repeat])
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / GIB
        host = host_ms(lambda: evaluate(*few, sigmas[0]))
    return Row(name, grid.tokens, method, min(seconds), peak, False, host)


def host_ms(launch: Callable[[], None], repeats: int = 5) -> float:
    """Milliseconds until launch() returns, with an idle GPU. On a CPU it would be the time of the whole evaluation."""
    times = []
    for _ in range(1 + repeats):  # the first one compiles and tunes
        torch.cuda.synchronize()
        start = time.perf_counter()
        launch()
        times.append(1000 * (time.perf_counter() - start))
    return min(times[1:])


def few_tokens(grid: TokenGrid) -> TokenGrid:
    """A small grid with the same layers, whose evaluation takes the GPU less time than the host. With `grid` itself the
    host would wait for the GPU, because CUDA queues about a thousand kernels.
    """
    while grid.tokens > FEW_TOKENS:
        grid = TokenGrid(grid.t, -(-grid.h // 2), -(-grid.w // 2))
    return grid


def one_block(model, size: str, grid: TokenGrid, method: str) -> Row:
    """Extrapolate a dense model from one of its blocks."""
    import comfy.model_management as mm

    chosen = prepared(model, method)
    options = chosen.model_options.get("transformer_options", {})
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

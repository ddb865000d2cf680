"""One video over several GPUs: links between the GPUs, sampling on 1, 2 and more of them with the share of the exchange
and the host's time, and errors against float32."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import NamedTuple

import torch

from ultragen_core.grid import TokenGrid
from ultragen_core.wan import WAN_1_3B

from . import gpu_member
from .attention import GRIDS
from .card import GIB
from .evaluation import latent_of
from .gpu_links import links
from .gpu_rows import RowFile
from .methods import METHODS, WEIGHT_DTYPE, prepared
from .model import SHIFT, random_prompts, sample, scaled
from .random_model import MODELS, random_checkpoint


class Run(NamedTuple):
    """seconds: of the fastest step but the first. steps: seconds of all. exchange: share of the fastest step that each
    GPU spends in exchanges, waiting included; empty without any. host: processor seconds of each GPU's thread in this
    step. peaks: GiB on each GPU. received: GiB into the GPU that gets most in this step.
    """

    seconds: float
    steps: list[float]
    exchange: list[float]
    host: list[float]
    peaks: list[float]
    received: float
    video: torch.Tensor


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("gpus", help=__doc__)
    parser.add_argument("--links", action="store_true", help="also measure all pairs, and all to all")
    parser.add_argument("--model", default="1.3b", choices=MODELS)
    in_bf16 = [method for method in METHODS if WEIGHT_DTYPE[method] == "default"]
    parser.add_argument("--methods", nargs="+", default=["ours", "t3"], choices=in_bf16)
    parser.add_argument("--sizes", nargs="*", default=["1080P x 81"], choices=GRIDS)
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 2, 4], help="numbers of GPUs, 1 first")
    parser.add_argument("--cfg", nargs="+", type=float, default=[1.0], help="1: one prompt; other values: two")
    parser.add_argument("--split", default="auto", choices=["auto", "prompts", "video"])
    parser.add_argument("--sample", type=int, default=3, metavar="STEPS")
    parser.add_argument("--layers", type=int, default=WAN_1_3B.blocks, help="blocks of the model")
    parser.add_argument("--errors", nargs="*", default=[], choices=GRIDS, help="sizes to compare with float32")
    parser.add_argument("--alone", type=int, metavar="GPUS", help="measure each member of so many alone, on one GPU")
    parser.add_argument("--profile", action="store_true", help="with --alone: where the last member's host spends time")
    parser.add_argument("--staged", action="store_true", help="copy through host memory, as without peer access")
    parser.add_argument("--copied", action="store_true", help="copy between GPUs, as without Triton")
    parser.add_argument("--native", action="store_true", help="PyTorch's own allocator")
    parser.add_argument("--csv", type=Path, help="add the rows to this file, in the columns of docs/data/gpus.csv")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ultragen_core.host.multigpu import copies

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    print(len(devices), torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version())
    rows = RowFile(options)
    options.gpus = [count for count in options.gpus if count <= len(devices)]
    if options.staged or options.copied:
        staged = frozenset(permutations(devices, 2) if options.staged else ())
        copies.links = lambda devices: copies.Links(frozenset(), staged)
    with torch.inference_mode():
        if options.links:
            links(devices)
        shape, extras = replace(MODELS[options.model], blocks=options.layers), options.model == "1.3b"
        with random_checkpoint(shape, devices[0], extras) as path:
            measure(options, path, rows)


def measure(options: argparse.Namespace, path: Path, rows: RowFile) -> None:
    from ultragen_core.host.attention.load import load_model

    def load(dtype: torch.dtype):
        return load_model(path, "auto" if options.model == "1.3b" else "t3", {"dtype": dtype})

    model = load(torch.bfloat16)
    for method in options.methods:
        for size in options.sizes:
            if options.alone:
                alone(model, method, size, options)
                continue
            for cfg in options.cfg:
                compare(model, method, size, cfg, options, rows)
    for size in options.errors:
        errors(model, load(torch.float32), size, options)


def alone(model, method: str, size: str, options: argparse.Namespace) -> None:
    grid = scaled(GRIDS[size], options.model)
    for index, times in enumerate(gpu_member.measure(model, method, grid, options.alone, options.profile)):
        print(
            f"{size:12} {method:8} member {index} of {options.alone} alone: {times.seconds:.3f} s,"
            f" launched in {times.host:.3f} s",
            flush=True,
        )


def compare(model, method: str, size: str, cfg: float, options: argparse.Namespace, rows: RowFile) -> None:
    grid, one = scaled(GRIDS[size], options.model), None
    for count in options.gpus:
        made = sampled(model, method, grid, count, cfg, options.sample, options.split)
        one = one or (count, made)
        efficiency = one[1].seconds * one[0] / (made.seconds * count)
        error = (made.video - one[1].video).norm() / one[1].video.norm()
        hosts, peaks = "/".join(f"{s:.2f}" for s in made.host), "/".join(f"{p:.1f}" for p in made.peaks)
        exchange = "/".join(f"{share:.3f}" for share in made.exchange)
        print(
            f"{size:12} {method:8} CFG {cfg:g}  {count} GPUs  {made.seconds:8.3f} s a step  {efficiency:6.1%}"
            f"  exchange {exchange or 'none'} {made.received:6.2f} GiB  host {hosts} s  peak {peaks} GiB"
            f"  difference {error:.1e}  steps {'/'.join(f'{s:.2f}' for s in made.steps)}",
            flush=True,
        )
        rows.add(
            size=size, method=method, cfg=f"{cfg:g}", gpus=count, seconds=f"{made.seconds:.3f}",
            first_s=f"{made.steps[0]:.2f}", exchange=exchange, received_gib=f"{made.received:.2f}",
            host_s=hosts, peak_gib=peaks, difference=f"{error:.1e}",
        )  # fmt: skip


def errors(model, reference, size: str, options: argparse.Namespace) -> None:
    """One step in bfloat16 on each number of GPUs, against float32 on one."""
    grid = scaled(GRIDS[size], options.model)
    for method in options.methods:
        exact = sampled(reference, method, grid, 1, 1.0, 1, options.split).video
        for count in options.gpus:
            video = sampled(model, method, grid, count, 1.0, 1, options.split).video
            print(f"{size:12} {method:8} {count} GPUs  error {(video - exact).norm() / exact.norm():.5f}", flush=True)


def sampled(model, method: str, grid: TokenGrid, count: int, cfg: float, steps: int, split: str) -> Run:
    """A run through ComfyUI's sampler; both prompts are random."""
    from ultragen_core.host.multigpu.patch import use_gpus
    from ultragen_core.host.sampling import with_shift

    chosen = with_shift(prepared(model, method), SHIFT)
    if count > 1:
        chosen = use_gpus(chosen, count, split)
    latent, prompts = torch.zeros(latent_of(model, grid)), random_prompts()
    cards = range(torch.cuda.device_count())
    for card in cards:
        torch.cuda.reset_peak_memory_stats(card)
    with timed() as times:
        start = time.perf_counter()
        ends: list[float] = []
        video = sample(chosen, method, latent, prompts, steps, cfg, lambda: ends.append(times.end_of_step()))
    seconds = [b - a for a, b in pairwise([start, *ends])]
    fastest = min(range(len(seconds)), key=lambda step: (step == 0 and steps > 1, seconds[step]))
    peaks = [torch.cuda.max_memory_allocated(card) / GIB for card in cards]
    exchange, host, received = times.steps[fastest]
    shares = [each / seconds[fastest] for each in exchange]
    return Run(seconds[fastest], seconds, shares, host, peaks[:count], received, video.float().cpu())


class Times:
    """Of every step: seconds in exchanges of every GPU, processor seconds of every GPU's thread, and GiB into the GPU
    with most.
    """

    def __init__(self):
        self.steps: list[tuple[list[float], list[float], float]] = []
        self.events: dict[int, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}  # by the GPU
        self.host: dict[tuple[int | None, int], float] = {}  # and by the clone: the CPU has no index
        self.received: dict[torch.device, int] = {}

    def end_of_step(self) -> float:
        for card in range(torch.cuda.device_count()):
            torch.cuda.synchronize(card)
        now = time.perf_counter()
        exchange = [sum(a.elapsed_time(b) for a, b in pairs) / 1000 for pairs in _sorted(self.events)]
        self.steps.append((exchange, _sorted(self.host), max(self.received.values(), default=0) / GIB))
        for each in (self.events, self.host, self.received):
            each.clear()
        return now


@contextmanager
def timed() -> Iterator[Times]:
    """Measure the exchanges and the hosts' part of everything that groups of GPUs compute inside."""
    import comfy.ldm.wan.model as wan

    from ultragen_core.host.multigpu.exchange import Exchange

    times, move, forward = Times(), Exchange.move, wan.WanModel._forward

    def timed_move(self: Exchange, index: int, x: torch.Tensor, moves) -> torch.Tensor:
        device, before = self.devices[index], self.bytes_into[index]
        start = _event(device)
        result = move(self, index, x, moves)
        if start is not None:
            times.events.setdefault(device.index, []).append((start, _event(device)))
        times.received[device] = times.received.get(device, 0) + self.bytes_into[index] - before
        return result

    def timed_forward(self: wan.WanModel, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        start = time.thread_time()
        result = forward(self, x, *args, **kwargs)
        key = x.device.index, id(self)
        times.host[key] = times.host.get(key, 0.0) + time.thread_time() - start
        return result

    Exchange.move, wan.WanModel._forward = timed_move, timed_forward
    try:
        yield times
    finally:
        Exchange.move, wan.WanModel._forward = move, forward


def _sorted(values: dict) -> list:
    """The values in the order of their keys. Threads add them as they get there."""
    return [values[key] for key in sorted(values)]


def _event(device: torch.device) -> torch.cuda.Event | None:
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event

"""Wan 2.1 VAE decode, random weights of real width: ComfyUI's full and tiled decode against the exact tiles.

On several GPUs the bits are compared with those of one, and the peak memory of each card is listed.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from .cells import table as markdown
from .vae_profile import profiled

CASES = ("1920x1088x29", "1920x1088x81", "3840x2160x29", "3840x2160x81")
GIB = 2**30
COMFYUIS = ("full", "tiled")


class Peaks(NamedTuple):
    """Seconds of one decode, bytes at its peak: of each GPU, and of the host above the start."""

    seconds: float
    devices: list[int]
    host: int


class Row(NamedTuple):
    """phases: seconds, as Clock.phases. different: number of values that are not those of one GPU."""

    case: str
    method: str
    gpus: int
    peaks: Peaks
    phases: list[float]
    max_error: float
    mean_error: float
    different: int | None


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("vae", help=__doc__)
    parser.add_argument("--cases", nargs="+", default=CASES, help="width x height x frames")
    parser.add_argument(
        "--methods", nargs="+", default=["full", "tiled", "512", "auto"], help="full, tiled, auto or a tile size"
    )
    parser.add_argument(
        "--gpus", nargs="+", type=int, default=[1], help="numbers of GPUs for the exact tiles, 0 is all"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="decodes of each method in a row; the table shows the last"
    )
    parser.add_argument("--width", type=int, default=96, help="channels of the VAE's last stage")
    parser.add_argument(
        "--full-limit", type=float, default=0.8, help="ComfyUI's full decode only below this share of memory"
    )
    parser.add_argument("--native", action="store_true", help="PyTorch's allocator, as ComfyUI's --disable-cuda-malloc")
    parser.add_argument("--profile", action="store_true", help="list the operations of one more decode on one GPU")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ultragen_core.host.speed.random_weights import random_vae

    vae = random_vae(options.width)
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["cpu"]
    print(len(names), names[0], torch.__version__, "cuDNN", torch.backends.cudnn.version(), vae.vae_dtype, vae.device)
    rows = []
    for case in options.cases:
        rows += measure_case(vae, case, options)
        if options.profile:
            print(profiled(lambda: decode(vae, random_latent(case), options.methods[-1], 1, Clock(0)), vae.device))
    print(table(rows))


def measure_case(vae, case: str, options: argparse.Namespace) -> list[Row]:
    width, height, frames = sizes(case)
    z, reference, rows = random_latent(case), None, []
    for method in options.methods:
        # Seen on an H100: 62 GiB for 29 frames of 4K; each frame more is kept twice, in 16 bits.
        needed = width * height * (7650 + 12 * frames)
        if method == "full" and needed > options.full_limit * torch.cuda.get_device_properties(0).total_memory:
            continue
        of_one = None
        for gpus in options.gpus if method not in COMFYUIS else [1]:
            for _ in range(options.repeats):
                clock = Clock(z.shape[2])
                made, peaks = measured(lambda: decode(vae, z, method, gpus, clock))
                print(f"{case} {method} {gpus} GPUs: {peaks.seconds:.2f} s", flush=True)
            errors = (float("nan"), float("nan")) if reference is None else compare(made, reference)
            different = None if of_one is None else int((made != of_one).sum())
            rows.append(Row(case, method, gpus, peaks, clock.phases, *errors, different))
            print(rows[-1], flush=True)
            if gpus == 1 and method not in COMFYUIS:
                of_one = made
        if method == "full":
            reference = made
        del made
    return rows


def sizes(case: str) -> list[int]:
    """Width, height and frames."""
    return [int(number) for number in case.split("x")]


def random_latent(case: str) -> torch.Tensor:
    width, height, frames = sizes(case)
    return torch.randn(1, 16, (frames + 3) // 4, height // 8, width // 8, generator=torch.Generator().manual_seed(1))


class Clock:
    """report(done, total) of a decode whose first `frames` pieces of work are whole frames, and the rest tiles."""

    def __init__(self, frames: int):
        self._frames, self._times = frames, [time.perf_counter()]

    def __call__(self, done: int, total: int) -> None:
        self._times.append(time.perf_counter())

    @property
    def phases(self) -> list[float]:
        """Seconds of the whole frames and of each quarter of the tiles; empty without reports."""
        tiles = len(self._times) - 1 - self._frames
        if tiles < 0:
            return []
        ends = [0, self._frames, *(self._frames + tiles * quarter // 4 for quarter in (1, 2, 3, 4))]
        return [self._times[end] - self._times[start] for start, end in zip(ends, ends[1:], strict=False)]


def decode(vae, z: torch.Tensor, method: str, gpus: int, report: Callable[[int, int], None]) -> torch.Tensor:
    """Frames (frames, height, width, 3): float as ComfyUI gives them, 8-bit from the exact tiles."""
    if method == "full":
        return vae.decode(z)[0]
    if method == "tiled":
        # What ComfyUI's VAEDecodeTiled passes on for its defaults: 512 and 64 pixels, 64 and 8 frames.
        return vae.decode_tiled(z, tile_x=64, tile_y=64, overlap=8, tile_t=16, overlap_t=2)[0]
    from ultragen_core.host.speed.decode import decode_to_bytes

    return decode_to_bytes(vae, z, None if method == "auto" else int(method), report, gpus)


def measured(work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Peaks]:
    import psutil

    process, stop = psutil.Process(), threading.Event()
    start, peak = process.memory_info().rss, [0]

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss - start)

    cards = range(torch.cuda.device_count())
    torch.cuda.empty_cache()
    for card in cards:
        torch.cuda.reset_peak_memory_stats(card)
    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        with torch.inference_mode():
            made = work()
        for card in cards:
            torch.cuda.synchronize(card)
    finally:
        stop.set()
        watcher.join()
    return made, Peaks(time.perf_counter() - began, [torch.cuda.max_memory_allocated(card) for card in cards], peak[0])


def compare(made: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Largest and mean difference of two videos in 0..1, frame by frame."""
    largest = total = 0.0
    for ours, comfyui in zip(made, reference, strict=True):
        ours = ours.cuda().float() / (255 if ours.dtype == torch.uint8 else 1)
        error = (ours - comfyui.cuda().float()).abs()
        largest, total = max(largest, error.max().item()), total + error.mean().item()
    return largest, total / len(made)


def table(rows: list[Row]) -> str:
    """speed-up: against the row of the same video and method on one GPU. GiB: the peak of each card that was used."""
    names = "video", "decode", "GPUs", "s", "speed-up", "whole frames, quarters of tiles s", "GiB a card", "host GB"
    names += "max error", "mean error", "values unlike one GPU's"
    body, of_one = [], {(row.case, row.method): row.peaks.seconds for row in rows if row.gpus == 1}
    for row in rows:
        seconds = row.peaks.seconds
        cells = [row.case, row.method, row.gpus, f"{seconds:.1f}"]
        cells += [f"{of_one.get((row.case, row.method), float('nan')) / seconds:.2f}"]
        cells += [" ".join(f"{phase:.2f}" for phase in row.phases)]
        cells += [", ".join(f"{size / GIB:.2f}" for size in row.peaks.devices if size), f"{row.peaks.host / 1e9:.2f}"]
        cells += [f"{row.max_error:.1e}", f"{row.mean_error:.1e}", "" if row.different is None else row.different]
        body.append(list(map(str, cells)))
    return markdown(names, body)

"""Wan 2.1 VAE decode, random weights of real width: ComfyUI's full and tiled decode against the exact tiles."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

CASES = ("1920x1088x29", "1920x1088x81", "3840x2160x29", "3840x2160x81")
GIB = 2**30


class Row(NamedTuple):
    case: str
    method: str
    seconds: float
    device_gib: float
    host_gb: float
    max_error: float
    mean_error: float


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("vae", help=__doc__)
    parser.add_argument("--cases", nargs="+", default=CASES, help="width x height x frames")
    parser.add_argument(
        "--methods", nargs="+", default=["full", "tiled", "512", "auto"], help="full, tiled, auto or a tile size"
    )
    parser.add_argument("--width", type=int, default=96, help="channels of the VAE's last stage")
    parser.add_argument(
        "--full-limit", type=float, default=0.8, help="ComfyUI's full decode only below this share of memory"
    )
    parser.add_argument("--native", action="store_true", help="PyTorch's allocator, as ComfyUI's --disable-cuda-malloc")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ultragen_core.host.speed.random_weights import random_vae

    vae = random_vae(options.width)
    print(torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version(), vae.vae_dtype)
    rows = []
    for case in options.cases:
        rows += measure_case(vae, case, options)
    print(table(rows))


def measure_case(vae, case: str, options: argparse.Namespace) -> list[Row]:
    width, height, frames = (int(number) for number in case.split("x"))
    z = torch.randn(1, 16, (frames + 3) // 4, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    reference, rows = None, []
    for method in options.methods:
        # Seen on an H100: 62 GiB for 29 frames of 4K; each frame more is kept twice, in 16 bits.
        needed = width * height * (7650 + 12 * frames)
        if method == "full" and needed > options.full_limit * torch.cuda.get_device_properties(0).total_memory:
            continue
        made, seconds, device, host = measured(lambda method=method: decode(vae, z, method))
        errors = (float("nan"), float("nan")) if reference is None else compare(made, reference)
        rows.append(Row(case, method, seconds, device / GIB, host / 1e9, *errors))
        print(rows[-1], flush=True)
        if method == "full":
            reference = made
        del made
    return rows


def decode(vae, z: torch.Tensor, method: str) -> torch.Tensor:
    """Frames (frames, height, width, 3): float as ComfyUI gives them, 8-bit from the exact tiles."""
    if method == "full":
        return vae.decode(z)[0]
    if method == "tiled":
        # What ComfyUI's VAEDecodeTiled passes on for its defaults: 512 and 64 pixels, 64 and 8 frames.
        return vae.decode_tiled(z, tile_x=64, tile_y=64, overlap=8, tile_t=16, overlap_t=2)[0]
    from ultragen_core.host.speed.decode import decode_to_bytes

    return decode_to_bytes(vae, z, None if method == "auto" else int(method))


def measured(work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float, int, int]:
    """(result, seconds, peak bytes of device memory, peak bytes of host memory above the start)."""
    import psutil

    process, stop = psutil.Process(), threading.Event()
    start, peak = process.memory_info().rss, [0]

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss - start)

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        with torch.inference_mode():
            made = work()
        torch.cuda.synchronize()
    finally:
        stop.set()
        watcher.join()
    return made, time.perf_counter() - began, torch.cuda.max_memory_allocated(), peak[0]


def compare(made: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Largest and mean difference of two videos in 0..1, frame by frame."""
    largest = total = 0.0
    for ours, comfyui in zip(made, reference, strict=True):
        ours = ours.cuda().float() / (255 if ours.dtype == torch.uint8 else 1)
        error = (ours - comfyui.cuda().float()).abs()
        largest, total = max(largest, error.max().item()), total + error.mean().item()
    return largest, total / len(made)


def table(rows: list[Row]) -> str:
    lines = ["| video | decode | s | device GiB | host GB | max error | mean error |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        numbers = (
            f"{row.seconds:.1f} | {row.device_gib:.2f} | {row.host_gb:.2f} | {row.max_error:.1e} | {row.mean_error:.1e}"
        )
        lines.append(f"| {row.case} | {row.method} | {numbers} |")
    return "\n".join(lines)

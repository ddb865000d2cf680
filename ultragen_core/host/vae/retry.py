"""Repeats a pass of the exact tiles with less memory when memory runs out."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import comfy.model_management as mm
import torch

from ...out_of_ram import is_host_out_of_memory
from ..memory import NotEnoughMemory, is_out_of_memory
from .tile_size import SMALLEST_TILE

T = TypeVar("T")

log = logging.getLogger(__name__)


def tiled_pass(run: Callable[[int], None], tile: int, tile_need: Callable[[int], int], device: torch.device) -> None:
    """run(tile), again with half the tile each time memory runs out.

    tile_need(tile): bytes, for the message. Raises NotEnoughMemory where SMALLEST_TILE does not fit, or RAM runs out.
    """
    while not _succeeds(functools.partial(run, tile), device):
        if tile <= SMALLEST_TILE:
            needed = _needed(tile_need(tile), f"its smallest tile of {tile} pixels")
            raise NotEnoughMemory(f"{needed} {_way_out(device)} and run this node again.")
        smaller = max(SMALLEST_TILE, tile // 2)
        log.warning("UltraGen VAE: memory ran out with tiles of %d pixels, continuing with %d.", tile, smaller)
        tile = smaller


def feature_buffer(
    attempts: Sequence[Callable[[], T]], length: int, size: tuple[int, int], need: int, device: torch.device
) -> T:
    """The first buffer of `attempts` that memory suffices for.

    length, size, need: the latent frames, a frame's rows and columns of pixels, and the buffer's bytes, for the
    message. Raises NotEnoughMemory.
    """
    needed = _needed(need, f"the features of {length} latent frames of {size[1]}x{size[0]} pixels")
    return _first_that_fits(attempts, device, f"{needed} {_way_out(device)}, or choose a smaller or shorter video.")


def whole_frame_pass(attempts: Sequence[Callable[[], T]], size: tuple[int, int], need: int, device: torch.device) -> T:
    """The result of the first of `attempts` that memory suffices for; each takes less than the one before.

    size, need: the frame's rows and columns of pixels, and its bytes, for the message. Raises NotEnoughMemory.
    """
    needed = _needed(need, f"its attention over a whole frame of {size[1]}x{size[0]} pixels")
    return _first_that_fits(attempts, device, f"{needed} {_way_out(device)}, or choose a smaller video.")


def _first_that_fits(attempts: Sequence[Callable[[], T]], device: torch.device, message: str) -> T:
    results: list[T] = []
    for attempt in attempts:
        if _succeeds(lambda attempt=attempt: results.append(attempt()), device):
            return results[0]
    raise NotEnoughMemory(message)


def _succeeds(run: Callable[[], object], device: torch.device) -> bool:
    """Execute run(). Returns False where the device's memory ran out, and then empties ComfyUI's cache.

    The error's tensors are freed when this returns.
    """
    try:
        run()
        return True
    except Exception as error:
        no_ram = is_host_out_of_memory(error)
        if no_ram and device.type != "cpu":
            raise ram_ran_out(error) from error
        if not no_ram and not is_out_of_memory(error):
            raise
    mm.soft_empty_cache()
    return False


def ram_ran_out(error: BaseException) -> NotEnoughMemory:
    """The error to raise when the computer's memory, not the GPU's, ran out."""
    reason = str(error).partition("\n")[0] or type(error).__name__
    return NotEnoughMemory(
        "The computer's memory (RAM), not the GPU's, ran out in the VAE. Close other programs, or choose a smaller or"
        f" shorter video. UltraGen Save Video needs less of it than a decode to images. ({reason})"
    )


def _needed(need: int, purpose: str) -> str:
    return f"The VAE needs about {need / 2**20:.0f} MiB for {purpose}, which could not be allocated."


def _way_out(device: torch.device) -> str:
    if device.type == "cpu":
        return "Close other programs that use much memory"
    return "Unload other models (or close other programs that use the GPU)"

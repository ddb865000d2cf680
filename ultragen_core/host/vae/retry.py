"""Runs the two phases of the exact tiles again in smaller pieces when memory runs out."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeVar

import comfy.model_management as mm
import torch

from ...out_of_ram import is_host_out_of_memory
from ..memory import NotEnoughMemory, is_out_of_memory

SMALLEST_TILE = 64
T = TypeVar("T")


def tile_phase(run: Callable[[int], None], tile: int, tile_need: Callable[[int], int], device: torch.device) -> None:
    """run(tile), with half the tile each time memory runs out. Raises NotEnoughMemory below SMALLEST_TILE."""
    while not _fits(functools.partial(run, tile), device):
        if tile <= SMALLEST_TILE:
            raise NotEnoughMemory(
                f"The VAE needs about {tile_need(tile) / 2**20:.0f} MiB for its smallest tile of {tile} pixels and did "
                f"not get them. {_way_out(device)} and run this node again."
            )
        logging.warning("UltraGen VAE: memory ran out with tiles of %d pixels, going on with half of that.", tile)
        tile = max(SMALLEST_TILE, tile // 2)


def whole_frame_phase(
    run: Callable[[torch.device], T], home: torch.device, what: str, frame_need: int, device: torch.device
) -> T:
    """run(home), once more with the features in the computer's memory when the device's runs out."""
    made: list[T] = []
    for place in (home, torch.device("cpu")):
        if _fits(lambda place=place: made.append(run(place)), device):
            return made[0]
    raise NotEnoughMemory(
        f"The VAE's attention over a whole frame of {what} needs about {frame_need / 2**20:.0f} MiB and did not get "
        f"them. {_way_out(device)}, or take a smaller video."
    )


def _fits(run: Callable[[], object], device: torch.device) -> bool:
    """Whether run() ends without the device's memory running out. The error's tensors are gone when this returns."""
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
    reason = str(error).partition("\n")[0] or type(error).__name__
    return NotEnoughMemory(
        "The computer's memory (RAM), not the GPU's, ran out in the VAE. Close other programs, take a shorter or"
        f" smaller video, or decode with UltraGen Save Video, which needs less than images do. ({reason})"
    )


def _way_out(device: torch.device) -> str:
    if device.type == "cpu":
        return "Close other programs that use much memory"
    return "Unload other models (or close other programs that use the GPU)"

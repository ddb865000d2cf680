"""One video through the exact tiles under ComfyUI's memory manager: choose a tile, halve it when memory runs out."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import comfy.model_management as mm
import torch

from ...vae import decode, encode
from ...vae.geometry import Cut, Place, Window, output_size, places
from ...vae.joint import Kit
from ...vae.layers import Layer
from ...vae.memory import TensorTooLarge, need, tensor_limit
from ...vae.shelf import Shelf
from ..compat import cast_parameters, free_memory
from ..memory import NotEnoughMemory
from .retry import SMALLEST_TILE, tile_phase, whole_frame_phase

# Where the tile is chosen for the user. Larger ones save a tenth at most, for half as much memory again.
TILES = (512, 448, 384, 320, 256, 192, 128, 96, SMALLEST_TILE)
LATENT_FRAMES = 4  # frames per latent frame, but for the first

Report = Callable[[int, int], None]


class Progress:
    """Counts pieces of work; `expect` says how many there will be, again when a smaller tile makes more of them."""

    def __init__(self, report: Report):
        self._report, self._done, self._total = report, 0, 1

    def expect(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def tick(self) -> None:
        self._done += 1
        self._report(self._done, self._total)


class Needs(NamedTuple):
    """Bytes on the device: of the tiles of a side in pixels, of whole frames before them, of the features that wait
    between, there or on the host.
    """

    tile: Callable[[int], int]
    frames: int
    shelf: int


class Room(NamedTuple):
    """What fits: a tile size in pixels and where the features wait."""

    tile: int
    home: torch.device


def kit(vae) -> Kit:
    """Weights come through ComfyUI's cast, so that offloaded, patched and memory-mapped ones work."""
    dtype, device = vae.vae_dtype, vae.device

    def weights(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight, bias = cast_parameters(module, dtype, device)
        return weight.detach(), None if bias is None else bias.detach()

    return Kit(weights, device, dtype, mm.throw_exception_if_processing_interrupted)


def decode_video(
    vae, layers: Sequence[Layer], z: torch.Tensor, tile: int | None, emit: decode.Emit, report: Report
) -> None:
    """Latents (1, c, t, h, w) to pieces of pixels; see decode.in_tiles for `emit`. `tile` is in output pixels."""
    head, tail = decode.split(layers)
    length, latents = z.shape[2], tuple(z.shape[-2:])
    size = output_size(tail, latents)
    unit = size[0] // latents[0]
    needs = decode_needs(layers, tuple(z.shape[1:]), vae.vae_dtype, tensor_limit(vae.device))
    room = make_room(vae, tile, max(size), *needs)
    progress = Progress(report)

    def frames(home: torch.device) -> Shelf:
        progress.expect(0, length * 2)
        shelf = Shelf(length, latents, home)
        decode.whole_frames(head, z, kit(vae), shelf, progress.tick)
        return shelf

    with on_device(vae):
        shelf = whole_frame_phase(frames, room.home, f"{size[1]}x{size[0]} pixels", needs.frames, vae.device)

        def tiles(tile: int) -> None:
            cut = Cut(size, tile, unit)
            progress.expect(length, length * (1 + cut.counts[0] * cut.counts[1]))
            decode.in_tiles(tail, shelf, cut, kit(vae), emit, progress.tick)

        tile_phase(tiles, room.tile, needs.tile, vae.device)


def decode_needs(
    layers: Sequence[Layer], latent_shape: tuple[int, ...], dtype: torch.dtype, limit: float = math.inf
) -> Needs:
    """For latents (c, t, h, w), counted on the layers without running them. `limit`: most bytes of one tensor."""
    head, tail = decode.split(layers)
    latent_channels, length, *latents = latent_shape
    size = output_size(tail, tuple(latents))
    channels, chunks = head[-1].proj.out_channels, (1,) * min(length, 2)

    @functools.cache
    def tile_need(tile: int) -> int:
        cut = Cut(size, tile, size[0] // latents[0])
        where = places(tail, tuple(latents), next(cut.tiles()), cut.clip)
        return _with_reserve(need(tail, where, channels, chunks, dtype, limit))

    frames = _frame_need(head, tuple(latents), latent_channels, chunks, dtype, limit)
    return Needs(tile_need, frames, channels * length * latents[0] * latents[1] * dtype.itemsize)


def encode_video(vae, layers: Sequence[Layer], x: torch.Tensor, tile: int | None, report: Report) -> torch.Tensor:
    """Pixels (1, 3, frames, height, width), 0..1, to latents (1, c, t, h, w) on the device. `tile` is in pixels."""
    head, tail = encode.split(layers)
    size, length = tuple(x.shape[-2:]), (x.shape[2] - 1) // LATENT_FRAMES + 1
    latents = output_size(head, size)
    unit = size[0] // latents[0]
    chunks, limit = (1, LATENT_FRAMES)[: min(length, 2)], tensor_limit(vae.device)

    def where(tile: int) -> list[Place]:
        cut = Cut(latents, tile // unit, 1)
        return places(head, size, next(cut.tiles()), cut.clip)

    @functools.cache
    def tile_need(tile: int) -> int:
        return _with_reserve(need(head, where(tile), x.shape[1], chunks, vae.vae_dtype, limit))

    channels = tail[0].proj.out_channels
    frame_need = _frame_need(tail, latents, channels, (1,) * len(chunks), vae.vae_dtype, limit)
    shelf_bytes = channels * length * latents[0] * latents[1] * vae.vae_dtype.itemsize
    room = make_room(vae, tile, max(size), tile_need, frame_need, shelf_bytes)
    shelf, progress = Shelf(length, latents, room.home), Progress(report)

    def pixels(frames: slice, window: Window) -> torch.Tensor:
        rows, columns = window.inside(Window.whole(size))
        return vae.process_input(x[:, :, frames, rows, columns].to(vae.device)).to(vae.vae_dtype)

    def tiles(tile: int) -> None:
        cut = Cut(latents, tile // unit, 1)
        progress.expect(0, length * (1 + cut.counts[0] * cut.counts[1]))
        encode.in_tiles(head, pixels, size, cut, kit(vae), shelf, progress.tick)

    def frames(home: torch.device) -> torch.Tensor:
        shelf.move(home)
        return encode.whole_frames(tail, shelf, kit(vae), progress.tick)

    with on_device(vae):
        tile_phase(tiles, room.tile, tile_need, vae.device)
        made = whole_frame_phase(frames, room.home, f"{size[1]}x{size[0]} pixels", frame_need, vae.device)
    return made.chunk(2, dim=1)[0]


def make_room(
    vae, tile: int | None, longest: int, tile_need: Callable[[int], int], frame_need: int, shelf_bytes: int
) -> Room:
    """Ask ComfyUI for the true need (its own estimate of a 4K decode is 100 GB), then take what is free."""
    wanted = candidates(longest)[0] if tile is None else min(tile, max(longest, SMALLEST_TILE))
    largest = largest_tile(wanted, tile_need)
    usual = max(frame_need, tile_need(largest))
    mm.load_models_gpu([vae.patcher], memory_required=usual + shelf_bytes, force_full_load=vae.disable_offload)
    free = free_memory(vae.patcher, vae.device)
    fits = usual + shelf_bytes <= free and shelf_bytes <= tensor_limit(vae.device)
    home = vae.device if fits else torch.device("cpu")
    if tile is None:
        left = free - shelf_bytes if home == vae.device else free
        sizes = (size for size in candidates(longest) if size <= largest)
        largest = next((size for size in sizes if tile_need(size) <= left), SMALLEST_TILE)
    logging.info("UltraGen VAE: tiles of %d pixels, features on %s, %.1f GiB free.", largest, home, free / 2**30)
    return Room(largest, home)


def largest_tile(tile: int, tile_need: Callable[[int], int]) -> int:
    """`tile`, halved until no tensor of it is larger than the device takes."""
    while True:
        try:
            tile_need(tile)
            return tile
        except TensorTooLarge as error:
            if tile <= SMALLEST_TILE:
                raise
            smaller = max(SMALLEST_TILE, tile // 2)
            logging.warning("UltraGen VAE: tiles of %d pixels instead of %d. %s", smaller, tile, error)
            tile = smaller


def candidates(longest: int) -> list[int]:
    """Tile sizes to try, largest first: one above the image's longer side is as good as all of them."""
    above = [size for size in TILES if size >= longest]
    return above[-1:] + [size for size in TILES if size < longest]


def on_device(vae) -> contextlib.AbstractContextManager:
    """Kernels are launched on the current CUDA device, so it must be the VAE's."""
    return torch.cuda.device(vae.device) if vae.device.type == "cuda" else contextlib.nullcontext()


def _frame_need(
    layers: Sequence[Layer],
    size: tuple[int, int],
    channels: int,
    chunks: Sequence[int],
    dtype: torch.dtype,
    limit: float,
) -> int:
    where = places(layers, size, Window.whole(size), (True, True))
    try:
        return _with_reserve(need(layers, where, channels, chunks, dtype, limit))
    except TensorTooLarge as error:
        raise NotEnoughMemory(
            f"Whole frames of this size are too large for this GPU's VAE: {error} Take a smaller video, or start"
            " ComfyUI with --cpu-vae."
        ) from error


def _with_reserve(size: int) -> int:
    """Convolution workspaces and the allocator's rounding."""
    return int(size * 1.15) + 128 * 2**20

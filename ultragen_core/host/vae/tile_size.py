"""How much memory the two passes of a decode or encode need, and the tile size that fits into what is free."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import comfy.model_management as mm
import torch

from ...rectangle import Rectangle
from ...vae import decode, encode
from ...vae.encode import FRAMES_PER_LATENT
from ...vae.geometry import TileGrid, output_size, tile_regions
from ...vae.layers import Layer
from ...vae.memory import TensorTooLarge, peak_bytes, tensor_limit
from ...vae.parse import channels_out
from ..compat import free_memory
from ..memory import NotEnoughMemory

SMALLEST_TILE = 64
HOST = torch.device("cpu")
# Candidates for an automatic choice. Larger tiles save a tenth of the time at most, for half as much memory again.
TILES = (512, 448, 384, 320, 256, 192, 128, 96, SMALLEST_TILE)
# Several GPUs try these too: their threads take turns in one interpreter to launch the work of a tile, which takes as
# long for a small one. LAUNCH is what a GPU computes meanwhile (H100), HALO what a tile reads beyond its sides, both in
# pixels.
LARGE_TILES, LAUNCH, HALO = (1024, 896, 768, 640), 100_000, 28

log = logging.getLogger(__name__)


class MemoryNeeds(NamedTuple):
    """Peak device memory in bytes. tile(side in pixels): tiled pass. frames: whole-frame pass. features: the
    FeatureBuffer between the two, on the device or on the host.

    tile raises TensorTooLarge where one tensor would be larger than the device takes.
    """

    tile: Callable[[int], int]
    frames: int
    features: int


class TileChoice(NamedTuple):
    """What fits into memory: a tile's side in pixels, the device of the FeatureBuffer, and other GPUs that help."""

    tile: int
    features_device: torch.device
    others: Sequence[torch.device] = ()

    @property
    def homes(self) -> list[torch.device]:
        """Devices for the FeatureBuffer: the chosen one, and the host for when that has too little memory."""
        return list(dict.fromkeys((self.features_device, HOST)))


def decode_needs(
    layers: Sequence[Layer], latent_shape: Sequence[int], dtype: torch.dtype, limit: float = math.inf, waiting: int = 0
) -> MemoryNeeds:
    """The needs of a decode of one video, latents (c, t, h, w), on each GPU, counted without running it.

    limit: bytes that one tensor may take. waiting: finished pieces of tiles that wait on a GPU. Raises NotEnoughMemory
    where whole frames need a larger tensor.
    """
    head, tail = decode.split_layers(layers)
    latent_channels, length, *latents = latent_shape
    size = output_size(tail, tuple(latents))
    channels, chunks = head[-1].proj.out_channels, (1,) * min(length, 2)

    @functools.cache
    def tile_need(tile: int) -> int:
        grid = decode.tile_grid(size, tuple(latents), tile)
        regions = tile_regions(tail, tuple(latents), next(grid.tiles()), grid.clip)
        piece = channels_out(layers) * FRAMES_PER_LATENT * math.prod(grid.tile_size) * dtype.itemsize
        return _with_reserve(peak_bytes(tail, regions, channels, chunks, dtype, limit) + waiting * piece)

    frames = _whole_frame_need(head, tuple(latents), latent_channels, chunks, dtype, limit)
    return MemoryNeeds(tile_need, frames, channels * length * latents[0] * latents[1] * dtype.itemsize)


def encode_needs(
    layers: Sequence[Layer], pixels_shape: Sequence[int], dtype: torch.dtype, limit: float = math.inf
) -> MemoryNeeds:
    """The needs of an encode of one video, pixels (c, frames, height, width); otherwise as decode_needs."""
    head, tail = encode.split_layers(layers)
    pixel_channels, frames, *size = pixels_shape
    length = encode.latent_frames(frames)
    latents = output_size(head, tuple(size))
    channels, chunks = tail[0].proj.out_channels, (1, FRAMES_PER_LATENT)[: min(length, 2)]

    @functools.cache
    def tile_need(tile: int) -> int:
        grid = encode.tile_grid(tuple(size), latents, tile)
        regions = tile_regions(head, tuple(size), next(grid.tiles()), grid.clip)
        return _with_reserve(peak_bytes(head, regions, pixel_channels, chunks, dtype, limit))

    frame_need = _whole_frame_need(tail, latents, channels, (1,) * len(chunks), dtype, limit)
    return MemoryNeeds(tile_need, frame_need, channels * length * latents[0] * latents[1] * dtype.itemsize)


def choose_tile(
    vae,
    tile: int | None,
    longest: int,
    needs: MemoryNeeds,
    others: Sequence[torch.device] = (),
    candidates: Sequence[int] = (),
) -> TileChoice:
    """Load the VAE, asking ComfyUI to free what `needs` says (its own estimate of a 4K decode is 100 GB); then choose.

    tile: the user's, which is kept as far as the device's largest tensor allows; None takes the first of `candidates`
    (without them: the largest of TILES) that fits on every GPU. longest: the longer side of the video in pixels.
    others: GPUs that may help; one with too little memory is left out. Raises NotEnoughMemory where a tensor of
    SMALLEST_TILE is larger than the device takes.
    """
    candidates = candidates or tile_candidates(longest)
    wanted = candidates[0] if tile is None else min(tile, max(longest, SMALLEST_TILE))
    largest = largest_tile(wanted, needs.tile)
    requested = max(needs.frames, needs.tile(largest))
    mm.load_models_gpu([vae.patcher], memory_required=requested + needs.features, force_full_load=vae.disable_offload)
    free = free_memory(vae.patcher, vae.device)

    def least() -> int:
        return max(needs.frames, needs.tile(largest if tile else max(SMALLEST_TILE, largest // 2)))

    helping = _free_on_others(vae, others, requested, least)
    fits = not helping and requested + needs.features <= free and needs.features <= tensor_limit(vae.device)
    features_device, left = (vae.device, free - needs.features) if fits else (HOST, min([free, *helping.values()]))
    chosen = largest
    if tile is None:
        sizes = (size for size in candidates if size <= largest)
        chosen = next((size for size in sizes if needs.tile(size) <= left), SMALLEST_TILE)
    names = ", ".join(map(str, [vae.device, *helping]))
    log.info(
        "UltraGen VAE: tiles of %d pixels on %s, features on %s, %.1f GiB free.",
        *(chosen, names, features_device, free / 2**30),
    )
    return TileChoice(chosen, features_device, tuple(helping))


def _free_on_others(
    vae, others: Sequence[torch.device], requested: int, least: Callable[[], int]
) -> dict[torch.device, int]:
    """Free bytes of the other GPUs that have at least `least()`, after asking ComfyUI to free `requested`, which is no
    less, on each. Counting `least()` takes 0.1 s, so it is called only where it decides.
    """
    free = {}
    for device in others:
        mm.free_memory(requested + mm.extra_reserved_memory(), device)
        free[device] = free_memory(vae.patcher, device)
        if free[device] < requested and free[device] < least():
            log.info("UltraGen VAE: %s does not help, %.1f GiB are free there.", device, free.pop(device) / 2**30)
    return free


def largest_tile(tile: int, tile_need: Callable[[int], int]) -> int:
    """`tile`, halved until none of its tensors is larger than the device takes. Raises NotEnoughMemory."""
    while True:
        try:
            tile_need(tile)
            return tile
        except TensorTooLarge as error:
            if tile <= SMALLEST_TILE:
                raise NotEnoughMemory(
                    f"The smallest tile is too large for this GPU's VAE: {error} Start ComfyUI with --cpu-vae."
                ) from error
            smaller = max(SMALLEST_TILE, tile // 2)
            log.warning("UltraGen VAE: tiles of %d pixels instead of %d. %s", smaller, tile, error)
            tile = smaller


def tile_candidates(longest: int) -> list[int]:
    """The TILES to try, largest first, for a video whose longer side is `longest` pixels.

    Of those that hold the whole side only the smallest: the others are no faster.
    """
    above = [size for size in TILES if size >= longest]
    return above[-1:] + [size for size in TILES if size < longest]


def shared_candidates(grid: Callable[[int], TileGrid], gpus: int) -> list[int]:
    """The tiles to try where several GPUs share those of grid(tile), fastest first.

    Every GPU computes one tile a round, and a round takes as long as a tile's pixels, or as the launches for all GPUs.
    """

    def cost(tile: int) -> int:
        tiles = grid(tile)
        pixels = math.prod(side + HALO for side in tiles.tile_size)
        return -(-tiles.count // gpus) * max(pixels, gpus * LAUNCH)

    return sorted((*LARGE_TILES, *TILES), key=cost)


def _whole_frame_need(
    layers: Sequence[Layer],
    size: tuple[int, int],
    channels: int,
    chunks: Sequence[int],
    dtype: torch.dtype,
    limit: float,
) -> int:
    regions = tile_regions(layers, size, Rectangle.whole(size), (True, True))
    try:
        return _with_reserve(peak_bytes(layers, regions, channels, chunks, dtype, limit))
    except TensorTooLarge as error:
        raise NotEnoughMemory(
            f"Whole frames of this size are too large for this GPU's VAE: {error} Choose a smaller video, or start"
            " ComfyUI with --cpu-vae."
        ) from error


def _with_reserve(size: int) -> int:
    """With convolution workspaces and the allocator's rounding."""
    return int(size * 1.15) + 128 * 2**20

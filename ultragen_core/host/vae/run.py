"""One video through the exact tiles under ComfyUI's memory manager: the whole-frame pass and the tiled pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ...vae import decode, encode
from ...vae.context import Context
from ...vae.feature_buffer import FeatureBuffer
from ...vae.geometry import Rect, output_size
from ...vae.layers import Layer
from ...vae.memory import tensor_limit
from ..compat import cast_parameters
from .retry import tiled_pass, whole_frame_pass
from .tile_size import choose_tile, decode_needs, encode_needs

Report = Callable[[int, int], None]
"""report(done, total), in pieces of work."""


class ProgressCounter:
    """Counts pieces of work and reports them."""

    def __init__(self, report: Report):
        self.total, self._report, self._done = 1, report, 0

    def restart(self, done: int, total: int) -> None:
        """Begin a pass, or repeat it: count from `done` of `total`. A smaller tile makes more pieces."""
        self._done, self.total = done, total

    def tick(self) -> None:
        self._done += 1
        self._report(self._done, self.total)


def context_of(vae) -> Context:
    """A Context whose weights come through ComfyUI's cast, which serves offloaded, patched and memory-mapped ones."""

    def weights(module: nn.Module) -> tuple[Tensor, Tensor | None]:
        weight, bias = cast_parameters(module, vae.vae_dtype, vae.device)
        return weight.detach(), None if bias is None else bias.detach()

    return Context(weights, vae.device, vae.vae_dtype, mm.throw_exception_if_processing_interrupted)


def decode_video(vae, layers: Sequence[Layer], z: Tensor, tile: int | None, emit: decode.Emit, report: Report) -> None:
    """Decode latents z (1, c, t, h, w), handing each piece of pixels to `emit` (see vae/decode.py).

    tile: side in output pixels; None chooses it by free memory. Raises NotEnoughMemory.
    """
    head, tail = decode.split_layers(layers)
    length, latents = z.shape[2], tuple(z.shape[-2:])
    size = output_size(tail, latents)
    needs = decode_needs(layers, z.shape[1:], vae.vae_dtype, tensor_limit(vae.device))
    choice, progress = choose_tile(vae, tile, max(size), needs), ProgressCounter(report)

    def total(tile: int) -> int:
        return length * (1 + decode.tile_grid(size, latents, tile).count)

    def frames(device: torch.device) -> FeatureBuffer:
        progress.restart(0, total(choice.tile))
        features = FeatureBuffer(length, latents, device)
        decode.whole_frames(head, z, context_of(vae), features, progress.tick)
        return features

    with on_device(vae):
        features = whole_frame_pass(
            frames, choice.features_device, f"{size[1]}x{size[0]} pixels", needs.frames, vae.device
        )

        def tiles(tile: int) -> None:
            progress.restart(length, total(tile))
            grid = decode.tile_grid(size, latents, tile)
            decode.in_tiles(tail, features, grid, context_of(vae), emit, progress.tick)

        tiled_pass(tiles, choice.tile, needs.tile, vae.device)


def encode_video(vae, layers: Sequence[Layer], x: Tensor, tile: int | None, report: Report) -> Tensor:
    """Encode pixels x (1, c, frames, height, width), 0..1, to latents (1, c, t, h, w) on the VAE's device.

    tile: side in pixels; None chooses it by free memory. Raises NotEnoughMemory.
    """
    head, tail = encode.split_layers(layers)
    size, length = tuple(x.shape[-2:]), encode.latent_frames(x.shape[2])
    latents = output_size(head, size)
    needs = encode_needs(layers, x.shape[1:], vae.vae_dtype, tensor_limit(vae.device))
    choice, progress = choose_tile(vae, tile, max(size), needs), ProgressCounter(report)
    features = FeatureBuffer(length, latents, choice.features_device)

    def pixels(frames: slice, rect: Rect) -> Tensor:
        rows, columns = rect.slices_in(Rect.whole(size))
        return vae.process_input(x[:, :, frames, rows, columns].to(vae.device)).to(vae.vae_dtype)

    def tiles(tile: int) -> None:
        grid = encode.tile_grid(size, latents, tile)
        progress.restart(0, length * (grid.count + 1))
        encode.in_tiles(head, pixels, size, grid, context_of(vae), features, progress.tick)

    def frames(device: torch.device) -> Tensor:
        progress.restart(progress.total - length, progress.total)
        features.move_to(device)
        return encode.whole_frames(tail, features, context_of(vae), progress.tick)

    with on_device(vae):
        tiled_pass(tiles, choice.tile, needs.tile, vae.device)
        moments = whole_frame_pass(
            frames, choice.features_device, f"{size[1]}x{size[0]} pixels", needs.frames, vae.device
        )
    return moments.chunk(2, dim=1)[0]


def on_device(vae) -> contextlib.AbstractContextManager:
    """Make the VAE's CUDA device the current one, on which kernels are launched."""
    return torch.cuda.device(vae.device) if vae.device.type == "cuda" else contextlib.nullcontext()

"""One video through the exact tiles under ComfyUI's memory manager: the whole-frame pass and the tiled pass."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ...rectangle import Rectangle
from ...vae import decode, encode
from ...vae.context import Context
from ...vae.feature_buffer import FeatureBuffer
from ...vae.geometry import DecodedArea, TileGrid, output_size
from ...vae.layers import Layer
from ...vae.memory import tensor_limit
from ..compat import cast_parameters
from ..memory import may_pin
from ..multigpu.devices import Workers
from .gpus import WAITING, MultiGPUPasses, Work, on_device
from .retry import feature_buffer, tiled_pass, whole_frame_pass
from .tile_size import HOST, choose_tile, decode_needs, encode_needs, shared_candidates

Report = Callable[[int, int], None]
"""report(done, total), in pieces of work."""
Pass = Callable[[Sequence, Work, Callable[..., None]], None]
"""run_pass(items, work, take): work(items, context, send) on one or several devices, take(*result) in this thread."""


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


def decode_video(
    vae,
    layers: Sequence[Layer],
    z: Tensor,
    tile: int | None,
    emit: decode.Emit,
    report: Report,
    workers: Workers | None = None,
) -> None:
    """Decode latents z (1, c, t, h, w), handing each piece of pixels to `emit` (see vae/decode.py) in this thread.

    tile: side in output pixels; None chooses it by free memory. workers: those of several GPUs, which then decode
    frames and tiles at the same time, and hold the features on the host. Raises NotEnoughMemory.
    """
    run = _Decode(vae, layers, z.cpu() if workers else z, emit, report)
    others, waiting = (workers.devices[1:], WAITING) if workers else ((), 0)
    needs = decode_needs(layers, z.shape[1:], vae.vae_dtype, tensor_limit(vae.device), waiting)
    candidates = shared_candidates(run.grid, len(workers.devices)) if workers else ()
    choice = choose_tile(vae, tile, max(run.size), needs, others, candidates)
    run_pass = _pass_here(vae)
    with on_device(vae.device):
        buffers = [functools.partial(run.buffer_on, device) for device in choice.homes]
        run.features = feature_buffer(buffers, run.length, run.size, needs.features, vae.device)
        choice = choice._replace(features_device=run.features.device)
        attempts = [functools.partial(run.whole_frames, choice.tile, run_pass, device) for device in choice.homes]
        if choice.others:
            run_pass = MultiGPUPasses(vae, layers, workers, [vae.device, *choice.others]).run
            attempts.insert(0, functools.partial(run.whole_frames, choice.tile, run_pass, HOST))
        whole_frame_pass(attempts, run.size, needs.frames, vae.device)
        tiled_pass(functools.partial(run.tiles, run_pass), choice.tile, needs.tile, vae.device)


def _pass_here(vae) -> Pass:
    """A pass on the VAE's device, in this thread."""
    return lambda items, work, take: work(items, context_of(vae), take)


class _Decode:
    """The two passes of a decode. When one is repeated with less memory, complete frames and tiles are kept."""

    def __init__(self, vae, layers: Sequence[Layer], z: Tensor, emit: decode.Emit, report: Report):
        self.head, self.tail = decode.split_layers(layers)
        self.length, self.latents = z.shape[2], tuple(z.shape[-2:])
        self.size = output_size(self.tail, self.latents)
        self._dtype, self._z, self._emit, self._progress = vae.vae_dtype, z, emit, ProgressCounter(report)
        self.features: FeatureBuffer | None = None  # set before the passes
        self._frames_done: set[int] = set()
        self._tiles_done = DecodedArea(self.size)

    def buffer_on(self, device: torch.device) -> FeatureBuffer:
        channels = self.head[-1].proj.out_channels
        return FeatureBuffer(self.length, self.latents, channels, self._dtype, device, may_pin())

    def whole_frames(self, tile: int, run_pass: Pass, device: torch.device) -> None:
        """Compute the features that are missing, in memory of `device`. tile: the next pass's, for the progress."""
        self.features.move_to(device)
        missing = [index for index in range(self.length) if index not in self._frames_done]
        self._progress.restart(self.length - len(missing), self._total(self.grid(tile)))

        def work(indices: Iterable[int], context: Context, send: Callable[[int], None]) -> None:
            decode.whole_frames(self.head, self._z, indices, context, self.features, send)

        def take(index: int) -> None:
            self._frames_done.add(index)
            self._progress.tick()

        run_pass(missing, work, take)

    def tiles(self, run_pass: Pass, tile: int) -> None:
        """Decode all tiles that are missing."""
        grid, pieces = self.grid(tile), Counter()
        missing = [each for each in grid.tiles() if not self._tiles_done.holds(each.clip(self.size))]
        self._progress.restart(self._total(grid) - self.length * len(missing), self._total(grid))

        def work(tiles: Iterable[Rectangle], context: Context, send: decode.Emit) -> None:
            decode.in_tiles(self.tail, self.features, grid, tiles, context, send)

        def take(frames: slice, rect: Rectangle, pixels: Tensor) -> None:
            self._emit(frames, rect, pixels)
            pieces[rect] += 1
            if pieces[rect] == self.length:
                self._tiles_done.add(rect)
            self._progress.tick()

        run_pass(missing, work, take)

    def grid(self, tile: int) -> TileGrid:
        return decode.tile_grid(self.size, self.latents, tile)

    def _total(self, grid: TileGrid) -> int:
        return self.length * (1 + grid.count)


def encode_video(vae, layers: Sequence[Layer], x: Tensor, tile: int | None, report: Report) -> Tensor:
    """Encode pixels x (1, c, frames, height, width), 0..1, to latents (1, c, t, h, w) on the VAE's device.

    tile: side in pixels; None chooses it by free memory. Raises NotEnoughMemory.
    """
    head, tail = encode.split_layers(layers)
    size, length = tuple(x.shape[-2:]), encode.latent_frames(x.shape[2])
    latents = output_size(head, size)
    needs = encode_needs(layers, x.shape[1:], vae.vae_dtype, tensor_limit(vae.device))
    choice, progress = choose_tile(vae, tile, max(size), needs), ProgressCounter(report)
    buffer_on = functools.partial(FeatureBuffer, length, latents, tail[0].proj.out_channels, vae.vae_dtype)

    def pixels(frames: slice, rect: Rectangle) -> Tensor:
        rows, columns = rect.slices
        return vae.process_input(x[:, :, frames, rows, columns].to(vae.device)).to(vae.vae_dtype)

    def tiles(tile: int) -> None:
        grid = encode.tile_grid(size, latents, tile)
        progress.restart(0, length * (grid.count + 1))
        encode.in_tiles(head, pixels, size, grid, context_of(vae), features, progress.tick)

    def frames(device: torch.device) -> Tensor:
        progress.restart(progress.total - length, progress.total)
        features.move_to(device)
        return encode.whole_frames(tail, features, context_of(vae), progress.tick)

    with on_device(vae.device):
        buffers = [functools.partial(buffer_on, device) for device in choice.homes]
        features = feature_buffer(buffers, length, size, needs.features, vae.device)
        tiled_pass(tiles, choice.tile, needs.tile, vae.device)
        attempts = [functools.partial(frames, device) for device in choice.homes]
        moments = whole_frame_pass(attempts, size, needs.frames, vae.device)
    return moments.chunk(2, dim=1)[0]

"""What layers are opened with: their weights, and convolutions that remember the frames before."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .arithmetic import Norm, Sum, convolve
from .geometry import Window

Weights = Callable[[torch.nn.Module], tuple[torch.Tensor, torch.Tensor | None]]


def _formats(device: torch.device) -> dict[int, torch.memory_format]:
    """Channel-last for 4 and 5 dimensions where the device's convolutions know it (20-30% faster on CUDA)."""
    if device.type in ("cpu", "mps"):
        return {4: torch.contiguous_format, 5: torch.contiguous_format}
    return {4: torch.channels_last, 5: torch.channels_last_3d}


class Kit:
    """Device, dtype and weights of one decode or encode.

    `weights(module)` gives a convolution's weight and bias as they are to be used (cast, patched, on the device); each
    is asked for once. `kept` is where a Fork leaves its input for its Join. `check()` may raise to end the run; it is
    called between small pieces of work.
    """

    def __init__(self, weights: Weights, device: torch.device, dtype: torch.dtype, check: Callable[[], None]):
        self.device, self.dtype, self.check = device, dtype, check
        self.kept: dict[str, tuple[torch.Tensor, Window]] = {}
        self._weights, self._formats, self._known = weights, _formats(device), {}

    def convolution(self, module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
        if module not in self._known:
            weight, bias = self._weights(module)
            self._known[module] = weight.contiguous(memory_format=self._formats[weight.ndim]), bias
        return self._known[module]

    def norm(self, module: torch.nn.Module) -> Norm:
        if module not in self._known:
            gamma, offset = module.gamma, module.bias
            gamma, offset = (
                None if p is None else p.detach().to(self.device, self.dtype).flatten() for p in (gamma, offset)
            )
            self._known[module] = Norm(module.scale, gamma, offset)
        return self._known[module]

    def empty(self, channels: int, frames: int, size: tuple[int, int]) -> torch.Tensor:
        shape = (1, channels, frames, *size)
        return torch.empty(shape, device=self.device, dtype=self.dtype, memory_format=self._formats[5])


class Joint:
    """A convolution whose input is put together in place: the frames it remembers, the new ones, zero beyond the image.

    fill(t) opens a buffer for t new frames and returns the part inside the image, to be written; calling the joint
    convolves and keeps the last frames. Nothing is padded or concatenated on the way.
    """

    def __init__(self, kit: Kit, module: torch.nn.Module, reach: Window, size: tuple[int, int]):
        self.weight, self.bias = kit.convolution(module)
        self.stride = tuple(module.stride)
        self.inside = reach.clip(size)
        self._kit, self._size, self._crop = kit, reach.size, self.inside.inside(reach)
        self._memory = self.weight.shape[2] - self.stride[0] if self.weight.ndim == 5 else 0
        # Nothing comes before a first frame. Newer ComfyUI shortens the kernel there, older convolves over zeros (and
        # pads all six sides by itself): the same numbers, rounded otherwise, so each is followed.
        self._shortens = self.stride[0] > 1 or not isinstance(getattr(module, "_padding", 0), tuple)
        self._past, self._frames = None, None

    def fill(self, frames: int) -> torch.Tensor:
        memory = 0 if self._past is None and frames == 1 and self._shortens else self._memory
        self._frames = self._kit.empty(self.weight.shape[1], memory + frames, self._size)
        if memory:
            self._frames[:, :, :memory] = 0 if self._past is None else self._past
        new = self._frames[:, :, memory:]
        rows, columns = self._crop
        for band in (new[..., : rows.start, :], new[..., rows.stop :, :]):
            band.zero_()
        for band in (new[..., rows, : columns.start], new[..., rows, columns.stop :]):
            band.zero_()
        return new[..., rows, columns]

    def remember(self) -> torch.Tensor:
        """Keep the last frames; returns the joined buffer, which is given up."""
        frames, self._frames = self._frames, None
        if self._memory:
            last = frames[:, :, -self._memory :]
            if self._past is None:
                self._past = self._kit.empty(self.weight.shape[1], self._memory, self._size).zero_()
            self._past[:, :, self._memory - last.shape[2] :] = last
        return frames

    def __call__(self) -> Sum:
        frames = self.remember()
        weight = self.weight if self.weight.ndim == 4 else self.weight[:, :, -frames.shape[2] :]
        return convolve(frames, weight, self.bias, self.stride)

"""What the layers of one decode or encode share: device, dtype, weights, and the choice of kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops.dispatch import triton_for
from ..ops.vae import VAE_KERNEL_MODULES, RMSNorm
from ..rectangle import Rectangle
from .pixel_pairs import paired_weight

Weights = Callable[[nn.Module], tuple[Tensor, Tensor | None]]
"""weights(convolution) -> its weight and bias, ready for use: patched, cast, on the device."""


def _memory_formats(device: torch.device) -> dict[int, torch.memory_format]:
    """Of 4D and 5D tensors: channel-last where the device's convolutions know it, 20 to 30% faster on CUDA."""
    if device.type in ("cpu", "mps"):
        return {4: torch.contiguous_format, 5: torch.contiguous_format}
    return {4: torch.channels_last, 5: torch.channels_last_3d}


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`; from one GPU to another through the host, since some computers copy wrong bits between GPUs."""
    between_gpus = x.device.type == device.type and x.device != device
    return (x.cpu() if between_gpus else x).to(device)


class Context:
    """The shared state of one decode or encode on one device.

    device, dtype: of all maps. check_interrupted: called between small pieces of work; raises to end the run.
    triton: whether the functions of ops/vae.py take their Triton form. shortcuts: inputs of Wan 2.2's residual groups
    with the rectangles that they hold, from SaveShortcut until the AddShortcut of the same key.
    """

    def __init__(
        self,
        weights: Weights,
        device: torch.device,
        dtype: torch.dtype,
        check_interrupted: Callable[[], None],
    ):
        self.device, self.dtype, self.check_interrupted = device, dtype, check_interrupted
        self.shortcuts: dict[str, tuple[Tensor, Rectangle]] = {}
        # On "meta" only memory is counted, of the plain form, which takes more.
        example = torch.empty(0, device=device, dtype=dtype)
        self.triton = device.type != "meta" and triton_for(example, VAE_KERNEL_MODULES)
        self._weights, self._formats = weights, _memory_formats(device)
        self._convolutions: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}
        self._paired_weights: dict[nn.Module, Tensor] = {}
        self._norms: dict[nn.Module, RMSNorm] = {}

    def convolution(self, module: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a convolution; `weights` is asked once for each."""
        if module not in self._convolutions:
            weight, bias = self._weights(module)
            self._convolutions[module] = weight.contiguous(memory_format=self._formats[weight.ndim]), bias
        return self._convolutions[module]

    def paired_weight(self, module: nn.Module) -> Tensor:
        """The weight of a convolution for pairs of pixels, made once."""
        if module not in self._paired_weights:
            weight = paired_weight(self.convolution(module)[0])
            self._paired_weights[module] = weight.contiguous(memory_format=self._formats[weight.ndim])
        return self._paired_weights[module]

    def norm(self, module: nn.Module) -> RMSNorm:
        """ComfyUI's RMS_norm as one of ops/vae.py."""
        if module not in self._norms:
            gamma, offset = (
                None if p is None else moved(p.detach(), self.device).to(self.dtype).flatten()
                for p in (module.gamma, module.bias)
            )
            self._norms[module] = RMSNorm(module.scale, gamma, offset)
        return self._norms[module]

    def empty(self, channels: int, frames: int, size: tuple[int, int]) -> Tensor:
        """An uninitialised map (1, channels, frames, *size)."""
        shape = (1, channels, frames, *size)
        return torch.empty(shape, device=self.device, dtype=self.dtype, memory_format=self._formats[5])

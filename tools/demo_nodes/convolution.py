"""A faster 3D convolution on CPUs, for tests and the demo only. The pack itself leaves the choice to PyTorch.

PyTorch computes narrow 3D convolutions with a kernel that takes up to 17 times as long as oneDNN's. Here oneDNN
computes all sizes, so that a tile and the whole frame go through one kernel and agree bit for bit, as in PyTorch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def install() -> None:
    """Make F.conv3d, and so every nn.Conv3d, use oneDNN where it can: in float32 on a CPU."""
    F.conv3d = conv3d


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups: int = 1
) -> Tensor:
    """Compute F.conv3d. Sums are in another order, so the last bits may differ."""
    if torch.compiler.is_compiling() or not _suits(input, weight) or isinstance(padding, str):
        return torch.conv3d(input, weight, bias, stride, padding, dilation, groups)
    sizes = (_triple(padding), _triple(stride), _triple(dilation))
    return torch.mkldnn_convolution(input, weight, bias, *sizes, groups)


def _suits(input: Tensor, weight: Tensor) -> bool:
    return (
        input.ndim == 5
        and input.device.type == weight.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def _triple(value) -> tuple[int, ...]:
    value = (value,) if isinstance(value, int) else tuple(value)
    return 3 * value if len(value) == 1 else value

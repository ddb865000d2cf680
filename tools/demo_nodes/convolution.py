"""A quicker 3D convolution on CPUs, for tests and the demo only: the pack itself takes PyTorch's choice.

PyTorch gives narrow 3D convolutions of one video to its own kernel, which takes up to 17 times as long as oneDNN's.
All sizes go to oneDNN, for one kernel on both sides: a tile then has the bits of the whole frame, as with PyTorch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def install() -> None:
    """Let F.conv3d, and with it every nn.Conv3d, use oneDNN wherever it can: in float32 on a CPU."""
    F.conv3d = conv3d


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups: int = 1
) -> Tensor:
    """F.conv3d of the same arguments; the sum's order, and so the last bits, may differ."""
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

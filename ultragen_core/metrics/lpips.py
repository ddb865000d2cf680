"""LPIPS (Zhang et al., arXiv 1801.03924), version 0.1 on AlexNet."""

from __future__ import annotations

from torch import Tensor, nn

# ImageNet's mean and standard deviation, for pixels in -1..1.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10
SMALLEST = 31  # pixels per side; the last pooling leaves one


class LPIPS(nn.Module):
    """Perceptual distance of two pictures: 0 if equal, about 1 if unrelated.

    UltraGen's paper does not name the network. LPIPS' authors recommend AlexNet for evaluation. State dict keys are
    those of the published files: `features.*` of torchvision's AlexNet, `lin0` to `lin4` of LPIPS.
    """

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        for index, channels in enumerate((64, 192, 384, 256, 256)):
            # The published pair is dropout and convolution; dropout is the identity in eval mode.
            head = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{index}", nn.ModuleDict({"model": head}))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return distances (n, 1, 1, 1). a, b: (n, 3, height, width) in -1..1, at least 31 pixels per side."""
        heads = (getattr(self, f"lin{index}")["model"] for index in range(5))
        return sum(
            head((x - y) ** 2).mean((2, 3), keepdim=True)
            for head, x, y in zip(heads, self.directions(a), self.directions(b), strict=True)
        )

    def directions(self, x: Tensor) -> list[Tensor]:
        """Return the output of each ReLU, normalised over the channels."""
        x = (x - x.new_tensor(_SHIFT).view(3, 1, 1)) / x.new_tensor(_SCALE).view(3, 1, 1)
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x / (x.norm(dim=1, keepdim=True) + _EPSILON))
        return found

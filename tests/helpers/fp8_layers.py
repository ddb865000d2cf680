"""ComfyUI's own fp8 layers, which compute on the CPU too, with a record of what they are given."""

from __future__ import annotations

from torch import Tensor, nn


class Fp8Layers:
    """comfy.ops.fp8_linear, recorded. calls: each layer with its input's shape, where the product was in fp8.

    others: where it was not; ComfyUI then casts the weight, and says nothing. fails: raise instead of computing.
    """

    def __init__(self, original):
        self._original, self.fails = original, False
        self.calls: list[tuple[nn.Module, tuple[int, ...]]] = []
        self.others: list[tuple[nn.Module, tuple[int, ...]]] = []

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        if self.fails:
            raise RuntimeError("no fp8 here")
        out = self._original(layer, x)
        (self.others if out is None else self.calls).append((layer, tuple(x.shape)))
        return out

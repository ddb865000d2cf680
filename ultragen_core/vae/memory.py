"""How much memory some layers take over a region: they run on "meta" tensors, which have sizes but no data."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .context import Context
from .geometry import TileRegion
from .layers import Layer, build_all

# Bytes. Metal aborts the whole process, without an exception, on a larger tensor.
LARGEST_TENSOR = {"mps": 2**32}


def tensor_limit(device: torch.device) -> float:
    """Bytes that one tensor may take on this device, however much memory is free; usually infinite."""
    return LARGEST_TENSOR.get(device.type, math.inf)


class TensorTooLarge(RuntimeError):
    """One tensor would be larger than the device takes."""


class PeakMemoryMode(TorchDispatchMode):
    """Inside, counts the bytes of all tensors created and not yet freed; `peak` is their maximum.

    limit: bytes that one tensor may take; a larger one raises TensorTooLarge.
    """

    def __init__(self, limit: float = math.inf):
        super().__init__()
        self.peak, self._limit, self._live, self._counted = 0, limit, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.nbytes() > self._limit:
            raise TensorTooLarge(
                f"One tensor would take {storage.nbytes() / 2**30:.1f} GiB, more than the {self._limit / 2**30:.1f} GiB"
                " that this device takes."
            )
        if storage._cdata not in self._counted:
            self._counted.add(storage._cdata)
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self._live -= size


def peak_bytes(
    layers: Sequence[Layer],
    regions: Sequence[TileRegion],
    channels: int,
    chunks: Sequence[int],
    dtype: torch.dtype,
    limit: float = math.inf,
) -> int:
    """Peak bytes of `layers` over `regions`, weights included.

    channels: of the first layer's input. chunks: its frames, call by call; the feature caches are full from the second
    call on. limit: bytes that one tensor may take. Raises TensorTooLarge above it.
    """

    def weights(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
        bias = None if module.bias is None else torch.empty(module.bias.shape, dtype=dtype, device="meta")
        return torch.empty(module.weight.shape, dtype=dtype, device="meta"), bias

    context = Context(weights, torch.device("meta"), dtype, lambda: None)
    with PeakMemoryMode(limit) as memory:
        forward = build_all(layers, regions, context)
        for index, frames in enumerate(chunks):
            forward(context.empty(channels, frames, regions[0].input.size), index == 0)
    return memory.peak

"""How much memory a run over a window takes: the run itself, on tensors without data."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .arithmetic import Sum
from .geometry import Place
from .joint import Kit
from .layers import Layer, open_layers

# Metal ends the whole process, without an exception, on a tensor above this.
LARGEST_TENSOR = {"mps": 2**32}


def tensor_limit(device: torch.device) -> float:
    """Bytes that one tensor may take on this device, however much memory is free; usually infinite."""
    return LARGEST_TENSOR.get(device.type, math.inf)


class TensorTooLarge(RuntimeError):
    """One tensor would be larger than the device takes."""


class Meter(TorchDispatchMode):
    """Bytes of all tensors made and not yet dropped; `peak` is their maximum. `limit` is for one tensor."""

    def __init__(self, limit: float = math.inf):
        super().__init__()
        self.peak, self._limit, self._live, self._known = 0, limit, 0, set()

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
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def need(
    layers: Sequence[Layer],
    where: Sequence[Place],
    channels: int,
    chunks: Sequence[int],
    dtype: torch.dtype,
    limit: float = math.inf,
) -> int:
    """Peak bytes of `layers` over the places `where`, weights included, for `chunks` of frames of `channels`.

    Raises TensorTooLarge when one tensor takes more than `limit` bytes.
    """

    def weights(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
        bias = None if module.bias is None else torch.empty(module.bias.shape, dtype=dtype, device="meta")
        return torch.empty(module.weight.shape, dtype=dtype, device="meta"), bias

    kit = Kit(weights, torch.device("meta"), dtype, lambda: None)
    with Meter(limit) as meter:
        run = open_layers(layers, where, kit)
        for index, frames in enumerate(chunks):
            run(Sum(kit.empty(channels, frames, where[0].given.size)), index == 0).total()
    return meter.peak

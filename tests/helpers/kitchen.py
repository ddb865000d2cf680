"""A stand-in for comfy-kitchen's int8 attention, which needs a GPU: plain attention on rounded operands."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

HEAD_DIM = 256  # the largest


class Quantized:
    """Rounded q, k and v, with references to the originals that do not keep them alive."""

    def __init__(self, *operands: Tensor):
        self.operands = [rounded(x) for x in operands]
        self.originals = [StorageWeakRef(x.untyped_storage()) for x in operands]


def rounded(x: Tensor) -> Tensor:
    """To 255 levels for each token of each head."""
    step = x.abs().amax(-1, keepdim=True) / 127
    return torch.round(x / step) * step


class Kitchen(ModuleType):
    """Has the functions of comfy-kitchen 0.2.30 that the pack uses.

    available, backends: what it tells of every device. calls: shapes of q and k, of all calls. freed: for every
    prequantized call whether q, k and v were gone when the attention began.
    """

    def __init__(self):
        super().__init__("comfy_kitchen")
        self.available, self.backends = True, {"cuda": {"disabled": False, "unavailable_reason": None}}
        self.calls: list[tuple[torch.Size, torch.Size]] = []
        self.freed: list[bool] = []

    def list_backends(self) -> dict:
        return self.backends

    def int8_attention_is_available(self, device: torch.device | None = None) -> bool:
        return self.available

    def int8_attention(self, q, k, v, *, scale=None, attn_mask=None) -> Tensor:
        return self._attention(Quantized(q, k, v))

    def prequantize_int8_attention(self, q, k, v, *, scale=None, attn_mask=None) -> Quantized:
        return Quantized(q, k, v)

    def int8_attention_from_prequantized(self, quantized: Quantized) -> Tensor:
        self.freed.append(all(original.expired() for original in quantized.originals))
        return self._attention(quantized)

    def _attention(self, quantized: Quantized) -> Tensor:
        q, k, _ = quantized.operands
        assert q.ndim == 4 and q.shape[-1] <= HEAD_DIM and q.dtype in (torch.float32, torch.float16, torch.bfloat16)
        self.calls.append((q.shape, k.shape))
        return F.scaled_dot_product_attention(*quantized.operands)

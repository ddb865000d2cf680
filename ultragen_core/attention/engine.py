"""What a layer gets from its host: an attention function, a way to parameters, RoPE tables, a memory bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import dispatch
from .rope import NO_SCALE, CutRopeTables, RopeTables, Scale

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""attention(q, k, v, heads) on contiguous (batch, tokens, c) tensors -> (batch, tokens, c)."""

ReleasingAttention = Callable[[list[Tensor], int], Tensor]
"""attention_([q, k, v], heads) -> the same. Empties the list, so that it alone decides how long the tensors live."""

Parameters = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]
"""parameters(module, x) -> the module's weight and bias, ready for use with x: cast, on x's device, patched."""

SharedInput = Callable[[Sequence[Callable[[Tensor], Tensor]], Tensor], Any]
"""shared_input(projections, x) -> x in a form that all of these projections take, prepared once for them."""


def own_parameters(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The parameters of a plain PyTorch module, unchanged."""
    return module.weight, getattr(module, "bias", None)


def unchanged(projections: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """The input of projections that need no preparation."""
    return x


@dataclass(frozen=True)
class Engine:
    """The host's attention and parameters, and how a layer is computed.

    rope_scale: factors on the token positions in t, h and w, with which users stretch or shrink a model's RoPE.
    tokens_at_a_time: how many tokens (of all items of a batch together) are projected, attended and refined at once;
        None: all at once. The result is the same.
    rope_tables: shared by all layers of a run, which owns them.
    triton: whether the layer's functions run in their Triton form; set by `for_layer`.
    attention_: `attention` in its releasing form, for hosts whose attention frees q, k and v early.
    shared_input: prepares tokens that several projections read, such as rounding them to fp8.
    """

    attention: Attention
    parameters: Parameters = own_parameters
    rope_scale: Scale = NO_SCALE
    tokens_at_a_time: int | None = None
    rope_tables: RopeTables | CutRopeTables = field(default_factory=RopeTables)
    triton: bool = False
    attention_: ReleasingAttention | None = None
    shared_input: SharedInput = unchanged

    def for_layer(self, x: Tensor) -> Engine:
        """The engine for a layer with input x: chooses between plain PyTorch and Triton."""
        return replace(self, triton=dispatch.triton_for(x, dispatch.ATTENTION_KERNEL_MODULES))

    def attend_(self, operands: list[Tensor], heads: int) -> Tensor:
        """Attention of [q, k, v]. Empties the list."""
        if self.attention_ is not None:
            return self.attention_(operands, heads)
        q, k, v = operands
        operands.clear()
        return self.attention(q, k, v, heads)

    def weight(self, module: nn.Module, x: Tensor) -> Tensor:
        """The weight of a module, ready for use with x."""
        return self.parameters(module, x)[0]


def pieces(x: Tensor, dim: int, tokens_at_a_time: int | None) -> list[tuple[int, int]]:
    """Cut axis `dim` of tokens x (..., c) into parts of at most `tokens_at_a_time` tokens: (start, length) of each."""
    length, tokens = x.shape[dim], x.shape[:-1].numel()
    count = 1 if tokens_at_a_time is None else min(-(-tokens // tokens_at_a_time), length)
    step = -(-length // count)
    return [(start, min(step, length - start)) for start in range(0, length, step)]


def in_pieces(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    dim: int,
    tokens_at_a_time: int | None,
    overwrite: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Compute function(x) piece by piece along axis `dim`.

    function: keeps the length of that axis and does not mix its items. The rest as in `in_parts`.
    """
    return in_parts(lambda part: function(x.narrow(dim, *part)), x, dim, tokens_at_a_time, overwrite, shape)


def in_parts(
    function: Callable[[tuple[int, int]], Tensor],
    x: Tensor,
    dim: int,
    tokens_at_a_time: int | None,
    overwrite: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Put function(part) together for all (start, length) of `pieces` along axis `dim` of x.

    overwrite: x may be overwritten with the result, where no backward pass needs it.
    shape: of the result; None: that of x.
    """
    parts = pieces(x, dim, tokens_at_a_time)
    if len(parts) == 1:
        return function(*parts)
    if shape is not None:
        out = x.new_empty(shape)
    else:
        out = x if overwrite and not torch.is_grad_enabled() else torch.empty_like(x)
    for part in parts:
        out.narrow(dim, *part).copy_(function(part))
    return out

"""Attention kernels that users choose by name, with attention_kernel of UltraGen Load Model and UltraGen Apply."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...rules.choice import COMFYUI
from ...wan import WanShape
from .fp8_kernel import Fp8Kernel
from .int8_kernel import Int8Kernel
from .kernel import INSTEAD, Kernel, join_heads, split_heads

OVERRIDE = "optimized_attention_override"  # in ComfyUI's transformer_options

KERNELS: dict[str, Callable[[], Kernel] | None] = {COMFYUI: None, "int8": Int8Kernel, "fp8": Fp8Kernel}
"""What attention_kernel offers; None leaves the choice to ComfyUI, other packs and the fastest backend."""


def load_kernel(name: str, shape: WanShape | None = None) -> Kernel | None:
    """Return the kernel of this name, None for ComfyUI's choice.

    shape: the model's, if it is loaded. Raises ValueError where the kernel's package is missing or too old, or where
    it does not fit the model.
    """
    if name not in KERNELS:
        raise ValueError(f"attention_kernel must be one of {', '.join(KERNELS)}, got {name!r}. Choose one of them.")
    kernel = KERNELS[name] and KERNELS[name]()
    if kernel and shape and shape.channels // shape.heads > kernel.max_head_dim:
        raise ValueError(
            f"attention_kernel {name} needs heads of at most {kernel.max_head_dim} channels, but this model's have"
            f" {shape.channels // shape.heads}. For this model {INSTEAD}."
        )
    return kernel


class KernelOverride:
    """A kernel as ComfyUI's `optimized_attention_override`: it computes self-attention and passes the rest on.

    The rest is cross-attention, whose few keys gain no time and would cost accuracy, self-attention to fewer keys than
    pay, and calls with a mask, with heads already split, or with low_precision_attention=False. passed_on: the override
    that gets them; None is ComfyUI's own function.
    """

    def __init__(self, kernel: Kernel, passed_on: Callable | None):
        self.kernel, self.passed_on = kernel, passed_on

    def __call__(self, func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        if not args and self.pays(k) and _is_self_attention(q, k, **kwargs):
            return join_heads(self.kernel.attention(*(split_heads(x, heads) for x in (q, k, v))))
        if self.passed_on is not None:
            return self.passed_on(func, q, k, v, heads, *args, **kwargs)
        return func(q, k, v, heads, *args, **kwargs)

    def pays(self, k: Tensor) -> bool:
        """Whether attention to keys (b, tokens, c) is faster with the kernel."""
        return k.shape[1] >= self.kernel.fewest_keys

    def self_attention_(self, operands: list[Tensor], heads: int) -> Tensor:
        """Self-attention of [q, k, v], each (b, tokens, c), with any number of queries. Empties the list."""
        operands[:] = [split_heads(x, heads) for x in operands]
        return join_heads(self.kernel.attention_(operands))


def _is_self_attention(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    skip_reshape: bool = False,
    low_precision_attention: bool = True,
    **_,
) -> bool:
    return mask is None and not skip_reshape and low_precision_attention and q.shape == k.shape

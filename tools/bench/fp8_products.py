"""Counts the matrix products of ComfyUI's fp8 layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Fp8Products:
    """calls: of ComfyUI's fp8 layers; scaled layers count only where UltraGen rounds their inputs. in_fp8: those that
    were multiplied in fp8. one_pass: those whose input UltraGen's Triton kernel rounded.
    """

    calls: int = 0
    in_fp8: int = 0
    one_pass: int = 0

    def __str__(self) -> str:
        of_layers = f"fp8 in {self.in_fp8} of {self.calls} products of fp8 layers"
        return f"{of_layers}, inputs rounded in one pass: {self.one_pass}"


@contextmanager
def counted_fp8_products() -> Iterator[Fp8Products]:
    """Inside, products are counted. ComfyUI is silent about a layer that it does not multiply in fp8."""
    import comfy.ops

    from ultragen_core.host.attention import fp8_linear

    count = Fp8Products()
    comfyuis, product, rounded = comfy.ops.fp8_linear, fp8_linear.fp8_product, fp8_linear.to_fp8

    def counted(function: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        def call(*args):
            count.calls += 1
            out = function(*args)
            count.in_fp8 += out is not None
            return out

        return call

    def counted_rounding(x: Tensor, scale: Tensor | None, gelu: bool, triton: bool) -> Tensor:
        count.one_pass += triton
        return rounded(x, scale, gelu, triton)

    comfy.ops.fp8_linear, fp8_linear.fp8_product = counted(comfyuis), counted(product)
    fp8_linear.to_fp8 = counted_rounding
    try:
        yield count
    finally:
        comfy.ops.fp8_linear, fp8_linear.fp8_product, fp8_linear.to_fp8 = comfyuis, product, rounded

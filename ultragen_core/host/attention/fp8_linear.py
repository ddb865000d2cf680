"""ComfyUI's fp8 linear layers, with their inputs rounded to fp8 in one pass over memory.

ComfyUI clamps an input in one pass, casts it in a second, and computes the GELU before it in a third. The matrix
product, the weights and the scales stay ComfyUI's. All other layers, and calls for which `multiplies_in_fp8` is False,
keep ComfyUI's own forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from comfy import quant_ops
from torch import Tensor, nn

from ...ops import dispatch
from ...ops.quantize import FP8
from ...ops.to_fp8 import to_fp8

SCALED = "mixed_precision_ops.<locals>.MixedPrecisionOps.Linear"  # ComfyUI's class, a new one for every model
LAYOUTS = ("TensorCoreFP8Layout", "TensorCoreFP8E4M3Layout")


@dataclass
class Fp8LinearLayer:
    """On one of ComfyUI's fp8 layers: `fp8_linear`, or the layer's own forward where `multiplies_in_fp8` is false."""

    original: Callable[[Tensor], Tensor]

    @staticmethod
    def forward(module, x: Tensor | Rounded) -> Tensor:
        if isinstance(x, Rounded):
            return x.product(module)
        return fp8_linear(module, x) if multiplies_in_fp8(module, x) else module.ultragen_layer.original(x)


class Rounded(NamedTuple):
    """An input x (..., c) of fp8 layers, already in fp8. rows: of x, (tokens, c). shape: of x."""

    rows: quant_ops.QuantizedTensor
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor, layer: nn.Module, gelu: bool = False) -> Rounded:
        """x, or GELU(x), as the layer rounds it; x is unchanged. `multiplies_in_fp8(layer, x)` must be True."""
        rows, scale = x.reshape(-1, x.shape[-1]).contiguous(), getattr(layer, "input_scale", None)
        if scale is not None:
            scale = scale.to(x.device, torch.float32)
        values = to_fp8(rows, scale, gelu, dispatch.triton_for(rows, dispatch.FP8_LINEAR_KERNEL_MODULES))
        return cls(_quantized(values, scale, x.dtype, _layout(layer)), x.shape)

    def product(self, layer: nn.Module) -> Tensor:
        """The layer's output (..., n)."""
        return fp8_product(layer, self.rows).unflatten(0, self.shape[:-1])


def shared_input(layers: Sequence[nn.Module], x: Tensor) -> Tensor | Rounded:
    """x (b, tokens, c), rounded once where all of these layers are an `Fp8LinearLayer`'s and round it alike."""
    alike = all(
        isinstance(vars(layer).get("ultragen_layer"), Fp8LinearLayer)
        and getattr(layer, "input_scale", None) is None
        and _layout(layer) == _layout(layers[0])
        and multiplies_in_fp8(layer, x)
        for layer in layers
    )
    return Rounded.of(x, layers[0]) if alike else x


@cache
def is_supported() -> bool:
    """Whether this ComfyUI has the functions that `fp8_linear` calls. Versions before 0.30 do not."""
    layout = getattr(quant_ops, "TensorCoreFP8Layout", None)
    given = {"dtype", "device", "bias_dtype", "offloadable", "compute_dtype", "want_requant"}
    return (
        hasattr(layout, "Params")
        and hasattr(quant_ops, "get_layout_class")
        and hasattr(comfy.ops, "run_every_op")
        and hasattr(comfy.model_management, "lora_compute_dtype")
        and given <= inspect.signature(comfy.ops.cast_bias_weight).parameters.keys()
    )


def is_fp8_linear(layer: nn.Module) -> bool:
    """Whether this is one of ComfyUI's linear layers that multiply in fp8 (e4m3), with or without scales.

    False for every layer where `is_supported()` is False.
    """
    if not is_supported():
        return False
    if type(layer) is comfy.ops.fp8_ops.Linear:
        return layer.weight is not None and layer.weight.dtype == FP8
    own = (type(layer).__module__, type(layer).__qualname__) == (comfy.ops.__name__, SCALED)
    return own and _is_quantized(layer) and getattr(layer, "layout_type", None) in LAYOUTS


def multiplies_in_fp8(layer: nn.Module, x: Tensor) -> bool:
    """Whether ComfyUI would round x to fp8 with one scale, so that `fp8_linear` may do it instead.

    layer: one for which `is_fp8_linear` is True. x must be a plain tensor (tokens, c) or (b, tokens, c). False also
    where ComfyUI adds a LoRA to the weight in full precision, where gradients are recorded, and under torch.compile.
    """
    if x.ndim not in (2, 3) or isinstance(x, quant_ops.QuantizedTensor) or not x.is_floating_point():
        return False
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or layer.weight_function or layer.bias_function:
        return False
    if not _is_quantized(layer):
        return True
    full_precision = layer._full_precision_mm or getattr(layer, "comfy_force_cast_weights", False)
    return not full_precision and getattr(layer, "pre_quant_scale", None) is None


def fp8_linear(layer: nn.Module, x: Tensor, gelu: bool = False) -> Tensor:
    """Return layer(x), or layer(GELU(x)) with the tanh form of GELU. x: (tokens, c) or (b, tokens, c), unchanged.

    `multiplies_in_fp8(layer, x)` must be True. Plain PyTorch rounds bit for bit as ComfyUI does. Triton's GELU differs
    by float32 rounding, which moves a few inputs to the next value of fp8.
    """
    return Rounded.of(x, layer, gelu).product(layer)


def fp8_product(layer: nn.Module, x: quant_ops.QuantizedTensor) -> Tensor:
    """Return the layer's output for an input (tokens, c) in fp8, multiplied by ComfyUI's own dispatch."""
    if _is_quantized(layer):
        return type(layer).forward(layer, x)  # an input in fp8 is taken unchanged
    comfy.ops.run_every_op()  # stops here if the user has interrupted, as the layer's own forward does
    # As in comfy.ops.fp8_linear, from where its input is rounded.
    weight, bias, stream = comfy.ops.cast_bias_weight(
        layer,
        dtype=FP8,
        device=x.device,
        bias_dtype=x.dtype,
        offloadable=True,
        compute_dtype=comfy.model_management.lora_compute_dtype(x.device),
        want_requant=True,
    )
    try:
        return F.linear(x, _quantized(weight, None, x.dtype, LAYOUTS[0]), bias)
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


def _quantized(values: Tensor, scale: Tensor | None, dtype: torch.dtype, layout: str) -> quant_ops.QuantizedTensor:
    if scale is None:
        scale = torch.ones((), device=values.device)
    params = quant_ops.get_layout_class(layout).Params(scale=scale, orig_dtype=dtype, orig_shape=tuple(values.shape))
    return quant_ops.QuantizedTensor(values, layout, params)


def _layout(layer: nn.Module) -> str:
    """Of the layer's input in fp8."""
    return layer.layout_type if _is_quantized(layer) else LAYOUTS[0]


def _is_quantized(layer: nn.Module) -> bool:
    return isinstance(layer.weight, quant_ops.QuantizedTensor)

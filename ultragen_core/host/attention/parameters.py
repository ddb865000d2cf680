"""Parameters of ComfyUI's layers. ComfyUI casts and fetches them in every call; most need neither."""

from __future__ import annotations

import comfy.ops
import torch.nn.functional as F
from torch import Tensor, nn

from ..compat import cast_parameters


def managed_parameters(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one of ComfyUI's layers, ready for use with x: fetched, patched, and cast where needed."""
    return (module.weight, module.bias) if is_ready(module, x) else cast_parameters(module, x.dtype, x.device)


class Operations(comfy.ops.manual_cast):
    """ComfyUI's layers that cast their weights to the dtype of their input; linear ones do so only where they must."""

    class Linear(comfy.ops.manual_cast.Linear):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            if is_ready(self, input):
                return F.linear(input, self.weight, self.bias)
            return super().forward_comfy_cast_weights(input)


def is_ready(module: nn.Module, x: Tensor) -> bool:
    """Whether weight and bias are on x's device, in x's dtype and unpatched: ComfyUI would return them unchanged."""
    if module.weight_function or module.bias_function or "_v" in vars(module):  # dynamic VRAM counts uses of a weight
        return False
    weight, bias, wanted = module.weight, module.bias, (x.dtype, x.device)
    return (weight.dtype, weight.device) == wanted and (bias is None or (bias.dtype, bias.device) == wanted)

"""Driving a loaded ComfyUI model from a test."""

from __future__ import annotations

import comfy.model_management
import torch
from torch import Tensor


@torch.no_grad()
def velocity(model, x: Tensor, context: Tensor, sigma: float) -> Tensor:
    """One evaluation through BaseModel.apply_model, as the sampler makes it: the raw output (x - denoised) / sigma."""
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()])
    model.pre_run()
    try:
        options = dict(model.model_options.get("transformer_options", {}))
        options["wrappers"] = model.wrappers
        t = torch.full((x.shape[0],), sigma)
        denoised = model.model.apply_model(x, t, c_crossattn=context, transformer_options=options)
    finally:
        model.cleanup()
    return (x - denoised) / sigma

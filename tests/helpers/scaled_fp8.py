"""Checkpoints in scaled fp8, as ComfyUI's repackaged Wan files: marked by a tensor, or by the file's metadata."""

from __future__ import annotations

import json

import torch
from torch import Tensor

LAYOUTS = ("scaled_fp8", "metadata")
NAMES = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "ffn.0", "ffn.2")


def scaled(state: dict[str, Tensor], layout: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict with attention and feed-forward layers of four blocks in scaled fp8, and its file's metadata."""
    state, layers = dict(state), {}
    for layer in (f"blocks.{block}.{name}" for block in range(4) for name in NAMES):
        weight = state[f"{layer}.weight"].float()
        scale = weight.abs().max() / 448
        state[f"{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        state[f"{layer}.{'scale_weight' if layout == 'scaled_fp8' else 'weight_scale'}"] = scale
        layers[layer] = {"format": "float8_e4m3fn"}
    if layout == "scaled_fp8":
        return {**state, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, {}
    return state, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}

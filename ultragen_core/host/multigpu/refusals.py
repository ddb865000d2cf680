"""Why an evaluation of a model cannot be split by rectangles, so that several GPUs compute whole prompts, or cannot be
shared at all.
"""

from __future__ import annotations

import comfy.ldm.wan.model as wan
import torch
from comfy.patcher_extension import WrappersMP
from torch import nn

from ..attention.block import is_changed
from ..wan_model import all_blocks, diffusion_model, has_wans_rotations

# By exact class: other classes read neighbours or join tokens.
SPLITTABLE = (wan.WanModel, wan.VaceWanModel)
# Conditions that hold for all tokens, or that are cut like the latent.
CONDITIONS = frozenset("c_crossattn c_concat clip_fea time_dim_concat vace_context vace_strength denoise_mask".split())
# What these are called where they reach the model's forward, besides the named parameters.
FORWARD_INPUTS = frozenset(("vace_context", "vace_strength", "denoise_mask"))
PATCHES = "double_block", "attn1_patch", "attn2_patch", "post_input"
SPLIT_DEVICES = "cuda", "cpu"


def why_one_gpu(patcher) -> str:
    """One clause; empty where ComfyUI's copies on other GPUs compute what this ModelPatcher's model does.

    ComfyUI gives them its injections and object patches as they are, and those may hold modules of this model.
    """
    if patcher.injections:
        return f"{', '.join(patcher.injections)} of another node acts on the modules of one GPU alone"
    for name, patch in patcher.object_patches.items():
        if isinstance(getattr(patch, "__self__", None), nn.Module):
            return f"another node has tied {name} to the modules of one GPU"
    return ""


def why_not_split(base, conds: list, model_options: dict, device: torch.device) -> str:
    """One clause; empty where the evaluation can be split. base: BaseModel. conds: as in calc_cond_batch."""
    dm, options = diffusion_model(base), model_options.get("transformer_options", {})
    if device.type not in SPLIT_DEVICES:
        return f"the exchange between {device.type} devices is untested"
    if type(dm) not in SPLITTABLE:
        return f"{type(dm).__name__} reads tokens across borders"
    if "torch.compile" in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}) or base.diffusion_model is not dm:
        return "torch.compile has compiled the model for whole videos"
    if any(hasattr(block, "_orig_mod") for block in dm.blocks):
        return "torch.compile has compiled its blocks for whole videos"
    if not has_wans_rotations(dm):
        return "another node has replaced the positions of its tokens"
    patched = any(options.get("patches", {}).get(name) for name in PATCHES) or options.get("patches_replace")
    if patched or any(is_changed(block.self_attn) for block in all_blocks(dm)):
        return "another node has patched its blocks"
    conditions = [cond for some in conds for cond in some or ()]
    if any("control" in cond for cond in conditions):
        return "a ControlNet acts on whole videos"
    unknown = {key for cond in conditions for key in cond.get("model_conds", {})} - CONDITIONS
    return f"its conditions {', '.join(sorted(unknown))} cannot be cut into rectangles" if unknown else ""

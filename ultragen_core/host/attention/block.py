"""What surrounds the attention in a block of a Wan model, fused: ComfyUI's forward reads and writes the video's tokens
19 times for residuals, norms and modulations, this one 13 times; and the feed-forward part applies its GELU within the
matrix product.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MethodType

import comfy.ldm.wan.model as wan
import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ...ops.linear_gelu import linear_gelu
from ...ops.residual_norm import norm, residual_, residual_norm_
from .fp8_linear import fp8_linear, is_fp8_linear, multiplies_in_fp8
from .parameters import is_ready, managed_parameters

log = logging.getLogger(__name__)


@dataclass
class FusedBlockLayer:
    """On a block: `fused_block`, or its own forward where one of ComfyUI's features asks for more."""

    original: Callable[..., Tensor]

    @staticmethod
    def forward(
        module,
        x: Tensor,
        e: Tensor,
        freqs: Tensor,
        context: Tensor,
        context_img_len: int | None = 257,
        transformer_options: dict | None = None,
        **others,
    ) -> Tensor:
        options = transformer_options or {}
        timesteps = 1 if e.ndim == 3 else e.shape[1]
        if others or timesteps > 1 or "attn2_patch" in options.get("patches", {}):
            original = module.ultragen_layer.original
            return original(
                x, e, freqs, context, context_img_len=context_img_len, transformer_options=options, **others
            )
        return fused_block(module, x, e.reshape(len(e), 6, -1), freqs, context, context_img_len, options)


def fused_block(
    block: nn.Module,
    x: Tensor,
    e: Tensor,
    freqs: Tensor,
    context: Tensor,
    context_img_len: int | None,
    transformer_options: dict,
    triton: bool = True,
) -> Tensor:
    """WanAttentionBlock.forward with one timestep an item: x (b, s, c), e (b, 6, c) its modulation -> (b, s, c)."""
    x = x.contiguous()  # the first block's is the embedding, channel-first
    modulation = comfy.model_management.cast_to(block.modulation, dtype=x.dtype, device=x.device)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (modulation + e).chunk(6, dim=1)
    weight, bias = (vector[None, None] for vector in managed_parameters(block.norm3, x))
    # The first normed map has no name here, so that the attention may overwrite it.
    y = block.self_attn(
        norm(x, 1 + scale, shift, block.norm1.eps, triton), freqs, transformer_options=transformer_options
    )
    x, normed = residual_norm_(x, y, gate, weight, bias, block.norm3.eps, triton)
    y = block.cross_attn(normed, context, context_img_len=context_img_len, transformer_options=transformer_options)
    x, normed = residual_norm_(x, y, None, 1 + ffn_scale, ffn_shift, block.norm2.eps, triton)
    return residual_(x, block.ffn(normed), ffn_gate, triton)


def can_fuse(block: nn.Module) -> bool:
    """Whether `fused_block` computes what this block computes: ComfyUI's own class, uncompiled, with the layer norms of
    Wan, and without other packs' forwards or hooks.
    """
    if type(block) is not wan.WanAttentionBlock or block._compiled_call_impl is not None:
        return False
    norms = (block.norm1, block.norm2, block.norm3)
    if not all(isinstance(one, nn.LayerNorm) for one in norms) or any(map(is_changed, (block, *norms))):
        return False
    affine = [one.elementwise_affine for one in norms]
    # Other packs may keep the results of their forwards, which `fused_block` overwrites.
    changed = any(map(is_changed, (block.self_attn, block.cross_attn, block.ffn)))
    return affine == [False, False, True] and not changed and _same_as_comfyui()


def fused_feed_forward(ffn: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The forward of a feed-forward part with its first layer's GELU fused; None where it is not Wan's own."""
    if not is_wans_feed_forward(ffn):
        return None
    linear = all(
        isinstance(layer, comfy.ops.disable_weight_init.Linear) or is_fp8_linear(layer) for layer in (ffn[0], ffn[2])
    )
    if not linear or type(ffn[1]) is not nn.GELU or ffn[1].approximate != "tanh" or ffn[0].bias is None:
        return None
    if any(map(is_changed, (ffn, *ffn))):
        return None
    return partial(_fp8_feed_forward if is_fp8_linear(ffn[2]) else _feed_forward, ffn, ffn.forward)


def is_wans_feed_forward(ffn: nn.Module) -> bool:
    """Whether this is linear layer, activation and linear layer in turn, with ComfyUI's forward."""
    return type(ffn) in (nn.Sequential, getattr(wan, "WanFeedForward", None)) and len(ffn) == 3 and has_own_forward(ffn)


def _feed_forward(ffn: nn.Sequential, original: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    first, _, second = ffn
    # Quantised weights are tensors of their own classes, and ComfyUI fuses the GELU in its own way.
    plain = type(first.weight) is nn.Parameter and type(second.weight) is nn.Parameter
    if plain and is_ready(first, x):
        return second(linear_gelu(x, first.weight, first.bias))
    return original(x)


def _fp8_feed_forward(ffn: nn.Sequential, original: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    first, _, second = ffn
    return fp8_linear(second, first(x), gelu=True) if multiplies_in_fp8(second, x) else original(x)


def is_changed(module: nn.Module) -> bool:
    """Whether another pack has replaced this module's forward, or has hooked it."""
    return not has_own_forward(module) or bool(module._forward_hooks or module._forward_pre_hooks)


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module computes what its class says."""
    forward = vars(module).get("forward")
    # Where ComfyUI has taken a patch off, it leaves the module's own forward as an attribute.
    return forward is None or forward == MethodType(type(module).forward, module)


@lru_cache(maxsize=1)
def _same_as_comfyui() -> bool:
    """Compare with ComfyUI's own forward on a toy block: a version that does more keeps its own."""
    try:
        calls, results = [], []
        block, inputs = _toy_block(calls)
        with torch.inference_mode():
            for forward in (type(block).forward, partial(fused_block, triton=False)):
                calls.clear()
                results.append((forward(block, **inputs), list(calls)))
        (theirs, their_calls), (ours, our_calls) = results
        if their_calls == our_calls and torch.allclose(theirs, ours, rtol=1e-4, atol=1e-4):
            return True
        reason = "other numbers"
    except Exception as error:  # whatever has changed, ComfyUI's own forward is right
        reason = repr(error)
    log.info("UltraGen: this ComfyUI's Wan blocks are not fused (%s)", reason)
    return False


class _Spy(nn.Module):
    """Stands in for an attention, and notes what it is called with."""

    def __init__(self, calls: list):
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        self.calls.append((len(args), sorted(kwargs)))
        return x.sin()


def _toy_block(calls: list) -> tuple[nn.Module, dict]:
    c, generator = 8, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    settings = {"operations": comfy.ops.disable_weight_init, "device": "cpu", "dtype": torch.float32}
    block = wan.WanAttentionBlock("t2v_cross_attn", c, 2 * c, 1, cross_attn_norm=True, operation_settings=settings)
    block.self_attn, block.cross_attn = _Spy(calls), _Spy(calls)
    block.requires_grad_(False)
    for parameter in block.parameters():
        parameter.copy_(random(*parameter.shape))
    e, x = random(2, 6, c), random(2, 5, c)
    return block, {"x": x, "e": e, "freqs": None, "context": None, "context_img_len": None, "transformer_options": {}}

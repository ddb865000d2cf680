"""Layers that replace the forwards of a Wan model's modules during one evaluation.

Each layer is stored on its module as `ultragen_layer`, and its class's `forward` is bound to the module, so that
compiled graphs see plain attributes of their module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MethodType

import comfy.ldm.wan.model as wan
import torch
from torch import Tensor, nn

from ...attention.engine import Engine, in_pieces
from ...attention.layer import dense_attention_
from ...attention.rope import NO_SCALE, CutRopeTables, RopeTables, Scale
from ...grid import TokenGrid
from ..compat import attention_operands, preferred_attention
from ..wan_model import all_blocks, blocks_at, uncompiled
from .block import FusedBlockLayer, can_fuse, fused_feed_forward, is_changed, is_wans_feed_forward
from .fp8_linear import Fp8LinearLayer, is_fp8_linear, shared_input
from .kernels import OVERRIDE, KernelOverride
from .parameters import managed_parameters

# A block whose own forward is one of these hands its attention a tensor that nobody else holds.
OWN_FORWARDS = (wan.WanAttentionBlock.forward, wan.VaceWanAttentionBlock.forward)


def engine(
    module: nn.Module,
    transformer_options: dict,
    tokens_at_a_time: int | None,
    rope_scale: Scale = NO_SCALE,
    rope_tables: RopeTables | CutRopeTables | None = None,
) -> Engine:
    """The engine of one of ComfyUI's self-attention modules: ComfyUI's attention and parameters."""
    wish = preferred_attention(module)
    preferred = {} if wish is None else {"preferred_attention": wish}

    def attention_(operands: list[Tensor], heads: int) -> Tensor:
        # Looked up at call time, so that the attention which the user or another pack has chosen is used.
        override = transformer_options.get(OVERRIDE)
        if isinstance(override, KernelOverride) and override.pays(operands[1]):
            # Called directly: ComfyUI's wrapper would keep q, k and v alive.
            return override.self_attention_(operands, heads)
        given = attention_operands(*operands)
        operands.clear()
        return wan.optimized_attention(*given, heads=heads, transformer_options=transformer_options, **preferred)

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return attention_([q, k, v], heads)

    tables = rope_tables or RopeTables()
    return Engine(
        attention, managed_parameters, rope_scale, tokens_at_a_time,
        rope_tables=tables, attention_=attention_, shared_input=shared_input,
    )  # fmt: skip


@dataclass
class RuleLayer:
    """On a self-attention: a rule's attention.

    full: the attention of a block that stays dense, ComfyUI's or a DenseLayer's.
    rope_tables: None cuts them from the rotations that ComfyUI hands over, which are scaled already.
    """

    full: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    grid: TokenGrid
    rope_scale: Scale
    tokens_at_a_time: int | None
    rope_tables: RopeTables | None
    note: Callable[[str], None]

    @staticmethod
    def forward(module, x: Tensor, freqs: Tensor, transformer_options: dict | None = None, **kwargs) -> Tensor:
        layer: RuleLayer = module.ultragen_layer
        transformer_options = transformer_options or {}
        tokens = layer.grid.tokens
        if x.shape[1] != tokens:
            extra = x.shape[1] - tokens
            layer.note(f"all blocks stay dense, because {extra} extra tokens joined the video's {tokens}")
            return layer.full(x, freqs, transformer_options=transformer_options, **kwargs)
        if transformer_options.get("patches", {}).get("attn1_patch"):
            layer.note("attention patches (attn1_patch) of other nodes act on dense blocks only")
        scale, tables = layer.rope_scale, layer.rope_tables
        if tables is None:
            scale, tables = NO_SCALE, CutRopeTables(rotation_table(freqs), layer.grid)
        chosen = engine(module, transformer_options, layer.tokens_at_a_time, scale, tables)
        return layer.attention(module, x, engine=chosen)


@dataclass
class DenseLayer:
    """On a self-attention that stays dense: full attention, with norms and rotations fused or memory bounded."""

    tokens_at_a_time: int | None

    @staticmethod
    def forward(module, x: Tensor, freqs: Tensor, transformer_options: dict | None = None, **kwargs) -> Tensor:
        chosen = engine(module, transformer_options or {}, module.ultragen_layer.tokens_at_a_time)
        return dense_attention_(module, x, rotation_table(freqs), chosen)


@dataclass
class TokenWiseLayer:
    """On a module that treats every token of x (b, s, c) alone: the same in chunks of tokens."""

    original: Callable[..., Tensor]
    tokens_at_a_time: int | None

    @staticmethod
    def forward(module, x: Tensor, *args, **kwargs) -> Tensor:
        layer: TokenWiseLayer = module.ultragen_layer
        return in_pieces(lambda part: layer.original(part, *args, **kwargs), x, 1, layer.tokens_at_a_time)


@dataclass
class FeedForwardLayer(TokenWiseLayer):
    """On a feed-forward part whose linear layers have deltas. with_deltas: feed_forward(module, x); `original` computes
    the part without them, for blocks that stay dense because extra tokens joined the video's.
    """

    with_deltas: Callable[[nn.Module, Tensor], Tensor]
    tokens: int

    @staticmethod
    def forward(module, x: Tensor) -> Tensor:
        layer: FeedForwardLayer = module.ultragen_layer
        if x.shape[1] != layer.tokens:
            return TokenWiseLayer.forward(module, x)
        return in_pieces(partial(layer.with_deltas, module), x, 1, layer.tokens_at_a_time)


@dataclass
class EmbeddingLayer:
    """On the patch embedding: frame by frame, in the activations' dtype and channel-last, so that ComfyUI neither holds
    the float32 map nor copies the tokens into order.
    """

    original: Callable[[Tensor], Tensor]
    dtype: torch.dtype

    @staticmethod
    def forward(module, x: Tensor) -> Tensor:
        layer: EmbeddingLayer = module.ultragen_layer
        frames = [layer.original(frame).to(layer.dtype).movedim(1, -1) for frame in x.split(1, dim=2)]
        return torch.cat(frames, dim=1).movedim(-1, 1)


def fused_layers(dm: wan.WanModel, tokens_at_a_time: int | None) -> dict[nn.Module, object]:
    """Layers that fuse what surrounds the attention, for a GPU that has kernels for it."""
    layers: dict[nn.Module, object] = {}
    for block in map(uncompiled, all_blocks(dm)):
        if can_fuse(block):
            layers[block] = FusedBlockLayer(block.forward)
            fp8 = [one for one in block.modules() if is_fp8_linear(one) and not is_changed(one)]
            layers |= {one: Fp8LinearLayer(one.forward) for one in fp8}
        if feed_forward := fused_feed_forward(block.ffn):
            layers[block.ffn] = TokenWiseLayer(feed_forward, tokens_at_a_time)
    return layers


def bounded_layers(dm: wan.WanModel, dtype: torch.dtype, tokens_at_a_time: int) -> dict[nn.Module, object]:
    """Layers with bounded memory for all of the model but its self-attention."""
    layers: dict[nn.Module, object] = {}
    if dm.patch_size[0] == 1:
        layers[dm.patch_embedding] = EmbeddingLayer(dm.patch_embedding.forward, dtype)
    for block in map(uncompiled, all_blocks(dm)):
        for module in (block.ffn, block.cross_attn):
            layers[module] = TokenWiseLayer(module.forward, tokens_at_a_time)
    return layers


def dense_layers(dm: wan.WanModel, tokens_at_a_time: int | None) -> dict[nn.Module, DenseLayer]:
    """Layers for dense self-attention, where other packs have replaced nothing."""
    layers: dict[nn.Module, DenseLayer] = {}
    for block in map(uncompiled, all_blocks(dm)):
        own = getattr(block.forward, "__func__", None) in OWN_FORWARDS and not is_changed(block.self_attn)
        if own and type(block.self_attn) is wan.WanSelfAttention:
            layers[block.self_attn] = DenseLayer(tokens_at_a_time)
    return layers


def delta_layers(
    dm: wan.WanModel,
    feed_forwards: Mapping[int, Callable[[nn.Module, Tensor], Tensor]],
    others: Mapping[nn.Module, object],
    tokens: int,
    tokens_at_a_time: int | None,
    note: Callable[[str], None],
) -> dict[nn.Module, FeedForwardLayer]:
    """Layers for the feed-forward parts whose linear layers have deltas.

    feed_forwards: by block, from the rule. others: layers of the whole model, without deltas.
    """
    layers: dict[nn.Module, FeedForwardLayer] = {}
    for index, feed_forward in feed_forwards.items():
        for ffn in (block.ffn for block in blocks_at(dm, index)):
            if is_wans_feed_forward(ffn):
                plain = others[ffn].original if ffn in others else ffn.forward
                layers[ffn] = FeedForwardLayer(plain, tokens_at_a_time, feed_forward, tokens)
            else:
                note("a feed-forward part that another pack has replaced has no deltas")
    return layers


@contextmanager
def installed(layers: dict[nn.Module, object]):
    """Put these layers on their modules; afterwards, also after an exception, restore the instance forwards that were
    there.
    """
    before = {module: module.__dict__.get("forward") for module in layers}
    try:
        for module, layer in layers.items():  # as by assignment, without nn.Module's search for parameters
            vars(module).update(ultragen_layer=layer, forward=MethodType(type(layer).forward, module))
        yield
    finally:
        for module, forward in before.items():
            module.__dict__.pop("ultragen_layer", None)
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def rotation_table(freqs: Tensor) -> Tensor:
    """Cosine and sine (s, d / 2, 2) of ComfyUI's rotations (1, s, 1, d / 2, 2, 2), each ((cos, -sin), (sin, cos))."""
    return freqs[0, :, 0, :, :, 0]


def rope_scale(transformer_options: dict) -> Scale:
    """The scales of ComfyUI's RoPE node; its shifts have no effect, because RoPE is relative."""
    options = transformer_options.get("rope_options") or {}
    return tuple(options.get(f"scale_{axis}", 1.0) for axis in "tyx")

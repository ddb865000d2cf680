"""Reads sizes and modules of ComfyUI's Wan models."""

from __future__ import annotations

import comfy.ldm.wan.model as wan
import torch

from ..attention.rope import THETA, axis_dims
from ..grid import TokenGrid
from ..wan import PATCH, WanShape


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself, if torch.compile has wrapped it."""
    return getattr(module, "_orig_mod", module)


def diffusion_model(base) -> torch.nn.Module:
    """The Wan model inside a BaseModel."""
    return uncompiled(base.diffusion_model)


def shape_of(dm: wan.WanModel) -> WanShape:
    """The sizes of a loaded model."""
    classes = {index: type(block.self_attn) for index, block in enumerate(dm.blocks)}
    return WanShape(
        blocks=len(dm.blocks),
        channels=dm.dim,
        heads=dm.num_heads,
        ffn_channels=dm.ffn_dim,
        out_channels=dm.out_dim,
        vace_blocks=len(getattr(dm, "vace_blocks", ())),
        other_attention={i: each.__name__ for i, each in classes.items() if each is not wan.WanSelfAttention},
    )


def token_grid(latent_shape: tuple[int, ...], more_frames: int = 0) -> TokenGrid:
    """Tokens of a latent (b, c, t, h, w): Wan pads each axis up to its patch size."""
    t, h, w = (-(-length // patch) for length, patch in zip(latent_shape[2:], PATCH, strict=True))
    return TokenGrid(t + more_frames, h, w)


def has_wans_rotations(dm: wan.WanModel) -> bool:
    """Whether every token is rotated as Wan does, before ComfyUI's options scale it: neither the model's class nor
    another pack places tokens or chooses frequencies in another way.
    """
    embedder, head_dim = dm.rope_embedder, dm.dim // dm.num_heads
    own = getattr(dm.rope_encode, "__func__", None) is wan.WanModel.rope_encode and type(embedder) is wan.EmbedND
    same = own and getattr(embedder.forward, "__func__", None) is wan.EmbedND.forward
    return same and (embedder.theta, tuple(embedder.axes_dim)) == (THETA, axis_dims(head_dim))


def activation_dtype(base) -> torch.dtype:
    """The dtype that a BaseModel computes in."""
    return base.manual_cast_dtype or base.get_dtype()


def all_blocks(dm: wan.WanModel) -> list[torch.nn.Module]:
    """The blocks, and the VACE blocks that feed them."""
    return [*dm.blocks, *getattr(dm, "vace_blocks", ())]


def blocks_at(dm: wan.WanModel, index: int) -> list[torch.nn.Module]:
    """A block, and the VACE block that feeds it."""
    blocks = [dm.blocks[index]]
    if (vace := getattr(dm, "vace_layers_mapping", {}).get(index)) is not None:
        blocks.append(dm.vace_blocks[vace])
    return blocks

"""Plans a run by arithmetic alone: loads nothing, computes nothing on the device."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.model_management as mm
import torch

from ..grid import TokenGrid
from ..plan.flops import FLOPs, dense_layer_flops, feed_forward_delta_flops, layer_flops, rest_of_block_flops
from ..plan.memory import MAX_PIECES, ActivationMemory
from ..plan.report import DECODE_TILES, GatePoint, Plan
from ..plan.speed import Estimate, Speed
from ..plan.split import GPUs, shares_of
from ..rules.blocks import describe_dense
from ..rules.groups import BlockGroup
from ..rules.rule import Rule
from ..rules.ultragen import UltraGenRule
from ..sizes import SPATIAL_RATIO, VideoSize, latent_shape, pixels_of
from ..vae.parse import decoder_layers
from ..wan import WanShape
from .attention.kernels import OVERRIDE, Kernel
from .attention.patch import require_wan, runtime_of
from .memory import gpu_memory
from .multigpu.patch import gpus_of, models_on_one_gpu
from .speed.records import current_speed
from .vae.tile_size import decode_needs
from .wan_model import shape_of, token_grid

GATE_STEPS = 11
ITEMSIZE = 2  # bytes per activation, in 16-bit formats
DTYPES = [torch.float16, torch.bfloat16, torch.float32]  # that Wan's models and VAEs run in
ONE_GPU = GPUs()


def plan_of(model, latent_shape: tuple[int, ...]) -> Plan:
    """The plan of a loaded MODEL, patched or not, for one video.

    latent_shape: (b, c, t, h, w), or (b, c, h, w) of an image, which is sampled as one frame. Raises ValueError where
    the latent does not suit the model or its rule.
    """
    pixels = pixels_of(latent_shape)
    if len(latent_shape) == 4:
        latent_shape = (*latent_shape[:2], 1, *latent_shape[2:])
    shape = shape_of(require_wan(model))
    if latent_shape[1] != shape.out_channels:
        raise ValueError(
            f"The latent has {latent_shape[1]} channels, but the model needs {shape.out_channels}. Connect the model's"
            " VAE to UltraGen Empty Latent."
        )
    size = VideoSize(*pixels, 4 * latent_shape[2] - 3)
    weights = sum(patcher.model_size() for patcher in models_on_one_gpu(model))
    overridden = OVERRIDE in model.model_options.get("transformer_options", {})
    speed = None if overridden else current_speed()  # measured with the attention function that nobody has replaced
    runtime, others = runtime_of(model), {"speed": speed, "gpus": gpus_of(model), "dtype": _dtype_of(model)}
    if runtime is None:
        return plan(None, shape, size, weights, **others)
    others |= {"kernel": runtime.kernel, "bounded": runtime.bounded}
    return plan(runtime.rule, shape, size, weights, runtime.percent, **others)


def plan(
    rule: Rule | None,
    model: WanShape,
    size: VideoSize,
    weights: int = 0,
    percent: tuple[float, float] = (0.0, 1.0),
    gates_known: bool = True,
    kernel: Kernel | None = None,
    speed: Speed | None = None,
    gpus: GPUs = ONE_GPU,
    bounded: bool = True,
    dtype: torch.dtype | None = None,
) -> Plan:
    """The plan of one video under a rule, None: dense attention. Raises ValueError where it cannot run at this size.

    weights: bytes of the model, 0 if unknown. percent: the part of the run in which the rule acts. gates_known: whether
    the rule's gates have their weights. kernel, dtype: of self-attention and of activations; None is ComfyUI's choice.
    speed: of this card, measured in blocks under a rule without a kernel. bounded: few tokens at a time may do.
    """
    grid, itemsize = token_grid(_latent(size, model)), _itemsize(dtype)
    groups = tuple(rule.groups(grid)) if rule else ()
    flops, dense_flops = flops_of(groups, grid, model)
    return Plan(
        size=size,
        grid=grid,
        rule=_named(rule, model, kernel),
        dense=tuple(describe_dense(rule.dense)) if rule else (),
        groups=groups,
        flops=flops,
        dense_flops=dense_flops,
        gates=_gates(rule) if gates_known else (),
        weights=weights,
        activations=_activations(model, grid, itemsize, kernel, bounded and bool(groups) and percent == (0.0, 1.0)),
        decode=_decode(_latent(size, model)[1:], model.uses_wan22_vae, _vae_dtype()),
        decodes_on_gpu=_decodes_on_gpu(),
        warnings=(*(rule.advice(grid) if rule else ()), *_dense_outside(percent), *gpus.warnings),
        estimate=_estimate(speed, flops, size, model) if groups and not kernel else None,
        shares=shares_of(rule, grid, model, gpus, itemsize),
        gpu=gpu_memory(),
    )


def _latent(size: VideoSize, model: WanShape) -> tuple[int, ...]:
    return latent_shape(size, 1, model.out_channels, SPATIAL_RATIO[model.out_channels])


def _named(rule: Rule | None, model: WanShape, kernel: Kernel | None) -> str:
    named = f"rule {rule.name} in {len(rule.blocks)} of {model.blocks} blocks" if rule else "dense attention"
    return f"{named}, attention {kernel.name}" if kernel else named


def _estimate(speed: Speed | None, flops: FLOPs, size: VideoSize, model: WanShape) -> Estimate | None:
    return speed and speed.estimate(flops, size, decoded=_decodes_on_gpu() and not model.uses_wan22_vae)


def flops_of(groups: Sequence[BlockGroup], grid: TokenGrid, model: WanShape) -> tuple[FLOPs, FLOPs]:
    """FLOPs of one evaluation, with the rule in these groups of blocks and with full attention everywhere."""
    dense = dense_layer_flops(grid, model.channels)
    layers = {}
    for group in groups:
        layer = layer_flops(group.branches, grid, model.channels)
        layer += feed_forward_delta_flops(grid.tokens, model, group.ffn_rank)
        layers |= dict.fromkeys(group.blocks, layer)
    attentions = [*range(model.blocks), *model.fed_by_vace]
    rest = rest_of_block_flops(grid.tokens, model) * len(attentions)
    return sum((layers.get(index, dense) for index in attentions), rest), dense * len(attentions) + rest


def _has_gpu() -> bool:
    """Whether ComfyUI uses one; if not, the plan is for a GPU elsewhere."""
    return mm.get_torch_device().type != "cpu"


def _dtype_of(model) -> torch.dtype:
    """As `activation_dtype` of a MODEL while it runs: nodes such as ModelComputeDtype change it for their run alone."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def _itemsize(dtype: torch.dtype | None) -> int:
    """Bytes per activation. Options such as --force-fp32, and GPUs without 16-bit formats, take twice the usual."""
    if not _has_gpu():
        return ITEMSIZE
    if dtype is None:
        device = mm.get_torch_device()
        weights = mm.unet_dtype(device, supported_dtypes=DTYPES)
        dtype = mm.unet_manual_cast(weights, device, DTYPES) or weights
    return dtype.itemsize


def _decodes_on_gpu() -> bool:
    """False with --cpu-vae."""
    return not _has_gpu() or mm.vae_device().type != "cpu"


def _vae_dtype() -> torch.dtype:
    return mm.vae_dtype(mm.vae_device(), DTYPES) if _has_gpu() else torch.bfloat16


def _activations(
    model: WanShape, grid: TokenGrid, itemsize: int, kernel: Kernel | None, bounded: bool
) -> tuple[int, int]:
    """Bytes at least and at most. bounded: False where a step runs in ComfyUI's own code, with all tokens at once."""
    memory = ActivationMemory.of(model, grid, 1, itemsize, kernel.held_maps if kernel else 0)
    return memory.needed(MAX_PIECES if bounded else 1), memory.needed(1)


def _dense_outside(percent: tuple[float, float]) -> list[str]:
    start, end = percent
    if percent == (0.0, 1.0):
        return []
    return [f"Attention is dense, at full cost, outside {start:.0%} to {end:.0%} of the run."]


def _gates(rule: Rule | None) -> tuple[GatePoint, ...]:
    if not isinstance(rule, UltraGenRule) or not rule.blocks:
        return ()
    sigmas = torch.linspace(1, 0, GATE_STEPS)
    local, windows = (
        torch.stack([gate(1000 * sigmas).mean(dim=(1, 2)) for gate in gates]).mean(dim=0).tolist()
        for gates in zip(*rule.gate_sources.by_block.values(), strict=True)
    )
    return tuple(GatePoint(*point) for point in zip(sigmas.tolist(), local, windows, strict=True))


@functools.lru_cache(maxsize=64)
def _decode(latent: tuple[int, ...], wan22: bool, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes to decode latents (c, t, h, w) with Wan's published VAEs: smallest and usual tiles."""
    common = {"z_dim": latent[0], "temperal_downsample": [False, True, True]}
    with torch.device("meta"):
        vae = comfy.ldm.wan.vae2_2.WanVAE(dim=160, **common) if wan22 else comfy.ldm.wan.vae.WanVAE(dim=96, **common)
    needs = decode_needs(decoder_layers(vae), latent, dtype)
    return tuple(max(needs.frames, needs.tile(tile)) for tile in DECODE_TILES)

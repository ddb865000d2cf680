"""What runs while a patched model samples: our attention is put on the chosen blocks for one call and taken off again.

ComfyUI calls APPLY_MODEL wrappers around every evaluation of the model. Setting `forward` there and removing it in
`finally` leaves the incoming model as it was: nothing outlives a run, clones do not disturb each other, and a bypassed
step touches nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType

import comfy.ldm.wan.model as wan
import comfy.ops
import torch
from torch import Tensor

from ..attention.config import BlockSpec
from ..attention.engine import Engine
from ..attention.extras import BlockExtras
from ..attention.gate import Gates, GateTable
from ..attention.grid import TokenGrid
from ..attention.layer import ultragen_attention
from .backend import with_fast_attention
from .extras import LoadedExtras
from .report import describe_run

KEY = "ultragen"

log = logging.getLogger(__name__)


@dataclass
class BlockLayer:
    """What the patched forward of one block needs in one call of the model; `dense` is the forward that it replaces."""

    dense: Callable[..., Tensor]
    spec: BlockSpec
    extras: BlockExtras
    gates: Gates
    grid: TokenGrid
    rope_scale: tuple[float, float, float]
    note: Callable[[str], None]


def windowed_forward(self, x: Tensor, freqs: Tensor, transformer_options: dict | None = None, **kwargs) -> Tensor:
    """Takes the place of WanSelfAttention.forward; `self` is that module."""
    layer: BlockLayer = self.ultragen_layer
    transformer_options = transformer_options or {}
    if x.shape[1] != layer.grid.tokens:
        extra = x.shape[1] - layer.grid.tokens
        layer.note(f"all blocks stay dense, because {extra} tokens beside the grid {layer.grid} joined the sequence")
        return layer.dense(x, freqs, transformer_options=transformer_options, **kwargs)
    if transformer_options.get("patches", {}).get("attn1_patch"):
        layer.note("attention patches (attn1_patch) of other nodes act on dense blocks only")

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        # Looked up at call time, so that whatever attention the user or another pack has chosen is used.
        return wan.optimized_attention(q, k, v, heads=heads, transformer_options=transformer_options)

    engine = Engine(attention, managed_parameters, layer.rope_scale)
    return ultragen_attention(self, x, layer.grid, layer.spec, layer.extras, layer.gates, engine)


def managed_parameters(module: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Parameters of one of ComfyUI's layers: offloaded ones are fetched, LoRA patches applied, all cast to x."""
    return comfy.ops.cast_bias_weight(module, x)


def diffusion_model(base) -> torch.nn.Module:
    """The Wan model inside a BaseModel, also when torch.compile wraps it."""
    return getattr(base.diffusion_model, "_orig_mod", base.diffusion_model)


def token_grid(dm: torch.nn.Module, latent_shape: tuple[int, ...], more_frames: int = 0) -> TokenGrid:
    """Tokens of a latent (b, c, t, h, w): Wan pads each axis up to its patch size."""
    t, h, w = (-(-length // patch) for length, patch in zip(latent_shape[2:], dm.patch_size, strict=True))
    return TokenGrid(t + more_frames, h, w)


@dataclass
class Runtime:
    """The wrapper of one patched model. It holds settings, gates and the extras as loaded, never a module of the base
    model: every clone and every GPU brings its own, extras included, through the call.
    """

    extras: LoadedExtras
    specs: dict[int, BlockSpec]
    dense: dict[int, str]
    gates: GateTable
    percent: tuple[float, float]
    noted: set[str] = field(default_factory=set)

    def outer_sample(self, executor, noise: Tensor, *args, **kwargs):
        """Wraps a whole sampling run: says once what will run."""
        dm = diffusion_model(executor.class_obj.model_patcher.model)
        self.noted.clear()
        log.info("UltraGen: %s", describe_run(token_grid(dm, noise.shape), self.specs, self.dense, self.extras, dm))
        return executor(noise, *args, **kwargs)

    def note(self, message: str) -> None:
        """Correct that line, once a run."""
        if message not in self.noted:
            self.noted.add(message)
            log.warning("UltraGen: in this run %s.", message)

    def apply_model(
        self, executor, x: Tensor, t: Tensor, c_concat=None, c_crossattn=None, control=None, options=None, **kwargs
    ):
        """Wraps one evaluation: x (b, c, t, h, w) latent, t (b,) sigmas; the rest as BaseModel.apply_model has it."""
        options = kwargs.pop("transformer_options", options) or {}
        base = executor.class_obj
        if not self.active(base.model_sampling, t):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        dm = diffusion_model(base)
        appended = kwargs.get("time_dim_concat")
        grid = token_grid(dm, x.shape, 0 if appended is None else token_grid(dm, appended.shape).t)
        extras = base.current_patcher.get_additional_models_with_key(KEY)[0].model.blocks
        gates = self.gates(base.model_sampling.timestep(t).float())
        scale, layers = rope_scale(options), {}
        for index, spec in self.specs.items():
            attn = dm.blocks[index].self_attn
            layers[attn] = BlockLayer(attn.forward, spec, extras[str(index)], gates[index], grid, scale, self.note)
        options = with_fast_attention(options, x.device)
        with installed(layers):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def active(self, model_sampling, t: Tensor) -> bool:
        """Whether any block is chosen and this step lies between start and end percent, by the sampling settings in
        force now.
        """
        start, end = (model_sampling.percent_to_sigma(percent) for percent in self.percent)
        return bool(self.specs) and end <= t.max().item() <= start


def rope_scale(transformer_options: dict) -> tuple[float, float, float]:
    """What core's RoPE node asks for; its shifts drop out, because RoPE is relative."""
    options = transformer_options.get("rope_options") or {}
    return tuple(options.get(f"scale_{axis}", 1.0) for axis in "tyx")


@contextmanager
def installed(layers: dict[torch.nn.Module, BlockLayer]):
    """Put our forward on these attention modules; whatever instance forward was there before comes back, also after an
    exception.
    """
    before = {attn: attn.__dict__.get("forward") for attn in layers}
    try:
        for attn, layer in layers.items():
            attn.ultragen_layer = layer
            attn.forward = MethodType(windowed_forward, attn)
        yield
    finally:
        for attn, forward in before.items():
            attn.__dict__.pop("ultragen_layer", None)
            attn.__dict__.pop("forward", None)
            if forward is not None:
                attn.forward = forward

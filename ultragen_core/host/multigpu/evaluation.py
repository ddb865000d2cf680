"""One member's part of one evaluation of a Wan model: its rectangle of the latent through ComfyUI's own forward, with
layers that exchange tokens in every self-attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...attention.split.member import Member, split_dense_attention_
from ...grid import TokenGrid
from ...plan.memory import MemoryBudget
from ...rectangle import Rectangle
from ...wan import PATCH
from ..attention.layers import RuleLayer, engine, installed, rotation_table
from ..attention.runtime import Runtime
from ..wan_model import activation_dtype, all_blocks, diffusion_model, shape_of
from .exchange import Port

GATHERED_MAPS = 6  # maps of the whole video that dense attention holds: tokens, keys, values, and what is in transfer


@dataclass
class Inputs:
    """What ComfyUI hands to a Wan model's forward, on the leader's device, with the latents padded to whole tokens.

    size: height and width of the latent before. sigmas: of the evaluation (b,).
    """

    x: Tensor
    timestep: Tensor
    context: Tensor
    clip_fea: Tensor | None
    time_dim_concat: Tensor | None
    options: dict
    others: dict
    size: tuple[int, int]
    sigmas: Tensor

    @property
    def grid(self) -> TokenGrid:
        appended = 0 if self.time_dim_concat is None else self.time_dim_concat.shape[2]
        t, h, w = (length // patch for length, patch in zip(self.x.shape[2:], PATCH, strict=True))
        return TokenGrid(t + appended, h, w)


@dataclass
class MemberDenseLayer:
    """On a self-attention that stays dense: full attention of the member's tokens.

    table: a function that returns the rotations of the whole grid.
    """

    member: Member
    table: Callable[[], Tensor]
    tokens_at_a_time: int | None

    @staticmethod
    def forward(module, x: Tensor, freqs: Tensor, transformer_options: dict | None = None, **kwargs) -> Tensor:
        layer: MemberDenseLayer = module.ultragen_layer
        options = transformer_options or {}
        layer.member.exchange.block = options.get("block_index", -1)
        chosen = engine(module, options, layer.tokens_at_a_time)
        return split_dense_attention_(module, x, layer.table(), layer.member, chosen)


@dataclass
class MemberRuleLayer(RuleLayer):
    """On a self-attention under a rule: it notes the block that the member computes."""

    port: Port | None = None

    @staticmethod
    def forward(module, x: Tensor, freqs: Tensor, transformer_options: dict | None = None, **kwargs) -> Tensor:
        module.ultragen_layer.port.block = (transformer_options or {}).get("block_index", -1)
        return RuleLayer.forward(module, x, freqs, transformer_options, **kwargs)


class Part:
    """Member `port.index` of `count` in one evaluation. base: its GPU's BaseModel."""

    def __init__(self, base, device: torch.device, runtime: Runtime, inputs: Inputs, count: int, port: Port):
        self.base, self.device, self.runtime, self.inputs, self.port = base, device, runtime, inputs, port
        self.member = Member(port.index, count, inputs.grid, port)
        self.budget = self._memory_budget()
        self._table: Tensor | None = None

    @property
    def rectangle(self) -> Rectangle:
        return self.member.rectangle

    def compute(self) -> Tensor:
        """The member's rectangle of the model's output (b, c, t, rows, columns), on its device."""
        inputs, dm = self.inputs, diffusion_model(self.base)
        x = self._rectangle_of(inputs.x)
        layers, options = self._layers(dm, x)
        appended = None if inputs.time_dim_concat is None else self._rectangle_of(inputs.time_dim_concat)
        others = {
            name: self._rectangle_of(value) if name == "vace_context" else _on(value, self.device)
            for name, value in inputs.others.items()
        }
        timestep, context, clip_fea = (_on(v, self.device) for v in (inputs.timestep, inputs.context, inputs.clip_fea))
        with installed(layers), self.port.evaluation():
            return dm._forward(x, timestep, context, clip_fea, appended, options, **others)

    def _memory_budget(self) -> MemoryBudget:
        x, grid = self.inputs.x, self.member.grid
        reserved = gathered_bytes(diffusion_model(self.base), grid, x.shape[0], activation_dtype(self.base))
        return self.runtime.budget(self.base, grid.part(self.rectangle), x, self.device, reserved)

    def _rectangle_of(self, latent: Tensor) -> Tensor:
        rows, columns = latent_slices(self.rectangle)
        return latent[..., rows, columns].contiguous().to(self.device)

    def _layers(self, dm: nn.Module, x: Tensor) -> tuple[dict[nn.Module, object], dict]:
        """The layers by the module that they replace, and the options of their evaluation."""
        runtime, grid, options = self.runtime, self.member.grid, dict(self.inputs.options)
        own, sigmas = grid.part(self.rectangle), _on(self.inputs.sigmas, self.device)
        if "sample_sigmas" in options:
            options["sample_sigmas"] = _on(options["sample_sigmas"], self.device)
        attentions = runtime.attentions(self.base, grid, sigmas, options, self.member)
        if attentions or runtime.kernel:
            options |= runtime.attention_choice(self.base, options, self.device).options
        layers = runtime.layers(self.base, attentions, own, options, self.budget.tokens_at_a_time, self.device)
        dense = MemberDenseLayer(self.member, self._rotations(dm, x, options), self.budget.tokens_at_a_time)
        for block in all_blocks(dm):
            rule = layers.get(block.self_attn)
            if isinstance(rule, RuleLayer):
                layers[block.self_attn] = MemberRuleLayer(**{**vars(rule), "port": self.port})
            else:
                layers[block.self_attn] = dense
        return layers, options

    def _rotations(self, dm: nn.Module, x: Tensor, options: dict) -> Callable[[], Tensor]:
        """ComfyUI's rotations of the whole grid, computed when the first dense block asks."""
        t, size = self.member.grid.t, self.inputs.size

        def table() -> Tensor:
            if self._table is None:
                freqs = dm.rope_encode(t, *size, device=x.device, dtype=x.dtype, transformer_options=options)
                self._table = rotation_table(freqs).contiguous()
            return self._table

        return table


def latent_slices(rectangle: Rectangle) -> tuple[slice, slice]:
    """Rows and columns of a latent that a rectangle of tokens holds."""
    rows, columns = rectangle.rows, rectangle.columns
    return slice(*(PATCH[1] * edge for edge in rows)), slice(*(PATCH[2] * edge for edge in columns))


def gathered_bytes(dm: nn.Module, grid: TokenGrid, batch: int, dtype: torch.dtype) -> int:
    """What dense attention and its exchange take on every GPU besides the activations of its part."""
    return GATHERED_MAPS * batch * grid.tokens * shape_of(dm).channels * dtype.itemsize


def _on(value, device: torch.device):
    return value.to(device) if isinstance(value, Tensor) else value

"""ComfyUI's WanModel as the model that learns, with UltraGen's layer inside its hierarchical blocks."""

from __future__ import annotations

import math
from collections.abc import Callable

import comfy.ldm.wan.model as wan
import comfy.model_detection
import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tools.console import Trouble
from ultragen_core.attention.config import GlobalConfig
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.extras import ExtrasShape, LowRankDelta
from ultragen_core.attention.module import T3Attention, UltraGenAttention, UltraGenFeedForward, sdpa
from ultragen_core.attention.t3 import t3_attention
from ultragen_core.host.attention.backend import OVERRIDE
from ultragen_core.host.wan_model import shape_of, token_grid
from ultragen_core.rules.blocks import parse_blocks
from ultragen_core.rules.t3 import PublishedWindows, t3_rule
from ultragen_core.weights.files import StateDict
from ultragen_core.weights.published import Extras, has_extras, split

from .cache import Cache
from .extras import initial_extras, with_ffn_deltas
from .recipe import Recipe

TIMESTEP, GRID = "ultragen_timestep", "ultragen_grid"
LORA_TARGETS = r"blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.[qkvo]|ffn\.[02])"


def core_attention(_: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs) -> Tensor:
    """The same for ComfyUI's own layers, whose choice of a backend has inference in mind."""
    return sdpa(q, k, v, heads)


class RMSNorm(nn.RMSNorm):
    """In the precision of x, which keeps it one kernel under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Operations:
    """The layers of a WanModel that learns: PyTorch's own."""

    Linear, Conv3d, LayerNorm, RMSNorm = nn.Linear, nn.Conv3d, nn.LayerNorm, RMSNorm


class TrainingBlock(wan.WanAttentionBlock):
    """A block that can forget its activations and compute them again for the backward pass."""

    recomputed = False

    def forward(self, *args, **kwargs) -> Tensor:
        if not (self.recomputed and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)


class TrainedAttention(UltraGenAttention):
    """UltraGen's layer with the arguments of ComfyUI's self-attention."""

    def forward(self, x: Tensor, freqs: Tensor, transformer_options: dict) -> Tensor:
        return super().forward(x, transformer_options[GRID], transformer_options[TIMESTEP])


class TrainedT3Attention(T3Attention):
    """T3-Video's layer with the arguments of ComfyUI's self-attention. Its windows depend on the video's size."""

    def __init__(self, attn: nn.Module, published: PublishedWindows, block_index: int, engine: Engine):
        super().__init__(attn, published.windows[block_index % len(published.windows)], engine)
        self.published, self.block_index = published, block_index

    def forward(self, x: Tensor, freqs: Tensor, transformer_options: dict) -> Tensor:
        grid = transformer_options[GRID]
        table = self.published.table(grid)
        return t3_attention(self, x, grid, table[self.block_index % len(table)], self.engine)


class Velocity(nn.Module):
    """What is trained: x (b, c, t, h, w), t (b,) = 1000 * sigma, text (b, 512, text channels) -> velocity like x.

    Image-to-video models also take a condition (b, 20, t, h, w).
    dtype: of the base's file, which what is published keeps. shape: of the extras; None is a model without.
    """

    def __init__(self, model: wan.WanModel, dtype: torch.dtype, shape: ExtrasShape | None):
        super().__init__()
        self.wan, self.dtype, self.shape = model, dtype, shape

    def check(self, cache: Cache) -> None:
        """Raise Trouble if the model cannot learn from these clips."""
        shape, condition = cache.latent_shape(), cache.clip(0).condition
        given = shape[0] + (0 if condition is None else len(condition))
        taken = self.wan.patch_embedding.in_channels
        if given != taken:
            raise Trouble(
                f"The model takes {taken} channels, the clips of {cache.folder} have {given}. Start images, which"
                " image-to-video models take, are encoded only by the miniature."
            )
        grid = token_grid((1, *shape))
        for block in self.wan.blocks:
            if isinstance(block.self_attn, TrainedT3Attention):
                try:
                    block.self_attn.published.table(grid)
                except ValueError as refusal:
                    raise Trouble(str(refusal)) from None

    def forward(self, x: Tensor, t: Tensor, text: Tensor, condition: Tensor | None = None) -> Tensor:
        x = x if condition is None else torch.cat((x, condition), dim=1)
        options = {TIMESTEP: t, GRID: token_grid(x.shape), OVERRIDE: core_attention}
        return self.wan(x, t, text, transformer_options=options)


def build(state: StateDict, name: str, recipe: Recipe, recomputed: bool = False) -> Velocity:
    """The model in float32 with its weights, and with what the recipe trains set to learn. Raises Trouble.

    state: a Wan text-to-video checkpoint; its extras are trained further; without any, they start as the paper says.
    recomputed: keep no activations of blocks for the backward pass (gradient checkpointing).
    """
    # ComfyUI's fast kernels have no backward pass; 0.3.75 has none of them.
    comfy.model_management.in_training = True
    base, extras = split(state, name) if has_extras(state) else (state, None)
    model = _wan_model(base, name)
    shape = None
    if recipe.rule == "ultragen":
        extras = extras or initial_extras(recipe, model.dim, len(model.blocks))
        if recipe.ffn_deltas and not extras.shape.ffn_channels:
            extras = with_ffn_deltas(extras, model.ffn_dim, recipe.seed)
        shape = extras.shape
        _install_ultragen(model, extras, recipe)
    elif recipe.rule == "t3":
        _install_t3(model, recipe)
    for block in model.blocks:
        block.recomputed = recomputed
    set_learning(model, recipe)
    return Velocity(model, base["head.head.weight"].dtype, shape)


def _install_ultragen(model: wan.WanModel, extras: Extras, recipe: Recipe) -> None:
    engine = Engine(sdpa)
    for index, state in extras.blocks.items():
        block, attn_state = model.blocks[index], {key: x for key, x in state.items() if not key.startswith("ffn.")}
        block.self_attn = TrainedAttention(block.self_attn, recipe.spec(index), extras.shape, engine)
        block.self_attn.extras.load_state_dict(attn_state)
        block.self_attn.gates.load_state_dict(extras.gates[index])
        if extras.shape.ffn_channels:
            block.ffn = UltraGenFeedForward(block.ffn, extras.shape, recipe.delta_strength)
            ffn_state = {key.removeprefix("ffn."): x for key, x in state.items() if key not in attn_state}
            block.ffn.extras.load_state_dict(ffn_state)


def _install_t3(model: wan.WanModel, recipe: Recipe) -> None:
    rule = t3_rule(shape_of(model), global_=GlobalConfig(dense_blocks=parse_blocks(recipe.dense_blocks)))
    engine = Engine(sdpa)
    for index in rule.blocks:
        attn = TrainedT3Attention(model.blocks[index].self_attn, rule.published, index, engine)
        model.blocks[index].self_attn = attn


def _wan_model(base: StateDict, name: str) -> wan.WanModel:
    if "head.modulation" not in base:
        raise Trouble(f"{name} holds no Wan model. Give a whole checkpoint, such as wan2.1_t2v_1.3B_fp16.safetensors.")
    sizes = comfy.model_detection.detect_unet_config(base, "")
    if sizes["model_type"] != "t2v":
        raise Trouble(f"Text-to-video models are trained, {name} is of the kind {sizes['model_type']}. Give another.")
    model = wan.WanModel(**sizes, wan_attn_block_class=TrainingBlock, operations=Operations)
    model.load_state_dict(base)
    return model.float()


def set_learning(model: wan.WanModel, recipe: Recipe) -> None:
    """What learns and what does not; nothing learns in a branch that is switched off."""
    model.requires_grad_(recipe.trains == "full")
    for module in model.modules():
        if isinstance(module, (TrainedAttention, UltraGenFeedForward)):
            module.extras.requires_grad_(recipe.trains != "lora")
        if isinstance(module, TrainedAttention):
            module.gates.requires_grad_(recipe.trains != "lora")
            for part in _switched_off(module, recipe):
                part.requires_grad_(False)
    for module in model.modules() if "delta" in recipe.without else ():
        if isinstance(module, LowRankDelta):
            module.requires_grad_(False)
    if recipe.trains == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=LORA_TARGETS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            inject_adapter_in_model(config, model)


def _switched_off(attn: TrainedAttention, recipe: Recipe) -> list[nn.Module]:
    branches = {
        "hierarchical": (attn.extras.hierarchical_branch, attn.gates.hierarchical_gate),
        "global": (attn.extras.global_branch, attn.gates.global_gate),
    }
    return [part for name, parts in branches.items() if name in recipe.without for part in parts]


def random_base(channels: int, blocks: int, ffn_channels: int, seed: int) -> StateDict:
    """A Wan 2.1 text-to-video model to train from scratch, initialised as Wan's own code does it."""
    if channels % 128:
        raise Trouble(f"Wan's heads have 128 channels each, so the width is a multiple of that, got {channels}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = wan.WanModel(
            dim=channels, ffn_dim=ffn_channels, num_heads=channels // 128, num_layers=blocks, operations=Operations
        )
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                nn.init.ones_(parameter)
            elif name.endswith("modulation"):
                nn.init.normal_(parameter, std=1 / math.sqrt(channels))
            elif parameter.ndim == 1 or name.startswith("head.head"):
                nn.init.zeros_(parameter)
            elif name.startswith(("text_embedding", "time_embedding")):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter.flatten(1))
    return {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}

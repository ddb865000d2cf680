"""The methods that `python3 -m tools.bench model` compares: how each loads a checkpoint and patches the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ultragen_core.grid import TokenGrid
from ultragen_core.ops.dispatch import use_triton
from ultragen_core.rules.choice import COMFYUI
from ultragen_core.rules.ultragen import UltraGenRule

from .published import published_attention

METHODS = ("comfyui", "cudnn", "published", "plain", "ours", "fp8", "fp8 products", "all", "t3", "t3 fp8")
"""ComfyUI's core; the same with cuDNN's attention; UltraGen's published arithmetic; this pack without Triton, with it,
with attention_kernel fp8, and with weight_dtype fp8_e4m3fn_fast as well; with UltraGen in all blocks; T3-Video's rule,
and with attention_kernel fp8."""
WEIGHT_DTYPE = {method: "fp8_e4m3fn_fast" if method == "fp8 products" else "default" for method in METHODS}
"""The weight_dtype that each method's model is loaded with. default: bf16."""
KERNEL = {method: "fp8" if "fp8" in method.split() else COMFYUI for method in METHODS}
"""Each method's attention_kernel. comfyui: bf16."""
PUBLISHED_DENSE = frozenset({0, 1, 2, 27, 28, 29})


def load(path: Path, rule: str, weight_dtype: str):
    """Return the model at `path`, patched by `rule`, as UltraGenLoadModel loads it. Unload all others."""
    import comfy.model_management as mm

    from ultragen_core.host.attention.load import WEIGHT_DTYPES, load_model

    mm.unload_all_models()
    return load_model(path, rule, {"dtype": torch.bfloat16} | WEIGHT_DTYPES[weight_dtype])


def prepared(model, method: str):
    """Return a clone of a patched `model` that evaluates as `method` says, also through a sampler.

    model: a ModelPatcher with weights of WEIGHT_DTYPE[method].
    """
    from ultragen_core.attention.config import GlobalConfig
    from ultragen_core.host.attention.patch import Settings, apply, runtime_of

    if method in ("comfyui", "cudnn"):
        return _dense(model, cudnn=method == "cudnn")
    kernel = KERNEL[method]
    if method.startswith("t3"):
        return apply(model, Settings(rule="t3", attention_kernel=kernel))
    blocks = GlobalConfig(dense_blocks=frozenset() if method == "all" else PUBLISHED_DENSE)
    made = apply(model, Settings(global_=blocks, attention_kernel=kernel))
    if method == "published":
        runtime = runtime_of(made)
        runtime.rule, runtime.bounded = PublishedRule(**vars(runtime.rule)), False
    return made


def running(method: str) -> AbstractContextManager:
    """Return the context to evaluate `prepared(model, method)` in."""
    return use_triton(False) if method == "plain" else nullcontext()


def _dense(model, cudnn: bool):
    from comfy.patcher_extension import WrappersMP

    from ultragen_core.host.attention import backend
    from ultragen_core.host.attention.extras import KEY

    dense = model.clone()
    for wrapper in (WrappersMP.OUTER_SAMPLE, WrappersMP.APPLY_MODEL):
        dense.remove_wrappers_with_key(wrapper, KEY)
    dense.set_additional_models(KEY, [])
    if cudnn:
        dense.model_options.setdefault("transformer_options", {})[backend.OVERRIDE] = backend.cudnn_attention
    return dense


class PublishedRule(UltraGenRule):
    """UltraGen's rule with the published arithmetic."""

    def describe(self, grid: TokenGrid, blocks: int) -> list[str]:
        return ["the published arithmetic"]

    def attentions(
        self, extras: Mapping, gates: Mapping, grid: TokenGrid, member: None = None
    ) -> dict[int, Callable[..., Tensor]]:
        def attention(attn, x, engine, index, **ours):
            return published_attention(attn, x, grid, index, ours["extras"], ours["gates"])

        ours = super().attentions(extras, gates, grid)
        return {index: partial(attention, index=index, **bound.keywords) for index, bound in ours.items()}
